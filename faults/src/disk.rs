//! Disks that fail, are full, or may not be written: a clear error, nothing half published, and the same command works once
//! the cause is gone.

use crate::{
    Options,
    bench::{Bench, RUN, text, through},
    cases::{self, Random},
    kill::{self, Call},
    mount::Tmpfs,
    place::Place,
    shim::{Calls, EACCES, EIO, ENOMEM, ENOSPC, Fault},
};
use anyhow::{Context, Result, bail, ensure};
use lcf_store::Artifact;
use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Output},
};

const CALLS_IN_CI: usize = 16;
/// Disks that become full: full size, and that of CI.
const FULL: [usize; 2] = [60, 3];
/// What the system says of each error.
const REASONS: [(i32, &str); 4] = [
    (ENOSPC, "No space left on device"),
    (EIO, "Input/output error"),
    (EACCES, "Permission denied"),
    (ENOMEM, "Cannot allocate memory"),
];

/// Every call on files fails once, or from then on.
///
/// # Errors
/// When a case cannot be set up.
pub fn in_calls(bench: &Bench, options: &Options) -> Result<bool> {
    let (writes, reads) = (kill::calls(bench, Calls::Writes)?, kill::calls(bench, Calls::Reads)?);
    let mut all: Vec<(Call, Calls, Fault)> = Vec::new();
    for call in writes {
        let opens = call.text.starts_with("open") || call.text.starts_with("mkdir");
        let other = if opens { Fault::Once(EACCES) } else { Fault::Once(EIO) };
        all.extend([Fault::From(ENOSPC), other].map(|fault| (call.clone(), Calls::Writes, fault)));
    }
    for call in reads {
        let fault = Fault::Once(if call.text.starts_with("mmap") { ENOMEM } else { EIO });
        all.push((call, Calls::Reads, fault));
    }
    let describe = |(call, _, fault): &(Call, Calls, Fault)| call.describe(*fault);
    let test = |case, (call, calls, fault): &(Call, Calls, Fault)| in_call(bench, case, call, *calls, *fault);
    cases::run("disk-call", options, &all, CALLS_IN_CI, describe, test)
}

fn in_call(bench: &Bench, case: usize, call: &Call, calls: Calls, fault: Fault) -> Result<&'static str> {
    let place = bench.copy(&format!("disk-call-{case}"))?;
    place.forget(&call.stage)?;
    let mut command = bench.command(bench.stage(&call.stage), &place);
    bench.shim.inject(&mut command, &place.dir, calls, call.at, fault);
    let output = command.output()?;
    if !output.status.success() {
        let (Fault::Once(errno) | Fault::From(errno)) = fault else { bail!("not an error") };
        let reason = REASONS.iter().find(|(own, _)| *own == errno).map(|(_, reason)| *reason);
        refused(&output, reason.context("an unknown error")?, &place.dir)?;
    }
    bench.recovers(&place)?;
    fs::remove_dir_all(&place.dir)?;
    Ok(if output.status.success() { "tolerated: same digests" } else { "refused with the reason" })
}

/// That a program, or make, says why it failed and where, and did not panic.
fn refused(output: &Output, reason: &str, place: &Path) -> Result<()> {
    let text = text(output);
    ensure!(output.status.signal().is_none(), "ended with {}: {text}", output.status);
    let clear = text.contains(reason) && text.contains(&place.display().to_string());
    ensure!(clear && !text.contains("panicked") && !text.contains("unwrap"), "no clear error: {text}");
    Ok(())
}

/// A disk of which only so much is free, which is then enlarged.
///
/// # Errors
/// When a case cannot be set up.
pub fn full(bench: &Bench, options: &Options) -> Result<bool> {
    if let Some(reason) = Tmpfs::missing(&bench.path("probe-mount")) {
        println!("disk-full: skipped: {reason}");
        return Ok(true);
    }
    let stages: Vec<&str> = bench.stages.iter().map(|stage| stage.name.as_str()).collect();
    let stages: Vec<&str> = stages.iter().copied().cycle().take(options.size.of(FULL)).collect();
    let test = |case, stage: &&str| on_full_disk(bench, options, case, stage);
    cases::run("disk-full", options, &stages, stages.len(), |stage| stage.to_string(), test)
}

fn on_full_disk(bench: &Bench, options: &Options, case: usize, stage: &str) -> Result<&'static str> {
    let mut random = Random::new(options, "disk-full", case);
    let name = format!("disk-full-{case}");
    let disk = Tmpfs::mount(&bench.path(&name))?;
    let place = bench.copy(&format!("{name}/data"))?;
    // What the stage will write again is what may not have room any more.
    let artifact = Artifact::read(&place.link(stage))?;
    let most: u64 = artifact.manifest().outputs.iter().map(|output| output.bytes).sum();
    place.forget(stage)?;
    disk.leave_free(random.below(most as usize / 1024 + 4))?;
    let output = bench.make(&place, RUN, &["all"]).output()?;
    if !output.status.success() {
        refused(&output, "No space left on device", &place.dir)?;
        place.verify()?;
    }
    disk.enlarge()?;
    bench.recovers(&place)?;
    Ok(if output.status.success() { "had room" } else { "refused, finished with more room" })
}

/// A store that may not be written: what is there is good, what is missing cannot be made.
///
/// # Errors
/// When a case cannot be set up.
pub fn forbidden(bench: &Bench, options: &Options) -> Result<bool> {
    let mut ways: Vec<&str> = Vec::new();
    match Tmpfs::missing(&bench.path("probe-mount")) {
        Some(reason) => println!("disk-forbidden: read-only disks skipped: {reason}"),
        None => ways.push("read-only"),
    }
    match nobody(Command::new("true")).status() {
        Ok(status) if status.success() => ways.push("no permission"),
        _ => println!("disk-forbidden: other users skipped: setpriv cannot change to another user"),
    }
    let stages = bench.stages.iter().map(|stage| stage.name.as_str());
    let cases: Vec<(&str, &str)> = stages.flat_map(|stage| ways.iter().map(move |way| (stage, *way))).collect();
    let describe = |(stage, way): &(&str, &str)| format!("{stage}, {way}");
    let test = |case, (stage, way): &(&str, &str)| on_forbidden(bench, case, stage, *way == "read-only");
    cases::run("disk-forbidden", options, &cases, 4, describe, test)
}

fn on_forbidden(bench: &Bench, case: usize, stage: &str, read_only: bool) -> Result<&'static str> {
    let name = format!("disk-forbidden-{case}");
    let disk = if read_only { Some(Tmpfs::mount(&bench.path(&name))?) } else { None };
    let place = bench.copy(&format!("{name}/data"))?;
    let run = |place: &Place| -> Result<Output> {
        let command = bench.command(bench.stage(stage), place);
        let mut command = if read_only { command } else { nobody(command) };
        Ok(command.output()?)
    };
    disk.iter().try_for_each(Tmpfs::forbid)?;
    let output = run(&place)?;
    ensure!(output.status.success(), "what is there is refused: {}", text(&output));
    disk.iter().try_for_each(Tmpfs::enlarge)?;
    place.forget(stage)?;
    disk.iter().try_for_each(Tmpfs::forbid)?;
    let output = run(&place)?;
    ensure!(!output.status.success(), "it was written all the same");
    refused(&output, if read_only { "Read-only file system" } else { "Permission denied" }, &place.dir)?;
    disk.iter().try_for_each(Tmpfs::enlarge)?;
    bench.recovers(&place)?;
    Ok("refused with the reason")
}

/// The same program as a user who owns nothing here.
fn nobody(command: Command) -> Command {
    through(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"], &command)
}
