//! The training step on CUDA by fused kernels, recorded once as a CUDA graph: the host starts it again and again and reads
//! what happened now and then. The reference is [`crate::step`]; both draw the same numbers.
//!
//! A graph has fixed sizes, but the number of samples with t < T_min differs from step to step. They come first in the
//! batch, and the first K places are anchor slots: a slot without an anchor weighs nothing, and K is large enough that
//! fewer than one step in a million has more low-noise samples than slots. What is beyond is left out and counted. Most steps
//! need half of them or fewer: the graph holds the positives' pass for several numbers of slots, of which the device takes one.
//!
//! Samples and slots are dealt to the ranks as in [`crate::ranks`]. NCCL's work is recorded like any other.

use crate::{
    batch::Whole, config::TrainConfig, flow::Reduction, gathered::contrasted, ranks::Ranks, step::Totals, times::Times,
};
use lcf_model::{
    Fused, Params,
    adamw::AdamW,
    config::Input,
    fused::{Counted, Plan, Start},
    rng::{Purpose, Rng},
};
use lcf_native::{
    graph::{self, Aside, Graph},
    step::{Drawn, Draws, Outcome, Rule, STATE, Weights, draw, flow_loss, state, update},
};
use tch::{Kind, Tensor};

/// Steps made before recording: what libraries make on first use is made then. They are what `pipelines/profile.py` measures.
const WARM_UP: u64 = 5;

/// The step, its state on the device, and the graph once there is one.
#[derive(Debug)]
pub struct Captured {
    config: TrainConfig,
    ranks: Ranks,
    net: Fused,
    draws: Draws,
    /// Of [`passes`].
    passes: Vec<[i64; 2]>,
    rule: Rule,
    images: Tensor,
    /// Of the images in the epoch at hand; the graph reads it.
    order: Tensor,
    epoch: Option<u64>,
    /// fp64 `[STATE]`.
    state: Tensor,
    compute: Tensor,
    gradient: Tensor,
    /// Step that the state on the device is at.
    at: Option<u64>,
    made: u64,
    graph: Option<Graph>,
}

/// Shares of the steps that have more low-noise samples than the passes for positives take, largest share first; the last is
/// that of all slots.
const BEYOND: [f64; 5] = [0.75, 0.5, 0.25, 0.05, 1e-6];

/// Smallest K such that a binomial variable (n, p) exceeds it with a probability below `share`.
fn most(n: i64, p: f64, share: f64) -> i64 {
    let n = n as f64;
    let mut mass = (n * (-p).ln_1p()).exp();
    let mut below = mass;
    let mut k = 0.0;
    while k < n && 1.0 - below >= share {
        mass *= (n - k) / (k + 1.0) * p / (1.0 - p);
        k += 1.0;
        below += mass;
    }
    k as i64
}

/// The passes for positives: low-noise samples of a step over all ranks, up to which they do, and slots of this rank.
fn passes(batch: i64, threshold: f64, ranks: &Ranks) -> Vec<[i64; 2]> {
    let mut limits = BEYOND.map(|share| most(batch, threshold, share));
    // One slot at least for each rank.
    limits[BEYOND.len() - 1] = limits[BEYOND.len() - 1].max(ranks.size() as i64);
    let mut passes = limits.map(|limit| [limit, ranks.dealt(limit)]).to_vec();
    passes.dedup();
    passes
}

