//! Faults inside of a program: `shim.c`, compiled here by `cc`, makes one call of libc fail or kills the program in it.

use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const SOURCE: &str = include_str!("shim.c");

/// `ENOSPC`: no space left on device.
pub const ENOSPC: i32 = 28;
/// `EIO`: input/output error.
pub const EIO: i32 = 5;
/// `EACCES`: permission denied.
pub const EACCES: i32 = 13;
/// `ENOMEM`: cannot allocate memory.
pub const ENOMEM: i32 = 12;

/// Which calls count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Calls {
    /// Those that change a file or a directory.
    Writes,
    /// `read` and `mmap`.
    Reads,
}

/// What happens in one of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// SIGKILL before it.
    Kill,
    /// Half of what it writes, then SIGKILL.
    Torn,
    /// It fails with this error.
    Once(i32),
    /// It and all later ones fail with this error.
    From(i32),
}

impl Fault {
    fn text(self) -> String {
        match self {
            Self::Kill => "kill".into(),
            Self::Torn => "torn".into(),
            Self::Once(errno) => format!("once {errno}"),
            Self::From(errno) => format!("from {errno}"),
        }
    }
}

/// The compiled shim.
#[derive(Debug)]
pub struct Shim {
    library: PathBuf,
}

impl Shim {
    /// Compiles it in `dir`.
    ///
    /// # Errors
    /// When there is no `cc`, or it fails.
    pub fn compile(dir: &Path) -> Result<Self> {
        let (source, library) = (dir.join("shim.c"), dir.join("shim.so"));
        fs::write(&source, SOURCE)?;
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
        let output = cc.output().context("cannot run cc")?;
        ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
        Ok(Self { library })
    }

    /// Sets the environment so that the `at`-th of `calls` on files below `under`, counted from 1, meets `fault`.
    pub fn inject(&self, command: &mut Command, under: &Path, calls: Calls, at: usize, fault: Fault) {
        self.load(command, under, calls);
        command.env("LCF_FAULT_AT", at.to_string()).env("LCF_FAULT_DO", fault.text());
    }

    /// Sets the environment so that a line for each of `calls` on files below `under` is appended to `log`.
    pub fn trace(&self, command: &mut Command, under: &Path, calls: Calls, log: &Path) {
        self.load(command, under, calls);
        command.env("LCF_FAULT_LOG", log);
    }

    fn load(&self, command: &mut Command, under: &Path, calls: Calls) {
        let set = if calls == Calls::Writes { "write" } else { "read" };
        // One thread reads and writes files, so that calls have the same numbers each time.
        command.env("RAYON_NUM_THREADS", "1");
        command.env("LD_PRELOAD", &self.library).env("LCF_FAULT_UNDER", under).env("LCF_FAULT_SET", set);
    }
}
