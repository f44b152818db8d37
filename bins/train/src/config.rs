//! The `train` section of a config.

use crate::{
    contrast::ContrastConfig,
    flow::Reduction,
    optim::{EmaConfig, OptimConfig},
    times::Times,
};
use lcf_model::{ModelConfig, Precision};
use lcf_store::config::Section;
use serde::{Deserialize, Serialize};

/// What is optimised: the four rows of Figure 6.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Flow matching for every t: L_flow.
    Fm,
    /// Flow matching for t >= T_min and nothing below: L_FM.
    FmTruncated,
    /// Flow matching for t >= T_min, contrast below: L_FM + L_cons, Local Contrastive Flow.
    Lcf,
    /// Flow matching for every t, and contrast below T_min: L_flow + L_cons.
    FmContrastive,
}

impl Objective {
    /// Whether samples with t < T_min have no velocity target.
    pub fn cuts(self) -> bool {
        matches!(self, Self::FmTruncated | Self::Lcf)
    }

    /// Whether samples with t < T_min are anchors.
    pub fn contrasts(self) -> bool {
        matches!(self, Self::Lcf | Self::FmContrastive)
    }

    /// The name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fm => "fm",
            Self::FmTruncated => "fm_truncated",
            Self::Lcf => "lcf",
            Self::FmContrastive => "fm_contrastive",
        }
    }
}

/// The `train` section.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Shape of the model.
    pub model: ModelConfig,
    /// What is optimised.
    pub objective: Objective,
    /// T_min as a time in (0, 1): the paper's 20 is 0.02. Unused by `fm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub t_min: Option<f64>,
    /// The contrastive loss. Unused by `fm` and `fm_truncated`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contrast: Option<ContrastConfig>,
    /// How t is drawn.
    #[serde(default, skip_serializing_if = "Times::is_uniform")]
    pub times: Times,
    /// What Equation 12 does over the dimensions of an image.
    pub reduction: Reduction,
    /// Number types of matrix products.
    pub precision: Precision,
    /// Seed of every random draw.
    pub seed: u64,
    /// B, samples a step, over all processes together.
    pub batch: usize,
    /// Passes over the training images.
    pub epochs: u64,
    /// Whether half of the images are mirrored.
    pub flip: bool,
    /// The optimiser.
    pub optim: OptimConfig,
    /// The moving average.
    pub ema: EmaConfig,
    /// Epochs after which the average is kept as `weights/epoch-N.safetensors`; those after the last are left out.
    #[serde(default)]
    pub snapshots: Vec<u64>,
}

impl TrainConfig {
    /// Drops what the objective does not use, and the order of the snapshots, so that they are not part of the key.
    #[must_use]
    pub fn resolved(mut self) -> Self {
        if !self.objective.contrasts() {
            self.contrast = None;
        }
        if self.objective == Objective::Fm {
            self.t_min = None;
        }
        self.snapshots.retain(|&epoch| epoch <= self.epochs);
        self.snapshots.sort_unstable();
        self.snapshots.dedup();
        self
    }

    /// Low-noise threshold: samples with t below it are treated apart. 0 for `fm`, where there are none.
    pub fn threshold(&self) -> f64 {
        self.t_min.filter(|_| self.objective != Objective::Fm).unwrap_or(0.0)
    }

    /// The velocity is trained for t in `[velocity_from, 1]`.
    pub fn velocity_from(&self) -> f64 {
        if self.objective.cuts() { self.threshold() } else { 0.0 }
    }

    /// The contrastive loss, where the objective has one.
    pub fn contrast(&self) -> Option<&ContrastConfig> {
        self.contrast.as_ref().filter(|_| self.objective.contrasts())
    }
}

impl Section for TrainConfig {
    const NAME: &'static str = "train";

    fn validate(&self) -> Result<(), String> {
        self.model.validate().map_err(|message| format!("model.{message}"))?;
        within("batch", self.batch as f64, 1.0, 65536.0)?;
        within("epochs", self.epochs as f64, 1.0, 1e6)?;
        self.validate_objective()?;
        let optim = &self.optim;
        within("optim.lr", optim.lr, 0.0, 1.0)?;
        within("optim.warmup_epochs", optim.warmup_epochs, 0.0, 1e6)?;
        within("optim.weight_decay", optim.weight_decay, 0.0, 1e3)?;
        below_one("optim.beta1", optim.beta1)?;
        below_one("optim.beta2", optim.beta2)?;
        within("optim.eps", optim.eps, 1e-12, 1.0)?;
        within("optim.clip", optim.clip, 1e-6, 1e12)?;
        below_one("ema.decay", self.ema.decay)?;
        match self.snapshots.contains(&0) {
            true => Err("snapshots: 0 is not an epoch, the first is 1".into()),
            false => Ok(()),
        }
    }
}

