//! What a sampling leaves: `images.npy`, `grid.png`, `sample.json`.

use crate::config::Resolved;
use lcf_model::{Precision, ode::Sampler, trained::Trained};
use serde::{Deserialize, Serialize};

/// uint8 `[N, H, W, C]`.
pub const IMAGES: &str = "images.npy";
/// The first of them.
pub const GRID: &str = "grid.png";
/// How they were made.
pub const SUMMARY: &str = "sample.json";

/// How images were ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The ODE was integrated to t = 0.
    Ode,
    /// The ODE was integrated to `t_stop`, then x_0 = x - t v.
    DataStep,
}

/// [`SUMMARY`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Number of images.
    pub num: usize,
    /// H.
    pub height: usize,
    /// W.
    pub width: usize,
    /// C.
    pub channels: usize,
    /// Seed of the noise; image i depends on it and on i alone.
    pub seed: u64,
    /// `euler` or `heun`.
    pub sampler: Sampler,
    /// Steps, the final one included.
    pub steps: usize,
    /// Evaluations of the model an image took.
    pub nfe: usize,
    /// Where the ODE ended.
    pub t_stop: f64,
    /// What came after.
    pub ending: Ending,
    /// Whether integrating to t = 0 was forced.
    pub through_t0: bool,
    /// The velocity was trained for t from here to 1.
    pub velocity_from: f64,
    /// Name of the weights.
    pub weights: String,
    /// Number type of the matrix products.
    pub precision: Precision,
    /// Objective the model was trained with.
    pub objective: String,
    /// Epochs it was trained for.
    pub epochs: u64,
    /// Digest of the train artifact.
    pub model: String,
    /// Name of the dataset it was trained on.
    pub dataset: String,
    /// Digest of that dataset.
    pub data: String,
}

impl Summary {
    /// Of a sampling of `trained`.
    pub fn of(resolved: &Resolved, trained: &Trained) -> Self {
        let (config, meta) = (&resolved.config, &trained.meta);
        let schedule = resolved.schedule();
        Self {
            num: config.num,
            height: meta.input.side as usize,
            width: meta.input.side as usize,
            channels: meta.input.channels as usize,
            seed: config.seed,
            sampler: config.sampler,
            steps: schedule.steps(),
            nfe: resolved.nfe(),
            t_stop: schedule.t_stop(),
            ending: if schedule.has_data_step() { Ending::DataStep } else { Ending::Ode },
            through_t0: config.through_t0,
            velocity_from: meta.velocity_from,
            weights: config.weights.clone(),
            precision: config.precision,
            objective: meta.objective.clone(),
            epochs: meta.epochs,
            model: trained.artifact.digest().to_owned(),
            dataset: meta.dataset.clone(),
            data: meta.data.clone(),
        }
    }

    /// As people read it, one line.
    pub fn line(&self) -> String {
        let Self { num, height, width, channels, seed, steps, nfe, t_stop, weights, objective, epochs, .. } = self;
        let sampler = match self.sampler {
            Sampler::Euler => "Euler",
            Sampler::Heun => "Heun",
        };
        let ending = match self.ending {
            Ending::DataStep => format!("ODE from t=1 to {t_stop}, then x0 = x - t v"),
            Ending::Ode if self.velocity_from > 0.0 => {
                format!("ODE from t=1 to 0, forced through t < {} (untrained)", self.velocity_from)
            }
            Ending::Ode => "ODE from t=1 to 0".to_owned(),
        };
        format!(
            "{num} images {channels}x{height}x{width} of {objective} after {epochs} epochs, weights {weights}: {sampler}, \
             {steps} steps, NFE {nfe}, {ending}, seed {seed}"
        )
    }
}
