//! One training step: draw, forward, backward, clip, AdamW, moving average.

mod diagnose;
mod terms;

use crate::{
    batch::{Sampler, Whole, time_bin},
    captured::Captured,
    config::TrainConfig,
    objective::{Losses, losses_among},
    optim::{clip, ema, learning_rate, norm},
    ranks::Ranks,
};
use lcf_model::{Dit, Engine, Fused, Params, adamw::AdamW, config::Input};
pub use lcf_native::step::BINS;
use tch::{Device, Kind, Tensor};

/// Everything that training changes, and what it needs to go on.
#[derive(Debug)]
pub struct Trainer {
    config: TrainConfig,
    sampler: Sampler,
    dit: Dit,
    /// Leaves of the gradient: views of `compute`, one a parameter.
    leaves: Vec<Tensor>,
    /// The parameters as matrix products take them: `params.flat` itself in fp32, a copy of it in bf16.
    compute: Tensor,
    ranks: Ranks,
    /// fp32 master weights.
    pub params: Params,
    /// Moving average of the weights, fp32 `[len]`.
    pub average: Tensor,
    /// Optimiser state.
    pub optim: AdamW,
    /// The step by fused kernels, where it is computed so.
    captured: Option<Captured>,
    totals: Totals,
    /// Of the last step that was left out by [`Trainer::step`].
    bad_gradient: Option<String>,
}

/// What one step measured, on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// What was minimised, Equation 15.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of the update.
    pub lr: f64,
    /// Sum over regressed samples of the mean square error per dimension, by bin of t.
    pub flow: [f64; BINS],
    /// Number of regressed samples, by bin of t.
    pub samples: [f64; BINS],
    /// Contrastive loss, pull and push distance, where there were anchors.
    pub contrast: Option<[f64; 3]>,
    /// Number of anchors.
    pub anchors: i64,
}

impl Report {
    /// Whether the update was made: loss and gradient were finite.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}

/// Sums over steps; those left out count in `steps` and `skipped` alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Steps.
    pub steps: u64,
    /// Those left out, since loss or gradient was not finite.
    pub skipped: u64,
    /// How many of them were the last ones, in a row.
    pub in_a_row: u64,
    /// The last one of them ever, counted from 1.
    pub last_bad: u64,
    /// What was minimised.
    pub loss: f64,
    /// Norms of the gradient.
    pub grad_norm: f64,
    /// Learning rate of the last update.
    pub lr: f64,
    /// Mean square errors per dimension of the regressed samples, by bin of t.
    pub flow: [f64; BINS],
    /// Regressed samples, by bin of t.
    pub samples: [f64; BINS],
    /// Contrastive loss, pull and push distance.
    pub contrast: [f64; 3],
    /// Steps that had anchors.
    pub contrasted: u64,
    /// Anchors.
    pub anchors: u64,
    /// Low-noise samples for which there was no anchor slot.
    pub overflow: u64,
}

impl Totals {
    /// Adds step `step`, counted from 1.
    pub fn add(&mut self, report: &Report, step: u64) {
        self.steps += 1;
        if !report.is_finite() {
            self.skipped += 1;
            self.in_a_row += 1;
            self.last_bad = step;
            return;
        }
        self.in_a_row = 0;
        self.loss += report.loss;
        self.grad_norm += report.grad_norm;
        self.lr = report.lr;
        add_each(&mut self.flow, &report.flow);
        add_each(&mut self.samples, &report.samples);
        if let Some(contrast) = &report.contrast {
            add_each(&mut self.contrast, contrast);
            self.contrasted += 1;
        }
        self.anchors += report.anchors as u64;
    }

    /// Adds the steps of `later`.
    pub fn merge(&mut self, later: &Self) {
        self.steps += later.steps;
        self.skipped += later.skipped;
        self.in_a_row = later.in_a_row;
        self.last_bad = later.last_bad;
        self.loss += later.loss;
        self.grad_norm += later.grad_norm;
        if later.steps > later.skipped {
            self.lr = later.lr;
        }
        add_each(&mut self.flow, &later.flow);
        add_each(&mut self.samples, &later.samples);
        add_each(&mut self.contrast, &later.contrast);
        self.contrasted += later.contrasted;
        self.anchors += later.anchors;
        self.overflow += later.overflow;
    }
}

