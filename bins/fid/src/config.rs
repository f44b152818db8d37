//! Section `fid` of the config.

use crate::kid::Subsets;
use clap::ValueEnum;
use lcf_store::config::Section;
use serde::{Deserialize, Serialize};

/// How images are scaled to the network's 299x299. Both are bilinear; published numbers differ in this.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// TensorFlow 1's, of the original FID code and of torch-fidelity: source = target * (in / out)
    #[default]
    Tf1,
    /// PyTorch's (align_corners=False), of pytorch-fid: source = (target + 1/2) * (in / out) - 1/2
    HalfPixel,
}

impl Resize {
    /// Its name in configs and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tf1 => "tf1",
            Self::HalfPixel => "half-pixel",
        }
    }
}

/// Number types of the network. Statistics and distances are fp64 in both.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// fp32 throughout, as published numbers are computed
    #[default]
    Fp32,
    /// Weights and what is between layers fp16, sums fp32: several times as fast on CUDA, no faster on the CPU
    Fp16,
}

impl Precision {
    /// Its name in configs and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
        }
    }

    /// Whether it is what there was before there was a choice: left out of keys and results, so that those of then stay.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub fn is_fp32(&self) -> bool {
        *self == Self::Fp32
    }

    /// What to say of it beside a number.
    pub fn note(self) -> &'static str {
        if self.is_fp32() { "" } else { ", fp16 features" }
    }
}

/// Most subsets of KID, and most images in one.
pub const MANY: usize = 100_000;
/// Largest `k`.
pub const MOST_NEIGHBOURS: usize = 100;

/// One half of a dataset.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// The training images
    #[default]
    Train,
    /// The held-out images
    Test,
}

impl Split {
    /// The other half.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Train => Self::Test,
            Self::Test => Self::Train,
        }
    }

    /// Its name in configs and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

/// `"fid": {"resize": "tf1", "split": "train", "reference": null, "kid": {"subsets": 100, "subset_size": 1000,
/// "seed": 2020}, "k": 3, "precision": "fp32"}`, each value the default when left out.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Scaling to 299x299.
    pub resize: Resize,
    /// Which images the headline number holds the samples against. They are held against both halves.
    pub split: Split,
    /// How many of them: a class-balanced seeded subset of that size, or all for null. Of the other half no more either.
    pub reference: Option<usize>,
    /// Subsets of KID.
    pub kid: Subsets,
    /// Neighbour that ends the ball around a point, for precision and recall.
    pub k: usize,
    /// Number types of the network.
    #[serde(skip_serializing_if = "Precision::is_fp32")]
    pub precision: Precision,
}

/// Neighbours of precision and recall in Kynkaanniemi et al. 2019 and in torch-fidelity.
pub const K: usize = 3;

impl Default for Config {
    fn default() -> Self {
        Self {
            resize: Resize::default(),
            split: Split::default(),
            reference: None,
            kid: Subsets::default(),
            k: K,
            precision: Precision::default(),
        }
    }
}

impl Section for Config {
    const NAME: &'static str = "fid";

    fn validate(&self) -> Result<(), String> {
        if let Some(n @ 0..2) = self.reference {
            return Err(format!("reference: {n} images have no covariance, expected null or at least 2"));
        }
        let Subsets { subsets, subset_size, .. } = self.kid;
        let ranges = [
            ("kid.subsets", subsets, 1..=MANY),
            ("kid.subset_size", subset_size, 2..=MANY),
            ("k", self.k, 1..=MOST_NEIGHBOURS),
        ];
        match ranges.iter().find(|(_, value, range)| !range.contains(value)) {
            Some((name, value, range)) => Err(format!("{name}: {value} is not in {range:?}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcf_store::config;

    fn load(section: &str, overrides: &[&str]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.json");
        std::fs::write(&path, format!(r#"{{"fid": {section}}}"#)).unwrap();
        let overrides: Vec<String> = overrides.iter().map(|&s| s.to_owned()).collect();
        config::load(&path, &overrides).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_the_published_protocol() {
        let config = load("{}", &[]).unwrap();
        let kid = Subsets { subsets: 100, subset_size: 1000, seed: 2020 };
        let precision = Precision::Fp32;
        assert_eq!(config, Config { resize: Resize::Tf1, split: Split::Train, reference: None, kid, k: 3, precision });
        assert_eq!(config, Config::default());
    }

    #[test]
    fn keys_from_before_there_was_a_precision_stay() {
        let keyed = |overrides: &[&str]| serde_json::to_value(load("{}", overrides).unwrap()).unwrap();
        assert!(keyed(&["fid.precision=fp32"]).get("precision").is_none());
        assert_eq!(keyed(&["fid.precision=fp16"])["precision"], "fp16");
        assert!(load("{}", &["fid.precision=bf16"]).unwrap_err().contains("fid.precision: unknown variant"));
    }

    #[test]
    fn values_are_named_and_checked() {
        let config = load(r#"{"resize": "half-pixel", "split": "test"}"#, &["fid.reference=500"]).unwrap();
        let expected =
            Config { resize: Resize::HalfPixel, split: Split::Test, reference: Some(500), ..Config::default() };
        assert_eq!(config, expected);
        assert!(load("{}", &["fid.reference=1"]).unwrap_err().contains("fid.reference: 1 images have no covariance"));
        let kid = load(r#"{"kid": {"subsets": 50}}"#, &["fid.k=5"]).unwrap();
        assert_eq!((kid.kid, kid.k), (Subsets { subsets: 50, ..Subsets::default() }, 5));
        assert!(load("{}", &["fid.k=0"]).unwrap_err().contains("fid.k: 0 is not in 1..=100"));
        let error = load("{}", &["fid.kid.subset_size=1"]).unwrap_err();
        assert!(error.contains("fid.kid.subset_size: 1 is not in 2..=100000"), "{error}");
        assert!(load(r#"{"resize": "bicubic"}"#, &[]).unwrap_err().contains("fid.resize: unknown variant"));
        assert!(load(r#"{"splt": "train"}"#, &[]).unwrap_err().contains("unknown field `splt`"));
    }

    #[test]
    fn names_agree_with_serde_and_clap() {
        for resize in Resize::value_variants() {
            assert_eq!(serde_json::to_value(resize).unwrap(), resize.name());
            assert_eq!(resize.to_possible_value().unwrap().get_name(), resize.name());
        }
        for precision in Precision::value_variants() {
            assert_eq!(serde_json::to_value(precision).unwrap(), precision.name());
            assert_eq!(precision.to_possible_value().unwrap().get_name(), precision.name());
        }
        for split in Split::value_variants() {
            assert_eq!(serde_json::to_value(split).unwrap(), split.name());
            assert_eq!(split.to_possible_value().unwrap().get_name(), split.name());
        }
    }
}
