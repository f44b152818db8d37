//! Entering a stage: is the artifact there already, and if not, a locked work directory that one rename publishes.

use crate::{
    Artifact, Error, Result,
    artifact::{self, MANIFEST, Manifest, Output, SCHEMA},
    cli::StageArgs,
    config::Section,
    digest,
    provenance::Provenance,
};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Files below a work directory whose name starts so are private to the stage (checkpoints) and never published.
pub const SCRATCH_PREFIX: &str = ".";

/// What is asked for: a stage, its version, its config and its inputs.
#[derive(Clone, Debug)]
pub struct Plan {
    stage: String,
    version: u32,
    config: Value,
    inputs: BTreeMap<String, String>,
}

/// Where [`Plan::begin`] leads.
#[derive(Debug)]
pub enum Begin {
    /// The artifact was there; it has been verified.
    UpToDate(Artifact),
    /// It has to be built.
    Build(Work),
}

impl Plan {
    /// A build of `stage`. `config` is a struct with a fixed field order: it is part of the key.
    pub fn new(stage: &str, version: u32, config: &impl Serialize) -> Self {
        let config = serde_json::to_value(config).expect("a config serialises to JSON");
        Self { stage: stage.to_owned(), version, config, inputs: BTreeMap::new() }
    }

    /// [`Plan::new`] for a config section, whose name is the stage's.
    pub fn of<S: Section>(version: u32, config: &S) -> Self {
        Self::new(S::NAME, version, config)
    }

    /// Adds an input by the digest of its content.
    #[must_use]
    pub fn input(mut self, role: &str, digest: &str) -> Self {
        self.inputs.insert(role.to_owned(), digest.to_owned());
        self
    }

    /// The key: 64 hexadecimal digits.
    pub fn key(&self) -> String {
        artifact::key(&self.stage, self.version, &self.config, &self.inputs)
    }

    /// Finds the artifact or locks a work directory for building it. Waits while another process builds the same key.
    ///
    /// The work directory is what an interrupted build of the same key left, so that training can resume; a stage that
    /// cannot resume calls [`Work::clear`].
    ///
    /// # Errors
    /// A published artifact that no longer verifies, or a store that cannot be written.
    pub fn begin(self, args: &StageArgs) -> Result<Begin> {
        let parent = args.store.join(&self.stage);
        fs::create_dir_all(&parent).map_err(Error::io(&parent, "create"))?;
        let key = self.key();
        let target = parent.join(&key[..12]);
        if let Some(artifact) = published(&target, &key)? {
            return Ok(Begin::UpToDate(artifact));
        }
        let lock = lock(&parent, &key[..12])?;
        // Another process may have published it while this one waited.
        if let Some(artifact) = published(&target, &key)? {
            return Ok(Begin::UpToDate(artifact));
        }
        let dir = parent.join(format!(".work-{}", &key[..12]));
        fs::create_dir_all(&dir).map_err(Error::io(&dir, "create"))?;
        Ok(Begin::Build(Work { plan: self, key, dir, target, logs: Vec::new(), provenance: Provenance::start(), lock }))
    }
}

/// The artifact at `target`, verified; `None` when there is no manifest, which is to say nothing.
fn published(target: &Path, key: &str) -> Result<Option<Artifact>> {
    if !target.join(MANIFEST).exists() {
        return Ok(None);
    }
    let artifact = Artifact::open_any(target)?;
    if artifact.manifest().key != key {
        return Err(Error::bad(target, format!("holds key {}, expected {key}", artifact.manifest().key)));
    }
    Ok(Some(artifact))
}

/// Takes the lock of one key. The operating system frees it when the process ends, however it ends.
fn lock(parent: &Path, key12: &str) -> Result<File> {
    let path = parent.join(format!(".lock-{key12}"));
    loop {
        let file = File::create(&path).map_err(Error::io(&path, "create"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("another process is building {}; waiting for it", parent.join(key12).display());
                file.lock().map_err(Error::io(&path, "lock"))?;
            }
            Err(TryLockError::Error(error)) => return Err(Error::io(&path, "lock")(error)),
        }
        // `lcf-artifact gc` removes lock files that nobody holds. A lock on a file that is gone keeps nobody out.
        let ours = file.metadata().map_err(Error::io(&path, "stat"))?;
        if fs::metadata(&path).is_ok_and(|found| (found.dev(), found.ino()) == (ours.dev(), ours.ino())) {
            return Ok(file);
        }
    }
}

/// A build under way: a private directory beside its final place, and the lock on its key.
#[derive(Debug)]
pub struct Work {
    plan: Plan,
    key: String,
    dir: PathBuf,
    target: PathBuf,
    logs: Vec<String>,
    provenance: Provenance,
    lock: File,
}

impl Work {
    /// The work directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path inside the work directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The first 12 digits of the key.
    pub fn key12(&self) -> &str {
        &self.key[..12]
    }

