//! The artifact of an extraction, as its stage writes it and the probe reads it: token-mean features of one layer, one
//! memory-mapped fp32 `[N, D]` array for each split and timestep.

use crate::Precision;
use lcf_store::{Artifact, Error, Result, npy::Npy};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch::Tensor;

/// Name of the file that describes the rest.
pub const META: &str = "features.json";
/// The stage that makes it.
pub const STAGE: &str = "extract";
/// The largest timestep: T = 1000 is t = 1, pure noise.
pub const LAST_TIMESTEP: u32 = 1000;

/// Which images: those that were trained on, or those held out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// Training images.
    Train,
    /// Held-out images.
    Test,
}

impl Part {
    /// Both, in the order in which they are extracted.
    pub const ALL: [Self; 2] = [Self::Train, Self::Test];

    /// `train` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }

    /// File of the features at `timestep`.
    pub fn file(self, timestep: u32) -> String {
        format!("{}-T{timestep:04}.npy", self.name())
    }

    /// File of the labels.
    pub fn labels_file(self) -> String {
        format!("{}-labels.npy", self.name())
    }
}

/// t in `[0, 1]` of a paper step T.
pub fn time(timestep: u32) -> f64 {
    f64::from(timestep) / f64::from(LAST_TIMESTEP)
}

/// Whether `timesteps` increase from 0, the clean image, to [`LAST_TIMESTEP`] at most. Errors start with `timesteps`.
///
/// # Errors
/// The first that does not.
pub fn check_timesteps(timesteps: &[u32]) -> Result<(), String> {
    if timesteps.first() != Some(&0) {
        return Err("timesteps: the first has to be 0, the clean image".into());
    }
    if let Some(pair) = timesteps.windows(2).find(|pair| pair[0] >= pair[1]) {
        return Err(format!("timesteps: {} after {}, but they have to increase", pair[1], pair[0]));
    }
    match timesteps.iter().find(|&&timestep| timestep > LAST_TIMESTEP) {
        Some(bad) => Err(format!("timesteps: {bad} is not in 0..={LAST_TIMESTEP}")),
        None => Ok(()),
    }
}

/// The first row of `[N, D]` that holds a number that is not finite.
pub fn first_bad(features: &Tensor) -> Option<i64> {
    let good = features.isfinite().all_dim(1, false);
    let bad = Vec::<i64>::try_from(good.logical_not().nonzero().flatten(0, -1)).expect("a list of rows");
    bad.first().copied()
}

/// `features.json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// Name of the dataset.
    pub dataset: String,
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    /// Number of training images.
    pub train: usize,
    /// Number of held-out images.
    pub test: usize,
    /// D, width of a feature.
    pub width: usize,
    /// The block after which the residual stream was read, counted from 1.
    pub layer: usize,
    /// Paper steps T, increasing, the first is 0.
    pub timesteps: Vec<u32>,
    /// Name of the weights: `ema`, `raw` or `epoch-N`.
    pub weights: String,
    /// Number type of the matrix products.
    pub precision: Precision,
    /// Seed of the noise.
    pub seed: u64,
    /// Digest of the train artifact.
    pub model: String,
    /// Digest of the dataset artifact.
    pub data: String,
    /// Digest of the dataset that the model was trained on, where that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_on: Option<String>,
}

impl Meta {
    /// Whether it can be so. Errors start with the field's name.
    fn validate(&self) -> Result<(), String> {
        check_timesteps(&self.timesteps)?;
        for (name, n) in [("train", self.train), ("test", self.test), ("width", self.width), ("layer", self.layer)] {
            if n == 0 {
                return Err(format!("{name}: 0, expected at least 1"));
            }
        }
        match self.classes.is_empty() {
            true => Err("classes: none, expected at least one".into()),
            false => Ok(()),
        }
    }

    /// Number of images of `part`.
    pub fn count(&self, part: Part) -> usize {
        match part {
            Part::Train => self.train,
            Part::Test => self.test,
        }
    }
}

