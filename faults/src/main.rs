//! lcf-faults: breaks things on purpose and checks what the pipeline promises. See `docs/faults.md`.

#![allow(clippy::print_stderr, clippy::print_stdout)]

mod bench;
mod bytes;
mod cases;
mod damage;
mod disk;
mod kill;
mod memory;
mod mount;
mod place;
mod race;
mod shim;
mod threads;

use anyhow::Result;
use bench::Bench;
use clap::{Args, Parser, ValueEnum};
use std::{path::PathBuf, process::ExitCode};

/// Break the pipeline on purpose: kills, faults of the disk, damaged files, races
#[derive(Parser)]
#[command(name = "lcf-faults", version)]
struct Cli {
    /// What to break [default: everything]
    #[arg(value_enum)]
    suites: Vec<Suite>,
    #[command(flatten)]
    options: Options,
}

/// What to break. Their names are those that failures are repeated by.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Suite {
    /// SIGKILL in every call that changes a file
    KillCall,
    /// SIGKILL to make and all that it started, at random moments
    KillMoment,
    /// SIGTERM and SIGINT to a training
    KillTerm,
    /// Damaged files of published artifacts
    Bytes,
    /// Damaged files of an unfinished training
    BytesBuild,
    /// Calls on files that fail
    DiskCall,
    /// Disks that become full
    DiskFull,
    /// Disks that may not be written
    DiskForbidden,
    /// Limits of memory
    Memory,
    /// Two makes at once, of the same and of overlapping runs
    Race,
    /// Other numbers of threads, and another directory
    Threads,
}

/// How much, and what of it.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How many cases
    #[arg(long, value_enum, default_value = "ci")]
    pub size: Size,
    /// Everything random follows from it
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// How many cases of each suite, spread over all of them [default: by size]
    #[arg(long, value_name = "N")]
    pub cases: Option<usize>,
    /// Run this case alone
    #[arg(long, value_name = "N")]
    pub case: Option<usize>,
    /// Cases at a time
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub jobs: usize,
    /// Where the programs are [default: beside this one]
    #[arg(long, value_name = "DIR")]
    pub programs: Option<PathBuf>,
    /// Where the Makefile and pipelines are [default: where this one was compiled]
    #[arg(long, value_name = "DIR")]
    pub repository: Option<PathBuf>,
    /// Keep what the cases left, and say where
    #[arg(long)]
    pub keep: bool,
}

/// How many cases.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Size {
    /// A sample that takes a minute or two
    Ci,
    /// All of them
    Full,
}

impl Size {
    /// The number for full size, or that for CI.
    pub fn of(self, [full, ci]: [usize; 2]) -> usize {
        if self == Self::Full { full } else { ci }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("faults: error: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn run(cli: &Cli) -> Result<bool> {
    let bench = Bench::new(&cli.options)?;
    let suites = if cli.suites.is_empty() { Suite::value_variants() } else { &cli.suites };
    let mut passed = true;
    for suite in suites {
        let run = match suite {
            Suite::KillCall => kill::in_calls,
            Suite::KillMoment => kill::at_moments,
            Suite::KillTerm => kill::by_terms,
            Suite::Bytes => bytes::published,
            Suite::BytesBuild => bytes::unfinished,
            Suite::DiskCall => disk::in_calls,
            Suite::DiskFull => disk::full,
            Suite::DiskForbidden => disk::forbidden,
            Suite::Memory => memory::limits,
            Suite::Race => race::run,
            Suite::Threads => threads::run,
        };
        passed &= run(&bench, &cli.options)?;
    }
    if cli.options.keep {
        eprintln!("faults: kept {}", bench.keep().display());
    }
    Ok(passed)
}
