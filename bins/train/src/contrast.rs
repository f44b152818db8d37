//! The contrastive loss on low-noise features: Equations 13 and 14 and Algorithm 1 of the paper, which contradict each
//! other and leave things open. What is still open is an option here; `docs/decisions.md` says what was settled by trial.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// What an anchor is pushed from: the sum under the logarithm. The loss is at least 0 with either.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Denominator {
    /// Algorithm 1: every j of the batch, i itself (at distance 0) included.
    Algorithm1,
    /// InfoNCE (van den Oord et al. 2018): every j != i of the batch, and the positive.
    InfoNce,
}

/// Which of the two parts of the loss there are.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Terms {
    /// Both, as in the paper.
    #[default]
    Both,
    /// The distance to the positive alone.
    Pull,
    /// The logarithm alone: Dispersive Loss (Wang and He 2025) on low-noise samples.
    Push,
}

impl Terms {
    fn are_both(&self) -> bool {
        *self == Self::Both
    }
}

/// What tau is measured against.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    /// Squared distance as printed.
    None,
    /// Features scaled to unit length first.
    L2,
}

/// What the paper leaves open about the contrastive loss, and its numbers.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ContrastConfig {
    /// Weight of the contrastive loss, lambda of Equation 15.
    pub lambda: f64,
    /// Temperature.
    pub tau: f64,
    /// Blocks before the feature is taken, l of Equation 13.
    pub layer: usize,
    /// What an anchor is pushed from.
    pub denominator: Denominator,
    /// What tau is measured against.
    pub norm: Norm,
    /// Which parts of the loss there are.
    #[serde(default, skip_serializing_if = "Terms::are_both")]
    pub terms: Terms,
}

/// The loss and what it consists of.
#[derive(Debug)]
pub struct Contrast {
    /// Equation 14, mean over anchors: scalar.
    pub loss: Tensor,
    /// Mean squared distance to the positive, in the units of the loss before tau: scalar, no gradient.
    pub pull: Tensor,
    /// Mean squared distance to the rest of the batch, likewise.
    pub push: Tensor,
}

/// One feature an image: the mean over tokens, `[n, N, D]` to `[n, D]`, scaled to unit length for [`Norm::L2`].
pub fn pool(tokens: &Tensor, config: &ContrastConfig) -> Tensor {
    let feature = tokens.mean_dim(1, false, Kind::Float);
    match config.norm {
        // The floor keeps the gradient finite at a zero feature, which has no direction.
        Norm::L2 => &feature / feature.square().sum_dim_intlist(1, true, Kind::Float).clamp_min(1e-12).sqrt(),
        Norm::None => feature,
    }
}

/// Equation 14 in the reading of `config`, over anchors A, for features of [`pool`]:
///
/// L = 1/A sum_i [ d(z_i, p_i) / tau + log sum_j exp(-d(z_i, h_j) / tau) ], d the squared distance.
///
/// Positives and negatives are constants: the gradient is that by the anchors, `[A, D]`. positives: `[A, D]`; batch:
/// `[B, D]`, whose first A rows are the anchors. present: fp32 `[A]`, 1 for rows that are anchors and 0 for those that only
/// fill up the tensor; all are without it.
pub fn contrast(
    anchors: &Tensor,
    positives: &Tensor,
    batch: &Tensor,
    present: Option<&Tensor>,
    config: &ContrastConfig,
) -> Contrast {
    let to_positive = (anchors - positives.detach()).square().sum_dim_intlist(1, false, Kind::Float);
    let difference = anchors.unsqueeze(1) - batch.detach().unsqueeze(0);
    let to_batch = difference.square().sum_dim_intlist(2, false, Kind::Float);
    // Log-sum-exp in fp32, from distances: exp(-d) alone underflows for features far apart.
    let all = &to_batch * (-1.0 / config.tau);
    let terms = match config.denominator {
        Denominator::Algorithm1 => all,
        Denominator::InfoNce => {
            let others = all.masked_fill(&diagonal(&to_batch), f64::NEG_INFINITY);
            Tensor::cat(&[others, (&to_positive * (-1.0 / config.tau)).unsqueeze(1)], 1)
        }
    };
    let mean = |x: &Tensor| match present {
        Some(present) => (x * present).sum(Kind::Float) / present.sum(Kind::Float).clamp_min(1.0),
        None => x.mean(Kind::Float),
    };
    let others = (batch.size()[0] - 1).max(1) as f64;
    let (pull, push) = (|| &to_positive / config.tau, || terms.logsumexp(1, false));
    Contrast {
        loss: mean(&match config.terms {
            Terms::Both => pull() + push(),
            Terms::Pull => pull(),
            Terms::Push => push(),
        }),
        pull: mean(&to_positive.detach()),
        // An anchor's distance to itself is zero, so the sum over all is the sum over the others.
        push: mean(&(to_batch.detach().sum_dim_intlist(1, false, Kind::Float) / others)),
    }
}

