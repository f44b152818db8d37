//! lcf-sample.

use clap::Parser;
use lcf_model::{
    bench::{BenchArgs, inputs::Shapes},
    device::{self, DeviceArgs},
    trained::Trained,
};
use lcf_sample::{
    Config, VERSION, bench,
    output::{SUMMARY, Summary},
    run,
};
use lcf_store::{
    Artifact, Error,
    cli::{self, StageArgs},
    config::Section,
    say,
    stage::{Begin, Plan},
    tell,
};
use serde_json::json;
use std::{path::PathBuf, process::ExitCode, time::Instant};
use tch::Device;

/// Images from a trained model: Euler or Heun from noise at t = 1, ended at T_min by one data step where the velocity
/// was not trained below it
#[derive(Debug, Parser)]
#[command(name = "lcf-sample", version)]
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
    /// Integrate to t = 0 also where the velocity was not trained (sets sample.through_t0)
    #[arg(long)]
    through_t0: bool,
}

#[derive(Debug, clap::Args)]
struct Inputs {
    /// The train artifact, or a link to it
    #[arg(long, value_name = "PATH", required = false, required_unless_present = "bench")]
    model: PathBuf,
}

impl Args {
    fn batch(&self, device: Device) -> usize {
        self.batch.unwrap_or(if device == Device::Cpu { 64 } else { 512 }) as usize
    }
}

fn main() -> ExitCode {
    cli::main("sample", run)
}

fn run(args: Args) -> anyhow::Result<()> {
    let mut config: Config = args.stage.section()?;
    config.through_t0 |= args.through_t0;
    let Some(inputs) = &args.inputs else {
        let bench = args.bench.open(&args.device)?;
        let batch = args.batch(bench.device());
        bench::run(bench, &config, &Shapes::of(&args.stage)?, batch)?.print(args.stage.json);
        return Ok(());
    };
    let trained = Trained::open(&inputs.model)?;
    let resolved = config.resolve(trained.meta.velocity_from)?;
    let plan = Plan::new(Config::NAME, VERSION, &resolved).input("model", trained.artifact.digest());
    let (artifact, built) = match plan.begin(&args.stage)? {
        Begin::UpToDate(artifact) => (artifact, false),
        Begin::Build(mut work) => {
            let device = args.device.open()?;
            let in_order = trained.is_fused(resolved.config.precision, device);
            device::record(work.provenance(), device, in_order);
            let started = Instant::now();
            run::run(&resolved, &trained, device, args.batch(device), &work)?;
            let (num, seconds) = (resolved.config.num, started.elapsed().as_secs_f64());
            say!("sample: {num} images in {seconds:.1} s, {:.1} images/s", num as f64 / seconds);
            (work.publish()?, true)
        }
    };
    args.stage.link(&artifact)?;
    Ok(print(&artifact, built, args.stage.json)?)
}

fn print(artifact: &Artifact, built: bool, as_json: bool) -> Result<(), Error> {
    let summary: Summary = artifact.json(SUMMARY)?;
    let path = artifact.dir().display();
    if as_json {
        let (path, digest) = (path.to_string(), artifact.digest());
        cli::print_json(&json!({"artifact": path, "digest": digest, "built": built, "sample": summary}));
        return Ok(());
    }
    tell!("{}", summary.line());
    tell!("{path}{}", if built { "" } else { " (up to date)" });
    Ok(())
}
