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
    collections::{BTreeMap, BTreeSet},
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
    /// cannot resume calls [`Work::clear`]. One that was interrupted after its manifest was written is complete, and is
    /// published here.
    ///
    /// # Errors
    /// A `--link` that cannot be made, a published artifact that no longer verifies, or a store that cannot be written.
    pub fn begin(self, args: &StageArgs) -> Result<Begin> {
        args.check_link()?;
        let parent = args.store.join(&self.stage);
        fs::create_dir_all(&parent).map_err(Error::io(&parent, "create"))?;
        let key = self.key();
        let target = parent.join(&key[..12]);
        if let Some(artifact) = published(&target, &key)? {
            // A crash left them, or whoever has just published it is about to remove them and holds the lock.
            if scratch(&target).is_ok_and(|found| !found.is_empty())
                && let Ok(_lock) = lock(&parent, &key[..12])
            {
                drop_scratch(&target);
            }
            return Ok(Begin::UpToDate(artifact));
        }
        let lock = lock(&parent, &key[..12])?;
        // Another process may have published it while this one waited.
        if let Some(artifact) = published(&target, &key)? {
            return Ok(Begin::UpToDate(artifact));
        }
        let dir = parent.join(format!(".work-{}", &key[..12]));
        match published(&dir, &key) {
            Ok(Some(_)) => return Ok(Begin::UpToDate(promote(&dir, &target)?)),
            Ok(None) => {}
            // Its files were written to after the manifest: what it says is not so, but a checkpoint is still good.
            Err(_) => remove_manifest(&dir)?,
        }
        fs::create_dir_all(&dir).map_err(Error::io(&dir, "create"))?;
        Ok(Begin::Build(Work { plan: self, key, dir, target, logs: Vec::new(), provenance: Provenance::start(), lock }))
    }
}

/// Renames a complete build into place and then removes its scratch files, which until then are what a crash leaves to
/// go on from. The lock on its key is held.
fn promote(dir: &Path, target: &Path) -> Result<Artifact> {
    if target.exists() {
        // No manifest was there when the lock was taken, so this is the rest of a deletion.
        fs::remove_dir_all(target).map_err(Error::io(target, "remove"))?;
    }
    fs::rename(dir, target).map_err(Error::io(target, "publish"))?;
    sync_dir(target.parent().expect("a target lies in its stage's directory"))?;
    drop_scratch(target);
    Artifact::read(target)
}

fn remove_manifest(dir: &Path) -> Result<()> {
    let path = dir.join(MANIFEST);
    fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
    sync_dir(dir)
}

/// The scratch files in `dir`.
fn scratch(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let names = fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path()));
    let is_scratch = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(SCRATCH_PREFIX));
    Ok(names.collect::<std::io::Result<Vec<_>>>()?.into_iter().filter(is_scratch).collect())
}

/// Removes the scratch files of a published artifact. No manifest names them, so one that stays does no harm, and the
/// next build of the key tries again.
fn drop_scratch(dir: &Path) {
    for path in scratch(dir).unwrap_or_default() {
        let is_dir = path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
        let _ = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
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
                crate::say!("another process is building {}; waiting for it", parent.join(key12).display());
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

    /// Hashes and syncs every file, writes the manifest last, renames the directory into place, and then removes what
    /// is private to the stage.
    ///
    /// # Errors
    /// [`Error::Io`]; nothing is published then.
    pub fn publish(mut self) -> Result<Artifact> {
        self.seal()?;
        let artifact = promote(&self.dir, &self.target)?;
        drop(self.lock);
        Ok(artifact)
    }

    /// Makes the work directory an artifact in all but place.
    fn seal(&mut self) -> Result<()> {
        let mut names = Vec::new();
        list(&self.dir, "", &mut names)?;
        names.sort();
        let dirs: BTreeSet<&Path> = names.iter().flat_map(|name| Path::new(name).ancestors().skip(1)).collect();
        dirs.into_iter().try_for_each(|inside| sync_dir(&self.dir.join(inside)))?;
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
        write_atomic(&self.dir.join(MANIFEST), &pretty(&manifest))
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

/// Writes a file so that a crash leaves the old content or the new one, and of a part at most a scratch file.
///
/// # Errors
/// [`Error::Io`] when a step fails; the old content is still there then.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = path.with_file_name(format!("{SCRATCH_PREFIX}{name}.part"));
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

    fn begin(store: &Path) -> Begin {
        Plan::new("demo", 1, &CONFIG).begin(&args(store)).unwrap()
    }

    fn build(store: &Path) -> Artifact {
        filled(store).publish().unwrap()
    }

    /// A build that has all its files.
    fn filled(store: &Path) -> Work {
        let Begin::Build(mut work) = begin(store) else { panic!("expected a build") };
        fs::write(work.path("a.txt"), "alpha").unwrap();
        fs::create_dir(work.path("sub")).unwrap();
        fs::write(work.path("sub/b.txt"), "beta").unwrap();
        fs::write(work.path("timing.csv"), format!("{:?}", std::time::Instant::now())).unwrap();
        fs::write(work.path(".checkpoint"), "private").unwrap();
        work.log("timing.csv");
        work
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
    fn a_crash_after_the_manifest_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut work = filled(dir.path());
        work.seal().unwrap();
        assert!(work.path(".checkpoint").exists(), "until it is published");
        // The rest of a deletion is in the way.
        fs::create_dir(&work.target).unwrap();
        fs::write(work.target.join("rest"), "").unwrap();
        let (from, to) = (work.dir.clone(), work.target.clone());
        drop(work);
        let Begin::UpToDate(artifact) = begin(dir.path()) else { panic!("expected the artifact") };
        assert_eq!(artifact.dir(), fs::canonicalize(&to).unwrap());
        assert!(artifact.verify().is_ok() && !from.exists());
        assert!(!to.join(".checkpoint").exists() && !to.join("rest").exists());
    }

    #[test]
    fn a_crash_after_the_manifest_whose_files_are_wrong_goes_on_from_the_scratch_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut work = filled(dir.path());
        work.seal().unwrap();
        fs::write(work.path("sub/b.txt"), "").unwrap();
        drop(work);
        let Begin::Build(work) = begin(dir.path()) else { panic!("expected a build") };
        assert!(work.path(".checkpoint").exists() && !work.path(MANIFEST).exists());
        work.clear().unwrap();
        drop(work);
        assert!(build(dir.path()).verify().is_ok());
    }

    #[test]
    fn scratch_files_that_a_crash_left_in_an_artifact_go_when_it_is_next_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let artifact = build(dir.path());
        fs::create_dir(artifact.dir().join(".cache")).unwrap();
        fs::write(artifact.dir().join(".cache/x"), "").unwrap();
        fs::write(artifact.dir().join(".checkpoint"), "private").unwrap();
        assert!(artifact.verify().is_ok());
        assert!(matches!(begin(dir.path()), Begin::UpToDate(_)));
        assert!(scratch(artifact.dir()).unwrap().is_empty());
        assert!(artifact.dir().join("sub/b.txt").exists());
    }

    #[test]
    fn half_of_a_file_is_never_published() {
        let dir = tempfile::tempdir().unwrap();
        let work = filled(dir.path());
        // What a crash inside of `write_atomic` leaves.
        fs::create_dir(work.path("a.json")).unwrap();
        assert!(write_atomic(&work.path("a.json"), b"{}").is_err());
        assert!(work.path(".a.json.part").exists());
        fs::remove_dir(work.path("a.json")).unwrap();
        assert_eq!(work.publish().unwrap().manifest().outputs.len(), 3);
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