impl TrainConfig {
    fn validate_objective(&self) -> Result<(), String> {
        if let Times::LogitNormal { mean, std } = self.times {
            if self.objective != Objective::Fm {
                let name = self.objective.name();
                return Err(format!(
                    "times: logit_normal leaves next to nothing below t_min, which {name} needs; use fm"
                ));
            }
            within("times.logit_normal.mean", mean, -10.0, 10.0)?;
            within("times.logit_normal.std", std, 1e-3, 10.0)?;
        }
        if self.objective != Objective::Fm {
            let t_min = self.t_min.ok_or_else(|| format!("t_min: missing, {} needs it", self.objective.name()))?;
            if !(t_min > 0.0 && t_min < 1.0) {
                return Err(format!("t_min: {t_min} is not between 0 and 1 (the paper's T_min = 20 is 0.02)"));
            }
        }
        if self.objective.contrasts() {
            let missing = || format!("contrast: missing, {} needs it", self.objective.name());
            let contrast = self.contrast.as_ref().ok_or_else(missing)?;
            within("contrast.lambda", contrast.lambda, 0.0, 1e9)?;
            within("contrast.tau", contrast.tau, 1e-6, 1e9)?;
            within("contrast.layer", contrast.layer as f64, 1.0, self.model.depth as f64)?;
            if self.batch < 2 {
                return Err("batch: 1 leaves the contrast without negatives".into());
            }
        }
        Ok(())
    }
}

fn within(name: &str, value: f64, low: f64, high: f64) -> Result<(), String> {
    // Written so that NaN fails.
    if value >= low && value <= high { Ok(()) } else { Err(format!("{name}: {value} is not in {low}..={high}")) }
}

fn below_one(name: &str, value: f64) -> Result<(), String> {
    if (0.0..1.0).contains(&value) { Ok(()) } else { Err(format!("{name}: {value} is not in 0..1")) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small configuration for tests of this crate.
    pub fn small(objective: &str) -> TrainConfig {
        let text = r#"{
            "model": {"depth": 2, "width": 16, "heads": 2, "mlp": 32, "patch": 2},
            "objective": "lcf", "t_min": 0.3,
            "contrast": {"lambda": 1, "tau": 0.5, "layer": 1, "denominator": "infonce", "norm": "none"},
            "reduction": "mean", "precision": "fp32", "seed": 0, "batch": 8, "epochs": 2, "flip": true,
            "optim": {"lr": 1e-3, "warmup_epochs": 0.5, "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999,
                      "eps": 1e-8, "clip": 1},
            "ema": {"decay": 0.99, "ramp": true}
        }"#;
        let mut value: serde_json::Value = serde_json::from_str(text).unwrap();
        value["objective"] = objective.into();
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn values_out_of_range_are_named() {
        assert_eq!(small("lcf").validate(), Ok(()));
        let bad = |edit: fn(&mut TrainConfig)| {
            let mut config = small("lcf");
            edit(&mut config);
            config.validate().unwrap_err()
        };
        assert_eq!(bad(|c| c.batch = 0), "batch: 0 is not in 1..=65536");
        assert_eq!(bad(|c| c.optim.lr = f64::NAN), "optim.lr: NaN is not in 0..=1");
        assert_eq!(bad(|c| c.t_min = None), "t_min: missing, lcf needs it");
        assert!(bad(|c| c.t_min = Some(20.0)).starts_with("t_min: 20 is not between 0 and 1"));
        assert_eq!(bad(|c| c.contrast = None), "contrast: missing, lcf needs it");
        assert_eq!(bad(|c| c.contrast.as_mut().unwrap().layer = 3), "contrast.layer: 3 is not in 1..=2");
        assert!(bad(|c| c.snapshots = vec![0]).starts_with("snapshots: 0 is not an epoch"));
        assert!(
            bad(|c| c.times = Times::LogitNormal { mean: 0.0, std: 1.0 }).starts_with("times: logit_normal leaves")
        );
        let narrow = |c: &mut TrainConfig| {
            (c.objective, c.times) = (Objective::Fm, Times::LogitNormal { mean: 0.0, std: 0.0 });
        };
        assert_eq!(bad(narrow), "times.logit_normal.std: 0 is not in 0.001..=10");
        assert_eq!(bad(|c| c.ema.decay = 1.0), "ema.decay: 1 is not in 0..1");
        assert!(bad(|c| c.model.width = 15).starts_with("model.width: 15"));
    }

    #[test]
    fn what_an_objective_does_not_use_is_not_in_its_key() {
        let fm = small("fm").resolved();
        assert_eq!((fm.t_min, fm.contrast), (None, None));
        let text = serde_json::to_string(&fm).unwrap();
        assert!(!text.contains("t_min") && !text.contains("times"), "keys of older trainings stay");
        assert!(small("fm_truncated").resolved().t_min.is_some());
        let late = TrainConfig { snapshots: vec![1, 3], ..small("fm") };
        assert_eq!(late.resolved().snapshots, [1]);
        let twice = TrainConfig { snapshots: vec![2, 1, 2], ..small("fm") };
        assert_eq!(twice.resolved().snapshots, [1, 2]);
        assert_eq!(small("fm_contrastive").velocity_from(), 0.0);
        assert_eq!(small("lcf").velocity_from(), 0.3);
    }
}
