//! The stage: samples against the reference, and the bias floor at their number.

use crate::{
    config::{Config, Resize, Split},
    frechet,
    images::{Images, SAMPLE_STAGE},
    inception::{ComputeArgs, DIM, SHA256},
    rank_warning,
    reference::{self, Lazy, Reference},
    stats::Moments,
    subset::{self, Purpose},
};
use anyhow::Result;
use lcf_model::device;
use lcf_store::{
    Artifact, Error,
    cli::StageArgs,
    dataset, npy,
    stage::{Begin, Plan, Work, pretty},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{fs, path::Path};

/// Bumped by hand when the meaning of the stage changes.
const VERSION: u32 = 1;
/// Seed of the real images that stand in for samples.
const FLOOR_SEED: u64 = 0;
const REPORT: &str = "fid.json";
const SAMPLE_META: &str = "sample.json";

/// `fid.json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The distance.
    pub fid: f64,
    /// Number of samples.
    pub n: usize,
    /// Number of real images.
    pub n_reference: usize,
    /// Name of the dataset they are from.
    pub dataset: String,
    /// Half of it.
    pub split: Split,
    /// Scaling to 299x299.
    pub resize: Resize,
    /// Whether either side has too few images for a covariance of full rank.
    pub rank_deficient: bool,
    /// What real images would get.
    pub floor: Floor,
    /// `sample.json` of the samples as it is: sampler, steps, weights, seed.
    pub sample: Value,
    /// Content of the inputs.
    pub digests: Digests,
}

/// The bias floor: the distance of n of the reference's own images from all of them. FID falls with n, so samples that
/// are perfect still get about this much.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Floor {
    /// The distance, or null for `reason`.
    pub fid: Option<f64>,
    /// Number of real images taken.
    pub n: usize,
    /// Seed they were drawn with.
    pub seed: u64,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Digests of artifacts, and the hash of the network.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Digests {
    /// The sample artifact.
    pub samples: String,
    /// The dataset.
    pub data: String,
    /// The reference artifact.
    pub reference: String,
    /// SHA-256 of the network.
    pub weights: String,
}

/// Builds or finds the result, links it, and returns it with what it says.
///
/// # Errors
/// Inputs that are not what they have to be, a failed computation, a store that cannot be written.
pub fn run(args: &StageArgs, samples: &Path, data: &Path, compute: &ComputeArgs) -> Result<(Artifact, Report)> {
    let config: Config = args.section()?;
    let sampled = Artifact::open(samples, SAMPLE_STAGE)?;
    let real = read_dataset(data)?;
    note_other_data(&sampled, &real)?;
    let plan = Plan::of(VERSION, &config)
        .input("samples", sampled.digest())
        .input("data", real.digest())
        .input("weights", SHA256);
    let artifact = match plan.begin(args)? {
        Begin::UpToDate(artifact) => {
            if let Some(reference) = reference::find(args, &config, real.digest()) {
                link_reference(args, &reference)?;
            }
            artifact
        }
        Begin::Build(work) => {
            work.clear()?;
            build(work, args, &config, &sampled, data, compute)?
        }
    };
    args.link(&artifact)?;
    let report = artifact.json(REPORT)?;
    Ok((artifact, report))
}

/// The dataset's manifest, for its digest; its files are verified when they are needed.
fn read_dataset(data: &Path) -> Result<Artifact> {
    let artifact = Artifact::read(data)?;
    let stage = &artifact.manifest().stage;
    match stage == dataset::STAGE {
        true => Ok(artifact),
        false => {
            Err(Error::bad(data, format!("found an artifact of stage {stage}, expected {}", dataset::STAGE)).into())
        }
    }
}

