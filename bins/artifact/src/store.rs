//! Reading a store (`STORE/STAGE/KEY12`) and the links of runs into it (`RUNS/RUN/STAGE`).

use lcf_store::{
    Artifact, Error, Result,
    artifact::{MANIFEST, is_key},
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The manifests of a store.
#[derive(Debug, Default)]
pub struct Store {
    /// By stage, then by key.
    pub artifacts: Vec<Artifact>,
    /// What is wrong with the manifests that cannot be read.
    pub unreadable: Vec<Error>,
}

/// A link `RUNS/RUN/STAGE` and what it points at.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// The run's name: the link's directory below the runs.
    pub run: String,
    /// The directory it leads to, links resolved; `None` when nothing is there.
    pub target: Option<PathBuf>,
}

impl Store {
    /// Reads every manifest below `root`. A store that does not exist is empty.
    ///
    /// # Errors
    /// [`Error::Io`] when a directory cannot be listed.
    pub fn scan(root: &Path) -> Result<Self> {
        let mut store = Self::default();
        for stage in entries(root)?.into_iter().filter(|path| path.is_dir()) {
            for dir in entries(&stage)? {
                if is_key(&name(&dir)) && dir.join(MANIFEST).exists() {
                    match Artifact::read(&dir) {
                        Ok(artifact) => store.artifacts.push(artifact),
                        Err(error) => store.unreadable.push(error),
                    }
                }
            }
        }
        Ok(store)
    }

    /// The artifact with this content.
    pub fn by_digest(&self, digest: &str) -> Option<&Artifact> {
        self.artifacts.iter().find(|artifact| artifact.digest() == digest)
    }
}

/// Every symbolic link below `runs`, sorted. A directory that does not exist has none.
///
/// # Errors
/// [`Error::Io`] when a directory cannot be listed.
pub fn links(runs: &Path) -> Result<Vec<Link>> {
    let mut found = Vec::new();
    collect(runs, runs, &mut found)?;
    Ok(found)
}

fn collect(runs: &Path, dir: &Path, found: &mut Vec<Link>) -> Result<()> {
    // A hidden one is half made: see `StageArgs::link`.
    for path in entries(dir)?.into_iter().filter(|path| !name(path).starts_with('.')) {
        if path.is_symlink() {
            let run = dir.strip_prefix(runs).unwrap_or(dir).display().to_string();
            found.push(Link { run, target: fs::canonicalize(&path).ok() });
        } else if path.is_dir() {
            collect(runs, &path, found)?;
        }
    }
    Ok(())
}

/// The artifacts meant by `paths`: each is one, a link to one, or a directory (a run, a stage, a store) of some.
/// A link that leads nowhere is among them, so that whoever opens it says so.
///
/// # Errors
/// [`Error::Bad`] for a path without any artifact.
pub fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for path in paths {
        let mut here = Vec::new();
        descend(path, 2, &mut here)?;
        if here.is_empty() {
            return Err(Error::bad(path, "no artifacts here")
                .with_hint("`lcf-artifact list` says what there is; `make smoke` makes some"));
        }
        found.extend(here.into_iter().filter(|p| seen.insert(fs::canonicalize(p).unwrap_or_else(|_| p.clone()))));
    }
    Ok(found)
}

fn descend(path: &Path, levels: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    if path.join(MANIFEST).exists() || (path.is_symlink() && !path.exists()) {
        found.push(path.to_owned());
    } else if levels > 0 && path.is_dir() {
        for entry in entries(path)?.iter().filter(|entry| !name(entry).starts_with('.')) {
            descend(entry, levels - 1, found)?;
        }
    }
    Ok(())
}

/// What a directory holds, sorted; nothing when it does not exist.
///
/// # Errors
/// [`Error::Io`] when it cannot be listed.
pub fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        list => list.map_err(Error::io(dir, "list"))?,
    };
    let paths: std::io::Result<Vec<PathBuf>> = list.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(Error::io(dir, "list"))?;
    paths.sort();
    Ok(paths)
}

/// The last part of a path.
pub fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_empty() {
        let none = Path::new("/no/such/directory");
        assert!(Store::scan(none).unwrap().artifacts.is_empty() && links(none).unwrap().is_empty());
        assert!(find(&[none.to_owned()]).unwrap_err().to_string().contains("no artifacts here"));
    }
}
