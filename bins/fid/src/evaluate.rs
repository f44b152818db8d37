//! The stage: samples against both halves of a dataset, the bias floor at their number, and what copies of training
//! images there are.

use crate::{
    config::{Config, Split},
    distances::Nearest,
    frechet,
    images::{Images, SAMPLE_STAGE},
    inception::{ComputeArgs, DIM, Inception, SHA256},
    metrics::{self, Metrics, Set, Settings},
    neighbours::{self, Around, Memorisation},
    reference::{self, Lazy, Reference},
    report::{Against, Digests, Floor, Halves, REPORT, Report, Spread, alike, warnings},
    samples::{self, Sampled},
    stats::Moments,
    subset::{self, Purpose},
};
use anyhow::Result;
use lcf_store::{
    Artifact, Error,
    cli::StageArgs,
    dataset::{self, Dataset},
    npy,
    stage::{Begin, Plan, Work, pretty},
};
use std::{fs, path::Path};

/// Bumped by hand when the meaning of the stage changes.
const VERSION: u32 = 2;
/// Seed of the real images that stand in for samples.
const FLOOR_SEED: u64 = 0;

/// What a run of the stage gave.
#[derive(Debug)]
pub struct Outcome {
    /// The result.
    pub artifact: Artifact,
    /// What it says.
    pub report: Report,
    /// Whether it was built now.
    pub built: bool,
}

/// Builds or finds the result, links it, and returns it with what it says. Of several `samples` the first gives the
/// headline; the others may differ from it in the seed alone.
///
/// # Errors
/// Inputs that are not what they have to be, a failed computation, a store that cannot be written.
pub fn run(args: &StageArgs, samples: &[impl AsRef<Path>], data: &Path, compute: &ComputeArgs) -> Result<Outcome> {
    let config: Config = args.section()?;
    let sampled =
        samples.iter().map(|path| Artifact::open(path, SAMPLE_STAGE)).collect::<lcf_store::Result<Vec<_>>>()?;
    let real = read_dataset(data)?;
    let sampled = samples::open(sampled, &real.json(dataset::META)?)?;
    let other_data = samples::other_data(&sampled, &real);
    let mut plan = Plan::of(VERSION, &config).input("data", real.digest()).input("weights", SHA256);
    for (i, sampled) in sampled.iter().enumerate() {
        plan = plan.input(&samples::role(i), sampled.artifact.digest());
    }
    let (artifact, built) = match plan.begin(args)? {
        Begin::UpToDate(artifact) => {
            link_references(args, &config, &real)?;
            (artifact, false)
        }
        Begin::Build(work) => {
            work.clear()?;
            real.verify()?;
            let build = Build { args, config: &config, data: &real };
            (build.run(work, sampled, compute)?, true)
        }
    };
    args.link(&artifact)?;
    let mut report: Report = artifact.json(REPORT)?;
    // Results of earlier versions do not say it.
    report.warnings.extend(other_data.filter(|warning| !report.warnings.contains(warning)));
    Ok(Outcome { artifact, report, built })
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

/// Links the references beside the result, where the store has them: they are no inputs by digest, since the result's
/// key has to be known before they are built, so without a link `lcf-artifact gc` would collect them.
fn link_references(args: &StageArgs, config: &Config, data: &Artifact) -> Result<()> {
    let meta: dataset::Meta = data.json(dataset::META)?;
    let other = reference::of_other_half(config, &meta);
    for (half, name) in [(Some(config), reference::STAGE.to_owned()), (other.as_ref(), other_name(config))] {
        let found = half.and_then(|half| reference::find(args, half, data.digest()));
        found.map(|reference| link_reference(args, &reference, &name)).transpose()?;
    }
    Ok(())
}

fn link_reference(args: &StageArgs, reference: &Artifact, name: &str) -> Result<()> {
    let link = args.link.as_ref().map(|link| link.with_file_name(name));
    Ok(StageArgs { link, ..args.clone() }.link(reference)?)
}

/// Name of the link to the reference of the half that gives no headline.
fn other_name(config: &Config) -> String {
    format!("{}-{}", reference::STAGE, config.split.other().name())
}

/// What a build reads.
struct Build<'a> {
    args: &'a StageArgs,
    config: &'a Config,
    data: &'a Artifact,
}

/// A half of the dataset and its features.
struct Half<'a> {
    reference: &'a Reference,
    set: Set<'a>,
}

/// The samples against a half.
struct Judged<'a> {
    half: &'a Half<'a>,
    metrics: Metrics,
    nearest: Nearest,
}

