//! Training and scoring all probes.

use crate::{
    Config,
    data::{Data, Standardise},
    linear::{Probes, correct},
};
use lcf_model::{
    adamw::AdamW,
    rng::{Purpose, Rng},
};
use lcf_store::progress;
use tch::{Device, Kind, Tensor};

/// Features scored at a time.
const SCORED: i64 = 2048;

/// Trained probes: those on the features as they are, one for each timestep, then those on standardised ones.
#[derive(Debug)]
pub struct Trained {
    /// 2T of them.
    pub probes: Probes,
    /// Of the training features.
    pub standardise: Standardise,
    /// The first probe whose weights or moments are not finite: features that are too large leave it untrained, and its
    /// answers are numbers all the same.
    pub broken: Option<usize>,
}

/// Trains on `data` with the same start and the same order of images for every timestep.
pub fn train(config: &Config, data: &Data, classes: i64, device: Device) -> Trained {
    let (timesteps, count, width) = data.x.size3().expect("features are [T, N, D]");
    let batch = i64::from(config.batch);
    let standardise = Standardise::of(&data.x, device);
    let mut probes = Probes::new(2 * timesteps, width, classes, device);
    let mut adamw = AdamW::new(config.hyper(), &probes.params);
    let one_hot = data.labels.one_hot(classes).to_kind(Kind::Float);
    let rng = Rng::new(config.seed, Purpose::Probe);
    let bar = progress::bar(config.epochs * (count as u64).div_ceil(batch as u64), "probe", "steps");
    for epoch in 0..config.epochs {
        let order = rng.permutation(epoch, count, data.x.device());
        for start in (0..count).step_by(config.batch as usize) {
            let rows = order.narrow(0, start, batch.min(count - start));
            let x = standardise.both(&data.x.index_select(1, &rows).to_device(device));
            probes.fill_gradient(&x, &one_hot.index_select(0, &rows).to_device(device));
            adamw.update(&mut probes.params, &probes.gradient, config.lr);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let broken = broken(&probes, &adamw);
    Trained { probes, standardise, broken }
}

fn broken(probes: &Probes, adamw: &AdamW) -> Option<usize> {
    let mut good = Tensor::ones([probes.weight().size()[0]], (Kind::Bool, probes.params.device()));
    for flat in [&probes.params, &adamw.first, &adamw.second] {
        for part in probes.parts(flat) {
            let _ = good.logical_and_(&part.isfinite().flatten(1, -1).all_dim(1, false));
        }
    }
    first_false(&good)
}

/// Place of the first false in `[P]`.
fn first_false(good: &Tensor) -> Option<usize> {
    let good = Vec::<bool>::try_from(good.to_device(Device::Cpu)).expect("a flag for each probe");
    good.iter().position(|good| !good)
}

impl Trained {
    /// Share of right answers of each probe on `data`.
    ///
    /// # Errors
    /// The first probe one of whose answers is not a number.
    pub fn accuracy(&self, data: &Data) -> Result<Vec<f64>, usize> {
        let device = self.probes.params.device();
        let mut right = Tensor::zeros([self.probes.weight().size()[0]], (Kind::Int64, device));
        let mut good = right.logical_not();
        for start in (0..data.count()).step_by(SCORED as usize) {
            let n = SCORED.min(data.count() - start);
            let x = self.standardise.both(&data.x.narrow(1, start, n).to_device(device));
            let logits = self.probes.logits(&x);
            let _ = good.logical_and_(&logits.isfinite().flatten(1, -1).all_dim(1, false));
            right += correct(&logits, &data.labels.narrow(0, start, n).to_device(device));
        }
        if let Some(probe) = first_false(&good) {
            return Err(probe);
        }
        let right = Vec::<i64>::try_from(right.to_device(Device::Cpu)).expect("a count for each probe");
        Ok(right.iter().map(|&right| right as f64 / data.count() as f64).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::nn::{self, OptimizerConfig};

    const CPU: Device = Device::Cpu;
    const CONFIG: Config = Config { epochs: 15, batch: 128, lr: 1e-3, weight_decay: 0.01, seed: 0 };
    const CLASSES: i64 = 5;

    /// `n` noisy copies of class means at distance `spread`, for each of `timesteps` independently.
    fn data(seed: u64, timesteps: i64, n: i64, spread: f64) -> Data {
        // Not libtorch's generator: tests of one process share it.
        let normal =
            |seed, rows: i64| Rng::new(seed, Purpose::Noise).normal(&Tensor::arange(rows, (Kind::Int64, CPU)), 16);
        let labels = (Rng::new(seed, Purpose::Time).uniform(&Tensor::arange(n, (Kind::Int64, CPU))) * CLASSES as f64)
            .to_kind(Kind::Int64);
        let means = normal(77, CLASSES) * spread;
        let x = means.index_select(0, &labels) + normal(seed, timesteps * n).view([timesteps, n, 16]);
        Data { x, labels }
    }

    fn scores(train_on: &Data, test_on: &Data) -> Vec<f64> {
        train(&CONFIG, train_on, CLASSES, CPU).accuracy(test_on).unwrap()
    }

    #[test]
    fn separable_classes_are_learnt_and_noise_is_not() {
        let (train_on, test_on) = (data(1, 2, 3000, 3.0), data(2, 2, 1000, 3.0));
        assert!(scores(&train_on, &test_on).iter().all(|&a| a > 0.999));
        // Chance is 0.2, and 1000 test images give a standard error of 0.013.
        let near_chance = |accuracy: &f64| (accuracy - 0.2).abs() < 0.065;
        let noise = scores(&data(3, 2, 3000, 0.0), &data(4, 2, 1000, 0.0));
        assert!(noise.iter().all(near_chance), "{noise:?}");
        // The same features under shuffled labels: what was learnt was the labels, not a leak.
        let order = Rng::new(0, Purpose::Shuffle).permutation(0, 3000, CPU);
        let shuffled = Data { labels: train_on.labels.index_select(0, &order), x: train_on.x };
        let against = scores(&shuffled, &data(2, 2, 1000, 3.0));
        assert!(against.iter().all(|a| a < &0.5), "{against:?}");
    }

    #[test]
    fn another_timestep_changes_no_other() {
        let (two, test_on) = (data(1, 2, 700, 0.5), data(2, 2, 300, 0.5));
        let first = |data: &Data| Data { x: data.x.narrow(0, 0, 1), labels: data.labels.copy() };
        let one = train(&CONFIG, &first(&two), CLASSES, CPU);
        let both = train(&CONFIG, &two, CLASSES, CPU);
        for (alone, beside) in [(0, 0), (1, 2)] {
            let difference = one.probes.weight().get(alone) - both.probes.weight().get(beside);
            assert!(difference.abs().max().double_value(&[]) < 1e-6);
        }
        let (alone, beside) = (one.accuracy(&first(&test_on)).unwrap(), both.accuracy(&test_on).unwrap());
        assert_eq!(alone, [beside[0], beside[2]]);
    }

    #[test]
    fn equal_features_at_two_timesteps_give_equal_probes() {
        let one = data(1, 1, 500, 0.5);
        let twice = Data { x: one.x.repeat([2, 1, 1]), labels: one.labels.copy() };
        let trained = train(&CONFIG, &twice, CLASSES, CPU);
        assert_eq!(trained.probes.weight().get(0), trained.probes.weight().get(1));
        assert_eq!(trained.probes.weight().get(2), trained.probes.weight().get(3));
        assert_ne!(trained.probes.weight().get(0), trained.probes.weight().get(2));
        assert_eq!(trained.broken, None);
    }

    /// Their gradients are numbers and the squares of those are not, so nothing would be learnt, and nothing said.
    #[test]
    fn features_that_are_too_large_break_their_probe() {
        let good = data(1, 1, 500, 0.5);
        let x = Tensor::cat(&[&good.x, &(&good.x * 1e30)], 0);
        let large = Data { x, labels: good.labels.copy() };
        let trained = train(&CONFIG, &large, CLASSES, CPU);
        assert_eq!(trained.broken, Some(1));
        let trained = train(&CONFIG, &good, CLASSES, CPU);
        let larger = Data { x: &good.x * 3e38, labels: good.labels };
        assert_eq!(trained.accuracy(&larger), Err(0));
    }

    /// The whole training against a plain loop with libtorch's linear layer, loss, autograd and AdamW; 700 features leave
    /// a last step of 60.
    #[test]
    fn agrees_with_a_plain_training_loop() {
        let data = data(1, 1, 700, 0.5);
        let trained = train(&CONFIG, &data, CLASSES, CPU);
        let store = nn::VarStore::new(CPU);
        let zero = nn::LinearConfig { ws_init: nn::Init::Const(0.0), bs_init: Some(nn::Init::Const(0.0)), bias: true };
        let layer = nn::linear(store.root(), 16, CLASSES, zero);
        let mut optimiser = nn::AdamW { wd: 0.01, ..nn::AdamW::default() }.build(&store, 1e-3).unwrap();
        for epoch in 0..CONFIG.epochs {
            let order = Rng::new(0, Purpose::Probe).permutation(epoch, 700, CPU);
            for rows in order.split(128, 0) {
                let x = data.x.get(0).index_select(0, &rows);
                let loss = x.apply(&layer).cross_entropy_for_logits(&data.labels.index_select(0, &rows));
                optimiser.backward_step(&loss);
            }
        }
        let difference = trained.probes.weight().get(0).tr() - layer.ws.detach();
        assert!(difference.abs().max().double_value(&[]) < 1e-5);
        let difference = trained.probes.bias().get(0).squeeze() - layer.bs.unwrap().detach();
        assert!(difference.abs().max().double_value(&[]) < 1e-5);
    }
}
