//! The section `sample` of a config.

use lcf_model::{
    Precision,
    ode::{Sampler, Schedule},
};
use lcf_store::{Error, Result, config::Section};
use serde::{Deserialize, Serialize};

/// What is sampled. Part of the key.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the weights: `ema`, `raw`, or `epoch-N` for a snapshot.
    pub weights: String,
    /// Number of images.
    pub num: usize,
    /// `euler` or `heun`.
    pub sampler: Sampler,
    /// Steps from t = 1 to the image, the final one included.
    pub steps: usize,
    /// Seed of the noise that images start from.
    pub seed: u64,
    /// Number type of the matrix products. The state is fp32 in both.
    pub precision: Precision,
    /// Integrate to t = 0 also where the velocity was not trained.
    #[serde(default)]
    pub through_t0: bool,
}

impl Section for Config {
    const NAME: &'static str = "sample";

    fn validate(&self) -> Result<(), String> {
        if self.weights.is_empty() {
            return Err("weights: empty, expected ema, raw or epoch-N".into());
        }
        if !(1..=10_000_000).contains(&self.num) {
            return Err(format!("num: {} is not in 1..=10000000", self.num));
        }
        match (1..=10_000).contains(&self.steps) {
            true => Ok(()),
            false => Err(format!("steps: {} is not in 1..=10000", self.steps)),
        }
    }
}

/// A config and the ending that the model leads to: what the manifest holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Resolved {
    /// As it was given, but `through_t0` is false where the velocity was trained to t = 0 and it asks for nothing.
    #[serde(flatten)]
    pub config: Config,
    /// The ODE is integrated from t = 1 to here. Above 0, one step x_0 = x - t v follows.
    pub t_stop: f64,
}

impl Config {
    /// The ending for a model whose velocity was trained for t in `[velocity_from, 1]`.
    ///
    /// # Errors
    /// [`Error::Usage`] when there are too few steps for it.
    pub fn resolve(mut self, velocity_from: f64) -> Result<Resolved> {
        self.through_t0 &= velocity_from > 0.0;
        let t_stop = if self.through_t0 { 0.0 } else { velocity_from };
        if t_stop > 0.0 && self.steps < 2 {
            let message = format!(
                "sample.steps: {}, but a model trained for t >= {velocity_from} needs 2: one to there, one to the image",
                self.steps
            );
            return Err(Error::usage(message).with_hint("--set sample.steps=50, or --through-t0"));
        }
        Ok(Resolved { config: self, t_stop })
    }
}

impl Resolved {
    /// The times of the steps.
    pub fn schedule(&self) -> Schedule {
        Schedule::new(self.config.steps, self.t_stop)
    }

    /// Evaluations of the model an image takes.
    pub fn nfe(&self) -> usize {
        self.schedule().nfe(self.config.sampler)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        r#"{"weights": "ema", "num": 10, "sampler": "heun", "steps": 5, "seed": 0, "precision": "bf16"}"#;

    #[test]
    fn values_are_checked_by_name() {
        let good: Config = serde_json::from_str(TEXT).unwrap();
        assert_eq!((good.validate(), good.through_t0), (Ok(()), false));
        assert!(Config { num: 0, ..good.clone() }.validate().unwrap_err().starts_with("num: 0"));
        assert!(Config { steps: 0, ..good.clone() }.validate().unwrap_err().starts_with("steps: 0"));
        assert!(Config { weights: String::new(), ..good }.validate().unwrap_err().starts_with("weights: "));
        assert!(serde_json::from_str::<Config>(&TEXT.replace("heun", "rk4")).is_err());
    }

    #[test]
    fn the_ending_follows_from_the_model_and_can_be_forced() {
        let config: Config = serde_json::from_str(TEXT).unwrap();
        let through = Config { through_t0: true, ..config.clone() };
        let ending = |config: &Config, from| {
            let resolved = config.clone().resolve(from).unwrap();
            (resolved.t_stop, resolved.nfe())
        };
        assert_eq!(ending(&config, 0.0), (0.0, 10));
        assert_eq!(ending(&config, 0.02), (0.02, 9));
        assert_eq!(ending(&through, 0.02), (0.0, 10));
        assert_eq!(through.clone().resolve(0.0).unwrap(), config.clone().resolve(0.0).unwrap());
        let one = Config { steps: 1, ..config };
        assert!(one.clone().resolve(0.0).is_ok());
        assert!(one.resolve(0.02).unwrap_err().to_string().starts_with("sample.steps: 1, but"));
        let manifest = serde_json::to_string(&through.resolve(0.02).unwrap()).unwrap();
        assert!(manifest.ends_with(r#""through_t0":true,"t_stop":0.0}"#), "{manifest}");
    }
}