/// An opened extraction.
#[derive(Debug)]
pub struct Features {
    /// Where it lies.
    pub artifact: Artifact,
    /// What it is.
    pub meta: Meta,
}

impl Features {
    /// Opens and verifies the artifact at `path`.
    ///
    /// # Errors
    /// [`Error::Bad`] naming the file that is not what it has to be.
    pub fn open(path: &Path) -> Result<Self> {
        let artifact = Artifact::open(path, STAGE)?;
        let meta: Meta = artifact.json(META)?;
        let bad = |message| artifact.suspect(Error::bad(artifact.dir().join(META), message));
        meta.validate().map_err(bad)?;
        Ok(Self { artifact, meta })
    }

    /// Features of `part` at `timestep`, fp32 `[N, D]`.
    ///
    /// # Errors
    /// [`Error::Bad`] when the file is missing or has another type or shape.
    pub fn values(&self, part: Part, timestep: u32) -> Result<Npy<f32>> {
        let values = Npy::<f32>::open(&self.artifact.file(&part.file(timestep))?)?;
        let expected = [self.meta.count(part), self.meta.width];
        match values.shape() == expected {
            true => Ok(values),
            false => {
                let message = format!("found shape {:?}, expected [N, D] {expected:?}", values.shape());
                Err(self.artifact.suspect(Error::bad(values.path(), message)))
            }
        }
    }

    /// Class indices of `part`, int64 `[N]`.
    ///
    /// # Errors
    /// [`Error::Bad`] when there are more or fewer than images, one names no class, or a class has none.
    pub fn labels(&self, part: Part) -> Result<Npy<i64>> {
        let labels = Npy::<i64>::open(&self.artifact.file(&part.labels_file())?)?;
        let (count, classes) = (self.meta.count(part), self.meta.classes.len());
        if labels.shape() != [count] {
            let found = labels.shape();
            return Err(Error::bad(labels.path(), format!("found shape {found:?}, expected [{count}]")));
        }
        let bad = |message| self.artifact.suspect(Error::bad(labels.path(), message));
        let mut seen = vec![false; classes];
        for (image, &label) in labels.values().iter().enumerate() {
            let known = usize::try_from(label).ok().and_then(|label| seen.get_mut(label));
            *known.ok_or_else(|| bad(format!("label {label} of image {image}, expected 0..{classes}")))? = true;
        }
        match seen.iter().position(|seen| !seen) {
            Some(class) => Err(bad(format!("no image of class {class} ({})", self.meta.classes[class]))),
            None => Ok(labels),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn names_sort_as_the_timesteps_do() {
        assert_eq!(Part::Train.file(0), "train-T0000.npy");
        assert_eq!(Part::Test.file(1000), "test-T1000.npy");
        assert_eq!(Part::Test.labels_file(), "test-labels.npy");
        assert_eq!((time(0), time(20), time(1000)), (0.0, 0.02, 1.0));
    }

    #[test]
    fn timesteps_increase_from_zero() {
        assert_eq!(check_timesteps(&[0, 2, 1000]), Ok(()));
        let message = |timesteps: &[u32]| check_timesteps(timesteps).unwrap_err();
        assert!(message(&[]).starts_with("timesteps: the first has to be 0"));
        assert!(message(&[5, 10]).starts_with("timesteps: the first has to be 0"));
        assert_eq!(message(&[0, 20, 20]), "timesteps: 20 after 20, but they have to increase");
        assert_eq!(message(&[0, 1001]), "timesteps: 1001 is not in 0..=1000");
    }

    #[test]
    fn the_first_bad_row_is_found() {
        let x = Tensor::zeros([4, 3], (Kind::Float, Device::Cpu));
        assert_eq!(first_bad(&x), None);
        let _ = x.get(2).fill_(f64::NAN);
        let _ = x.get(3).fill_(f64::INFINITY);
        assert_eq!(first_bad(&x), Some(2));
    }
}
