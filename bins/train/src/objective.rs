//! The four objectives of Figure 6 on one batch: which samples go through which blocks, and Equation 15.

use crate::{
    batch::{Batch, Whole},
    config::TrainConfig,
    contrast::{Contrast, ContrastConfig, pool},
    flow::{Reduction, flow_loss},
    gathered::gathered,
    ranks::Ranks,
};
use lcf_model::{Dit, path};
use tch::{Kind, Tensor};

/// The losses of one batch.
#[derive(Debug)]
pub struct Losses {
    /// What is minimised, Equation 15: scalar. Of one among several ranks, a part whose gradients add up to those of it.
    pub total: Tensor,
    /// The two terms that it is the sum of: L_FM, and lambda L_cons where there were anchors.
    pub terms: (Tensor, Option<Tensor>),
    /// Its value, without gradient; those of several ranks add up to it.
    pub value: Tensor,
    /// Mean square error per dimension of each regressed sample, `[R]`, no gradient.
    pub flow: Tensor,
    /// Their times, `[R]`.
    pub t: Tensor,
    /// The contrastive part, where there were anchors.
    pub contrast: Option<Contrast>,
}

/// Equation 15, L = L_FM + lambda L_cons, of one batch.
///
/// Samples with t < T_min whose regression is cut leave the network after the contrast's layer: nothing trains the
/// blocks behind it on them. Without a contrast they do not enter it at all.
pub fn losses(dit: &Dit, batch: &Batch, config: &TrainConfig) -> Losses {
    losses_among(&Ranks::alone(), dit, batch, Whole { samples: batch.t.size()[0], low: batch.low }, config)
}

/// [`losses`] for the samples of one of the ranks, in `batch`, as its part of those of the `whole` batch.
pub fn losses_among(ranks: &Ranks, dit: &Dit, batch: &Batch, whole: Whole, config: &TrainConfig) -> Losses {
    let Batch { x0, eps, t, low } = batch;
    let all = t.size()[0];
    let depth = dit.config().depth as usize;
    let first_regressed = if config.objective.cuts() { *low } else { 0 };
    let entering = if config.contrast().is_some() { 0 } else { first_regressed };
    let rest = |x: &Tensor, from: i64| x.narrow(0, from, all - from);

    let xt = path::interpolate(x0, eps, t);
    let mut stream = dit.embed(&rest(&xt, entering), &rest(t, entering));
    let mut contrasted = None;
    let mut done = 0;
    if let Some(options) = config.contrast() {
        done = options.layer;
        stream = dit.run(stream, 0..done);
        if whole.low > 0 {
            contrasted = Some(contrast_low(ranks, dit, batch, whole, &stream.tokens, config.threshold(), options));
        }
    }
    let stream = stream.narrow(first_regressed - entering, all - first_regressed);
    let per_sample = if first_regressed < all {
        let v = dit.head(&dit.run(stream, done..depth));
        let target = path::velocity(&rest(x0, first_regressed), &rest(eps, first_regressed));
        flow_loss(&v, &target, config.reduction)
    } else {
        stream.tokens.sum_dim_intlist([1, 2].as_slice(), false, Kind::Float)
    };
    // An empty batch has no mean; its sum is 0 and keeps the graph whole.
    let regressed = (whole.samples - if config.objective.cuts() { whole.low } else { 0 }).max(1) as f64;
    let flow = per_sample.sum(Kind::Float) / regressed;
    let lambda = config.contrast().map_or(0.0, |options| options.lambda);
    let weighted = contrasted.as_ref().map(|(_, own)| own * lambda);
    let (total, value) = match (&contrasted, &weighted) {
        (Some((contrast, _)), Some(weighted)) => {
            (&flow + weighted, flow.detach() + &contrast.loss.detach() * (lambda / ranks.size() as f64))
        }
        _ => (flow.shallow_clone(), flow.detach()),
    };
    let dimensions = match config.reduction {
        Reduction::Mean => 1.0,
        Reduction::Sum => (x0.numel() as i64 / all) as f64,
    };
    Losses {
        total,
        terms: (flow, weighted),
        value,
        flow: per_sample.detach() / dimensions,
        t: rest(t, first_regressed),
        contrast: contrasted.map(|(contrast, _)| contrast),
    }
}