/// True at `[i, i]` of a matrix shaped like `x`.
fn diagonal(x: &Tensor) -> Tensor {
    let (rows, columns) = x.size2().expect("a matrix");
    Tensor::ones([rows, columns], (Kind::Bool, x.device())).tril(0).triu(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: ContrastConfig = ContrastConfig {
        lambda: 1.0,
        tau: 0.5,
        layer: 1,
        denominator: Denominator::InfoNce,
        norm: Norm::None,
        terms: Terms::Both,
    };

    /// One anchor at 0, its positive at 1, the others of the batch at 2 and 3, in one dimension.
    fn by_hand(config: &ContrastConfig) -> f64 {
        let column = |values: &[f32]| Tensor::from_slice(values).view([-1, 1]);
        f64::try_from(contrast(&column(&[0.0]), &column(&[1.0]), &column(&[0.0, 2.0, 3.0]), None, config).loss).unwrap()
    }

    #[test]
    fn a_hand_made_batch_in_each_denominator() {
        let others = (-8f64).exp() + (-18f64).exp();
        let expect = |denominator, sum: f64| {
            let found = by_hand(&ContrastConfig { denominator, ..CONFIG });
            assert!((found - (2.0 + sum.ln())).abs() < 1e-5, "{denominator:?}: {found}");
        };
        expect(Denominator::Algorithm1, 1.0 + others);
        expect(Denominator::InfoNce, (-2f64).exp() + others);
    }

    #[test]
    fn pull_and_push_alone_are_the_two_parts() {
        let of = |terms| by_hand(&ContrastConfig { terms, ..CONFIG });
        assert!((of(Terms::Pull) - 2.0).abs() < 1e-6);
        assert!((of(Terms::Pull) + of(Terms::Push) - of(Terms::Both)).abs() < 1e-6);
        assert!(!serde_json::to_string(&CONFIG).unwrap().contains("terms"), "no part of the key unless asked for");
    }

    #[test]
    fn the_loss_is_never_negative() {
        // Far beyond where exp(-d / tau) underflows.
        let batch = Tensor::from_slice(&[0.0f32, 100.0, 200.0]).view([3, 1]);
        let anchors = batch.narrow(0, 0, 1);
        for denominator in [Denominator::Algorithm1, Denominator::InfoNce] {
            let config = ContrastConfig { denominator, ..CONFIG };
            assert!(contrast(&anchors, &anchors, &batch, None, &config).loss.double_value(&[]) >= 0.0);
        }
    }

    #[test]
    fn pulls_and_pushes_are_mean_squared_distances() {
        let column = |values: &[f32]| Tensor::from_slice(values).view([-1, 1]);
        let found = contrast(&column(&[0.0]), &column(&[1.0]), &column(&[0.0, 2.0, 3.0]), None, &CONFIG);
        assert_eq!((found.pull.double_value(&[]), found.push.double_value(&[])), (1.0, 6.5));
    }

    #[test]
    fn gradients_reach_anchors_alone() {
        let leaf = |n| Tensor::randn([n, 4], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        let (anchors, positives, batch) = (leaf(2), leaf(2), leaf(5));
        contrast(&anchors, &positives, &batch, None, &CONFIG).loss.backward();
        assert_eq!([anchors, positives, batch].map(|x| x.grad().defined()), [true, false, false]);
    }

    #[test]
    fn unit_length_features_have_a_finite_gradient_at_zero() {
        let tokens = Tensor::zeros([2, 3, 4], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        pool(&tokens, &ContrastConfig { norm: Norm::L2, ..CONFIG }).sum(Kind::Float).backward();
        assert!(bool::try_from(tokens.grad().isfinite().all()).unwrap());
    }
}
