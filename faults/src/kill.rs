//! Killed anywhere: whatever the moment, what is published verifies, make finishes, and the result is the undisturbed one.

use crate::{
    Options,
    bench::{Bench, RUN, text},
    cases::{self, Random},
    place::{Place, list, name},
    shim::{Calls, Fault},
};
use anyhow::{Context, Result, bail, ensure};
use lcf_store::{Artifact, artifact::MANIFEST};
use std::{
    fs,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

/// SIGKILLs of make at random moments, and SIGTERMs of a training: full size, and that of CI.
const MOMENTS: [usize; 2] = [200, 6];
const TERMS: [usize; 2] = [40, 2];
/// Cases of kills inside of calls that CI takes.
const CALLS_IN_CI: usize = 16;
/// The training that SIGTERM meets: long enough to be met.
const LONGER: [&str; 2] = ["--set", "train.epochs=60"];
/// Longest time between SIGTERM and the end: a step and a checkpoint take milliseconds, a loaded machine more.
const PATIENCE: Duration = Duration::from_secs(10);

/// What one call of a stage is.
#[derive(Clone, Debug)]
pub struct Call {
    /// The stage.
    pub stage: String,
    /// Its number, counted from 1.
    pub at: usize,
    /// Like `rename /place/artifacts/...`.
    pub text: String,
}

/// SIGKILL in every call that changes a file.
///
/// # Errors
/// When a case cannot be set up.
pub fn in_calls(bench: &Bench, options: &Options) -> Result<bool> {
    let calls = calls(bench, Calls::Writes)?;
    let killed = calls.iter().flat_map(|call| {
        let torn = call.text.starts_with("write").then_some(Fault::Torn);
        [Some(Fault::Kill), torn].into_iter().flatten().map(|fault| (call.clone(), fault))
    });
    let killed: Vec<(Call, Fault)> = killed.collect();
    let test = |case, (call, fault): &(Call, Fault)| in_call(bench, case, call, *fault);
    cases::run("kill-call", options, &killed, CALLS_IN_CI, |(call, fault)| call.describe(*fault), test)
}

/// SIGKILL to make and all that it started, at random moments.
///
/// # Errors
/// When a case cannot be set up.
pub fn at_moments(bench: &Bench, options: &Options) -> Result<bool> {
    let stages: Vec<&str> = bench.stages.iter().map(|stage| stage.name.as_str()).collect();
    let moments: Vec<&str> = stages.iter().copied().cycle().take(options.size.of(MOMENTS)).collect();
    let test = |case, stage: &&str| at_moment(bench, options, case, stage);
    cases::run("kill-moment", options, &moments, moments.len(), |stage| stage.to_string(), test)
}

/// SIGTERM and SIGINT to a training.
///
/// # Errors
/// When a case cannot be set up.
pub fn by_terms(bench: &Bench, options: &Options) -> Result<bool> {
    let (undisturbed, slowest) = (longer(bench)?, AtomicU64::new(0));
    let terms: Vec<&str> = ["TERM", "INT"].into_iter().cycle().take(options.size.of(TERMS)).collect();
    let test = |case, signal: &&str| {
        let (ending, waited) = terminate(bench, options, case, signal, &undisturbed)?;
        slowest.fetch_max(waited.as_millis() as u64, Ordering::Relaxed);
        Ok(ending)
    };
    let passed = cases::run("kill-term", options, &terms, terms.len(), |signal| signal.to_string(), test)?;
    println!("kill-term: the slowest ended {} ms after its signal", slowest.into_inner());
    Ok(passed)
}

impl Call {
    /// For people.
    pub fn describe(&self, fault: Fault) -> String {
        format!("{fault:?} of {} at call {}: {}", self.stage, self.at, self.text)
    }
}

/// Every call on files that a stage makes while it builds its artifact, of all stages.
///
/// # Errors
/// When a stage fails without being disturbed.
pub fn calls(bench: &Bench, which: Calls) -> Result<Vec<Call>> {
    let mut calls = Vec::new();
    for stage in &bench.stages {
        let place = bench.copy("trace")?;
        place.forget(&stage.name)?;
        let log = bench.path(&format!("{which:?}-{}.log", stage.name));
        let mut command = bench.command(stage, &place);
        bench.shim.trace(&mut command, &place.dir, which, &log);
        let output = command.output()?;
        ensure!(output.status.success(), "{} fails when traced: {}", stage.name, text(&output));
        let lines = fs::read_to_string(&log).context("the shim wrote no log: is libc linked dynamically?")?;
        let call = |(at, text): (usize, &str)| Call { stage: stage.name.clone(), at: at + 1, text: text.to_owned() };
        calls.extend(lines.lines().enumerate().map(call));
    }
    Ok(calls)
}

fn in_call(bench: &Bench, case: usize, call: &Call, fault: Fault) -> Result<&'static str> {
    let place = bench.copy(&format!("kill-call-{case}"))?;
    place.forget(&call.stage)?;
    let mut command = bench.command(bench.stage(&call.stage), &place);
    bench.shim.inject(&mut command, &place.dir, Calls::Writes, call.at, fault);
    let output = command.output()?;
    let killed = output.status.signal() == Some(9);
    ensure!(killed || output.status.success(), "ended by itself: {}", text(&output));
    bench.recovers(&place)?;
    fs::remove_dir_all(&place.dir)?;
    Ok(if killed { "killed" } else { "ended before" })
}

