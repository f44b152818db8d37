//! The contrastive loss over the anchors and the batch of all ranks.

use crate::{
    batch::Whole,
    contrast::{Contrast, ContrastConfig, Denominator, Norm, Terms, contrast},
    ranks::Ranks,
};
use lcf_native::contrast::{self as kernels, Reading};
use tch::{Kind, Tensor};

/// Equation 14 over the whole batch, and this rank's part of its gradient.
///
/// features: `[b, D]` of this rank's samples, anchors first; positives: `[a, D]`; `whole` counts those of all ranks;
/// present: of all anchors, as [`contrast`] takes it.
///
/// Features are small: every rank gathers all of them and computes the same loss, and its gradient by each. Returned
/// beside it is a scalar of this rank whose gradients, summed over ranks, are those of the loss: its own features times
/// what they contribute.
pub fn gathered(
    ranks: &Ranks,
    features: &Tensor,
    positives: &Tensor,
    whole: Whole,
    present: Option<&Tensor>,
    config: &ContrastConfig,
) -> (Contrast, Tensor) {
    if ranks.are_one() {
        let found = contrast(&features.narrow(0, 0, whole.low), positives, features, present, config);
        let own = found.loss.shallow_clone();
        return (found, own);
    }
    let all = ranks.gather(features, whole.samples).set_requires_grad(true);
    let positives = ranks.gather(positives, whole.low);
    let found = contrast(&all.narrow(0, 0, whole.low), &positives, &all, present, config);
    let gradient = Tensor::run_backward(&[&found.loss], &[&all], false, false).remove(0);
    let own = (features * ranks.own(&gradient)).sum(Kind::Float);
    (Contrast { loss: found.loss.detach(), ..found }, own)
}

/// [`gathered`] and its gradient by the kernels: (loss, pull and push, fp32 `[3]`; gradient of `by` times the loss by
/// `features`, fp32 `[b, D]`).
///
/// features: fp32 `[b, D]` of this rank's samples, anchors first; positives: `[a, D]` of its slots; low: int32 `[1]`, how
/// many samples of all ranks have t < T_min, of which those that have a slot are anchors.
pub fn contrasted(
    ranks: &Ranks,
    features: &Tensor,
    positives: &Tensor,
    whole: Whole,
    low: &Tensor,
    config: &ContrastConfig,
    by: f64,
) -> (Tensor, Tensor) {
    let all = Tensor::cat(&[ranks.gather(features, whole.samples), ranks.gather(positives, whole.low)], 0);
    let (numbers, gradient) = kernels::contrast(&all, whole.low, low, &reading(config), by);
    (numbers, ranks.own(&gradient).contiguous())
}

fn reading(config: &ContrastConfig) -> Reading {
    Reading {
        tau: config.tau,
        unit: config.norm == Norm::L2,
        with_positive: config.denominator == Denominator::InfoNce,
        pull: config.terms != Terms::Push,
        push: config.terms != Terms::Pull,
    }
}

#[cfg(all(test, feature = "cuda-tests"))]
mod cuda_tests {
    //! Run on a GPU machine with `--features cuda-tests`.

    use super::*;
    use crate::contrast::pool;
    use tch::{Device, Kind};

    const DEVICE: Device = Device::Cuda(0);

    fn readings() -> Vec<ContrastConfig> {
        let mut all = Vec::new();
        for denominator in [Denominator::Algorithm1, Denominator::InfoNce] {
            for norm in [Norm::None, Norm::L2] {
                for terms in [Terms::Both, Terms::Pull, Terms::Push] {
                    all.push(ContrastConfig { lambda: 1.0, tau: 0.7, layer: 1, denominator, norm, terms });
                }
            }
        }
        all
    }

    fn ratio(found: &Tensor, expected: &Tensor) -> f64 {
        let length = |x: Tensor| x.square().sum(Kind::Double).sqrt().double_value(&[]);
        let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
        length(&found - &expected) / length(expected).max(1e-30)
    }

