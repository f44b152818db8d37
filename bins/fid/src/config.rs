//! Section `fid` of the config.

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
    /// Its name in configs and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

/// `"fid": {"resize": "tf1", "split": "train", "reference": null}`, each value the default when left out.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Scaling to 299x299.
    pub resize: Resize,
    /// Which images the samples are held against.
    pub split: Split,
    /// How many of them: a class-balanced seeded subset of that size, or all for null.
    pub reference: Option<usize>,
}

impl Section for Config {
    const NAME: &'static str = "fid";

    fn validate(&self) -> Result<(), String> {
        match self.reference {
            Some(n) if n < 2 => Err(format!("reference: {n} images have no covariance, expected null or at least 2")),
            _ => Ok(()),
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
        assert_eq!(config, Config { resize: Resize::Tf1, split: Split::Train, reference: None });
    }

    #[test]
    fn values_are_named_and_checked() {
        let config = load(r#"{"resize": "half-pixel", "split": "test"}"#, &["fid.reference=500"]).unwrap();
        assert_eq!(config, Config { resize: Resize::HalfPixel, split: Split::Test, reference: Some(500) });
        assert!(load("{}", &["fid.reference=1"]).unwrap_err().contains("fid.reference: 1 images have no covariance"));
        assert!(load(r#"{"resize": "bicubic"}"#, &[]).unwrap_err().contains("fid.resize: unknown variant"));
        assert!(load(r#"{"splt": "train"}"#, &[]).unwrap_err().contains("unknown field `splt`"));
    }

    #[test]
    fn names_agree_with_serde_and_clap() {
        for resize in Resize::value_variants() {
            assert_eq!(serde_json::to_value(resize).unwrap(), resize.name());
            assert_eq!(resize.to_possible_value().unwrap().get_name(), resize.name());
        }
        for split in Split::value_variants() {
            assert_eq!(serde_json::to_value(split).unwrap(), split.name());
            assert_eq!(split.to_possible_value().unwrap().get_name(), split.name());
        }
    }
}
