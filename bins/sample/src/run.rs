//! Batches of noise to images on disk.

use crate::{
    config::Resolved,
    output::{GRID, IMAGES, SUMMARY, Summary},
};
use lcf_model::{
    Dit,
    ode::{self, Schedule, noise},
    pixels,
    trained::Trained,
};
use lcf_store::{
    Error, Result, grid, npy, progress,
    stage::{self, Work},
};
use tch::{Device, Kind, Tensor};

/// A sample that is not finite: which, and after which of the steps, counted from 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Broken {
    /// Index of the sample.
    pub index: usize,
    /// The step.
    pub step: usize,
}

/// Samples `start..start + n`, fp32 `[n, C, H, W]`.
///
/// # Errors
/// The first sample that is not finite.
pub fn batch(model: &Dit, resolved: &Resolved, start: usize, n: usize, device: Device) -> Result<Tensor, Broken> {
    let input = model.input();
    let noise = noise(resolved.config.seed, start, n, [input.channels, input.side, input.side], device);
    let velocity = |x: &Tensor, t: f64| model.velocity(x, &Tensor::full([n as i64], t, (Kind::Float, device)));
    let (images, good) = counted(resolved, &resolved.schedule(), noise, velocity);
    let good = Vec::<i64>::try_from(good.to_device(Device::Cpu)).expect("a count for each sample");
    let steps = resolved.config.steps as i64;
    match good.iter().position(|&good| good < steps) {
        Some(i) => Err(Broken { index: start + i, step: good[i] as usize + 1 }),
        None => Ok(images),
    }
}

/// Integrates, and counts on the device, without waiting for it, after how many steps each sample was finite. What is
/// not finite stays so, hence the count is also the number of the first step that broke it.
fn counted(
    resolved: &Resolved,
    schedule: &Schedule,
    noise: Tensor,
    velocity: impl FnMut(&Tensor, f64) -> Tensor,
) -> (Tensor, Tensor) {
    let mut good = Tensor::zeros([noise.size()[0]], (Kind::Int64, noise.device()));
    let images = ode::integrate(resolved.config.sampler, schedule, noise, velocity, |x| {
        good += x.isfinite().flatten(1, -1).all_dim(1, false).to_kind(Kind::Int64);
    });
    (images, good)
}

/// Writes images, sheet and summary into `work`, `batch_size` images at a time.
///
/// # Errors
/// Unknown weights, a sample that is not finite, a file that cannot be written.
pub fn run(resolved: &Resolved, trained: &Trained, device: Device, batch_size: usize, work: &Work) -> Result<()> {
    work.clear()?;
    let model = trained.load(&resolved.config.weights, resolved.config.precision, device)?;
    let _no_grad = tch::no_grad_guard();
    let summary = Summary::of(resolved, trained);
    let shape = [summary.height, summary.width, summary.channels];
    let num = resolved.config.num;
    let mut writer = npy::Writer::<u8>::create(&work.path(IMAGES), &[num, shape[0], shape[1], shape[2]])?;
    let mut shown = Vec::new();
    let bar = progress::bar(num as u64, "sample", "images");
    for start in (0..num).step_by(batch_size) {
        let n = batch_size.min(num - start);
        let images = batch(&model, resolved, start, n, device).map_err(|broken| refuse(broken, resolved, trained))?;
        let bytes = pixels::bytes(&images);
        let room = (grid::MOST * shape.iter().product::<usize>()).saturating_sub(shown.len());
        shown.extend_from_slice(&bytes[..room.min(bytes.len())]);
        writer.write(&bytes)?;
        bar.inc(n as u64);
    }
    bar.finish_and_clear();
    writer.finish()?;
    let path = work.path(GRID);
    grid::sheet(&shown, shape).save(&path).map_err(|error| Error::bad(&path, format!("cannot write it: {error}")))?;
    stage::write_atomic(&work.path(SUMMARY), &stage::pretty(&summary))
}

fn refuse(broken: Broken, resolved: &Resolved, trained: &Trained) -> Error {
    let Broken { index, step } = broken;
    let (weights, steps) = (&resolved.config.weights, resolved.config.steps);
    let message = format!("weights {weights}: sample {index} is not finite after step {step} of {steps}");
    Error::bad(trained.artifact.dir(), message)
        .with_hint("take other weights (--set sample.weights=raw), or --set sample.precision=fp32")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use lcf_model::{
        ModelConfig, Params, Precision,
        config::Input,
        ode::Sampler,
        rng::{Purpose, Rng},
    };

    const CPU: Device = Device::Cpu;
    const MODEL: ModelConfig = ModelConfig { depth: 2, width: 16, heads: 2, mlp: 24, patch: 2 };
    const INPUT: Input = Input { channels: 3, side: 8 };

    fn resolved(seed: u64, t_stop: f64) -> Resolved {
        let weights = "ema".to_owned();
        let (sampler, precision) = (Sampler::Heun, Precision::Fp32);
        let config = Config { weights, num: 6, sampler, steps: 4, seed, precision, through_t0: false };
        config.resolve(t_stop).unwrap()
    }

    /// Random everywhere: DiT's own start predicts a velocity of zero.
    fn model() -> Dit {
        let mut params = Params::init(&MODEL, &INPUT, 1, CPU);
        let index = Tensor::arange(params.layout.len, (Kind::Int64, CPU));
        params.flat += Rng::new(1, Purpose::Init).normal(&index, 1).squeeze_dim(1) * 0.1;
        Dit::frozen(MODEL, INPUT, Precision::Fp32, &params)
    }

    /// Noise is equal to the bit; a matrix product of another number of rows may sum in another order, which leaves a
    /// few units of fp32 rounding.
    #[test]
    fn a_split_into_batches_changes_rounding_only() {
        let model = model();
        tch::no_grad(|| {
            for t_stop in [0.0, 0.1] {
                let resolved = resolved(3, t_stop);
                let whole = batch(&model, &resolved, 0, 6, CPU).unwrap();
                for (start, n) in [(0, 1), (1, 2), (3, 3), (5, 1)] {
                    let part = batch(&model, &resolved, start, n, CPU).unwrap();
                    let difference = whole.narrow(0, start as i64, n as i64) - part;
                    assert!(difference.abs().max().double_value(&[]) < 1e-4, "{start} {n}");
                }
                let different = (&whole - noise(3, 0, 6, [3, 8, 8], CPU)).abs().mean(Kind::Float).double_value(&[]);
                assert!(different > 0.1, "{different}");
            }
        });
    }

    #[test]
    fn the_step_that_broke_a_sample_is_counted() {
        // The field breaks from t = 0.4 on. Times are 1, 0.75, 0.5, 0.25, 0, and Heun's third step is the first to look
        // beyond 0.4; with the data step they are 1, 0.7, 0.4, 0.1, and the second step does.
        for (t_stop, good_steps) in [(0.0, 2), (0.1, 1)] {
            let resolved = resolved(0, t_stop);
            let start = Tensor::ones([2, 3, 8, 8], (Kind::Float, CPU));
            let field = |x: &Tensor, t: f64| {
                let v = x.zeros_like();
                if t < 0.4 + 1e-9 {
                    let _ = v.get(1).get(0).fill_(f64::NAN);
                }
                v
            };
            let (_, good) = counted(&resolved, &resolved.schedule(), start, field);
            assert_eq!(Vec::<i64>::try_from(good).unwrap(), [4, good_steps]);
        }
    }
}
