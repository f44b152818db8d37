//! Who made an artifact, where, when and with what: recorded, never hashed.

use serde::{Deserialize, Serialize};
use std::{
    env,
    process::Command,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// See the module. Filled by [`Provenance::start`] and [`Provenance::finish`].
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// `git rev-parse HEAD` of the current directory, or `LCF_REVISION`; `-dirty` is appended with local changes.
    pub revision: String,
    /// The command line, bytes that are not UTF-8 replaced.
    pub argv: Vec<String>,
    /// Host name.
    pub host: String,
    /// `cpu`, or the CUDA device and its name.
    pub device: String,
    /// Version of libtorch, where the stage uses it.
    pub libtorch: String,
    /// Start of the build, seconds since 1970 (UTC).
    pub started: u64,
    /// Wall-clock seconds of the build.
    pub seconds: f64,
    #[serde(skip)]
    clock: Option<Instant>,
}

impl Provenance {
    /// Notes what is known when a build starts.
    pub fn start() -> Self {
        Self {
            revision: revision(),
            argv: env::args_os().map(|part| part.to_string_lossy().into_owned()).collect(),
            host: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
            device: "cpu".into(),
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            clock: Some(Instant::now()),
            ..Self::default()
        }
    }

    /// Notes how long the build took.
    pub fn finish(&mut self) {
        let seconds = self.clock.map_or(0.0, |clock| clock.elapsed().as_secs_f64());
        self.seconds = (seconds * 100.0).round() / 100.0;
    }
}

fn revision() -> String {
    if let Ok(revision) = env::var("LCF_REVISION") {
        return revision;
    }
    let Some(head) = git(&["rev-parse", "HEAD"]) else { return "unknown".into() };
    match git(&["status", "--porcelain"]) {
        Some(changes) if changes.is_empty() => head,
        _ => head + "-dirty",
    }
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
