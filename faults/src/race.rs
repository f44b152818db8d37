//! Two makes at once: one does the work and the other waits, or both agree; nothing is torn, nothing hangs.

use crate::{
    Options,
    bench::{Bench, OTHER, RUN},
    cases::{self, Random},
    kill::signal,
    place::Place,
};
use anyhow::{Context, Result, bail, ensure};
use lcf_store::Artifact;
use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// Pairs of makes: full size, and that of CI.
const PAIRS: [usize; 2] = [50, 3];
/// What they make: everything but the distances, most of whose time is one network.
const TARGETS: [&str; 2] = ["probe", "sample"];
/// A pair takes seconds; after so long it hangs.
const PATIENCE: Duration = Duration::from_secs(300);

/// How two makes meet.
#[derive(Clone, Copy, Debug)]
enum Pair {
    /// Both make one run.
    Same,
    /// They make two runs that share the dataset.
    Overlapping,
    /// Both make one run whose locks a third one held when it was killed.
    AfterDeath,
}

/// Runs them.
///
/// # Errors
/// When a case cannot be set up.
pub fn run(bench: &Bench, options: &Options) -> Result<bool> {
    let place = bench.copy("race-other")?;
    let status = bench.make(&place, OTHER, &TARGETS).output()?.status;
    ensure!(status.success(), "the other run fails undisturbed");
    let other = digests(&place)?;
    let pairs = [Pair::Same, Pair::Overlapping, Pair::AfterDeath];
    let pairs: Vec<Pair> = pairs.into_iter().cycle().take(options.size.of(PAIRS)).collect();
    let test = |case, pair: &Pair| together(bench, options, case, *pair, &other);
    cases::run("race", options, &pairs, pairs.len(), |pair| format!("{pair:?}"), test)
}

fn together(bench: &Bench, options: &Options, case: usize, pair: Pair, other: &[String]) -> Result<&'static str> {
    let mut random = Random::new(options, "race", case);
    let place = bench.copy(&format!("race-{case}"))?;
    ["prepare", "train", "extract", "probe", "sample"].iter().try_for_each(|stage| place.forget(stage))?;
    if matches!(pair, Pair::AfterDeath) {
        let mut third = start(bench, &place, RUN, "third")?;
        sleep(Duration::from_millis(random.below(2000) as u64));
        signal("KILL", -i64::from(third.id()))?;
        third.wait()?;
    }
    let second = if matches!(pair, Pair::Overlapping) { OTHER } else { RUN };
    let mut makes = Vec::new();
    for (run, log) in [(RUN, "one"), (second, "two")] {
        makes.push((start(bench, &place, run, log)?, log));
        sleep(Duration::from_millis(random.below(200) as u64));
    }
    let started = Instant::now();
    for (make, log) in &mut makes {
        finishes(make, started).with_context(|| said(&place, log))?;
    }
    let waited = ["one", "two"].iter().any(|log| said(&place, log).contains("waiting for it"));
    place.verify()?;
    bench.is_undisturbed(&place)?;
    if matches!(pair, Pair::Overlapping) {
        ensure!(digests(&place)? == other, "the other run has other results");
    }
    fs::remove_dir_all(&place.dir)?;
    Ok(if waited { "one waited for the other" } else { "both agreed" })
}

/// A make in a process group of its own, whose output goes to a file.
fn start(bench: &Bench, place: &Place, run: &str, log: &str) -> Result<Child> {
    let file = File::create(place.dir.join(log))?;
    let mut make = bench.make(place, run, &TARGETS);
    make.process_group(0).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    Ok(make.spawn()?)
}

fn said(place: &Place, log: &str) -> String {
    fs::read_to_string(place.dir.join(log)).unwrap_or_default()
}

fn finishes(make: &mut Child, started: Instant) -> Result<()> {
    loop {
        match make.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("make ended with {status}"),
            None if started.elapsed() > PATIENCE => {
                signal("KILL", -i64::from(make.id()))?;
                make.wait()?;
                bail!("make hangs");
            }
            None => sleep(Duration::from_millis(10)),
        }
    }
}

/// Digests of the other run.
fn digests(place: &Place) -> Result<Vec<String>> {
    let open = |stage: &&str| -> Result<String> {
        let link = place.link_of(OTHER, stage);
        Ok(Artifact::open_any(Path::new(&link))?.digest().to_owned())
    };
    ["prepare", "train", "extract", "probe", "sample"].iter().map(open).collect()
}
