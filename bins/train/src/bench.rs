//! `lcf-train --bench`: the time of a whole step, draws, forward and backward pass, clip, AdamW and moving average
//! included, by the trainer that trains.

use crate::{
    TrainConfig,
    ranks::{Ranks, check_batch},
    step::Trainer,
};
use anyhow::{Result, bail};
use lcf_model::{
    Engine,
    bench::{
        Bench, Measured,
        inputs::{Shapes, stir},
        work::{BACKWARD, FORWARD, FORWARD_KEPT, Flops, activation, work},
    },
    params::Layout,
};
use lcf_store::{
    Error,
    bench::{Outcome, Work},
};
use serde_json::json;
use tch::Device;

/// Steps before the clock starts: the captured step makes three, then records, then replays.
const WARM_UP: u32 = 6;
/// Bytes of a parameter that its update reads and writes: the gradient in fp32, written and read for its norm and once more;
/// weight, both moments and average, read and written; the copy in bf16.
const UPDATE: f64 = 46.0;

/// Measures the step of `config` on as many processes as there are `ranks`, all of which call this.
///
/// # Errors
/// [`Error::Usage`] for a batch that is larger than the dataset or smaller than the ranks; steps whose loss is not finite.
pub fn run(bench: Bench, config: &TrainConfig, shapes: &Shapes, engine: Engine, ranks: &Ranks) -> Result<Outcome> {
    let (batch, count) = (config.batch, shapes.images.train);
    if count < batch {
        return Err(Error::usage(format!("train.batch: {batch} is more than the {count} training images")).into());
    }
    check_batch(batch, ranks.size())?;
    let device = bench.device();
    let images = shapes.pixels(count, device);
    let mut trainer = Trainer::new(config, shapes.input, images).among(ranks.clone()).with_engine(engine);
    stir(&mut trainer.params.flat);
    trainer.refresh();
    let mut step = 0;
    ranks.busy();
    let agree = |wish: bool| Ok(ranks.agree([wish, false])?[0]);
    let times = bench.time_together(WARM_UP, agree, || {
        trainer.advance(step);
        step += 1;
        // As the loop of a training does at each step.
        ranks.agree([false, false])?;
        anyhow::Ok(())
    })?;
    let totals = trainer.take();
    if totals.skipped > 0 {
        bail!("{} of {} steps were left out: loss or gradient not finite", totals.skipped, totals.steps);
    }
    let engine = if trainer.is_stepwise() { "reference" } else { "fused" };
    let settings = json!({
        "run": config, "images": { "channels": shapes.input.channels, "side": shapes.input.side, "count": count },
        "anchors": anchors(config), "engine": engine, "ranks": ranks.size(), "kernels": trainer.kernels(),
    });
    let measured = Measured {
        what: format!("step of {batch}, {engine} engine, {}", config.precision.name()),
        times,
        items: (batch as f64, "images"),
        work: least(config, shapes, device),
    };
    ranks.busy();
    Ok(bench.finish("train", config.precision, vec![measured], settings))
}

/// Anchors of a step, on average.
fn anchors(config: &TrainConfig) -> f64 {
    config.contrast().map_or(0.0, |_| config.batch as f64 * config.threshold())
}

/// What an image of a step takes at least: both passes, a share of the update, and, where it is an anchor, its copy at
/// T_min, which goes forward through the blocks before the features. That anchors of an objective that cuts leave after
/// those blocks is not counted.
fn least(config: &TrainConfig, shapes: &Shapes, device: Device) -> Work {
    let Shapes { model, input, .. } = shapes;
    let batch = config.batch as f64;
    let unit = activation(model, input, config.precision);
    let mut flop = Flops::velocity(model, input).both_passes();
    let mut bytes = model.depth as f64 * (FORWARD_KEPT + BACKWARD) * unit;
    if let Some(contrast) = config.contrast() {
        let share = anchors(config) / batch;
        flop += share * Flops::features(model, input, contrast.layer as i64).forward();
        bytes += share * contrast.layer as f64 * FORWARD * unit;
    }
    bytes += UPDATE * Layout::new(model, input).parameters() as f64 / batch;
    work(flop, bytes, device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::small;
    use lcf_model::{ModelConfig, Precision, config::Input};
    use lcf_store::prepare::Shape;

    /// The step of the paper: 12 x 384 with patch 2, 256 images, 5.12 anchors through 8 of the blocks.
    #[test]
    fn a_step_of_cifar_is_9_49_tflop_and_54_9_gb() {
        let model = ModelConfig { depth: 12, width: 384, heads: 6, mlp: 1536, patch: 2 };
        let input = Input { channels: 3, side: 32 };
        let images = Shape { channels: 3, side: 32, train: 50_000, test: 10_000, classes: 10 };
        let shapes = Shapes { model, input, images };
        let mut config =
            TrainConfig { model, batch: 256, t_min: Some(0.02), precision: Precision::Bf16, ..small("lcf") };
        config.contrast.as_mut().unwrap().layer = 8;
        let step = |config: &TrainConfig| {
            let Work { flop_per_item, bytes_per_item } = least(config, &shapes, Device::Cuda(0));
            [flop_per_item, bytes_per_item].map(|work| 256.0 * work.unwrap())
        };
        // 256 x 36.924 GFLOP, and 5.12 x 8.07.
        assert_eq!(anchors(&config), 5.12);
        let [flop, bytes] = step(&config);
        assert!((flop / 1e12 - 9.4938).abs() < 1e-4, "{flop}");
        // 256 x 12 x 88 units of 196,608 bytes; 5.12 x 8 x 28; 46 bytes of 32,471,436 parameters.
        assert!((bytes / 1e9 - (53.150 + 0.2255 + 1.4937)).abs() < 1e-3, "{bytes}");
        config.objective = crate::config::Objective::Fm;
        assert_eq!((step(&config)[0], anchors(&config)), (9_452_509_986_816.0, 0.0));
        assert_eq!(least(&config, &shapes, Device::Cpu).bytes_per_item, None);
    }
}