fn add_each(to: &mut [f64], from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// Whether steps are one captured graph of the fused kernels, which adds in a fixed order: two trainings from one seed are
/// equal to the bit.
pub fn is_captured(config: &TrainConfig, input: Input, device: Device, engine: Engine) -> bool {
    engine == Engine::Fused && Fused::takes(&config.model, &input, config.precision, device)
}

impl Trainer {
    /// A trainer at step 0 over `images`, uint8 `[N, C, H, W]`, on their device.
    pub fn new(config: &TrainConfig, input: Input, images: Tensor) -> Self {
        let params = Params::init(&config.model, &input, config.seed, images.device());
        let kind = config.precision.kind();
        let compute = if kind == Kind::Float { params.flat.shallow_clone() } else { params.flat.to_kind(kind) };
        let leaves: Vec<Tensor> =
            params.layout.views(&compute).iter().map(|view| view.detach().set_requires_grad(true)).collect();
        let names: Vec<&str> = params.layout.specs.iter().map(|spec| spec.name.as_str()).collect();
        let tensors = leaves.iter().map(Tensor::shallow_clone).collect();
        let dit = Dit::new(config.model, input, config.precision, &names, tensors);
        Self {
            sampler: Sampler::new(config, images),
            dit,
            leaves,
            compute,
            ranks: Ranks::alone(),
            average: params.flat.copy(),
            optim: AdamW::new(config.optim.hyper(), &params.flat),
            params,
            captured: None,
            totals: Totals::default(),
            bad_gradient: None,
            config: config.clone(),
        }
    }

    /// The same trainer computing by `engine`, at its start, after [`Trainer::among`]; a new one computes by
    /// [`Engine::Reference`].
    #[must_use]
    pub fn with_engine(mut self, engine: Engine) -> Self {
        let (config, input) = (&self.config, self.dit.input());
        self.captured = is_captured(config, input, self.params.flat.device(), engine).then(|| {
            Captured::new(
                config,
                input,
                self.sampler.images().shallow_clone(),
                &self.params,
                &self.compute,
                &self.ranks,
            )
        });
        self
    }

    /// Whether steps are made one after the other on the host's word, so that looking at each costs nothing.
    pub fn is_stepwise(&self) -> bool {
        self.captured.is_none()
    }

    /// How many kernels a step starts on the device, where that is known: of a recorded one.
    pub fn kernels(&self) -> Option<i64> {
        self.captured.as_ref().and_then(Captured::kernels)
    }

    /// Makes step `step`, counted from 0, or sets it going. When loss or gradient is not finite, nothing changes but the
    /// totals.
    pub fn advance(&mut self, step: u64) {
        if let Some(captured) = &mut self.captured {
            return captured.step(step, &self.params, &self.average, &self.optim);
        }
        let report = self.step(step);
        self.totals.add(&report, step + 1);
    }

    /// What happened since the last call. Waits until all steps are made; the weights can be read after it.
    pub fn take(&mut self) -> Totals {
        if let Some(captured) = &mut self.captured {
            return captured.take(&mut self.optim);
        }
        let Totals { in_a_row, last_bad, .. } = self.totals;
        std::mem::replace(&mut self.totals, Totals { in_a_row, last_bad, ..Totals::default() })
    }

    /// The same trainer as one of several.
    #[must_use]
    pub fn among(self, ranks: Ranks) -> Self {
        Self { ranks, ..self }
    }

    /// Steps of an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.sampler.steps_per_epoch()
    }

    /// The reference step: one operation of libtorch after the other, with its automatic differentiation.
    pub fn step(&mut self, step: u64) -> Report {
        let (batch, whole) = self.sampler.deal(step, &self.ranks);
        let losses = losses_among(&self.ranks, &self.dit, &batch, whole, &self.config);
        let mut gradient = self.gradient(&losses.total);
        self.ranks.sum(&mut gradient);
        let length = norm(&gradient);
        let lr = learning_rate(&self.config.optim, step, self.steps_per_epoch());
        let report = report(&self.ranks, &losses, whole, &length, lr);
        if report.is_finite() {
            clip(&mut gradient, &length, self.config.optim.clip);
            self.update(&gradient, lr);
        } else {
            self.bad_gradient = self.first_bad(&gradient);
        }
        report
    }

    /// The first number that is not finite in the gradient of the last step, if that was left out.
    pub fn bad_gradient(&self) -> Option<String> {
        self.captured.as_ref().map_or(self.bad_gradient.clone(), |captured| self.first_bad(captured.gradient()))
    }

    fn first_bad(&self, gradient: &Tensor) -> Option<String> {
        let (name, index) = self.params.layout.first_not_finite(gradient)?;
        Some(format!("number {index} of the gradient of {name}"))
    }

    /// Gradient of `loss` over all parameters, fp32 `[len]`.
    fn gradient(&self, loss: &Tensor) -> Tensor {
        self.gradient_keeping(loss, false)
    }

    /// [`Trainer::gradient`]; `graph`: whether the graph is kept for another loss of the same forward pass.
    fn gradient_keeping(&self, loss: &Tensor, graph: bool) -> Tensor {
        let mut gradients = Tensor::run_backward(&[loss], &self.leaves, graph, false);
        for (gradient, leaf) in gradients.iter_mut().zip(&self.leaves) {
            // A layer that no sample of this batch went through.
            if !gradient.defined() {
                *gradient = leaf.zeros_like();
            }
        }
        self.params.layout.flatten(&gradients).to_kind(Kind::Float)
    }

    fn update(&mut self, gradient: &Tensor, lr: f64) {
        tch::no_grad(|| {
            self.optim.update(&mut self.params.flat, gradient, lr);
            ema(&mut self.average, &self.params.flat, self.config.ema.decay_at(self.optim.updates));
            self.refresh();
        });
    }

    /// Makes the forward pass see the master weights, after they were changed.
    pub fn refresh(&mut self) {
        if self.compute.kind() != Kind::Float {
            self.compute.copy_(&self.params.flat);
        }
    }
}

