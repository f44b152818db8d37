//! Sample artifacts as the stage takes them: one, or several that differ in the seed alone.

use crate::{images::Images, metrics::Metrics, report::Seed};
use anyhow::Result;
use lcf_store::{Artifact, Error};
use serde_json::Value;

const META: &str = "sample.json";
const SEED: &str = "seed";

/// A sample artifact that can be evaluated.
#[derive(Debug)]
pub struct Sampled {
    /// Where it lies.
    pub artifact: Artifact,
    /// The images.
    pub images: Images,
    /// `sample.json`.
    pub meta: Value,
}

impl Sampled {
    /// The seed's line of the report.
    pub fn seed(&self, metrics: Metrics) -> Seed {
        let seed = self.meta[SEED].as_u64().unwrap_or_default();
        Seed { seed, metrics, samples: self.artifact.digest().to_owned() }
    }
}

/// Name of the `i`-th input.
pub fn role(i: usize) -> String {
    if i == 0 { "samples".to_owned() } else { format!("samples-{i}") }
}

/// Opens the images, and checks that what is compared can be.
///
/// # Errors
/// Too few images, a `sample.json` that speaks of another number, and a second artifact that does not differ from the
/// first in the seed, or in more than that.
pub fn open(artifacts: Vec<Artifact>) -> Result<Vec<Sampled>> {
    let open = |artifact: Artifact| {
        let images = Images::samples(&artifact)?;
        images.at_least_two()?;
        let meta = meta(&artifact, images.len())?;
        anyhow::Ok(Sampled { artifact, images, meta })
    };
    let all = artifacts.into_iter().map(open).collect::<Result<Vec<_>>>()?;
    for (i, other) in all.iter().enumerate().skip(1) {
        all[..i].iter().try_for_each(|one| check_pair(one, other))?;
    }
    Ok(all)
}

/// `sample.json`, which has to speak of as many images as there are.
fn meta(artifact: &Artifact, n: usize) -> Result<Value> {
    let meta: Value = artifact.json(META)?;
    match meta["num"].as_u64() {
        Some(num) if num == n as u64 => Ok(meta),
        _ => {
            let message = format!("found num {}, expected the {n} of the images", meta["num"]);
            Err(Error::bad(artifact.file(META)?, message).into())
        }
    }
}

fn check_pair(one: &Sampled, other: &Sampled) -> Result<()> {
    let (a, b) = (one.meta.as_object(), other.meta.as_object());
    let (Some(a), Some(b)) = (a, b) else { return Ok(()) };
    let refuse = |message: String| Err(Error::bad(other.artifact.dir(), message).into());
    if a.get(SEED) == b.get(SEED) {
        let seed = &other.meta[SEED];
        return refuse(format!("found seed {seed} again, expected samples of another seed for each --samples"));
    }
    let differs = a.keys().chain(b.keys()).find(|&key| key != SEED && a.get(key) != b.get(key));
    match differs {
        None => Ok(()),
        Some(key) => {
            let (found, expected) = (&other.meta[key], &one.meta[key]);
            refuse(format!("found {key} {found}, expected {expected}: several --samples may differ in the seed alone"))
        }
    }
}

/// Says so when the model behind the samples was trained on something else than the dataset they are held against.
///
/// # Errors
/// A `sample.json` that cannot be read.
pub fn note_other_data(sampled: &[Artifact], real: &Artifact) -> Result<()> {
    for sampled in sampled {
        let meta: Value = sampled.json(META)?;
        if meta["data"].as_str().is_some_and(|data| data != real.digest()) {
            eprintln!("fid: note: these samples are of a model that was not trained on this dataset artifact");
        }
    }
    Ok(())
}
