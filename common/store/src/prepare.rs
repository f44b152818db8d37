//! The `prepare` section of a config: the stage `prepare` does what it asks for, and benches take from it what images are
//! like.

use crate::{Error, Result, config::Section};
use serde::{Deserialize, Serialize};

/// Most images a limit may ask for.
const MAX_IMAGES: usize = 10_000_000;
/// Longest side of an image.
const MAX_SIDE: usize = 1024;

/// What to prepare.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which reader.
    pub dataset: Kind,
    /// Take this many training images, balanced over the classes; all when null.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Take this many test images, likewise.
    #[serde(default)]
    pub limit_test: Option<usize>,
    /// Seed of the subsets and of synthetic images.
    #[serde(default)]
    pub seed: u64,
    /// `image-folder`: crop the centre square of each image and resize it to this side. When null, all images have to
    /// be squares of one size.
    #[serde(default)]
    pub side: Option<usize>,
    /// `synthetic`: what to draw.
    #[serde(default)]
    pub synthetic: Option<Synthetic>,
}

/// The readers.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// CIFAR-10 in the official binary layout.
    Cifar10,
    /// Tiny-ImageNet-200 in its original layout.
    TinyImagenet,
    /// `train/CLASS/IMAGE` and `test/CLASS/IMAGE`.
    ImageFolder,
    /// Images drawn from the seed.
    Synthetic,
}

impl Kind {
    /// Its name in configs, in `SOURCES.json` and in `dataset.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cifar10 => "cifar10",
            Self::TinyImagenet => "tiny-imagenet",
            Self::ImageFolder => "image-folder",
            Self::Synthetic => "synthetic",
        }
    }
}

/// The synthetic set.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Synthetic {
    /// Height and width.
    pub side: usize,
    /// Training images.
    pub train: usize,
    /// Test images.
    pub test: usize,
}

impl Default for Synthetic {
    fn default() -> Self {
        Self { side: 16, train: 1000, test: 500 }
    }
}

impl Config {
    /// The same request written in one way, so that what changes nothing is not in the key: defaults are filled in, and
    /// a seed that nothing is drawn from is 0.
    #[must_use]
    pub fn resolved(mut self) -> Self {
        if self.dataset == Kind::Synthetic {
            self.synthetic.get_or_insert_default();
        } else if self.limit.is_none() && self.limit_test.is_none() {
            self.seed = 0;
        }
        self
    }

    /// What the images will be like, without looking at any. Of a folder nothing but its `side` is known: it counts as
    /// CIFAR-10's numbers of images and classes.
    ///
    /// # Errors
    /// [`Error::Usage`] for a folder without `side`.
    pub fn shape(&self) -> Result<Shape> {
        let synthetic = self.synthetic.clone().unwrap_or_default();
        let (side, train, test, classes) = match self.dataset {
            Kind::Cifar10 => (32, 50_000, 10_000, 10),
            Kind::TinyImagenet => (64, 100_000, 10_000, 200),
            Kind::Synthetic => (synthetic.side, synthetic.train, synthetic.test, 10),
            Kind::ImageFolder => {
                let missing = || Error::usage("prepare.side: missing, and nothing else says how large the images are");
                let side = self.side.ok_or_else(|| missing().with_hint("--set prepare.side=32"))?;
                (side, 50_000, 10_000, 10)
            }
        };
        let at_most = |limit: Option<usize>, count: usize| limit.map_or(count, |limit| limit.min(count));
        let (train, test) = (at_most(self.limit, train), at_most(self.limit_test, test));
        Ok(Shape { channels: 3, side, train, test, classes })
    }
}

/// What the images of a dataset are like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shape {
    /// C.
    pub channels: usize,
    /// H and W.
    pub side: usize,
    /// Training images.
    pub train: usize,
    /// Test images.
    pub test: usize,
    /// Classes.
    pub classes: usize,
}

impl Section for Config {
    const NAME: &'static str = "prepare";

