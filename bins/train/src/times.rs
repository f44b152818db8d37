//! The law of t in training: uniform as in the paper, or the one that most of its rivals take.

use serde::{Deserialize, Serialize};
use tch::Tensor;

/// How t is distributed over (0, 1).
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Times {
    /// Uniformly.
    #[default]
    Uniform,
    /// t = 1 / (1 + exp(-z)), z normal: Stable Diffusion 3 (Esser et al. 2024, Section 3.1), there with mean 0 and
    /// standard deviation 1, which leave 5e-5 of all samples below t = 0.02.
    LogitNormal {
        /// Mean of z.
        mean: f64,
        /// Standard deviation of z.
        std: f64,
    },
}

impl Times {
    /// Whether t is uniform.
    pub fn is_uniform(&self) -> bool {
        *self == Self::Uniform
    }

    /// The quantiles of uniform numbers, multiples of 2^-24 in [0, 1), fp32 `[B]`.
    pub fn of(&self, uniform: Tensor) -> Tensor {
        match *self {
            Self::Uniform => uniform,
            // The quantiles of 0 and 1 are infinite.
            Self::LogitNormal { mean, std } => {
                ((uniform + STEP / 2.0).clamp_max(1.0 - STEP).special_ndtri() * std + mean).sigmoid()
            }
        }
    }
}

/// What uniform numbers are multiples of.
const STEP: f64 = 1.0 / (1u64 << 24) as f64;

#[cfg(test)]
mod tests {
    use super::*;
    use lcf_model::rng::{Purpose, Rng};
    use tch::{Device, Kind};

    #[test]
    fn a_logit_normal_has_its_quantiles() {
        let of = |u: f32, mean, std| Times::LogitNormal { mean, std }.of(Tensor::from_slice(&[u])).double_value(&[0]);
        // Phi(1) = 0.8413447, sigmoid(1) = 0.7310586.
        for (u, mean, std, t) in
            [(0.5, 0.0, 1.0, 0.5), (0.841_344_7, 0.0, 1.0, 0.731_058_6), (0.5, -1.0, 2.0, 0.268_941_4)]
        {
            assert!((of(u, mean, std) - t).abs() < 1e-6, "{u} {mean} {std}: {}", of(u, mean, std));
        }
        assert!(of(0.0, 0.0, 1.0) > 0.0 && of(1.0 - 1.0 / (1 << 24) as f32, 0.0, 1.0) < 1.0);
    }

    #[test]
    fn few_samples_are_low_in_noise() {
        let uniform = Rng::new(0, Purpose::Time).uniform(&Tensor::arange(100_000, (Kind::Int64, Device::Cpu)));
        let t = Times::LogitNormal { mean: 0.0, std: 1.0 }.of(uniform);
        let below = |limit: f64| t.lt(limit).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        // Phi(logit(0.1)) = 0.0140, and half of all below 0.5.
        assert!((below(0.1) - 0.0140).abs() < 0.001 && (below(0.5) - 0.5).abs() < 0.005);
    }
}
