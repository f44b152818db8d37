//! The artifact of a training, as later stages read it.

use crate::{
    Dit,
    config::{Input, ModelConfig, Precision},
    fused::Fused,
    weights,
};
use lcf_store::{Artifact, Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch::Device;

/// Name of the file that describes the rest.
pub const META: &str = "train.json";
/// The stage that makes it.
pub const STAGE: &str = "train";

/// `train.json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// Shape of the model.
    pub model: ModelConfig,
    /// Shape of its images.
    pub input: Input,
    /// `fm`, `fm_truncated`, `lcf` or `fm_contrastive`.
    pub objective: String,
    /// Number of trained parameters.
    pub parameters: i64,
    /// The velocity was trained for t in `[velocity_from, 1]`: 0, or T_min where the objective cuts the regression.
    pub velocity_from: f64,
    /// Epochs over the training images.
    pub epochs: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Steps left out because loss or gradient was not finite.
    pub skipped: u64,
    /// Mean square error of the velocity per dimension over the last epoch; none if that had no regressed sample.
    pub final_loss: Option<f64>,
    /// Name of the dataset.
    pub dataset: String,
    /// Digest of the dataset artifact.
    pub data: String,
}

impl Meta {
    /// Whether it can be so. Errors start with the field's name.
    ///
    /// # Errors
    /// The first value that cannot.
    fn validate(&self) -> Result<(), String> {
        let Self { model, input, velocity_from, final_loss, .. } = self;
        model.validate().map_err(|message| format!("model.{message}"))?;
        input.validate().map_err(|message| format!("input.{message}"))?;
        model.fits(input.channels as usize, input.side as usize, input.side as usize)?;
        if !(0.0..1.0).contains(velocity_from) {
            return Err(format!("velocity_from: {velocity_from} is not in 0..1"));
        }
        match final_loss {
            Some(loss) if *loss < 0.0 => Err(format!("final_loss: {loss} is negative")),
            _ => Ok(()),
        }
    }
}

/// Path inside the artifact of the weights called `name`: `ema`, `raw`, or `epoch-N` for an EMA snapshot.
pub fn weights_file(name: &str) -> String {
    format!("weights/{name}.safetensors")
}

/// An opened training.
#[derive(Debug)]
pub struct Trained {
    /// Where it lies.
    pub artifact: Artifact,
    /// What it is.
    pub meta: Meta,
}

impl Trained {
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

    /// Names of the weights in it.
    pub fn weights<'a>(&'a self) -> Vec<&'a str> {
        let name = |path: &'a str| path.strip_prefix("weights/")?.strip_suffix(".safetensors");
        self.artifact.manifest().outputs.iter().filter_map(|output| name(&output.path)).collect()
    }

    /// Whether [`Trained::load`] gives a model that is computed by the fused kernels, which add in a fixed order.
    pub fn is_fused(&self, precision: Precision, device: Device) -> bool {
        Fused::takes(&self.meta.model, &self.meta.input, precision, device)
    }

    /// The model with the weights called `name`.
    ///
    /// # Errors
    /// [`Error::Usage`] when there are none of that name, listing those there are; [`Error::Bad`] naming the number that
    /// is not finite, or what else is wrong with the file.
    pub fn load(&self, name: &str, precision: Precision, device: Device) -> Result<Dit> {
        let names = self.weights();
        if !names.contains(&name) {
            let dir = self.artifact.dir().display();
            let message = format!("{dir}: no weights called {name:?}, expected one of {}", names.join(", "));
            return Err(Error::usage(message));
        }
        let path = self.artifact.file(&weights_file(name))?;
        let params = weights::load(&path, &self.meta.model, &self.meta.input, device)
            .map_err(|error| self.artifact.suspect(error))?;
        Ok(Dit::frozen(self.meta.model, self.meta.input, precision, &params))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> Meta {
        Meta {
            model: ModelConfig { depth: 1, width: 8, heads: 2, mlp: 12, patch: 2 },
            input: Input { channels: 3, side: 4 },
            objective: "fm".into(),
            parameters: 1,
            velocity_from: 0.0,
            epochs: 1,
            steps: 1,
            skipped: 0,
            final_loss: Some(1.0),
            dataset: "demo".into(),
            data: String::new(),
        }
    }

    #[test]
    fn what_no_training_leaves_is_named() {
        assert_eq!(meta().validate(), Ok(()));
        let bad = |edit: fn(&mut Meta)| {
            let mut meta = meta();
            edit(&mut meta);
            meta.validate().unwrap_err()
        };
        assert_eq!(bad(|m| m.model.heads = 0), "model.heads: 0 is not in 1..=65536");
        assert_eq!(bad(|m| m.model.heads = 3), "model.width: 8 is not a multiple of heads (3)");
        assert_eq!(bad(|m| m.input.side = 1 << 40), "input.side: 1099511627776 is not in 1..=65536");
        assert_eq!(bad(|m| m.input.side = 5), "patch: 2 does not divide the image side 5");
        assert_eq!(bad(|m| m.velocity_from = 1.5), "velocity_from: 1.5 is not in 0..1");
        assert_eq!(bad(|m| m.velocity_from = f64::NAN), "velocity_from: NaN is not in 0..1");
        assert_eq!(bad(|m| m.final_loss = Some(-1.0)), "final_loss: -1 is negative");
    }
}