    /// Loss, distances and gradients of the kernels against libtorch and its differentiation.
    #[test]
    fn kernels_are_the_loss_and_its_gradient_in_every_reading() {
        lcf_native::open_cuda().unwrap();
        let mut worst = 0.0f64;
        for (batch, slots, low, len) in [(256, 19, 5, 384), (64, 9, 30, 128), (7, 7, 7, 256), (40, 3, 0, 128)] {
            let spread = if len == 384 { 1.0 } else { 0.1 };
            let features = Tensor::randn([batch + slots, len], (Kind::Float, DEVICE)) * spread;
            let count = Tensor::from_slice(&[low]).to_device(DEVICE);
            let present = Tensor::arange(slots, (Kind::Int, DEVICE)).lt_tensor(&count).to_kind(Kind::Float);
            for config in readings() {
                let part = |x: &Tensor| (x.narrow(0, 0, batch), x.narrow(0, batch, slots));
                let leaf = features.to_kind(Kind::Double).set_requires_grad(true);
                let (rows, positives) = part(&pool(&leaf.to_kind(Kind::Float).unsqueeze(1), &config));
                let found = contrast(&rows.narrow(0, 0, slots), &positives, &rows, Some(&present), &config);
                let expected = Tensor::run_backward(&[&found.loss * 3.0], &[&leaf], false, false).remove(0);
                let numbers = Tensor::stack(&[found.loss.detach(), found.pull, found.push], 0);
                let whole = Whole { samples: batch, low: slots };
                let (rows, positives) = part(&features);
                let (ours, gradient) = contrasted(&Ranks::alone(), &rows, &positives, whole, &count, &config, 3.0);
                let apart = [ratio(&ours, &numbers), ratio(&gradient, &part(&expected).0)];
                worst = apart.iter().fold(worst, |a, b| a.max(*b));
                // Distances of 800 over tau leave the exponent four digits behind the point.
                assert!(apart.iter().all(|x| *x < 1e-3), "{batch} {slots} {low} {config:?}: {apart:?}");
            }
        }
        eprintln!("worst difference {worst:.1e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        TrainConfig,
        batch::{Sampler, numbered},
        config::tests::small,
        contrast::{Denominator, Norm},
        objective::losses_among,
    };
    use lcf_model::{
        Dit, Params, Precision,
        config::Input,
        rng::{Purpose, Rng},
    };
    use lcf_native::dist::{Place, Store, World};
    use std::{thread, time::Duration};
    use tch::Device;

    const INPUT: Input = Input { channels: 3, side: 4 };

    /// Runs `action` as each of `size` ranks, in threads.
    fn as_ranks<T: Send>(size: usize, action: impl Fn(&Ranks) -> T + Sync) -> Vec<T> {
        let store = Store::local().unwrap();
        let place =
            Place { rank: 0, size, local: 0, host: "127.0.0.1".into(), port: store.port(), kept: true, restart: 0 };
        thread::scope(|scope| {
            let start = |rank| {
                let (place, action) = (Place { rank, ..place.clone() }, &action);
                scope.spawn(move || {
                    let world = World::join(place, Duration::from_secs(60), |message| eprintln!("{message}")).unwrap();
                    let ranks = Ranks::of(world);
                    let result = action(&ranks);
                    ranks.leave().unwrap();
                    result
                })
            };
            let threads: Vec<_> = (0..size).map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// This rank's part of the loss of a step and of its gradient over all parameters.
    fn part(ranks: &Ranks, config: &TrainConfig, step: u64, apart: bool) -> (Tensor, Tensor) {
        let mut params = Params::init(&config.model, &INPUT, 0, Device::Cpu);
        // Every layer speaks, the zero ones too.
        let rows = Tensor::arange(1, (Kind::Int64, Device::Cpu));
        params.flat += Rng::new(1, Purpose::Init).normal(&rows, params.layout.len).squeeze_dim(0) * 0.1;
        let views = params.layout.views(&params.flat);
        let leaves: Vec<Tensor> = views.iter().map(|view| view.detach().set_requires_grad(true)).collect();
        let names: Vec<&str> = params.layout.specs.iter().map(|spec| spec.name.as_str()).collect();
        let tensors = leaves.iter().map(Tensor::shallow_clone).collect();
        let dit = Dit::new(config.model, INPUT, Precision::Fp32, &names, tensors);
        let (batch, whole) = Sampler::new(config, numbered(50, 3, 4)).deal(step, ranks);
        let losses = if apart {
            let own = Whole { samples: batch.t.size()[0], low: batch.low };
            losses_among(&Ranks::alone(), &dit, &batch, own, config)
        } else {
            losses_among(ranks, &dit, &batch, whole, config)
        };
        let mut gradients = Tensor::run_backward(&[&losses.total], &leaves, false, false);
        for (gradient, leaf) in gradients.iter_mut().zip(&leaves).filter(|(gradient, _)| !gradient.defined()) {
            *gradient = leaf.zeros_like();
        }
        (losses.value, params.layout.flatten(&gradients))
    }

    /// Loss and gradient as `size` ranks sum them.
    fn summed(size: usize, config: &TrainConfig, step: u64, apart: bool) -> (f64, Tensor) {
        let all = as_ranks(size, |ranks| {
            let (mut loss, mut gradient) = part(ranks, config, step, apart);
            ranks.sum(&mut loss);
            ranks.sum(&mut gradient);
            (loss.double_value(&[]), gradient)
        });
        assert!(
            all.iter().all(|(loss, gradient)| (*loss, gradient) == (all[0].0, &all[0].1)),
            "all ranks have one sum"
        );
        all.into_iter().next().unwrap()
    }

    /// Largest difference as a fraction of the largest value.
    fn difference(found: &(f64, Tensor), expected: &(f64, Tensor)) -> f64 {
        let largest = |x: &Tensor| x.abs().max().double_value(&[]);
        let loss = (found.0 - expected.0).abs() / expected.0.abs().max(1.0);
        loss.max(largest(&(&found.1 - &expected.1)) / largest(&expected.1))
    }

    fn alone(config: &TrainConfig, step: u64) -> (f64, Tensor) {
        let (loss, gradient) = part(&Ranks::alone(), config, step, false);
        (loss.double_value(&[]), gradient)
    }

    fn readings() -> Vec<TrainConfig> {
        let mut all = Vec::new();
        for denominator in [Denominator::Algorithm1, Denominator::InfoNce] {
            for norm in [Norm::None, Norm::L2] {
                let mut config = small("lcf");
                let old = config.contrast.unwrap();
                config.contrast = Some(ContrastConfig { denominator, norm, lambda: 0.7, ..old });
                all.push(config);
            }
        }
        all
    }

    #[test]
    fn ranks_add_up_to_the_whole_loss_and_its_gradient_in_every_reading() {
        for config in readings() {
            let found = difference(&summed(2, &config, 0, false), &alone(&config, 0));
            assert!(found < 1e-5, "{:?}: {found:e}", config.contrast);
        }
    }

    /// Steps with and without anchors, with fewer anchors than ranks, with more ranks than divide the batch.
    #[test]
    fn whatever_ranks_are_dealt() {
        let mut dealt = Vec::new();
        for step in 0..6 {
            for objective in ["fm", "fm_truncated", "lcf", "fm_contrastive"] {
                let config = small(objective).resolved();
                let found = difference(&summed(3, &config, step, false), &alone(&config, step));
                assert!(found < 1e-5, "{objective}, step {step}: {found:e}");
            }
            dealt.push(Sampler::new(&small("lcf"), numbered(50, 3, 4)).draw(step).low);
        }
        assert!(dealt.iter().any(|low| *low < 3) && dealt.iter().any(|low| *low % 3 > 0), "{dealt:?}");
    }

    /// Loss and gradients of `slots` places for anchors, of which the first three are taken.
    fn with_slots(ranks: &Ranks, slots: i64, config: &ContrastConfig) -> (f64, Tensor) {
        let random = |purpose, rows| Rng::new(1, purpose).normal(&Tensor::arange(rows, (Kind::Int64, Device::Cpu)), 6);
        let own = ranks.own(&random(Purpose::Sample, 8)).copy().set_requires_grad(true);
        let positives = ranks.own(&random(Purpose::Noise, 5).narrow(0, 0, slots));
        let present = Tensor::arange(slots, (Kind::Int64, Device::Cpu)).lt(3).to_kind(Kind::Float);
        let whole = Whole { samples: 8, low: slots };
        let (found, part) = gathered(ranks, &own, &positives, whole, Some(&present), config);
        let gradient = Tensor::run_backward(&[part], &[&own], false, false).remove(0);
        (found.loss.double_value(&[]), ranks.gather(&gradient, 8))
    }

    /// As a captured step has them, on one rank and on more than divide the batch or the slots.
    #[test]
    fn slots_without_an_anchor_count_for_nothing() {
        for options in readings().into_iter().filter_map(|config| config.contrast) {
            let expected = with_slots(&Ranks::alone(), 3, &options);
            let mut all = as_ranks(3, |ranks| with_slots(ranks, 5, &options));
            all.push(with_slots(&Ranks::alone(), 5, &options));
            for found in &all {
                let found = difference(found, &expected);
                assert!(found < 1e-5, "{options:?}: {found:e}");
            }
        }
    }

    /// Negatives from a rank's own samples alone give another gradient, in every reading.
    #[test]
    fn twin_without_gathered_negatives_it_is_not_the_same() {
        let step = (0..).find(|step| Sampler::new(&small("lcf"), numbered(50, 3, 4)).draw(*step).low == 4).unwrap();
        for config in readings() {
            let (loss, gradient) = summed(2, &config, step, true);
            let found = difference(&(loss / 2.0, gradient / 2.0), &alone(&config, step));
            assert!(found > 1e-3, "{:?}: {found:e}", config.contrast);
        }
    }
}
