//! Directories as make's `DATA`, and what has to hold in each.

use crate::bench::RUN;
use anyhow::{Result, bail, ensure};
use lcf_store::{Artifact, artifact::MANIFEST};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// A directory as make's `DATA`: a store, and runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where it lies.
    pub dir: PathBuf,
}

impl Place {
    /// The store.
    pub fn store(&self) -> PathBuf {
        self.dir.join("artifacts")
    }

    /// The link to a stage's artifact.
    pub fn link(&self, stage: &str) -> PathBuf {
        self.link_of(RUN, stage)
    }

    /// The same of any run.
    pub fn link_of(&self, run: &str, stage: &str) -> PathBuf {
        self.dir.join("runs").join(run).join(stage)
    }

    /// Removes the artifact of a stage, so that it is made again.
    ///
    /// # Errors
    /// When it is not there.
    pub fn forget(&self, stage: &str) -> Result<()> {
        fs::remove_dir_all(fs::canonicalize(self.link(stage))?)?;
        fs::remove_file(self.link(stage))?;
        Ok(())
    }

    /// Verifies every published artifact: a directory of the store whose name is a key.
    ///
    /// # Errors
    /// The first that does not verify, or has no manifest.
    pub fn verify(&self) -> Result<usize> {
        let mut count = 0;
        for dir in self.directories()?.iter().filter(|dir| !name(dir).starts_with('.')) {
            ensure!(dir.join(MANIFEST).exists(), "{}: a torn artifact, it has no manifest", dir.display());
            Artifact::open_any(dir)?;
            count += 1;
        }
        Ok(count)
    }

    /// That no work directory, scratch file or half link is left.
    ///
    /// # Errors
    /// The first that is.
    pub fn clean(&self) -> Result<()> {
        for dir in self.directories()? {
            ensure!(!name(&dir).starts_with(".work-"), "{}: left behind", dir.display());
            scratch(&dir)?;
        }
        scratch(&self.dir.join("runs").join(RUN))
    }

    /// The directories of all artifacts and builds.
    fn directories(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for stage in list(&self.store())? {
            found.extend(list(&stage)?.into_iter().filter(|path| path.is_dir()));
        }
        Ok(found)
    }
}

fn scratch(dir: &Path) -> Result<()> {
    for path in list(dir)? {
        ensure!(!name(&path).starts_with('.'), "{}: left behind", path.display());
        if path.is_dir() && !path.is_symlink() {
            scratch(&path)?;
        }
    }
    Ok(())
}

/// What a directory holds, sorted; nothing when it is not there.
///
/// # Errors
/// When it cannot be listed.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The last part of a path.
pub fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Copies a directory. Files of artifacts, where nothing is written again, become links to the same content.
///
/// # Errors
/// When it cannot be written.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for path in list(from)? {
        let target = to.join(name(&path));
        let kind = path.symlink_metadata()?.file_type();
        if kind.is_symlink() {
            symlink(fs::read_link(&path)?, target)?;
        } else if kind.is_dir() {
            copy(&path, &target)?;
        } else if kind.is_file() && is_published(&path) {
            // Another disk has no links to this one's files.
            fs::hard_link(&path, &target).or_else(|_| fs::copy(&path, &target).map(drop))?;
        } else if kind.is_file() {
            fs::copy(&path, &target)?;
        } else {
            bail!("{}: neither file nor directory", path.display());
        }
    }
    Ok(())
}

/// Whether it lies in an artifact, where nothing is written again.
fn is_published(path: &Path) -> bool {
    path.ancestors().skip(1).any(|dir| dir.join(MANIFEST).exists() && !name(dir).starts_with('.'))
}
