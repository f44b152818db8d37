//! lcf-report.

use anyhow::Result;
use clap::{Parser, Subcommand};
use lcf_report::{
    Report,
    bench::{Bench, BenchArgs},
    report::{NUMBERS, PAGE},
    table,
};
use lcf_store::{
    Artifact,
    cli::{self, StageArgs},
    say, tell, text,
};
use serde_json::json;
use std::{path::PathBuf, process::ExitCode};

/// Figures and one page from the artifacts of any number of runs
///
/// Runs that differ in their seeds alone are drawn as one line with its spread. Snapshots are taken from directories
/// epoch-N in that of the run, as `make snapshots` leaves them. What a run lacks is named.
#[derive(Debug, Parser)]
#[command(name = "lcf-report", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Directories of runs, like data/runs/cifar10-lcf: links to the artifacts of their stages
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// Directory of all artifacts
    #[arg(long, value_name = "DIR", default_value = "data/artifacts")]
    store: PathBuf,
    /// Link to make to the artifact
    #[arg(long, value_name = "PATH")]
    link: Option<PathBuf>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One table of what the stages measured with --bench
    Bench(BenchArgs),
}

fn main() -> ExitCode {
    cli::main("report", run)
}

fn run(args: Args) -> Result<()> {
    if let Some(Command::Bench(args)) = &args.command {
        return print_bench(args);
    }
    let stage = StageArgs { store: args.store, link: args.link, json: args.json, ..StageArgs::default() };
    let mut report = Report::read(&args.runs)?;
    let (artifact, built) = report.build(&stage)?;
    stage.link(&artifact)?;
    print(&report, &artifact, built, stage.json)
}

fn print(report: &Report, artifact: &Artifact, built: bool, as_json: bool) -> Result<()> {
    let page = artifact.file(PAGE)?;
    if as_json {
        let mut value =
            json!({ "artifact": artifact.dir(), "digest": artifact.digest(), "built": built, "page": page });
        let numbers: serde_json::Map<String, serde_json::Value> = artifact.json(NUMBERS)?;
        value.as_object_mut().expect("an object").extend(numbers);
        cli::print_json(&value);
        return Ok(());
    }
    cli::tell(&table::headline(&report.runs(), &report.results));
    for missing in &report.missing {
        tell!("missing: {missing}");
    }
    tell!("{}{}", text::short(&page).display(), if built { "" } else { " (up to date)" });
    Ok(())
}

fn print_bench(args: &BenchArgs) -> Result<()> {
    let bench = Bench::read(args)?;
    match args.json {
        true => cli::print_json(&json!(bench)),
        false => cli::tell(&bench.text()),
    }
    if let Some(dir) = &args.out {
        let [page, numbers] = bench.write(dir)?;
        say!("report: {} and {}", text::short(&page).display(), text::short(&numbers).display());
    }
    Ok(())
}
