//! `lcf-artifact gc`: what no run needs is removed, one key at a time and under that key's lock.

use crate::{
    store::{Store, entries, links, name},
    text,
};
use lcf_store::{
    Error, Result,
    artifact::{MANIFEST, is_key},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

/// What can go.
#[derive(Debug)]
pub struct Plan {
    /// By stage and key.
    pub items: Vec<Item>,
    /// What is left alone though nothing is known to need it, and why.
    pub kept: Vec<String>,
}

/// All that can go of one key of one stage.
#[derive(Debug)]
pub struct Item {
    lock: PathBuf,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    path: PathBuf,
    what: &'static str,
    bytes: u64,
}

/// Compares the store with what the links below `runs` lead to.
///
/// # Errors
/// [`Error::Bad`] when `runs` does not exist: then everything would go. [`Error::Io`] when a directory cannot be listed.
pub fn plan(root: &Path, runs: &Path) -> Result<Plan> {
    if !runs.is_dir() {
        return Err(Error::bad(runs, "no runs here, so nothing in the store would be kept")
            .with_hint(format!("give --runs DIR, or remove the whole store with rm -r {}", root.display())));
    }
    let store = Store::scan(root)?;
    let linked: BTreeSet<PathBuf> = links(runs)?.into_iter().filter_map(|link| link.target).collect();
    let needed = needed(&store, &linked);
    let mut plan = Plan { items: Vec::new(), kept: Vec::new() };
    for stage in entries(root)?.into_iter().filter(|path| path.is_dir()) {
        for (key, parts) in by_key(&stage, &needed, &mut plan.kept)? {
            plan.items.push(Item { lock: stage.join(format!(".lock-{key}")), parts });
        }
    }
    Ok(plan)
}

/// The directories of the artifacts that links lead to and, in turn, of those whose content they were made from.
fn needed(store: &Store, linked: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    let mut needed = BTreeSet::new();
    let mut open: Vec<_> = store.artifacts.iter().filter(|artifact| linked.contains(artifact.dir())).collect();
    while let Some(artifact) = open.pop() {
        if needed.insert(artifact.dir().to_owned()) {
            let inputs: BTreeSet<&String> = artifact.manifest().inputs.values().collect();
            open.extend(store.artifacts.iter().filter(|other| inputs.contains(&other.manifest().digest)));
        }
    }
    needed
}

/// What can go of a stage, by key.
fn by_key(stage: &Path, needed: &BTreeSet<PathBuf>, kept: &mut Vec<String>) -> Result<BTreeMap<String, Vec<Part>>> {
    let mut parts: BTreeMap<String, Vec<Part>> = BTreeMap::new();
    for path in entries(stage)? {
        let name = name(&path);
        let (key, what) = match () {
            () if is_key(&name) => (name.as_str(), "artifact"),
            () if name.starts_with(".work-") => (&name[".work-".len()..], "interrupted build"),
            () if name.starts_with(".lock-") => (&name[".lock-".len()..], "lock"),
            () => continue,
        };
        if what == "artifact" && path.join(MANIFEST).exists() {
            let dir = fs::canonicalize(&path).map_err(Error::io(&path, "open"))?;
            if needed.contains(&dir) {
                continue;
            }
            if let Err(error) = lcf_store::Artifact::read(&path) {
                kept.push(format!("kept though it cannot be read: {error}"));
                continue;
            }
        }
        let bytes = size(&path)?;
        parts.entry(key.to_owned()).or_default().push(Part { path, what, bytes });
    }
    Ok(parts)
}

impl Item {
    /// Whether no process holds the lock of its key.
    ///
    /// # Errors
    /// [`Error::Io`] when the lock cannot be opened.
    pub fn is_free(&self) -> Result<bool> {
        match File::open(&self.lock) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
            file => taken(&file.map_err(Error::io(&self.lock, "open"))?, &self.lock),
        }
    }

    /// Removes it unless its key is locked; returns whether it did.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be removed.
    pub fn remove(&self) -> Result<bool> {
        let file = File::create(&self.lock).map_err(Error::io(&self.lock, "create"))?;
        if !taken(&file, &self.lock)? {
            return Ok(false);
        }
        for part in self.parts.iter().filter(|part| part.path != self.lock) {
            // Without its manifest a directory is no artifact, whatever happens before all of it is gone.
            let manifest = part.path.join(MANIFEST);
            if manifest.exists() {
                fs::remove_file(&manifest).map_err(Error::io(&manifest, "remove"))?;
            }
            fs::remove_dir_all(&part.path).map_err(Error::io(&part.path, "remove"))?;
        }
        fs::remove_file(&self.lock).map_err(Error::io(&self.lock, "remove"))?;
        Ok(true)
    }

    /// The directory or file it is about.
    pub fn path(&self) -> &Path {
        self.parts.iter().map(|part| &part.path).find(|path| **path != self.lock).unwrap_or(&self.lock)
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// `artifact data/artifacts/train/0123456789ab, 1.2 MiB`, a line a part.
    pub fn line(&self) -> String {
        let line = |part: &Part| {
            let path = text::short(&part.path);
            format!("{} {}, {}", part.what, path.display(), text::size(part.bytes))
        };
        self.parts.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Tries to take the lock; it is held as long as `file` is open.
fn taken(file: &File, path: &Path) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(Error::io(path, "lock")(error)),
    }
}

/// Bytes of a file, or of all files below a directory.
fn size(path: &Path) -> Result<u64> {
    let meta = path.symlink_metadata().map_err(Error::io(path, "stat"))?;
    match meta.is_dir() {
        true => entries(path)?.iter().map(|entry| size(entry)).sum(),
        false => Ok(meta.len()),
    }
}

/// The closing line.
pub fn total(items: usize, bytes: u64, dry_run: bool) -> String {
    match (items, dry_run) {
        (0, _) => "nothing to remove".into(),
        (_, true) => format!("would free {}", text::size(bytes)),
        (_, false) => format!("freed {}", text::size(bytes)),
    }
}