/// Algorithm 1, lines 5 and 7: anchors are the first `low` samples; their positives take one more pass through the
/// first blocks, with the same noise at T_min, as constants. Returns the loss and what is differentiated for it.
fn contrast_low(
    ranks: &Ranks,
    dit: &Dit,
    batch: &Batch,
    whole: Whole,
    tokens: &Tensor,
    t_min: f64,
    options: &ContrastConfig,
) -> (Contrast, Tensor) {
    let all = pool(tokens, options);
    let low = |x: &Tensor| x.narrow(0, 0, batch.low);
    let positives = tch::no_grad(|| {
        if batch.low == 0 {
            return low(&all);
        }
        let t = low(&batch.t).full_like(t_min);
        let xt = path::interpolate(&low(&batch.x0), &low(&batch.eps), &t);
        pool(&dit.features(&xt, &t, options.layer), options)
    });
    gathered(ranks, &all, &positives, whole, None, options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::small;
    use lcf_model::{
        Params,
        config::Input,
        rng::{Purpose, Rng},
    };
    use tch::Device;

    const INPUT: Input = Input { channels: 1, side: 4 };

    fn setup(objective: &str, times: &[f32], edit: impl Fn(&mut TrainConfig)) -> (Dit, Batch, TrainConfig) {
        let mut config = small(objective);
        edit(&mut config);
        let config = config.resolved();
        // Not libtorch's generator: tests of one process share it.
        let normal = |purpose, rows: i64, n: i64| {
            Rng::new(1, purpose).normal(&Tensor::arange(rows, (Kind::Int64, Device::Cpu)), n)
        };
        let mut params = Params::init(&config.model, &INPUT, 0, Device::Cpu);
        // Every layer speaks, the zero ones too.
        params.flat += normal(Purpose::Init, 1, params.layout.len).squeeze_dim(0) * 0.1;
        let dit = Dit::frozen(config.model, INPUT, config.precision, &params);
        let n = times.len() as i64;
        let image = |purpose| normal(purpose, n, 16).view([n, 1, 4, 4]);
        let low = times.iter().filter(|&&t| t < 0.3).count() as i64;
        (
            dit,
            Batch { x0: image(Purpose::Sample), eps: image(Purpose::Noise), t: Tensor::from_slice(times), low },
            config,
        )
    }

    fn values(objective: &str, times: &[f32]) -> (f64, usize, bool) {
        let (dit, batch, config) = setup(objective, times, |_| {});
        let losses = losses(&dit, &batch, &config);
        (losses.total.double_value(&[]), losses.flow.size()[0] as usize, losses.contrast.is_some())
    }

    #[test]
    fn which_samples_count_in_which_objective() {
        let times = [0.1, 0.2, 0.5, 0.9];
        let (fm, n, contrasted) = values("fm", &times);
        assert_eq!((n, contrasted), (4, false));
        let (truncated, n, contrasted) = values("fm_truncated", &times);
        assert_eq!((n, contrasted), (2, false));
        let (lcf, n, contrasted) = values("lcf", &times);
        assert_eq!((n, contrasted), (2, true));
        let (both, n, contrasted) = values("fm_contrastive", &times);
        assert_eq!((n, contrasted), (4, true));
        // The contrastive term is the same function of the same features in both.
        assert!(((lcf - truncated) - (both - fm)).abs() < 1e-5 && (lcf - truncated).abs() > 1e-3);
    }

    #[test]
    fn the_flow_part_is_equation_12_whatever_route_samples_take() {
        let times = [0.1, 0.2, 0.5, 0.9];
        for objective in ["fm", "fm_truncated", "lcf", "fm_contrastive"] {
            let (dit, batch, config) = setup(objective, &times, |_| {});
            let found = losses(&dit, &batch, &config);
            let v = dit.velocity(&path::interpolate(&batch.x0, &batch.eps, &batch.t), &batch.t);
            let target = path::velocity(&batch.x0, &batch.eps);
            let all = flow_loss(&v, &target, Reduction::Mean);
            let expected = if config.objective.cuts() { all.narrow(0, 2, 2) } else { all };
            assert!(found.flow.allclose(&expected, 1e-5, 1e-6, false), "{objective}");
        }
    }

    #[test]
    fn sum_is_mean_times_dimensions() {
        let run = |reduction| {
            let (dit, batch, config) = setup("fm", &[0.4, 0.8], |c| c.reduction = reduction);
            let losses = losses(&dit, &batch, &config);
            (losses.total.double_value(&[]), losses.flow.mean(Kind::Float).double_value(&[]))
        };
        let ((mean, mean_report), (sum, sum_report)) = (run(Reduction::Mean), run(Reduction::Sum));
        assert!((sum / mean - 16.0).abs() < 1e-4 && (sum_report - mean_report).abs() < 1e-6);
    }

    #[test]
    fn batches_without_anchors_or_without_regression_are_fine() {
        let (total, n, contrasted) = values("lcf", &[0.5, 0.9]);
        assert!(total.is_finite() && n == 2 && !contrasted);
        let (total, n, contrasted) = values("lcf", &[0.1, 0.2]);
        assert!(total.is_finite() && n == 0 && contrasted);
        assert_eq!(values("fm_truncated", &[0.1, 0.2]).0, 0.0);
    }

    #[test]
    fn the_positive_is_at_t_min() {
        let pull = |time: f32| {
            let (dit, batch, config) = setup("lcf", &[time, 0.5], |_| {});
            losses(&dit, &batch, &config).contrast.unwrap().pull.double_value(&[])
        };
        let (next, far) = (pull(0.3f32.next_down()), pull(0.0));
        assert!(next < 1e-9 && far > 1e-6, "{next} {far}");
    }
}
