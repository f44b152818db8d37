//! The artifact of a training, as later stages read it.

use crate::{
    Dit,
    config::{Input, ModelConfig, Precision},
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
        let meta = artifact.json(META)?;
        Ok(Self { artifact, meta })
    }

    /// Names of the weights in it.
    pub fn weights<'a>(&'a self) -> Vec<&'a str> {
        let name = |path: &'a str| path.strip_prefix("weights/")?.strip_suffix(".safetensors");
        self.artifact.manifest().outputs.iter().filter_map(|output| name(&output.path)).collect()
    }

    /// The model with the weights called `name`.
    ///
    /// # Errors
    /// [`Error::Usage`] when there are none of that name, listing those there are.
    pub fn load(&self, name: &str, precision: Precision, device: Device) -> Result<Dit> {
        let names = self.weights();
        if !names.contains(&name) {
            let dir = self.artifact.dir().display();
            let message = format!("{dir}: no weights called {name:?}, expected one of {}", names.join(", "));
            return Err(Error::usage(message));
        }
        let path = self.artifact.file(&weights_file(name))?;
        let params = weights::load(&path, &self.meta.model, &self.meta.input, device)?;
        Ok(Dit::frozen(self.meta.model, self.meta.input, precision, &params))
    }
}
