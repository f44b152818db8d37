//! The section `probe` of a config.

use lcf_model::adamw::Hyper;
use lcf_store::config::Section;
use serde::{Deserialize, Serialize};

/// Table 3: 15 epochs of AdamW at 1e-3 with weight decay 0.01, 128 features at a time. Part of the key.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Passes over the training features.
    pub epochs: u64,
    /// Features in a step; the last step of an epoch takes what is left.
    pub batch: u32,
    /// Learning rate, constant.
    pub lr: f64,
    /// Decoupled weight decay, on weights and biases as PyTorch's `AdamW(classifier.parameters())` has it.
    pub weight_decay: f64,
    /// Seed of the order of the features.
    pub seed: u64,
}

impl Config {
    /// AdamW's constants; betas and eps are PyTorch's defaults.
    pub fn hyper(&self) -> Hyper {
        Hyper { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: self.weight_decay }
    }
}

impl Section for Config {
    const NAME: &'static str = "probe";

    fn validate(&self) -> Result<(), String> {
        if !(1..=100_000).contains(&self.epochs) {
            return Err(format!("epochs: {} is not in 1..=100000", self.epochs));
        }
        if self.batch == 0 {
            return Err("batch: 0, expected at least 1".into());
        }
        // Not a number compares as false, so it is refused too.
        if !(self.lr > 0.0 && self.lr <= 10.0) {
            return Err(format!("lr: {} is not in (0, 10]", self.lr));
        }
        match (0.0..=10.0).contains(&self.weight_decay) {
            true => Ok(()),
            false => Err(format!("weight_decay: {} is not in 0..=10", self.weight_decay)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked_by_name() {
        let good = Config { epochs: 15, batch: 128, lr: 1e-3, weight_decay: 0.01, seed: 0 };
        let message = |config: Config| config.validate().unwrap_err();
        assert_eq!(good.validate(), Ok(()));
        assert_eq!(message(Config { epochs: 0, ..good.clone() }), "epochs: 0 is not in 1..=100000");
        assert!(message(Config { batch: 0, ..good.clone() }).starts_with("batch: 0"));
        assert_eq!(message(Config { lr: 0.0, ..good.clone() }), "lr: 0 is not in (0, 10]");
        assert!(message(Config { lr: f64::NAN, ..good.clone() }).starts_with("lr: NaN"));
        assert!(message(Config { weight_decay: -0.1, ..good }).starts_with("weight_decay: -0.1"));
    }
}
