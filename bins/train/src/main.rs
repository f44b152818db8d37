//! lcf-train: see `lcf_train` for what it does and the README for how it is used.

use anyhow::Result;
use clap::{Parser, ValueEnum};
use lcf_model::{
    Engine,
    bench::{BenchArgs, inputs::Shapes},
    config::Input,
    device::DeviceArgs,
    pixels,
};
use lcf_store::{
    Error,
    cli::{self, StageArgs},
    dataset::Dataset,
    error::STOPPED,
    provenance::UP_TO_ROUNDING,
    stage::{Begin, Plan},
};
use lcf_train::{
    TrainConfig, bench,
    launch::RankArgs,
    metrics,
    origin::Origin,
    ranks::{self, Ranks},
    run::{self, Pace, train},
    tensorboard, text,
};
use std::{
    path::{Path, PathBuf},
    process::{ExitCode, exit},
    time::Duration,
};
use tch::Device;

/// Version of this stage: bumped when the same config and data give another result.
const VERSION: u32 = 1;

/// Train a DiT with flow matching or Local Contrastive Flow
///
/// Resumes by itself: an interrupted training goes on from its last checkpoint when the same command runs again.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    stage: StageArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    inputs: Option<Inputs>,
    #[command(flatten)]
    bench: BenchArgs,
    /// Steps between rows of metrics.csv
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    log_steps: u64,
    /// Steps between checkpoints, beside those by time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_steps: Option<u64>,
    /// Minutes between checkpoints
    #[arg(long, value_name = "M", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    checkpoint_minutes: u64,
    /// Epochs between comparisons of the gradients of the two terms of the loss, in metrics.csv; each takes a step by the
    /// reference, and its memory
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    term_norms: Option<u64>,
    /// What computes the step on CUDA
    #[arg(long, value_enum, default_value_t = EngineArg::Fused)]
    engine: EngineArg,
    #[command(flatten)]
    ranks: RankArgs,
}

#[derive(clap::Args)]
struct Inputs {
    /// Dataset artifact
    #[arg(long, value_name = "DIR", required = false, required_unless_present = "bench")]
    data: PathBuf,
}

impl Args {
    fn origin<'a>(&self, device: Device, ranks: &'a Ranks) -> Origin<'a> {
        Origin { device, engine: self.engine.into(), ranks, threads: self.device.threads }
    }

    fn pace(&self, origin: &Origin) -> Pace {
        Pace {
            by: origin.number(),
            log_steps: self.log_steps,
            checkpoint_steps: self.checkpoint_steps,
            checkpoint_every: Duration::from_secs(60 * self.checkpoint_minutes),
            engine: self.engine.into(),
            term_norms: self.term_norms,
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum EngineArg {
    /// Fused kernels where they apply
    Fused,
    /// Plain libtorch operations
    Reference,
}

impl From<EngineArg> for Engine {
    fn from(engine: EngineArg) -> Self {
        match engine {
            EngineArg::Fused => Self::Fused,
            EngineArg::Reference => Self::Reference,
        }
    }
}

fn main() -> ExitCode {
    cli::main(&ranks::name(), run)
}

fn run(args: Args) -> Result<()> {
    let config: TrainConfig = args.stage.section::<TrainConfig>()?.resolved();
    args.ranks.launch(config.batch)?;
    let ranks = args.ranks.join()?;
    let result = match &args.inputs {
        Some(inputs) => stage(&args, &inputs.data, &config, &ranks),
        None => measure(&args, &config, &ranks),
    };
    match &result {
        Ok(()) => ranks.leave()?,
        Err(error) => ranks.fail(&error.to_string()),
    }
    result
}

/// The bench, whose result rank 0 prints.
fn measure(args: &Args, config: &TrainConfig, ranks: &Ranks) -> Result<()> {
    let shapes = Shapes::of(&args.stage)?;
    let bench = args.bench.on(ranks.open(&args.device)?, ranks.size());
    let outcome = bench::run(bench, config, &shapes, args.engine.into(), ranks)?;
    if ranks.rank() == 0 {
        outcome.print(args.stage.json);
    }
    Ok(())
}

fn stage(args: &Args, data: &Path, config: &TrainConfig, ranks: &Ranks) -> Result<()> {
    let dataset = Dataset::open(data)?;
    let input = check(config, &dataset, ranks)?;
    let plan = Plan::of(VERSION, config).input("data", dataset.artifact.digest());
    if ranks.rank() > 0 {
        return follow(args, config, &dataset, input, &plan, ranks);
    }
    let key = plan.key();
    let (artifact, built) = match plan.begin(&args.stage)? {
        Begin::UpToDate(artifact) => {
            ranks.announce(None)?;
            (artifact, false)
        }
        Begin::Build(mut work) => {
            // From here on a signal ends it after a step: opening devices takes seconds.
            run::signals()?;
            ranks.announce(Some(&key))?;
            let device = ranks.open(&args.device)?;
            let origin = args.origin(device, ranks);
            origin.record(config, input, work.provenance());
            text::announce(config, &dataset, input, device, args.engine.into(), ranks);
            let images = pixels::load(&dataset.train, device);
            if !train(config, &dataset, input, images, args.pace(&origin), &work, ranks)? {
                work.provenance().reproducible = UP_TO_ROUNDING.to_owned();
            }
            // Their rows hold times, and how many there are depends on --log-steps.
            work.log(metrics::FILE);
            tensorboard::files(work.dir())?.iter().for_each(|name| work.log(name));
            (work.publish()?, true)
        }
    };
    args.stage.link(&artifact)?;
    text::print(&args.stage, &artifact, built)
}

/// What a rank other than 0 does: it computes, and writes nothing.
fn follow(
    args: &Args,
    config: &TrainConfig,
    dataset: &Dataset,
    input: Input,
    plan: &Plan,
    ranks: &Ranks,
) -> Result<()> {
    if !ranks.await_plan(&plan.key())? {
        return Ok(());
    }
    run::signals()?;
    let device = ranks.open(&args.device)?;
    let images = pixels::load(&dataset.train, device);
    if run::follow(config, input, images, args.pace(&args.origin(device, ranks)), ranks)? {
        ranks.leave()?;
        // Rank 0 says what has happened.
        exit(i32::from(STOPPED));
    }
    Ok(())
}

/// Whether model and data fit together.
fn check(config: &TrainConfig, dataset: &Dataset, ranks: &Ranks) -> Result<Input> {
    let meta = &dataset.meta;
    let fits = config.model.fits(meta.channels, meta.height, meta.width);
    let input = fits.map_err(|message| Error::usage(format!("train.model.{message} ({})", meta.name)))?;
    if dataset.train.count < config.batch {
        let (batch, count) = (config.batch, dataset.train.count);
        return Err(Error::usage(format!("train.batch: {batch} is more than the {count} training images")).into());
    }
    ranks::check_batch(config.batch, ranks.size())?;
    Ok(input)
}