    fn validate(&self) -> Result<(), String> {
        in_range("limit", self.limit, 1, MAX_IMAGES)?;
        in_range("limit_test", self.limit_test, 1, MAX_IMAGES)?;
        in_range("side", self.side, 1, MAX_SIDE)?;
        let name = self.dataset.name();
        if self.side.is_some() && self.dataset != Kind::ImageFolder {
            return Err(format!("side: only for dataset image-folder, not {name}"));
        }
        let Some(synthetic) = &self.synthetic else { return Ok(()) };
        if self.dataset != Kind::Synthetic {
            return Err(format!("synthetic: only for dataset synthetic, not {name}"));
        }
        in_range("synthetic.side", Some(synthetic.side), 4, MAX_SIDE)?;
        in_range("synthetic.train", Some(synthetic.train), 10, MAX_IMAGES)?;
        in_range("synthetic.test", Some(synthetic.test), 10, MAX_IMAGES)
    }
}

fn in_range(name: &str, value: Option<usize>, low: usize, high: usize) -> Result<(), String> {
    match value {
        Some(value) if !(low..=high).contains(&value) => Err(format!("{name}: {value} is not in {low}..={high}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = serde_json::from_str(text).map_err(|e| e.to_string())?;
        config.validate().map(|()| config.resolved())
    }

    #[test]
    fn defaults() {
        let config = parse(r#"{"dataset": "cifar10", "seed": 7}"#).unwrap();
        let all =
            Config { dataset: Kind::Cifar10, limit: None, limit_test: None, seed: 0, side: None, synthetic: None };
        assert_eq!(config, all);
        let config = parse(r#"{"dataset": "synthetic", "seed": 7}"#).unwrap();
        assert_eq!((config.seed, config.synthetic), (7, Some(Synthetic { side: 16, train: 1000, test: 500 })));
        assert_eq!(parse(r#"{"dataset": "cifar10", "seed": 7, "limit": 10}"#).unwrap().seed, 7);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, message) in [
            (r#"{"dataset": "cifar10", "limit": 0}"#, "limit: 0 is not in 1..=10000000"),
            (r#"{"dataset": "cifar10", "limit_test": 0}"#, "limit_test: 0 is not in 1..=10000000"),
            (r#"{"dataset": "image-folder", "side": 0}"#, "side: 0 is not in 1..=1024"),
            (r#"{"dataset": "cifar10", "side": 8}"#, "side: only for dataset image-folder, not cifar10"),
            (r#"{"dataset": "cifar10", "synthetic": {}}"#, "synthetic: only for dataset synthetic, not cifar10"),
            (r#"{"dataset": "synthetic", "synthetic": {"side": 2}}"#, "synthetic.side: 2 is not in 4..=1024"),
            (r#"{"dataset": "synthetic", "synthetic": {"test": 9}}"#, "synthetic.test: 9 is not in 10..=10000000"),
        ] {
            assert_eq!(parse(text).unwrap_err(), message);
        }
        assert!(parse(r#"{"dataset": "mnist"}"#).unwrap_err().contains("unknown variant `mnist`"));
        assert!(parse(r#"{"dataset": "cifar10", "limits": 1}"#).unwrap_err().contains("unknown field `limits`"));
    }

    #[test]
    fn shapes_are_those_of_the_datasets() {
        let shape = |text: &str| parse(text).unwrap().shape();
        let cifar = Shape { channels: 3, side: 32, train: 5000, test: 10_000, classes: 10 };
        assert_eq!(shape(r#"{"dataset": "cifar10", "limit": 5000}"#).unwrap(), cifar);
        let small = Shape { side: 8, train: 40, test: 20, ..cifar };
        let text = r#"{"dataset": "synthetic", "synthetic": {"side": 8, "train": 40, "test": 30}, "limit_test": 20}"#;
        assert_eq!(shape(text).unwrap(), small);
        assert_eq!(shape(r#"{"dataset": "image-folder", "side": 48}"#).unwrap().side, 48);
        let error = shape(r#"{"dataset": "image-folder"}"#).unwrap_err();
        assert_eq!((error.exit_code(), error.hint().unwrap().as_str()), (2, "--set prepare.side=32"));
    }
}
