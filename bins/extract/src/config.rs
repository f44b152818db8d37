//! The section `extract` of a config, and what of it can only be checked beside the model and the data.

use lcf_model::{Precision, features::check_timesteps, trained};
use lcf_store::{Error, Result, config::Section, dataset};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What is extracted. Part of the key.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the weights: `ema`, `raw`, or `epoch-N` for a snapshot.
    pub weights: String,
    /// The residual stream is read after this block, counted from 1.
    pub layer: usize,
    /// Paper steps T (t = T / 1000), increasing, the first is 0: the clean image, which the others are compared with.
    pub timesteps: Vec<u32>,
    /// Seed of the noise.
    pub seed: u64,
    /// Number type of the matrix products.
    pub precision: Precision,
}

impl Section for Config {
    const NAME: &'static str = "extract";

    fn validate(&self) -> Result<(), String> {
        if self.weights.is_empty() {
            return Err("weights: empty, expected ema, raw or epoch-N".into());
        }
        if self.layer == 0 {
            return Err("layer: 0, but blocks are counted from 1".into());
        }
        check_timesteps(&self.timesteps)
    }
}

impl Config {
    /// Whether a model of `depth` blocks has the layer.
    ///
    /// # Errors
    /// [`Error::Usage`] where not.
    pub fn check_layer(&self, depth: i64) -> Result<()> {
        let layer = self.layer;
        match layer as i64 <= depth {
            true => Ok(()),
            false => Err(Error::usage(format!("extract.layer: {layer} is not in 1..={depth}, the model's blocks"))),
        }
    }

    /// Whether the model has the layer and takes the images.
    ///
    /// # Errors
    /// [`Error::Usage`] for the layer, [`Error::Bad`] naming `data` for images of another shape.
    pub fn check(&self, model: &trained::Meta, images: &dataset::Meta, data: &Path) -> Result<()> {
        self.check_layer(model.model.depth)?;
        let found = [images.channels, images.height, images.width].map(|n| n as i64);
        let expected = [model.input.channels, model.input.side, model.input.side];
        if found == expected {
            return Ok(());
        }
        let shape = |[c, h, w]: [i64; 3]| format!("{c}x{h}x{w}");
        let message = format!("found images of {}, but the model takes {}", shape(found), shape(expected));
        Err(Error::bad(data, message).with_hint(format!("the model was trained on dataset {}", model.dataset)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(layer: usize, timesteps: &[u32]) -> Config {
        let timesteps = timesteps.to_vec();
        Config { weights: "ema".into(), layer, timesteps, seed: 0, precision: Precision::Fp32 }
    }

    #[test]
    fn values_are_checked_by_name() {
        let message = |layer, timesteps: &[u32]| config(layer, timesteps).validate().unwrap_err();
        assert_eq!(config(8, &[0, 2, 1000]).validate(), Ok(()));
        assert!(message(0, &[0]).starts_with("layer: 0, but"));
        assert_eq!(message(1, &[0, 1001]), "timesteps: 1001 is not in 0..=1000");
        let unnamed = Config { weights: String::new(), ..config(1, &[0]) };
        assert!(unnamed.validate().unwrap_err().starts_with("weights: empty"));
    }
}