    /// Removes what an interrupted build left.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory cannot be emptied.
    pub fn clear(&self) -> Result<()> {
        fs::remove_dir_all(&self.dir).map_err(Error::io(&self.dir, "empty"))?;
        fs::create_dir_all(&self.dir).map_err(Error::io(&self.dir, "create"))
    }

    /// Marks `name` as a log: verified like any file, left out of the digest because it differs from run to run.
    pub fn log(&mut self, name: &str) {
        self.logs.push(name.to_owned());
    }

    /// What will be recorded beside the content.
    pub fn provenance(&mut self) -> &mut Provenance {
        &mut self.provenance
    }

    /// Hashes and syncs every file, writes the manifest last, and renames the directory into place.
    ///
    /// # Errors
    /// [`Error::Io`]; nothing is published then.
    pub fn publish(mut self) -> Result<Artifact> {
        let mut names = Vec::new();
        list(&self.dir, "", &mut names)?;
        names.sort();
        let outputs: Result<Vec<Output>> = names
            .into_par_iter()
            .map(|path| {
                let file = self.dir.join(&path);
                let (bytes, sha256) = digest::of_file(&file)?;
                File::open(&file).and_then(|f| f.sync_all()).map_err(Error::io(&file, "sync"))?;
                Ok(Output { log: self.logs.contains(&path), path, bytes, sha256 })
            })
            .collect();
        let outputs = outputs?;
        self.provenance.finish();
        let manifest = Manifest {
            schema: SCHEMA,
            stage: self.plan.stage.clone(),
            version: self.plan.version,
            key: self.key.clone(),
            config: self.plan.config.clone(),
            inputs: self.plan.inputs.clone(),
            digest: artifact::content_digest(&outputs),
            outputs,
            provenance: self.provenance.clone(),
        };
        self.drop_scratch()?;
        write_atomic(&self.dir.join(MANIFEST), &pretty(&manifest))?;
        if self.target.exists() {
            // No manifest was there when the lock was taken, so this is the rest of a deletion.
            fs::remove_dir_all(&self.target).map_err(Error::io(&self.target, "remove"))?;
        }
        sync_dir(&self.dir)?;
        fs::rename(&self.dir, &self.target).map_err(Error::io(&self.target, "publish"))?;
        sync_dir(self.target.parent().expect("a target lies in its stage's directory"))?;
        let artifact = Artifact::read(&self.target)?;
        drop(self.lock);
        Ok(artifact)
    }

    fn drop_scratch(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).map_err(Error::io(&self.dir, "list"))? {
            let entry = entry.map_err(Error::io(&self.dir, "list"))?;
            if entry.file_name().to_string_lossy().starts_with(SCRATCH_PREFIX) {
                let path = entry.path();
                let is_dir = entry.file_type().map_err(Error::io(&path, "stat"))?.is_dir();
                let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(Error::io(&path, "remove"))?;
            }
        }
        Ok(())
    }
}