/// One copy from the device: it waits for the backward pass, and the update is queued behind it.
fn report(ranks: &Ranks, losses: &Losses, whole: Whole, grad_norm: &Tensor, lr: f64) -> Report {
    let bins = time_bin(&losses.t, BINS as i64);
    let zeros = || losses.flow.new_zeros([BINS as i64], (Kind::Float, losses.flow.device()));
    let flow = zeros().index_add(0, &bins, &losses.flow);
    let samples = zeros().index_add(0, &bins, &losses.flow.ones_like());
    let mut summed = Tensor::cat(&[losses.value.view([1]), flow, samples], 0);
    ranks.sum(&mut summed);
    let mut parts = vec![grad_norm.view([1]), summed];
    if let Some(contrast) = &losses.contrast {
        parts.extend([&contrast.loss, &contrast.pull, &contrast.push].map(|x| x.detach().view([1])));
    }
    let values = Vec::<f64>::try_from(Tensor::cat(&parts, 0).to_kind(Kind::Double)).expect("a vector");
    let bins_at = |start: usize| values[start..start + BINS].try_into().expect("one number a bin");
    Report {
        loss: values[1],
        grad_norm: values[0],
        lr,
        flow: bins_at(2),
        samples: bins_at(2 + BINS),
        contrast: values.get(2 + 2 * BINS..).and_then(|rest| rest.try_into().ok()),
        anchors: if losses.contrast.is_some() { whole.low } else { 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{batch::numbered, config::tests::small};

    const INPUT: Input = Input { channels: 3, side: 4 };

    pub(super) fn trainer(objective: &str, edit: impl Fn(&mut TrainConfig)) -> Trainer {
        let mut config = small(objective);
        edit(&mut config);
        Trainer::new(&config.resolved(), INPUT, numbered(50, 3, 4))
    }

    fn steps(trainer: &mut Trainer, range: std::ops::Range<u64>) {
        for step in range {
            trainer.step(step);
        }
    }

    #[test]
    fn losses_fall_in_every_objective() {
        for objective in ["fm", "fm_truncated", "lcf", "fm_contrastive"] {
            let mut trainer = trainer(objective, |c| c.optim.lr = 1e-2);
            let mean = |reports: &[Report]| {
                let sum: f64 = reports.iter().flat_map(|r| r.flow).sum();
                sum / reports.iter().flat_map(|r| r.samples).sum::<f64>()
            };
            let reports: Vec<Report> = (0..60).map(|step| trainer.step(step)).collect();
            let (before, after) = (mean(&reports[..6]), mean(&reports[54..]));
            assert!(after < 0.8 * before, "{objective}: {before} to {after}");
            assert!(reports.iter().all(Report::is_finite));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_weights_and_another_does_not() {
        let run = |seed| {
            let mut trainer = trainer("lcf", |c| c.seed = seed);
            steps(&mut trainer, 0..5);
            trainer.params.flat
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn a_step_that_is_not_finite_changes_nothing() {
        let mut trainer = trainer("lcf", |_| {});
        trainer.step(0);
        let index = trainer.params.layout.specs.iter().find(|s| s.name == "final_layer.linear.bias").unwrap().offset;
        let _ = trainer.params.flat.get(index).fill_(f64::NAN);
        let before = (trainer.optim.first.copy(), trainer.optim.updates);
        let report = trainer.step(1);
        assert!(!report.is_finite());
        assert_eq!((&trainer.optim.first, trainer.optim.updates), (&before.0, before.1));
    }

    #[test]
    fn bf16_trains_too_and_is_not_fp32() {
        let run = |precision| {
            let mut trainer = trainer("lcf", |c| c.precision = precision);
            (0..4).map(|step| trainer.step(step).loss).last().unwrap()
        };
        let (fp32, bf16) = (run(lcf_model::Precision::Fp32), run(lcf_model::Precision::Bf16));
        assert!(fp32 != bf16 && (fp32 - bf16).abs() < 0.05 * fp32.abs(), "{fp32} {bf16}");
    }

    #[test]
    fn bins_add_up_to_the_regressed_samples() {
        let mut trainer = trainer("fm_truncated", |_| {});
        let report = trainer.step(0);
        let low = trainer.sampler.draw(0).low as f64;
        assert_eq!(report.samples.iter().sum::<f64>(), 8.0 - low);
        assert_eq!(report.samples[..3], [0.0; 3]);
    }
}
