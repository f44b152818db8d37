//! Table 2's training: learning rate, gradient clipping and the exponential moving average. AdamW itself is in
//! [`lcf_model::adamw`].

use lcf_model::adamw::Hyper;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Table 2 and Section A.4.2 of the paper; betas and eps are PyTorch's defaults, which the paper does not state.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OptimConfig {
    /// Learning rate after warm-up.
    pub lr: f64,
    /// Epochs over which the learning rate rises linearly, step by step, from 0.
    pub warmup_epochs: f64,
    /// Decoupled weight decay, on every parameter.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Largest norm of the gradient; a longer one is scaled down to it.
    pub clip: f64,
}

/// The moving average of the weights.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EmaConfig {
    /// Weight of the old average.
    pub decay: f64,
    /// Whether the decay starts at 1/10 and rises as (1 + k) / (10 + k) with the update k up to `decay`. Without it an
    /// average with decay 0.9999 still consists of initial weights for the first tens of thousands of updates.
    pub ramp: bool,
}

impl OptimConfig {
    /// What AdamW takes of it.
    pub fn hyper(&self) -> Hyper {
        let Self { beta1, beta2, eps, weight_decay, .. } = *self;
        Hyper { beta1, beta2, eps, weight_decay }
    }
}

impl EmaConfig {
    /// Decay at update `k`, counted from 1.
    pub fn decay_at(&self, k: u64) -> f64 {
        let k = k as f64;
        if self.ramp { self.decay.min((1.0 + k) / (10.0 + k)) } else { self.decay }
    }
}

/// Learning rate of step `step`, counted from 0.
pub fn learning_rate(config: &OptimConfig, step: u64, steps_per_epoch: u64) -> f64 {
    let warmup = config.warmup_epochs * steps_per_epoch as f64;
    config.lr * ((step + 1) as f64 / warmup.max(1.0)).min(1.0)
}

/// The norm of `gradient`, as a scalar tensor.
pub fn norm(gradient: &Tensor) -> Tensor {
    gradient.square().sum(Kind::Float).sqrt()
}

/// Scales `gradient` in place to length `max` if `norm` is longer, as `torch.nn.utils.clip_grad_norm_`.
pub fn clip(gradient: &mut Tensor, norm: &Tensor, max: f64) {
    let _ = gradient.g_mul_(&((norm + 1e-6).reciprocal() * max).clamp_max(1.0));
}

/// Moves `average` towards `flat`: average = decay average + (1 - decay) flat.
pub fn ema(average: &mut Tensor, flat: &Tensor, decay: f64) {
    let _ = average.lerp_(flat, 1.0 - decay);
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: OptimConfig =
        OptimConfig { lr: 0.1, warmup_epochs: 2.0, weight_decay: 0.5, beta1: 0.9, beta2: 0.99, eps: 0.0, clip: 1.0 };

    #[test]
    fn warm_up_is_linear_and_then_over() {
        let lr = |step| learning_rate(&CONFIG, step, 10);
        assert!((lr(0) - 0.005).abs() < 1e-12 && (lr(9) - 0.05).abs() < 1e-12);
        assert_eq!((lr(19), lr(1000)), (0.1, 0.1));
        assert_eq!(learning_rate(&OptimConfig { warmup_epochs: 0.0, ..CONFIG }, 0, 10), 0.1);
    }

    #[test]
    fn clipping_scales_to_the_norm_and_leaves_short_gradients() {
        let clipped = |values: [f32; 2]| {
            let mut gradient = Tensor::from_slice(&values);
            let norm = norm(&gradient);
            clip(&mut gradient, &norm, 1.0);
            Vec::<f32>::try_from(gradient).unwrap()
        };
        assert_eq!(clipped([0.3, 0.4]), [0.3, 0.4]);
        let long = clipped([30.0, 40.0]);
        assert!((long[0] - 0.6).abs() < 1e-6 && (long[1] - 0.8).abs() < 1e-6);
    }

    #[test]
    fn the_average_ramps_up() {
        let ema = EmaConfig { decay: 0.9999, ramp: true };
        assert!((ema.decay_at(1) - 2.0 / 11.0).abs() < 1e-12);
        assert_eq!(ema.decay_at(1_000_000), 0.9999);
        assert_eq!(EmaConfig { decay: 0.9999, ramp: false }.decay_at(1), 0.9999);
    }
}
