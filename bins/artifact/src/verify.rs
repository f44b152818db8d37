//! `lcf-artifact verify`: unlike opening an artifact, which stops at the first wrong file, this names them all.

use crate::text;
use lcf_store::{Artifact, Error, Result, artifact::Output, digest};
use rayon::prelude::*;
use std::{fs, path::PathBuf};

/// What was checked.
#[derive(Debug, Default)]
pub struct Report {
    /// Artifacts looked at.
    pub artifacts: usize,
    /// Files looked at.
    pub files: usize,
    /// Bytes of the files that are right.
    pub bytes: u64,
    /// One error a file or manifest that is wrong.
    pub bad: Vec<Error>,
}

impl Report {
    /// `6 artifacts, 31 files, 1.2 MiB: all verify`.
    pub fn line(&self) -> String {
        let (artifacts, files) = (plural(self.artifacts, "artifact"), plural(self.files, "file"));
        let verdict = if self.bad.is_empty() { "all verify".into() } else { format!("{} bad", self.bad.len()) };
        format!("{artifacts}, {files}, {}: {verdict}", text::size(self.bytes))
    }
}

/// Checks every file of the artifacts at `paths`, in parallel.
pub fn verify(paths: &[PathBuf]) -> Report {
    let mut report = Report { artifacts: paths.len(), ..Report::default() };
    for path in paths {
        match Artifact::read(path) {
            Err(error) => report.bad.push(error),
            Ok(artifact) => {
                let outputs = &artifact.manifest().outputs;
                let checks: Vec<Result<u64>> = outputs.par_iter().map(|output| check(&artifact, output)).collect();
                report.files += checks.len();
                for check in checks {
                    match check {
                        Ok(bytes) => report.bytes += bytes,
                        Err(error) => report.bad.push(error),
                    }
                }
            }
        }
    }
    report
}

/// One file against its line of the manifest.
fn check(artifact: &Artifact, output: &Output) -> Result<u64> {
    let path = text::short(&artifact.dir().join(&output.path));
    let bad = |message: String| {
        let dir = text::short(artifact.dir());
        Error::bad(&path, message).with_hint(format!("rm -r {} and run make again to rebuild it", dir.display()))
    };
    let bytes = fs::metadata(&path).map_err(|_| bad("missing".into()))?.len();
    if bytes != output.bytes {
        return Err(bad(format!("found {bytes} bytes, expected {}", output.bytes)));
    }
    let (_, sha256) = digest::of_file(&path)?;
    if sha256 != output.sha256 {
        return Err(bad(format!("found sha256 {sha256}, expected {}", output.sha256)));
    }
    Ok(bytes)
}

fn plural(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
