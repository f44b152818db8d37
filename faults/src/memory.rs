//! Memory that runs out: a clear error, nothing half published, and the same command works with more.

use crate::{
    Options,
    bench::{self, Bench, text, through},
    cases::{self, Random},
    place::Place,
};
use anyhow::{Context, Result, bail, ensure};
use lcf_store::Artifact;
use std::{fs, os::unix::process::ExitStatusExt, process::Command};

/// Limits of memory: full size, and that of CI.
const LIMITS: [usize; 2] = [60, 4];
/// Images that take more memory than programs do: the limits are for them.
const LARGE: [&str; 4] = ["--set", "prepare.synthetic.side=64", "--set", "prepare.synthetic.train=4000"];
const ON_LARGE: [&str; 6] = ["--set", "train.epochs=1", "--set", "train.batch=512", "--set", "train.snapshots=[]"];

/// Address space that ends somewhere between starting the program and holding its images.
///
/// # Errors
/// When a case cannot be set up.
pub fn limits(bench: &Bench, options: &Options) -> Result<bool> {
    let place = bench.copy("large")?;
    for (stage, more) in [("prepare", &LARGE[..]), ("train", &ON_LARGE[..])] {
        place.forget(stage)?;
        let output = bench.command(bench.stage(stage), &place).args(more).output()?;
        ensure!(output.status.success(), "{}", text(&output));
    }
    let digests = ["prepare", "train"].map(|stage| Artifact::read(&place.link(stage)).map(|a| a.digest().to_owned()));
    let [prepare, train] = digests;
    let (prepare, train) = (prepare?, train?);
    let cases: Vec<usize> = (0..options.size.of(LIMITS)).collect();
    let test = |case, _: &usize| {
        let mut random = Random::new(options, "memory", case);
        let (stage, more, limit, digest) = match case % 2 {
            0 => ("prepare", &LARGE[..], 6 + random.below(100), &prepare),
            _ => ("train", &ON_LARGE[..], 300 + random.below(600), &train),
        };
        let place = bench.copy_of(&place, &format!("memory-{case}"))?;
        place.forget(stage)?;
        within(bench, &place, stage, more, limit, digest).with_context(|| format!("{stage} in {limit} MiB"))
    };
    cases::run("memory", options, &cases, cases.len(), |case| format!("limit {case}"), test)
}

fn within(
    bench: &Bench,
    place: &Place,
    stage: &str,
    more: &[&str],
    limit: usize,
    digest: &str,
) -> Result<&'static str> {
    let plain = || {
        let mut command = bench.command(bench.stage(stage), place);
        command.args(more);
        command
    };
    let output = limited(&plain(), limit).output()?;
    let text = bench::text(&output);
    let ending = match (output.status.code(), output.status.signal()) {
        (Some(0), _) => "had room",
        (Some(127), _) if text.contains("loading shared libraries") => "could not start",
        // Its library ends the process itself where a thread has no room for its stack.
        (Some(1), _) if text.contains("libgomp: Thread creation failed: ") => "ended by OpenMP with the reason",
        (Some(1), _) if ["memory", "temporarily unavailable"].iter().any(|reason| text.contains(reason)) => {
            ensure!(!text.contains("unwrap") && text.contains("hint: "), "no clear error: {text}");
            "refused with the reason"
        }
        (_, Some(6)) if text.contains("memory allocation of") || text.contains("bad_alloc") => "aborted, out of memory",
        _ => bail!("ended with {}: {text}", output.status),
    };
    place.verify()?;
    let output = plain().output()?;
    ensure!(output.status.success(), "does not run with more memory: {}", bench::text(&output));
    ensure!(Artifact::open_any(&place.link(stage))?.digest() == digest, "another result");
    fs::remove_dir_all(&place.dir)?;
    Ok(ending)
}

/// The same command with so many MiB of address space.
fn limited(command: &Command, limit: usize) -> Command {
    through(&["sh", "-c", &format!("ulimit -v {}; exec \"$@\"", limit * 1024), "sh"], command)
}