fn build(
    mut work: Work,
    args: &StageArgs,
    config: &Config,
    sampled: &Artifact,
    data: &Path,
    compute: &ComputeArgs,
) -> Result<Artifact> {
    // What is wrong with the samples is said before minutes go into the reference.
    let images = Images::samples(sampled)?;
    images.at_least_two()?;
    let sample = sample_meta(sampled, images.len())?;
    let mut network = Lazy::new(compute, config.resize);
    let reference = Reference::open(args, config, data, &mut network)?;
    link_reference(args, &reference.artifact)?;
    let network = network.get()?;
    let features = network.features(&images, "samples")?;
    let moments = Moments::of(&features, DIM, network.device())?;
    let (n, n_reference) = (images.len(), reference.meta.n);
    let report = Report {
        fid: frechet::distance(&reference.moments, &moments)?,
        n,
        n_reference,
        dataset: reference.meta.dataset.clone(),
        split: config.split,
        resize: config.resize,
        rank_deficient: rank_warning(n.min(n_reference)).is_some(),
        floor: floor(&reference, n, network.device())?,
        sample,
        digests: Digests {
            samples: sampled.digest().to_owned(),
            data: reference.artifact.manifest().inputs["data"].clone(),
            reference: reference.artifact.digest().to_owned(),
            weights: SHA256.to_owned(),
        },
    };
    device::record(work.provenance(), network.device());
    npy::write(&work.path("features.npy"), &[n, DIM], &features)?;
    let path = work.path(REPORT);
    fs::write(&path, pretty(&report)).map_err(Error::io(&path, "write"))?;
    Ok(work.publish()?)
}

/// Links the reference beside the result, as `reference`: it is no input by digest, since the result's key has to be
/// known before the reference is built, so without a link `lcf-artifact gc` would collect it.
fn link_reference(args: &StageArgs, reference: &Artifact) -> Result<()> {
    let link = args.link.as_ref().map(|link| link.with_file_name(reference::STAGE));
    Ok(StageArgs { link, ..args.clone() }.link(reference)?)
}

/// Says so when the model behind the samples was trained on something else than the dataset they are held against.
fn note_other_data(sampled: &Artifact, real: &Artifact) -> Result<()> {
    let sample: Value = sampled.json(SAMPLE_META)?;
    if sample["data"].as_str().is_some_and(|data| data != real.digest()) {
        eprintln!("fid: note: these samples are of a model that was not trained on this dataset artifact");
    }
    Ok(())
}

/// `sample.json`, which has to speak of as many images as there are.
fn sample_meta(sampled: &Artifact, n: usize) -> Result<Value> {
    let sample: Value = sampled.json(SAMPLE_META)?;
    match sample["num"].as_u64() {
        Some(num) if num == n as u64 => Ok(sample),
        _ => {
            let message = format!("found num {}, expected the {n} of the images", sample["num"]);
            Err(Error::bad(sampled.file(SAMPLE_META)?, message).into())
        }
    }
}

fn floor(reference: &Reference, n: usize, device: tch::Device) -> Result<Floor> {
    let all = reference.meta.n;
    if n >= all {
        let reason = format!("{n} samples are not fewer than the {all} reference images");
        return Ok(Floor { fid: None, n, seed: FLOOR_SEED, reason: Some(reason) });
    }
    let chosen = subset::uniform(all, n, FLOOR_SEED, Purpose::Floor);
    let moments = Moments::of(&reference.features(&chosen), DIM, device)?;
    Ok(Floor { fid: Some(frechet::distance(&reference.moments, &moments)?), n, seed: FLOOR_SEED, reason: None })
}

/// The result as people read it, without the path of the artifact.
pub fn text(report: &Report) -> String {
    let Report { fid, n, n_reference, dataset, split, resize, floor, sample, .. } = report;
    let of = |name: &str| sample[name].as_str().map_or_else(|| sample[name].to_string(), str::to_owned);
    let mut text = format!(
        "FID {fid:.2}  (n {n} vs {dataset} {} {n_reference}, resize {}, weights {}, {} {} steps, NFE {}, seed {})\n",
        split.name(),
        resize.name(),
        of("weights"),
        of("sampler"),
        of("steps"),
        of("nfe"),
        of("seed")
    );
    match (floor.fid, &floor.reason) {
        (Some(fid), _) => text += &format!("bias floor at n {}: {fid:.2}\n", floor.n),
        (None, reason) => text += &format!("bias floor: none, {}\n", reason.as_deref().unwrap_or("not measured")),
    }
    if let Some(warning) = rank_warning(*n.min(n_reference)) {
        text += &format!("warning: {warning}\n");
    }
    text
}
