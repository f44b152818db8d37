//! lcf-probe.

use clap::Parser;
use lcf_model::{
    bench::BenchArgs,
    device::{self, DeviceArgs},
    features::{Features, Part},
};
use lcf_probe::{Config, VERSION, bench, data::Data, output, run};
use lcf_store::{
    Artifact, Error,
    cli::{self, StageArgs},
    say,
    stage::{Begin, Plan, Work},
    tell,
};
use serde_json::json;
use std::{path::PathBuf, process::ExitCode, time::Instant};
use tch::Device;

/// Linear probes on extracted features, all timesteps at once: accuracy over t, with features as they are and
/// standardised
#[derive(Debug, Parser)]
#[command(name = "lcf-probe", version)]
struct Args {
    #[command(flatten)]
    stage: StageArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    inputs: Option<Inputs>,
    #[command(flatten)]
    bench: BenchArgs,
}

#[derive(Debug, clap::Args)]
struct Inputs {
    /// The extract artifact, or a link to it
    #[arg(long, value_name = "PATH", required = false, required_unless_present = "bench")]
    features: PathBuf,
}

fn main() -> ExitCode {
    cli::main("probe", run)
}

fn run(args: Args) -> anyhow::Result<()> {
    let config: Config = args.stage.section()?;
    let Some(inputs) = &args.inputs else {
        bench::run(args.bench.open(&args.device)?, &config, &args.stage)?.print(args.stage.json);
        return Ok(());
    };
    let features = Features::open(&inputs.features)?;
    let plan = Plan::of(VERSION, &config).input("features", features.artifact.digest());
    let (artifact, built) = match plan.begin(&args.stage)? {
        Begin::UpToDate(artifact) => (artifact, false),
        Begin::Build(mut work) => {
            let device = args.device.open()?;
            device::record(work.provenance(), device, false);
            build(&config, &features, device, &work)?;
            (work.publish()?, true)
        }
    };
    args.stage.link(&artifact)?;
    Ok(print(&artifact, built, args.stage.json)?)
}

fn build(config: &Config, features: &Features, device: Device, work: &Work) -> Result<(), Error> {
    work.clear()?;
    let started = Instant::now();
    let _no_grad = tch::no_grad_guard();
    let train = Data::load(features, Part::Train, device)?;
    let test = Data::load(features, Part::Test, device)?;
    let (counts, seconds) = ([train.count(), test.count()], started.elapsed().as_secs_f64());
    say!("probe: {} timesteps of {} + {} features read in {seconds:.1} s", train.x.size()[0], counts[0], counts[1]);
    let started = Instant::now();
    let trained = run::train(config, &train, features.meta.classes.len() as i64, device);
    let broken = |probe| output::broken(features, probe);
    if let Some(probe) = trained.broken {
        return Err(broken(probe));
    }
    let scores = [trained.accuracy(&train).map_err(broken)?, trained.accuracy(&test).map_err(broken)?];
    let rows = output::rows(&features.meta.timesteps, &scores[0], &scores[1]);
    say!("probe: {} probes trained in {:.1} s", 2 * rows.len(), started.elapsed().as_secs_f64());
    output::write(work, &features.meta, &trained, &rows, &train.constant())
}

fn print(artifact: &Artifact, built: bool, as_json: bool) -> Result<(), Error> {
    let (rows, summary) = output::read(artifact)?;
    summary.warnings.iter().for_each(|warning| say!("probe: warning: {warning}"));
    let path = artifact.dir().display().to_string();
    if as_json {
        let digest = artifact.digest();
        cli::print_json(&json!({"artifact": path, "digest": digest, "built": built, "probe": summary, "curve": rows}));
        return Ok(());
    }
    cli::tell(&output::table(&rows, &summary));
    tell!("{path}{}", if built { "" } else { " (up to date)" });
    Ok(())
}
