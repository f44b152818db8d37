//! A small disk of its own, in memory.

use anyhow::{Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Room for everything that the tiny run writes.
const ENOUGH: &str = "size=256m,rw";

/// A mounted tmpfs, which goes with this value.
#[derive(Debug)]
pub struct Tmpfs {
    dir: PathBuf,
}

impl Tmpfs {
    /// Why none can be mounted, where that is so.
    pub fn missing(dir: &Path) -> Option<String> {
        Self::mount(dir).err().map(|error| format!("{error}"))
    }

    /// Mounts one at `dir` that has room for everything.
    ///
    /// # Errors
    /// When the system refuses, as it does to anyone but root.
    pub fn mount(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", ENOUGH, "lcf-faults"]).arg(dir))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Shrinks it until only so many KiB are free.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn leave_free(&self, kib: usize) -> Result<()> {
        let output = Command::new("df").args(["-k", "--output=used"]).arg(&self.dir).output()?;
        let used: usize = String::from_utf8_lossy(&output.stdout).lines().nth(1).unwrap_or_default().trim().parse()?;
        self.remount(&format!("size={}k", used + kib))
    }

    /// Gives it room for everything again, and allows writing.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn enlarge(&self) -> Result<()> {
        self.remount(ENOUGH)
    }

    /// Forbids writing.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn forbid(&self) -> Result<()> {
        self.remount("ro")
    }

    fn remount(&self, options: &str) -> Result<()> {
        run(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.dir));
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