impl Captured {
    /// A step over `images`, uint8 `[N, C, H, W]` on a CUDA device, that trains `params`; `compute` is their bf16 copy.
    pub fn new(
        config: &TrainConfig,
        input: Input,
        images: Tensor,
        params: &Params,
        compute: &Tensor,
        ranks: &Ranks,
    ) -> Self {
        graph::use_stream(images.device()).unwrap_or_else(|error| panic!("{error}"));
        let batch = config.batch as i64;
        let count = images.size()[0];
        let steps_per_epoch = count / batch;
        let base = |purpose| Rng::new(config.seed, purpose).base();
        let passes = config.contrast().map_or_else(Vec::new, |_| passes(batch, config.threshold(), ranks));
        let slots = passes.last().map_or(0, |last| last[0]);
        let (optim, ema) = (&config.optim, &config.ema);
        let (dimensions, lambda) =
            (input.channels * input.side * input.side, config.contrast().map_or(0.0, |c| c.lambda));
        let device = images.device();
        Self {
            passes,
            net: Fused::new(config.model, input, &params.layout, compute),
            draws: Draws {
                time: base(Purpose::Time),
                noise: base(Purpose::Noise),
                flip: config.flip.then(|| base(Purpose::Flip)),
                threshold: config.threshold() as f32,
                logit_normal: match config.times {
                    Times::Uniform => None,
                    Times::LogitNormal { mean, std } => Some((mean as f32, std as f32)),
                },
                batch,
                slots,
                ranks: ranks.size() as i64,
                rank: ranks.rank() as i64,
                steps_per_epoch,
                patch: config.model.patch,
            },
            rule: Rule {
                slots,
                threshold: cut(config),
                dimensions: if config.reduction == Reduction::Sum { dimensions as f32 } else { 1.0 },
                lambda: lambda as f32,
                rate: optim.lr,
                warmup: optim.warmup_epochs * steps_per_epoch as f64,
                beta1: optim.beta1,
                beta2: optim.beta2,
                eps: optim.eps,
                weight_decay: optim.weight_decay,
                clip: optim.clip,
                decay: ema.decay,
                ramp: ema.ramp,
            },
            order: Tensor::zeros([count], (Kind::Int64, device)),
            epoch: None,
            state: Tensor::zeros([STATE], (Kind::Double, device)),
            compute: compute.shallow_clone(),
            gradient: Tensor::zeros([params.layout.len], (Kind::Float, device)),
            config: config.clone(),
            ranks: ranks.clone(),
            images,
            at: None,
            made: 0,
            graph: None,
        }
    }

    /// Makes step `step`, or starts making it. The weights are those that the step was recorded with.
    pub fn step(&mut self, step: u64, params: &Params, average: &Tensor, optim: &AdamW) {
        self.prepare(step, optim);
        match &self.graph {
            Some(graph) => graph.replay().unwrap_or_else(|error| panic!("{error}")),
            None if self.made < WARM_UP => self.run(params, average, optim),
            None => {
                let graph =
                    Graph::capture(|| self.run(params, average, optim)).unwrap_or_else(|error| panic!("{error}"));
                graph.replay().unwrap_or_else(|error| panic!("{error}"));
                self.graph = Some(graph);
            }
        }
        self.made += 1;
        self.at = Some(step + 1);
    }

    /// Sets what a step needs that the step before did not leave behind.
    fn prepare(&mut self, step: u64, optim: &AdamW) {
        if self.at != Some(step) {
            let set = |place: usize, value: u64| {
                let _ = self.state.get(place as i64).fill_(value as i64);
            };
            set(state::STEP, step);
            set(state::UPDATES, optim.updates);
        }
        let epoch = step / self.draws.steps_per_epoch as u64;
        if self.epoch != Some(epoch) {
            let rng = Rng::new(self.config.seed, Purpose::Shuffle);
            self.order.copy_(&rng.permutation(epoch, self.order.size()[0], self.order.device()));
            self.epoch = Some(epoch);
        }
    }

    /// The step itself: only operations on the device, of the same sizes each time.
    fn run(&self, params: &Params, average: &Tensor, optim: &AdamW) {
        let drawn = draw(&self.draws, &self.state, &self.images, &self.order);
        let (errors, contrast) = match self.config.contrast() {
            Some(_) => self.contrasted(&drawn),
            None => {
                let pass = self.net.forward::<()>(&drawn.patches, &drawn.frequencies, None);
                let (errors, out) = self.flow(&pass.out, &drawn);
                self.net.backward(pass.kept, &Start { out: &out, features: None }, &self.gradient);
                (errors, None)
            }
        };
        // The sums of all ranks, so that all make the same update.
        self.ranks.sum(&mut self.gradient.shallow_clone());
        let [t, error, _] = errors.join();
        let outcome = Outcome { low: drawn.low, t, error, contrast };
        let weights = Weights {
            parameters: &params.flat,
            first: &optim.first,
            second: &optim.second,
            average,
            compute: &self.compute,
        };
        update(&self.rule, &self.state, &outcome, &self.gradient, &weights);
    }

