//! lcf-train: see `lcf_train` for what it does and the README for how it is used.

use anyhow::Result;
use clap::{Parser, ValueEnum};
use lcf_model::{
    Engine, Precision,
    config::Input,
    device::{self, DeviceArgs},
    params::Layout,
    pixels,
    trained::{META, Meta},
};
use lcf_store::{
    Artifact, Error,
    cli::{self, StageArgs},
    dataset::Dataset,
    error::STOPPED,
    provenance::UP_TO_ROUNDING,
    stage::{Begin, Plan, Work},
};
use lcf_train::{
    TrainConfig,
    launch::RankArgs,
    metrics,
    ranks::{self, Ranks},
    run::{self, Pace, train},
    step::is_captured,
    tensorboard,
};
use std::{
    path::PathBuf,
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
    /// Dataset artifact
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Steps between rows of metrics.csv
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    log_steps: u64,
    /// Steps between checkpoints, beside those by time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_steps: Option<u64>,
    /// Minutes between checkpoints
    #[arg(long, value_name = "M", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    checkpoint_minutes: u64,
    /// What computes the step on CUDA
    #[arg(long, value_enum, default_value_t = EngineArg::Fused)]
    engine: EngineArg,
    #[command(flatten)]
    ranks: RankArgs,
}

impl Args {
    fn pace(&self) -> Pace {
        Pace {
            log_steps: self.log_steps,
            checkpoint_steps: self.checkpoint_steps,
            checkpoint_every: Duration::from_secs(60 * self.checkpoint_minutes),
            engine: self.engine.into(),
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
    let result = stage(&args, &config, &ranks);
    match &result {
        Ok(()) => ranks.leave()?,
        Err(error) => ranks.fail(&error.to_string()),
    }
    result
}

fn stage(args: &Args, config: &TrainConfig, ranks: &Ranks) -> Result<()> {
    let dataset = Dataset::open(&args.data)?;
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
            ranks.announce(Some(&key))?;
            let device = ranks.open(&args.device)?;
            record(&mut work, config, input, device, args.engine.into(), ranks);
            announce(config, &dataset, input, device, ranks);
            if device != Device::Cpu && args.engine == EngineArg::Fused && !lcf_model::has_kernels() {
                eprintln!(
                    "train: built without the CUDA kernels, which is slower: `make deps CUDA=1`, then build again"
                );
            }
            let images = pixels::load(&dataset.train, device);
            train(config, &dataset, input, images, args.pace(), &work, ranks)?;
            // Their rows hold times, and how many there are depends on --log-steps.
            work.log(metrics::FILE);
            tensorboard::files(work.dir())?.iter().for_each(|name| work.log(name));
            (work.publish()?, true)
        }
    };
    args.stage.link(&artifact)?;
    print(&args.stage, &artifact, built)
}

/// Records where it is trained, and whether the weights can be had again: several ranks sum in an order of their own.
fn record(work: &mut Work, config: &TrainConfig, input: Input, device: Device, engine: Engine, ranks: &Ranks) {
    device::record(work.provenance(), device, is_captured(config, input, device, engine));
    if !ranks.are_one() {
        let made = work.provenance();
        made.device = format!("{} x {}", ranks.size(), made.device);
        made.reproducible = UP_TO_ROUNDING.to_owned();
    }
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
    let device = ranks.open(&args.device)?;
    let images = pixels::load(&dataset.train, device);
    if run::follow(config, input, images, args.engine.into(), ranks)? {
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

fn announce(config: &TrainConfig, dataset: &Dataset, input: Input, device: Device, ranks: &Ranks) {
    let layout = Layout::new(&config.model, &input);
    let model = &config.model;
    let steps = config.epochs * (dataset.train.count / config.batch) as u64;
    eprintln!(
        "train: DiT {}x{} patch {}, {} parameters ({} in the blocks without adaLN, which is what the paper counts)",
        model.depth,
        model.width,
        model.patch,
        layout.parameters(),
        layout.block_parameters(),
    );
    eprintln!(
        "train: {} on {} ({} images), {} epochs = {steps} steps of {}, {} on {}",
        config.objective.name(),
        dataset.meta.name,
        dataset.train.count,
        config.epochs,
        config.batch,
        if config.precision == Precision::Bf16 { "bf16" } else { "fp32" },
        device::name(device),
    );
    if !ranks.are_one() {
        eprintln!("train: {} ranks, each with its share of every batch", ranks.size());
    }
    if config.precision == Precision::Bf16 && device == Device::Cpu {
        eprintln!("train: bf16 is slow on a CPU; --set train.precision=fp32 is much faster there");
    }
}

fn print(args: &StageArgs, artifact: &Artifact, built: bool) -> Result<()> {
    let meta: Meta = artifact.json(META)?;
    let dir = artifact.dir().display();
    if args.json {
        let digest = artifact.digest();
        cli::print_json(
            &serde_json::json!({"artifact": dir.to_string(), "digest": digest, "built": built, "train": meta}),
        );
        return Ok(());
    }
    let state = if built { "trained" } else { "up to date" };
    let skipped = if meta.skipped > 0 { format!(", {} steps skipped", meta.skipped) } else { String::new() };
    if 2 * meta.skipped > meta.steps {
        let Meta { skipped, steps, .. } = meta;
        eprintln!(
            "train: warning: {skipped} of {steps} updates were left out: lower train.optim.lr or contrast.lambda"
        );
    }
    let loss = meta.final_loss.map(|loss| format!(", flow loss {loss:.4}")).unwrap_or_default();
    println!(
        "train: {state}: {} on {}, {} parameters, {} epochs{loss}{skipped}",
        meta.objective, meta.dataset, meta.parameters, meta.epochs
    );
    println!("train: {dir}");
    Ok(())
}