impl Build<'_> {
    fn run(&self, mut work: Work, sampled: Vec<Sampled>, compute: &ComputeArgs) -> Result<Artifact> {
        let Self { args, config, data } = *self;
        let mut network = Lazy::new(compute, config);
        let headline = Reference::open(args, config, data, &mut network)?;
        link_reference(args, &headline.artifact, reference::STAGE)?;
        let other = reference::of_other_half(config, &data.json(dataset::META)?)
            .map(|config| Reference::open(args, &config, data, &mut network))
            .transpose()?;
        if let Some(other) = &other {
            link_reference(args, &other.artifact, &other_name(config))?;
        }
        let network = network.get()?;
        let features = self.features(&sampled, network, &work)?;
        let settings = Settings { kid: config.kid, k: config.k, device: network.device() };
        network.record(work.provenance());
        let headline = Half::of(&headline, &settings)?;
        let other = other.as_ref().map(|other| Half::of(other, &settings)).transpose()?;
        let report = self.report(&sampled, &features, (&headline, other.as_ref()), &settings, &work)?;
        let path = work.path(REPORT);
        fs::write(&path, pretty(&report)).map_err(Error::io(&path, "write"))?;
        Ok(work.publish()?)
    }

    /// Features of each sampling, written as `features.npy`, `features-1.npy`, ...
    fn features(&self, sampled: &[Sampled], network: &Inception, work: &Work) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::new();
        for (i, Sampled { images, .. }) in sampled.iter().enumerate() {
            let features = network.features(images, &samples::role(i))?;
            let name = samples::role(i).replace("samples", "features");
            npy::write(&work.path(&format!("{name}.npy")), &[images.len(), DIM], &features)?;
            all.push(features);
        }
        Ok(all)
    }

    fn report(
        &self,
        sampled: &[Sampled],
        features: &[Vec<f32>],
        (headline, other): (&Half, Option<&Half>),
        settings: &Settings,
        work: &Work,
    ) -> Result<Report> {
        let set = Set::of(&features[0], DIM, settings, "samples")?;
        let first = Judged::of(&set, headline, settings)?;
        let (n, real, metrics) = (set.n(), &headline.reference.meta, first.metrics);
        let mut seeds = vec![sampled[0].seed(metrics)];
        for (sampled, features) in sampled.iter().zip(features).skip(1) {
            let set = Set::of(features, DIM, settings, "samples")?;
            seeds.push(sampled.seed(metrics::compare(&set, &headline.set, settings, 1, "samples")?.0));
        }
        let other = other.map(|other| Judged::of(&set, other, settings)).transpose()?;
        let (train, test) = match self.config.split {
            Split::Train => (Some(first), other),
            Split::Test => (other, Some(first)),
        };
        let against = Halves { train: train.as_ref().map(Judged::against), test: test.as_ref().map(Judged::against) };
        let memorisation = match (train, test) {
            (Some(train), Some(test)) => Some(self.look(&sampled[0].images, train, test.half, settings, work)?),
            _ => None,
        };
        Ok(Report {
            fid: metrics.fid,
            n,
            n_reference: real.n,
            dataset: real.dataset.clone(),
            split: real.split,
            resize: real.resize,
            feature_precision: real.feature_precision,
            rank_deficient: metrics.rank_deficient,
            warnings: self.warnings(sampled, &set, headline, &metrics),
            floor: floor(headline, n, settings)?,
            against,
            spread: Spread::of(&seeds),
            seeds: if seeds.len() > 1 { seeds } else { Vec::new() },
            memorisation,
            sample: sampled[0].meta.clone(),
            digests: Digests {
                samples: sampled[0].artifact.digest().to_owned(),
                data: self.data.digest().to_owned(),
                reference: headline.reference.artifact.digest().to_owned(),
                weights: SHA256.to_owned(),
            },
        })
    }

    fn warnings(&self, sampled: &[Sampled], set: &Set, headline: &Half, metrics: &Metrics) -> Vec<String> {
        let real = headline.reference.meta.n;
        let mut all = warnings(set.n(), real, &metrics.kid, self.config.kid.subset_size);
        all.extend(alike(&set.moments, "samples"));
        all.extend(alike(&headline.set.moments, "reference images"));
        all.extend(samples::other_data(sampled, self.data));
        all
    }

    fn look(
        &self,
        samples: &Images,
        train: Judged,
        test: &Half,
        settings: &Settings,
        work: &Work,
    ) -> Result<Memorisation> {
        let dataset = || Dataset::of(self.data.clone());
        let around = Around {
            samples,
            test: &test.reference.images(dataset()?)?,
            reference: &train.half.reference.images(dataset()?)?,
            train: &Images::dataset(dataset()?, Split::Train)?,
        };
        neighbours::look(&around, (train.nearest, &train.half.set, &test.set), settings, work)
    }
}

impl<'a> Half<'a> {
    fn of(reference: &'a Reference, settings: &Settings) -> Result<Self> {
        let what = format!("{} {}", reference.meta.dataset, reference.meta.split.name());
        let set = Set::with(reference.moments.share(), reference.all(), DIM, settings, &what)?;
        Ok(Self { reference, set })
    }
}

impl<'a> Judged<'a> {
    fn of(samples: &Set, half: &'a Half<'a>, settings: &Settings) -> Result<Self> {
        let (metrics, nearest) = metrics::compare(samples, &half.set, settings, neighbours::SHOWN, "samples")?;
        Ok(Self { half, metrics, nearest })
    }

    fn against(&self) -> Against {
        let Reference { artifact, meta, .. } = self.half.reference;
        Against { n_reference: meta.n, metrics: self.metrics, reference: artifact.digest().to_owned() }
    }
}

fn floor(half: &Half, n: usize, settings: &Settings) -> Result<Floor> {
    let all = half.reference.meta.n;
    if n >= all {
        let reason = format!("{n} samples are not fewer than the {all} reference images");
        return Ok(Floor { fid: None, n, seed: FLOOR_SEED, reason: Some(reason) });
    }
    let chosen = subset::uniform(all, n, FLOOR_SEED, Purpose::Floor);
    let moments = Moments::of(&half.reference.features(&chosen), DIM, settings.device)?;
    let fid = frechet::distance(&half.set.moments, &moments)?;
    Ok(Floor { fid: Some(fid), n, seed: FLOOR_SEED, reason: None })
}
