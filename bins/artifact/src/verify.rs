//! `lcf-artifact verify`: unlike opening an artifact, which stops at the first wrong file, this names them all.

use crate::text;
use lcf_store::{Artifact, Error, Result};
use rayon::prelude::*;
use std::path::PathBuf;

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
                let checks: Vec<Result<u64>> = outputs.par_iter().map(|output| artifact.verify_file(output)).collect();
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

fn plural(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
