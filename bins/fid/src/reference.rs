//! The reference artifact: features and moments of a dataset's images, computed once and read by every run.

use crate::{
    config::{Config, Precision, Resize, Split},
    images::Images,
    inception::{ComputeArgs, DIM, Inception, SHA256},
    stats::Moments,
    subset::{self, Purpose},
};
use anyhow::Result;
use lcf_store::{
    Artifact, Error,
    cli::StageArgs,
    dataset::{self, Dataset},
    npy::{self, Npy},
    stage::{Begin, Plan, Work, pretty},
};
use serde::{Deserialize, Serialize};
use std::fs;

/// Stage name of reference artifacts.
pub const STAGE: &str = "reference";
const VERSION: u32 = 1;
/// Seed of the subset of real images.
const SEED: u64 = 0;
const META: &str = "reference.json";
const FEATURES: &str = "features.npy";

/// `reference.json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// Name of the dataset.
    pub dataset: String,
    /// Half of it.
    pub split: Split,
    /// Number of images.
    pub n: usize,
    /// Number of images the split has; with more than `n`, a class-balanced subset was drawn with `seed`.
    pub of: usize,
    /// Seed of the subset.
    pub seed: u64,
    /// Scaling to 299x299.
    pub resize: Resize,
    /// Number types of the network.
    #[serde(default, skip_serializing_if = "Precision::is_fp32")]
    pub feature_precision: Precision,
    /// SHA-256 of the network.
    pub weights: String,
}

/// What the key is made of beside the digests of the dataset and the network.
#[derive(Serialize)]
struct Key {
    resize: Resize,
    split: Split,
    reference: Option<usize>,
    #[serde(skip_serializing_if = "Precision::is_fp32")]
    precision: Precision,
}

/// An opened reference artifact.
#[derive(Debug)]
pub struct Reference {
    /// Where it lies.
    pub artifact: Artifact,
    /// What it is of.
    pub meta: Meta,
    /// Moments of all its images.
    pub moments: Moments,
    features: Npy<f32>,
    config: Config,
}

impl Reference {
    /// Opens the reference that `config` asks for of the verified dataset `data`, and builds it first where the store has
    /// none. `network` loads the network when it is needed.
    ///
    /// # Errors
    /// A split with fewer images than asked for, and whatever goes wrong on the way.
    pub fn open(args: &StageArgs, config: &Config, data: &Artifact, network: &mut Lazy) -> Result<Self> {
        match plan(config, data.digest()).begin(args)? {
            Begin::UpToDate(artifact) => Self::of(artifact, config),
            Begin::Build(work) => {
                work.clear()?;
                Self::of(build(work, Dataset::of(data.clone())?, config, network.get()?)?, config)
            }
        }
    }

    fn of(artifact: Artifact, config: &Config) -> Result<Self> {
        let meta: Meta = artifact.json(META)?;
        let moments = Moments::read(&artifact.file("mean.npy")?, &artifact.file("cov.npy")?);
        let moments = moments.map_err(|error| match error.downcast::<Error>() {
            Ok(error) => artifact.suspect(error).into(),
            Err(error) => error,
        })?;
        let features = Npy::<f32>::open(&artifact.file(FEATURES)?)?;
        if features.shape() != [meta.n, DIM] {
            let message = format!("found shape {:?}, expected [{}, {DIM}]", features.shape(), meta.n);
            return Err(artifact.suspect(Error::bad(features.path(), message)).into());
        }
        if let Some(at) = features.values().iter().position(|value| !value.is_finite()) {
            let (image, feature) = (at / DIM, at % DIM);
            let message = format!("feature {feature} of image {image} is {}, not finite", features.values()[at]);
            return Err(artifact.suspect(Error::bad(features.path(), message)).into());
        }
        Ok(Self { artifact, meta, moments, features, config: config.clone() })
    }