/// Kills make and all that it started, up to three times in a row: at any moment of the stage, or right after a file of
/// interest appeared.
fn at_moment(bench: &Bench, options: &Options, case: usize, stage: &str) -> Result<&'static str> {
    let mut random = Random::new(options, "kill-moment", case);
    let place = bench.copy(&format!("kill-moment-{case}"))?;
    place.forget(stage)?;
    let mut ending = "ended before";
    for _ in 0..=random.below(3) {
        let mut child = start(bench.make(&place, RUN, &["all"]))?;
        match random.below(3) {
            0 => sleep(Duration::from_millis(random.below(1500) as u64)),
            window => {
                let awaited = [".manifest.json.part", MANIFEST, ".checkpoint", "", ".part"][random.below(5)];
                let _ = wait_for(&mut child, &place.store().join(stage), awaited);
                sleep(Duration::from_micros((random.below(3000) * (window - 1)) as u64));
            }
        }
        if child.try_wait()?.is_none() {
            ending = "killed";
        }
        signal("KILL", -i64::from(child.id()))?;
        child.wait()?;
        place.verify()?;
    }
    bench.recovers(&place)?;
    fs::remove_dir_all(&place.dir)?;
    Ok(ending)
}

/// The digest of the longer training, undisturbed.
fn longer(bench: &Bench) -> Result<String> {
    let place = bench.copy("longer")?;
    let output = bench.command(bench.stage("train"), &place).args(LONGER).output()?;
    ensure!(output.status.success(), "{}", text(&output));
    Ok(Artifact::open_any(&place.link("train"))?.digest().to_owned())
}

fn terminate(
    bench: &Bench,
    options: &Options,
    case: usize,
    name: &str,
    undisturbed: &str,
) -> Result<(&'static str, Duration)> {
    let mut random = Random::new(options, "kill-term", case);
    let place = bench.copy(&format!("kill-term-{case}"))?;
    let mut train = bench.command(bench.stage("train"), &place);
    let mut child = start_with(train.args(LONGER), Stdio::piped())?;
    // Before the first checkpoint the handler may not be there yet.
    wait_for(&mut child, &place.store().join("train"), ".checkpoint.json")?;
    sleep(Duration::from_millis(random.below(250) as u64));
    let sent = Instant::now();
    signal(name, i64::from(child.id()))?;
    let output = child.wait_with_output()?;
    let waited = sent.elapsed();
    let ending = match output.status.code() {
        Some(0) => "ended before",
        Some(code) => {
            let text = text(&output);
            ensure!(code == i32::from(lcf_store::error::STOPPED), "exit code {code}: {text}");
            let step = text.split("stopped by a signal after step ").nth(1).and_then(|rest| rest.split(';').next());
            let step = step.with_context(|| format!("it does not say at which step it stopped: {text}"))?;
            ensure!(work_file(&place, &format!(".checkpoint-{step}."))?, "no checkpoint of step {step}");
            "stopped with a checkpoint"
        }
        None => bail!("ended by signal {:?} without a checkpoint", output.status.signal()),
    };
    ensure!(waited < PATIENCE, "it took {waited:?} to end");
    place.verify()?;
    let output = bench.command(bench.stage("train"), &place).args(LONGER).output()?;
    ensure!(output.status.success(), "it does not go on: {}", text(&output));
    ensure!(Artifact::open_any(&place.link("train"))?.digest() == undisturbed, "other weights than undisturbed");
    fs::remove_dir_all(&place.dir)?;
    Ok((ending, waited))
}

fn start(command: Command) -> Result<Child> {
    let mut command = command;
    start_with(&mut command, Stdio::null())
}

/// Starts a process group of its own, so that all that it starts can be killed at once.
fn start_with(command: &mut Command, stderr: Stdio) -> Result<Child> {
    Ok(command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn()?)
}

/// Sends a signal to a process, or with a negative number to a group. One that is gone is none.
///
/// # Errors
/// When there is no `kill`.
pub fn signal(name: &str, to: i64) -> Result<()> {
    Command::new("kill").args(["-s", name, "--", &to.to_string()]).stderr(Stdio::null()).status()?;
    Ok(())
}

/// Waits until a build of `stage` holds a file whose name contains `part`, or the process has ended.
fn wait_for(child: &mut Child, stage: &Path, part: &str) -> Result<()> {
    while child.try_wait()?.is_none() {
        let builds = list(stage).unwrap_or_default().into_iter().filter(|path| name(path).starts_with(".work-"));
        if builds.flat_map(|dir| list(&dir).unwrap_or_default()).any(|path| name(&path).contains(part)) {
            return Ok(());
        }
        sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// Whether the build of a training holds a file whose name starts so.
fn work_file(place: &Place, start: &str) -> Result<bool> {
    let builds = list(&place.store().join("train"))?.into_iter().filter(|path| name(path).starts_with(".work-"));
    Ok(builds.flat_map(|dir| list(&dir).unwrap_or_default()).any(|path| name(&path).starts_with(start)))
}
