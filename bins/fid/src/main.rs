//! lcf-fid: FID, KID, precision and recall of samples and what they copy of a dataset, and `compare` for any two sets of
//! images.

use clap::{Args, Parser, Subcommand};
use lcf_fid::{bench, compare, compare::CompareArgs, evaluate, inception::ComputeArgs, text};
use lcf_model::bench::BenchArgs;
use lcf_store::{cli, cli::StageArgs, say, tell};
use serde_json::{Value, json};
use std::{path::PathBuf, process::ExitCode};

/// FID, KID, precision and recall of samples against a dataset, and whether they copy its training images
#[derive(Parser)]
#[command(name = "lcf-fid", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(flatten)]
    inputs: Option<Inputs>,
    #[command(flatten)]
    stage: Option<StageArgs>,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    bench: BenchArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// The same numbers for any two sets of images
    Compare(CompareArgs),
}

#[derive(Args)]
struct Inputs {
    /// Artifact of lcf-sample, or a link to it. Given several times, for samples that differ in their seed alone: the first
    /// gives the headline, all of them the spread
    #[arg(long, value_name = "PATH", required_unless_present = "bench")]
    samples: Vec<PathBuf>,
    /// Dataset of lcf-prepare, or a link to it
    #[arg(long, value_name = "PATH", required = false, required_unless_present = "bench")]
    data: PathBuf,
}

fn main() -> ExitCode {
    cli::main("fid", |args: Cli| match (args.command, args.inputs, args.stage) {
        (Some(Command::Compare(args)), ..) => run_compare(&args),
        (None, Some(inputs), Some(stage)) => run_stage(&stage, &inputs, &args.compute),
        (None, None, Some(stage)) if args.bench.bench => {
            bench::run(&stage, &args.bench, &args.compute)?.print(stage.json);
            Ok(())
        }
        // clap has asked for the flags that are required by then.
        _ => Err(lcf_store::Error::usage("expected --config, --samples and --data, or compare").into()),
    })
}

fn run_stage(args: &StageArgs, inputs: &Inputs, compute: &ComputeArgs) -> anyhow::Result<()> {
    let evaluate::Outcome { artifact, report, built } = evaluate::run(args, &inputs.samples, &inputs.data, compute)?;
    print(args.json, &text::report(&report), || {
        let mut value = json!({"artifact": artifact.dir(), "digest": artifact.digest(), "built": built});
        if let (Value::Object(all), Ok(Value::Object(report))) = (&mut value, serde_json::to_value(&report)) {
            all.extend(report);
        }
        value
    });
    if !args.json {
        tell!("{}{}", artifact.dir().display(), if built { "" } else { " (up to date)" });
    }
    Ok(())
}

fn run_compare(args: &CompareArgs) -> anyhow::Result<()> {
    let result = compare::run(args)?;
    print(args.json, &compare::summary(&result), || json!(result));
    Ok(())
}

/// The result to stdout; its warnings to stderr as well, where they are seen when stdout goes to a file.
fn print(as_json: bool, text: &str, value: impl FnOnce() -> Value) {
    text.lines().filter(|line| line.starts_with("warning: ")).for_each(|line| say!("fid: {line}"));
    match as_json {
        true => cli::print_json(&value()),
        false => cli::tell(text),
    }
}
