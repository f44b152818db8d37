//! `lcf-prepare`: raw images to a dataset artifact.

use clap::Parser;
use lcf_prepare::{config::Config, input::Places, prepare};
use lcf_store::{
    cli::{self, StageArgs, print_json},
    config::Section,
    dataset::Dataset,
    tell,
    text::visible,
};
use serde_json::json;
use std::{path::PathBuf, process::ExitCode};

/// Make a dataset of CIFAR-10, Tiny-ImageNet, an image folder, or generated images
#[derive(Debug, Parser)]
#[command(name = "lcf-prepare", version)]
struct Args {
    #[command(flatten)]
    stage: StageArgs,
    /// Local tar.gz, zip or folder to read; without it, cifar10 and tiny-imagenet are downloaded
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Take this many training images, balanced over the classes (same as --set prepare.limit=N)
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// List of downloads with their sizes and hashes
    #[arg(long, value_name = "FILE", default_value = "data/SOURCES.json")]
    sources: PathBuf,
    /// Where downloads are kept
    #[arg(long, value_name = "DIR", default_value = "data/downloads")]
    downloads: PathBuf,
}

fn main() -> ExitCode {
    cli::main("prepare", run)
}

fn run(args: Args) -> anyhow::Result<()> {
    let mut stage = args.stage;
    stage.overrides.extend(args.limit.map(|limit| format!("{}.limit={limit}", Config::NAME)));
    let config: Config = stage.section()?;
    let places = Places { data: args.data, sources: args.sources, downloads: args.downloads };
    let (artifact, built) = prepare(&stage, &places, &config.resolved())?;
    stage.link(&artifact)?;
    print(&Dataset::of(artifact)?, built, stage.json);
    Ok(())
}

/// The result: one JSON object, or what a person wants to see.
fn print(dataset: &Dataset, built: bool, as_json: bool) {
    let (meta, artifact) = (&dataset.meta, &dataset.artifact);
    let seconds = artifact.manifest().provenance.seconds;
    let shape = [meta.channels, meta.height, meta.width];
    if as_json {
        return print_json(&json!({
            "stage": Config::NAME, "built": built, "seconds": seconds, "artifact": artifact.dir(),
            "digest": artifact.digest(), "name": meta.name, "train": meta.train.count, "test": meta.test.count,
            "shape": shape, "classes": meta.classes, "mean": meta.mean, "std": meta.std,
        }));
    }
    let round = |values: &[f64]| values.iter().map(|value| format!("{value:.4}")).collect::<Vec<_>>().join(" ");
    let state = if built { format!("built in {seconds} s") } else { "up to date".into() };
    tell!("{}: {state}", meta.name);
    tell!("  images    {} train, {} test, {shape:?} uint8", meta.train.count, meta.test.count);
    tell!("  classes   {}: {}", meta.classes.len(), first(&meta.classes));
    tell!("  mean, std {}, {} in [-1, 1]", round(&meta.mean), round(&meta.std));
    tell!("  digest    {}", artifact.digest());
    tell!("  artifact  {}", artifact.dir().display());
}

/// The first ten names.
fn first(names: &[String]) -> String {
    let dots = if names.len() > 10 { ", ..." } else { "" };
    visible(&format!("{}{dots}", names[..names.len().min(10)].join(", ")))
}