    /// The flow loss: errors of the samples, and the gradient of the output.
    fn flow(&self, out: &Tensor, drawn: &Drawn) -> (Aside<Errors>, Tensor) {
        let mean = self.config.reduction == Reduction::Mean;
        let (own, gradient) = flow_loss(out, drawn, self.draws.batch, self.rule.threshold, mean);
        (Aside::start(own.device(), || self.of_all(&drawn.t, own)), gradient)
    }

    fn of_all(&self, t: &Tensor, own: Tensor) -> Errors {
        if self.ranks.are_one() {
            return [t.shallow_clone(), own.shallow_clone(), own];
        }
        let both = Tensor::stack(&[&t.narrow(0, 0, own.size()[0]), &own], 1);
        let all = self.ranks.gather(&both, self.draws.batch).transpose(0, 1).contiguous();
        [all.get(0), all.get(1), own]
    }

    /// Forward and backward pass of an objective with a contrast: errors of the samples, and the three numbers of the
    /// contrast.
    fn contrasted(&self, drawn: &Drawn) -> (Aside<Errors>, Option<Tensor>) {
        let options = self.config.contrast().expect("asked for");
        let whole = Whole { samples: self.draws.batch, low: self.draws.slots };
        // A mean passes on to each token its share.
        let by = options.lambda / self.tokens();
        let plan = Plan {
            layer: options.layer,
            batch: self.draws.own_batch(),
            ends: self.config.objective.cuts().then_some(&drawn.ends),
            counted: Some(Counted { number: &drawn.low, samples: &self.passes }),
            then: &|[own, positives]| contrasted(&self.ranks, own, positives, whole, &drawn.low, options, by),
        };
        let pass = self.net.forward(&drawn.patches, &drawn.frequencies, Some(&plan));
        let (errors, out) = self.flow(&pass.out, drawn);
        let (_, (numbers, gradient)) = pass.features.expect("planned").join();
        let start = Start { out: &out, features: Some((options.layer, &gradient)) };
        self.net.backward(pass.kept, &start, &self.gradient);
        (errors, Some(numbers))
    }

    fn tokens(&self) -> f64 {
        (self.images.size()[2] / self.draws.patch).pow(2) as f64
    }

    /// How many kernels a step is, once it is recorded.
    pub fn kernels(&self) -> Option<i64> {
        self.graph.as_ref().and_then(|graph| graph.kernels().ok())
    }

    /// That of the last step, fp32 `[len]`.
    pub fn gradient(&self) -> &Tensor {
        &self.gradient
    }

    /// What was summed up since the last call; waits for the device. Sets `optim.updates`.
    pub fn take(&mut self, optim: &mut AdamW) -> Totals {
        let values = Vec::<f64>::try_from(&self.state).expect("a vector");
        let _ = self.state.narrow(0, state::STEPS as i64, STATE - state::STEPS as i64).zero_();
        optim.updates = values[state::UPDATES] as u64;
        let count = |place: usize| values[place] as u64;
        let part = |from: usize| values[from..].iter().copied();
        let mut totals = Totals {
            steps: count(state::STEPS),
            skipped: count(state::SKIPPED),
            in_a_row: count(state::IN_A_ROW),
            last_bad: count(state::LAST_BAD),
            loss: values[state::LOSS],
            grad_norm: values[state::NORM],
            lr: values[state::RATE],
            contrasted: count(state::CONTRASTED),
            anchors: count(state::ANCHORS),
            overflow: count(state::OVERFLOW),
            ..Totals::default()
        };
        totals.flow.iter_mut().zip(part(state::FLOW)).for_each(|(to, from)| *to = from);
        totals.samples.iter_mut().zip(part(state::SAMPLES)).for_each(|(to, from)| *to = from);
        totals.contrast.iter_mut().zip(part(state::CONTRAST)).for_each(|(to, from)| *to = from);
        totals
    }
}

/// Times and mean square errors of the samples of all ranks, in their order, and what they are made of, which lives as long.
type Errors = [Tensor; 3];

