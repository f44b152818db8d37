//! Sample artifacts as the stage takes them: one, or several that differ in the seed alone.

use crate::{
    images::{Images, SAMPLE_META as META},
    metrics::Metrics,
    report::Seed,
};
use anyhow::Result;
use lcf_store::{Artifact, Error, dataset};
use serde_json::Value;

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

/// Opens the images, and checks that what is compared with each other and with images of `data` can be.
///
/// # Errors
/// Too few images, or of another size or number of channels than those of `data`; a `sample.json` that speaks of others;
/// and a second artifact that does not differ from the first in the seed, or in more than that.
pub fn open(artifacts: Vec<Artifact>, data: &dataset::Meta) -> Result<Vec<Sampled>> {
    let open = |artifact: Artifact| {
        let images = Images::samples(&artifact)?;
        images.at_least_two()?;
        let meta = meta(&artifact, images.len())?;
        check_shape(&artifact, &images, &meta, data)?;
        anyhow::Ok(Sampled { artifact, images, meta })
    };
    let all = artifacts.into_iter().map(open).collect::<Result<Vec<_>>>()?;
    for (i, other) in all.iter().enumerate().skip(1) {
        all[..i].iter().try_for_each(|one| check_pair(one, other))?;
    }
    Ok(all)
}

fn check_shape(artifact: &Artifact, images: &Images, meta: &Value, data: &dataset::Meta) -> Result<()> {
    let found @ [channels, height, width] = images.shape().expect("an array has one shape");
    for (name, value) in [("channels", channels), ("height", height), ("width", width)] {
        if meta.get(name).is_some_and(|said| said.as_u64() != Some(value as u64)) {
            let message = format!("found {name} {}, expected the {value} of the images", meta[name]);
            return Err(artifact.suspect(Error::bad(artifact.file(META)?, message)).into());
        }
    }
    let expected = [data.channels, data.height, data.width];
    let shape = |[c, h, w]: [usize; 3]| format!("{c}x{h}x{w}");
    match found == expected {
        true => Ok(()),
        false => {
            let message =
                format!("found samples of {}, but the images of {} are {}", shape(found), data.name, shape(expected));
            Err(Error::bad(artifact.dir(), message).with_hint("`lcf-fid compare` takes images of other sizes").into())
        }
    }
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

/// What to say when a model behind the samples was trained on something else than the dataset they are held against.
pub fn other_data(sampled: &[Sampled], real: &Artifact) -> Option<String> {
    let is_other = |meta: &Value| meta["data"].as_str().is_some_and(|data| data != real.digest());
    let text = "these samples are of a model that was not trained on this dataset artifact";
    sampled.iter().any(|sampled| is_other(&sampled.meta)).then(|| text.to_owned())
}
