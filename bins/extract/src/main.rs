//! lcf-extract.

use clap::Parser;
use lcf_extract::{Config, VERSION, bench, run};
use lcf_model::{
    bench::{BenchArgs, inputs::Shapes},
    device::{self, DeviceArgs},
    features::{META, Meta},
    trained::Trained,
};
use lcf_store::{
    Artifact, Error,
    cli::{self, StageArgs},
    dataset::Dataset,
    say,
    stage::{Begin, Plan},
    tell,
};
use serde_json::json;
use std::{path::PathBuf, process::ExitCode, time::Instant};
use tch::Device;

/// Features of a frozen model: the residual stream after one block, averaged over tokens, for every image of a dataset
/// at a grid of timesteps
#[derive(Debug, Parser)]
#[command(name = "lcf-extract", version)]
struct Args {
    #[command(flatten)]
    stage: StageArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    inputs: Option<Inputs>,
    #[command(flatten)]
    bench: BenchArgs,
    /// Images at a time: 512 on CUDA and 64 on the CPU if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
}

#[derive(Debug, clap::Args)]
struct Inputs {
    /// The train artifact, or a link to it
    #[arg(long, value_name = "PATH", required = false, required_unless_present = "bench")]
    model: PathBuf,
    /// The dataset artifact, or a link to it
    #[arg(long, value_name = "PATH", required = false, required_unless_present = "bench")]
    data: PathBuf,
}

impl Args {
    fn batch(&self, device: Device) -> usize {
        self.batch.unwrap_or(if device == Device::Cpu { 64 } else { 512 }) as usize
    }
}

fn main() -> ExitCode {
    cli::main("extract", run)
}

fn run(args: Args) -> anyhow::Result<()> {
    let config: Config = args.stage.section()?;
    let Some(inputs) = &args.inputs else {
        let bench = args.bench.open(&args.device)?;
        let batch = args.batch(bench.device());
        bench::run(bench, &config, &Shapes::of(&args.stage)?, batch)?.print(args.stage.json);
        return Ok(());
    };
    let trained = Trained::open(&inputs.model)?;
    let data = Dataset::open(&inputs.data)?;
    config.check(&trained.meta, &data.meta, &inputs.data)?;
    if trained.meta.data != data.artifact.digest() {
        say!("extract: warning: these images are not the dataset artifact that the model was trained on");
    }
    let plan = Plan::of(VERSION, &config).input("model", trained.artifact.digest());
    let (artifact, built) = match plan.input("data", data.artifact.digest()).begin(&args.stage)? {
        Begin::UpToDate(artifact) => (artifact, false),
        Begin::Build(mut work) => {
            let device = args.device.open()?;
            device::record(work.provenance(), device, trained.is_fused(config.precision, device));
            let started = Instant::now();
            run::run(&config, &trained, &data, device, args.batch(device), &work)?;
            let features = (data.train.count + data.test.count) * config.timesteps.len();
            let seconds = started.elapsed().as_secs_f64();
            say!("extract: {features} features in {seconds:.1} s, {:.0}/s", features as f64 / seconds);
            (work.publish()?, true)
        }
    };
    args.stage.link(&artifact)?;
    Ok(print(&artifact, built, args.stage.json)?)
}

fn print(artifact: &Artifact, built: bool, as_json: bool) -> Result<(), Error> {
    let meta: Meta = artifact.json(META)?;
    let path = artifact.dir().display();
    if as_json {
        let (path, digest) = (path.to_string(), artifact.digest());
        cli::print_json(&json!({"artifact": path, "digest": digest, "built": built, "features": meta}));
        return Ok(());
    }
    let Meta { weights, layer, width, train, test, timesteps, dataset, .. } = &meta;
    tell!("{dataset}: {train} train and {test} test images at T = {timesteps:?}");
    tell!("layer {layer} of weights {weights}, mean over tokens, width {width}");
    tell!("{path}{}", if built { "" } else { " (up to date)" });
    Ok(())
}