/// Samples with t below it are not regressed.
fn cut(config: &TrainConfig) -> f32 {
    if config.objective.cuts() { config.threshold() as f32 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_overflow_in_fewer_than_one_step_in_a_million() {
        // P(Binomial(256, 0.02) > 18) = 1.4e-6 and P(> 19) = 3.2e-7 (SciPy, binom.sf).
        assert_eq!(most(256, 0.02, 1e-6), 19);
        assert_eq!(most(4, 0.999, 1e-6), 4);
        // P(> 4) = 0.58 and P(> 5) = 0.41; P(> 6) = 0.254 and P(> 7) = 0.14; P(> 8) = 0.074 and P(> 9) = 0.035.
        assert_eq!([0.5, 0.25, 0.05].map(|share| most(256, 0.02, share)), [5, 7, 9]);
        assert_eq!(passes(256, 0.02, &Ranks::alone()), [4, 5, 7, 9, 19].map(|k| [k, k]));
    }
}

#[cfg(all(test, feature = "cuda-tests"))]
mod cuda_tests {
    //! Run on a GPU machine with `--features cuda-tests`.

    use super::*;
    use crate::{
        batch::numbered,
        config::tests::small,
        contrast::{Denominator, Norm},
        step::Trainer,
    };
    use lcf_model::{Engine, ModelConfig, Precision, bench::inputs::stir};
    use tch::Device;

    const STEPS: u64 = WARM_UP + 3;

    fn configs() -> Vec<TrainConfig> {
        let mut all: Vec<TrainConfig> = ["fm", "fm_truncated", "lcf", "fm_contrastive"].map(small).into();
        // Distances over tau that are small enough for bf16 not to show in their exponentials.
        for contrast in all.iter_mut().filter_map(|config| config.contrast.as_mut()) {
            contrast.tau = 64.0;
        }
        let mut other = small("lcf");
        let contrast = other.contrast.as_mut().expect("lcf has one");
        (contrast.denominator, contrast.norm) = (Denominator::Algorithm1, Norm::L2);
        all.push(other);
        for config in &mut all {
            config.model = ModelConfig { depth: 2, width: 128, heads: 2, mlp: 256, patch: 2 };
            (config.precision, config.batch) = (Precision::Bf16, 16);
        }
        all.into_iter().map(TrainConfig::resolved).collect()
    }

    /// What each step came to, and the weights after them.
    fn trained(config: &TrainConfig, engine: Engine) -> (Vec<Totals>, Tensor) {
        let input = Input { channels: 3, side: 8 };
        let images = numbered(50, 3, 8).to_device(Device::Cuda(0));
        let mut trainer = Trainer::new(config, input, images).with_engine(engine);
        stir(&mut trainer.params.flat);
        trainer.refresh();
        let step = |step| {
            trainer.advance(step);
            trainer.take()
        };
        ((0..STEPS).map(step).collect(), trainer.params.flat)
    }

    #[test]
    fn it_is_the_reference_up_to_rounding_and_itself_to_the_bit() {
        lcf_model::device::DeviceArgs { device: "cuda".into(), threads: 2 }.open().unwrap();
        for config in configs() {
            let what = format!("{:?} {:?}", config.objective, config.contrast());
            let (steps, weights) = trained(&config, Engine::Fused);
            assert_eq!((&steps, &weights), (&trained(&config, Engine::Fused).0, &trained(&config, Engine::Fused).1));
            let (expected, _) = trained(&config, Engine::Reference);
            for (i, (found, expected)) in steps.iter().zip(&expected).enumerate() {
                let near = |name: &str, a: f64, b: f64| {
                    assert!((a - b).abs() <= 3e-2 * b.abs().max(1e-3), "{what}, step {i}: {name} {a}, expected {b}");
                };
                assert_eq!((found.skipped, found.anchors, found.overflow), (0, expected.anchors, 0), "{what}");
                near("loss", found.loss, expected.loss);
                near("gradient", found.grad_norm, expected.grad_norm);
                (0..3).for_each(|k| near("contrast", found.contrast[k], expected.contrast[k]));
            }
        }
    }
}
