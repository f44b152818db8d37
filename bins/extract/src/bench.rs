//! `lcf-extract --bench`: features of random images by a model of random weights.

use crate::{Config, forward::Extractor, run::values};
use anyhow::{Result, ensure};
use lcf_model::{
    bench::{
        Bench, Measured,
        inputs::Shapes,
        work::{FORWARD, Flops, activation, work},
    },
    features::{Part, first_bad},
};
use lcf_store::bench::Outcome;
use serde_json::json;
use tch::Device;

/// Most batches between two looks at the clock on CUDA, where the end of a part is a small share of it.
const BATCHES: usize = 8;

/// Measures what the stage does with one array: features of images at one timestep, from the images on the device to
/// numbers on the host.
///
/// # Errors
/// A layer that the model does not have; features that are not finite.
pub fn run(bench: Bench, config: &Config, shapes: &Shapes, batch: usize) -> Result<Outcome> {
    let Shapes { model, input, images } = shapes;
    config.check_layer(model.depth)?;
    let device = bench.device();
    let dit = shapes.dit(config.precision, device);
    let batches = if device == Device::Cpu { 1 } else { BATCHES };
    let count = (batch * batches).min(images.train);
    let pixels = shapes.pixels(count, device);
    let extractor = Extractor { model: &dit, layer: config.layer, seed: config.seed, batch };
    let _no_grad = tch::no_grad_guard();
    let mut timesteps = config.timesteps.iter().cycle();
    let times = bench.time(2, || {
        let timestep = *timesteps.next().expect("the first is 0");
        let features = extractor.extract(&pixels, Part::Train, timestep, |_| {});
        ensure!(
            first_bad(&features).is_none(),
            "features of random weights are not finite: --set extract.precision=fp32"
        );
        values(&features);
        Ok(())
    })?;
    let layer = config.layer as i64;
    let flop = Flops::features(model, input, layer).forward();
    let bytes = layer as f64 * FORWARD * activation(model, input, config.precision);
    let measured = Measured {
        what: format!("{count} features of layer {layer}, {}, batch {batch}", config.precision.name()),
        times,
        items: (count as f64, "features"),
        work: work(flop, bytes, device),
    };
    let settings = json!({ "run": config, "model": model, "input": input, "batch": batch });
    Ok(bench.finish("extract", config.precision, vec![measured], settings))
}