/// Every regular file below `dir` that is to be published, as paths relative to the work directory.
fn list(dir: &Path, prefix: &str, names: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
        let entry = entry.map_err(Error::io(dir, "list"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(SCRATCH_PREFIX) || (prefix.is_empty() && name == MANIFEST) {
            continue;
        }
        let path = format!("{prefix}{name}");
        match entry.file_type().map_err(Error::io(entry.path(), "stat"))?.is_dir() {
            true => list(&entry.path(), &format!("{path}/"), names)?,
            false => names.push(path),
        }
    }
    Ok(())
}

/// Pretty JSON with a final newline.
pub fn pretty(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("plain data serialises");
    text.push(b'\n');
    text
}

/// Writes a file so that a crash leaves the old content or the new one, never a part.
///
/// # Errors
/// [`Error::Io`] when a step fails; the old content is still there then.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
    let part = path.with_extension("part");
    let mut file = File::create(&part).map_err(Error::io(&part, "create"))?;
    file.write_all(content).map_err(Error::io(&part, "write"))?;
    file.sync_all().map_err(Error::io(&part, "sync"))?;
    fs::rename(&part, path).map_err(Error::io(path, "rename into place"))?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Makes the renames in `dir` survive a power cut.
///
/// # Errors
/// [`Error::Io`] when the directory cannot be opened or synced.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(Error::io(dir, "sync"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[derive(Serialize)]
    struct Config {
        epochs: usize,
        lr: f64,
    }

    const CONFIG: Config = Config { epochs: 3, lr: 1e-4 };

    fn args(store: &Path) -> StageArgs {
        StageArgs { store: store.to_owned(), ..StageArgs::default() }
    }

    fn build(store: &Path) -> Artifact {
        let Begin::Build(mut work) = Plan::new("demo", 1, &CONFIG).begin(&args(store)).unwrap() else {
            panic!("expected a build")
        };
        fs::write(work.path("a.txt"), "alpha").unwrap();
        fs::create_dir(work.path("sub")).unwrap();
        fs::write(work.path("sub/b.txt"), "beta").unwrap();
        fs::write(work.path("timing.csv"), format!("{:?}", std::time::Instant::now())).unwrap();
        fs::write(work.path(".checkpoint"), "private").unwrap();
        work.log("timing.csv");
        work.publish().unwrap()
    }

    /// Changing this literal orphans every artifact users have: bump a stage's version instead.
    #[test]
    fn the_key_is_pinned() {
        let plan = Plan::new("demo", 1, &CONFIG).input("data", "00ff");
        assert_eq!(plan.key(), "3e84cf6e3ee0ae9fde6adeec720a7fea36fe2ad5bae6180eb12e1f25546bfc4c");
        assert_ne!(Plan::new("demo", 2, &CONFIG).input("data", "00ff").key(), plan.key());
        assert_ne!(Plan::new("demo", 1, &CONFIG).input("data", "00fe").key(), plan.key());
        assert_ne!(Plan::new("demo", 1, &Config { epochs: 4, ..CONFIG }).input("data", "00ff").key(), plan.key());
    }

    #[test]
    fn publishes_once_and_is_up_to_date_after() {
        let dir = tempfile::tempdir().unwrap();
        let artifact = build(dir.path());
        let names: Vec<_> = artifact.manifest().outputs.iter().map(|o| o.path.as_str()).collect();
        assert_eq!(names, ["a.txt", "sub/b.txt", "timing.csv"]);
        assert!(!artifact.dir().join(".checkpoint").exists());
        let again = Plan::new("demo", 1, &CONFIG).begin(&args(dir.path())).unwrap();
        assert!(matches!(again, Begin::UpToDate(found) if found.digest() == artifact.digest()));
    }

    #[test]
    fn logs_are_verified_but_not_part_of_the_digest() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (one, two) = (build(one.path()), build(two.path()));
        assert_eq!(one.digest(), two.digest());
        assert_ne!(one.manifest().outputs[2].sha256, two.manifest().outputs[2].sha256);
    }

    #[test]
    fn every_way_a_file_can_be_wrong_is_named() {
        for (what, break_it) in [
            ("found sha256", (|p: &Path| File::options().write(true).open(p)?.write_all_at(b"A", 0)) as fn(&Path) -> _),
            ("found 3 bytes, expected 5", |p: &Path| File::options().write(true).open(p)?.set_len(3)),
            ("missing", |p: &Path| fs::remove_file(p)),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let artifact = build(dir.path());
            break_it(&artifact.dir().join("a.txt")).unwrap();
            let error = Artifact::open(artifact.dir(), "demo").unwrap_err();
            assert!(error.to_string().contains("a.txt") && error.to_string().contains(what), "{error}");
            assert!(error.hint().unwrap().starts_with("rm -r "));
            assert!(Plan::new("demo", 1, &CONFIG).begin(&args(dir.path())).is_err());
        }
    }

    #[test]
    fn a_manifest_that_was_edited_is_refused() {
        for (from, to, message) in [
            ("\"epochs\": 3", "\"epochs\": 4", "key"),
            ("\"path\": \"a.txt\"", "\"path\": \"b.txt\"", "digest"),
            ("\"schema\": 1", "\"schema\": 2", "schema 2, expected 1"),
            ("\"stage\"", "\"stag\"", "not a manifest"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let artifact = build(dir.path());
            let path = artifact.dir().join(MANIFEST);
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(from));
            fs::write(&path, text.replacen(from, to, 1)).unwrap();
            let error = Artifact::read(artifact.dir()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn the_wrong_stage_and_nothing_at_all_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let artifact = build(dir.path());
        let error = Artifact::open(artifact.dir(), "train").unwrap_err().to_string();
        assert!(error.ends_with("found an artifact of stage demo, expected train"), "{error}");
        assert!(Artifact::read(dir.path()).unwrap_err().to_string().contains("no artifact here"));
    }

    #[test]
    fn a_lock_whose_file_was_removed_while_it_was_waited_for_is_taken_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock-key");
        let held = lock(dir.path(), "key").unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| lock(dir.path(), "key").unwrap());
            std::thread::sleep(std::time::Duration::from_millis(50));
            fs::remove_file(&path).unwrap();
            drop(held);
            let taken = waiting.join().unwrap();
            assert_eq!(fs::metadata(&path).unwrap().ino(), taken.metadata().unwrap().ino());
        });
    }

    #[test]
    fn an_interrupted_build_leaves_nothing_published_and_its_lock_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let Begin::Build(work) = Plan::new("demo", 1, &CONFIG).begin(&args(dir.path())).unwrap() else { panic!() };
        fs::write(work.path("a.txt"), "half").unwrap();
        drop(work);
        let Begin::Build(work) = Plan::new("demo", 1, &CONFIG).begin(&args(dir.path())).unwrap() else { panic!() };
        assert_eq!(fs::read_to_string(work.path("a.txt")).unwrap(), "half");
        work.clear().unwrap();
        assert!(!work.path("a.txt").exists());
    }
}