    /// The images that it is of.
    ///
    /// # Errors
    /// A split with fewer images than asked for, or than two.
    pub fn images(&self, dataset: Dataset) -> Result<Images> {
        Ok(choose(dataset, &self.config)?.0)
    }

    /// All features, `[n, 2048]`.
    pub fn all(&self) -> &[f32] {
        self.features.values()
    }

    /// Features of the images of `indices`, `[n, 2048]`.
    pub fn features(&self, indices: &[usize]) -> Vec<f32> {
        indices.iter().flat_map(|&i| self.features.rows(i, 1)).copied().collect()
    }
}

fn plan(config: &Config, data: &str) -> Plan {
    let Config { resize, split, reference, precision, .. } = *config;
    let key = Key { resize, split, reference, precision };
    Plan::new(STAGE, VERSION, &key).input("data", data).input("weights", SHA256)
}

/// The reference that `config` asks for of the dataset with digest `data`, where the store has it. Its manifest alone is
/// read.
pub fn find(args: &StageArgs, config: &Config, data: &str) -> Option<Artifact> {
    let key = plan(config, data).key();
    let artifact = Artifact::read(&args.store.join(STAGE).join(&key[..12])).ok()?;
    (artifact.manifest().key == key).then_some(artifact)
}

/// The network, loaded by the first one who asks.
#[derive(Debug)]
pub struct Lazy<'a> {
    args: &'a ComputeArgs,
    config: &'a Config,
    network: Option<Inception>,
}

impl<'a> Lazy<'a> {
    /// Nothing loaded yet.
    pub fn new(args: &'a ComputeArgs, config: &'a Config) -> Self {
        Self { args, config, network: None }
    }

    /// The network.
    ///
    /// # Errors
    /// As [`ComputeArgs::open`].
    pub fn get(&mut self) -> Result<&Inception> {
        if self.network.is_none() {
            self.network = Some(self.args.open(self.config.resize, self.config.precision)?);
        }
        Ok(self.network.as_ref().expect("loaded just now"))
    }
}

fn build(mut work: Work, dataset: Dataset, config: &Config, network: &Inception) -> Result<Artifact> {
    network.record(work.provenance());
    let (images, meta) = choose(dataset, config)?;
    let features = network.features(&images, &format!("{} {}", meta.dataset, meta.split.name()))?;
    Moments::of(&features, DIM, network.device())?.write(work.dir())?;
    npy::write(&work.path(FEATURES), &[meta.n, DIM], &features)?;
    let path = work.path(META);
    fs::write(&path, pretty(&meta)).map_err(Error::io(&path, "write"))?;
    Ok(work.publish()?)
}

/// The config of a reference of the other half of `dataset`: no more images than are asked for, or than it has. None
/// where it has less than two.
pub fn of_other_half(config: &Config, dataset: &dataset::Meta) -> Option<Config> {
    let split = config.split.other();
    let half = if split == Split::Train { &dataset.train } else { &dataset.test };
    let reference = config.reference.map(|n| n.min(half.count));
    (half.count >= 2).then(|| Config { split, reference, ..config.clone() })
}

/// The images of the split, or the subset of them that is asked for.
fn choose(dataset: Dataset, config: &Config) -> Result<(Images, Meta)> {
    let labels = if config.split == Split::Train { dataset.train.labels() } else { dataset.test.labels() }.to_vec();
    let (name, split, of) = (dataset.meta.name.clone(), config.split, labels.len());
    let mut images = Images::dataset(dataset, split)?;
    if let Some(n) = config.reference {
        if n > of {
            let message = format!("fid.reference: {n} images, but the {} split of {name} has {of}", split.name());
            return Err(Error::usage(message).into());
        }
        images.select(&subset::balanced(&labels, n, SEED, Purpose::Reference));
    }
    images.at_least_two()?;
    let (n, &Config { resize, precision: feature_precision, .. }) = (images.len(), config);
    Ok((
        images,
        Meta { dataset: name, split, n, of, seed: SEED, resize, feature_precision, weights: SHA256.to_owned() },
    ))
}
