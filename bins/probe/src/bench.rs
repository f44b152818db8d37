//! `lcf-probe --bench`: training and scoring of all probes on random features of a config's number, width and timesteps.

use crate::{Config, data::Data, run::train};
use anyhow::{Result, ensure};
use lcf_model::{
    Precision,
    bench::{Bench, Measured, inputs::Shapes, work::work},
};
use lcf_store::{bench::Outcome, cli::StageArgs, config::Section};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Kind, Tensor};

/// What the probe takes from the artifact of an extraction: of its section only the timesteps.
#[derive(Deserialize, Serialize)]
struct Extract {
    timesteps: Vec<u32>,
}

impl Section for Extract {
    const NAME: &'static str = "extract";

    fn validate(&self) -> Result<(), String> {
        if self.timesteps.is_empty() { Err("timesteps: empty, expected at least one".into()) } else { Ok(()) }
    }
}

/// Measures what the stage does once the features are where it computes: all epochs for all timesteps, then the scores of
/// training and test features.
///
/// # Errors
/// Sections `train`, `extract` and `prepare` that are wrong; weights that are not finite.
pub fn run(bench: Bench, config: &Config, args: &StageArgs) -> Result<Outcome> {
    let Shapes { model, images, .. } = Shapes::of(args)?;
    let timesteps = args.section::<Extract>()?.timesteps.len();
    let device = bench.device();
    let classes = images.classes as i64;
    let features = |n: usize| Data {
        x: Tensor::randn([timesteps as i64, n as i64, model.width], (Kind::Float, device)),
        labels: Tensor::randint(classes, [n as i64], (Kind::Int64, device)),
    };
    let (on, against) = (features(images.train), features(images.test));
    let _no_grad = tch::no_grad_guard();
    let times = bench.time(1, || {
        let trained = train(config, &on, classes, device);
        let scores = [&on, &against].map(|data| trained.accuracy(data));
        let is_finite = trained.broken.is_none() && scores.iter().all(Result::is_ok);
        ensure!(is_finite, "probes of random features are not finite: --set probe.lr=0.0001");
        Ok(())
    })?;
    let counts = [images.train as f64, images.test as f64];
    let width = model.width as f64;
    let (flop, bytes) = least(config.epochs as f64, counts, width, images.classes as f64);
    let epochs = config.epochs;
    let measured = Measured {
        what: format!("{timesteps} timesteps, {} features each, {epochs} epochs, fp32", images.train),
        times,
        items: ((timesteps * images.train) as f64 * epochs as f64, "features"),
        work: work(flop, bytes, device),
    };
    let settings = json!({
        "run": config, "timesteps": timesteps, "width": model.width, "classes": classes,
        "train": images.train, "test": images.test,
    });
    Ok(bench.finish("probe", Precision::Fp32, vec![measured], settings))
}

/// Operations and bytes of a training feature in an epoch: two probes, each with a product forward and one for the gradient,
/// and its share of the scores, a product each. A feature is read once an epoch, and once for its score.
fn least(epochs: f64, [train, test]: [f64; 2], width: f64, classes: f64) -> (f64, f64) {
    let scored = (train + test) / (epochs * train);
    (2.0 * 2.0 * width * classes * (2.0 + scored), 4.0 * width * (1.0 + scored))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Table 3 on CIFAR-10's 60,000 images at 15 timesteps: 15 x 15 x 50,000 features of width 384, 10 classes.
    #[test]
    fn probes_of_cifar_are_0_36_tflop() {
        let (flop, bytes) = least(15.0, [50_000.0, 10_000.0], 384.0, 10.0);
        // 15 x 50,000 x (2 x 7,680 x 2) and 60,000 x (2 x 7,680), of each timestep.
        let each = 15.0 * 50_000.0 * 30_720.0 + 60_000.0 * 15_360.0;
        assert!((flop * 750_000.0 - each).abs() < 1.0, "{flop}");
        assert!((15.0 * each / 1e12 - 0.359).abs() < 1e-3, "{each}");
        assert!((bytes * 750_000.0 - 810_000.0 * 1536.0).abs() < 1.0, "{bytes}");
    }
}
