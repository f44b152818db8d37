//! `lcf-sample --bench`: samples of a model of random weights.

use crate::{Config, run::batch};
use anyhow::{Result, anyhow};
use lcf_model::{
    bench::{
        Bench, Measured,
        inputs::Shapes,
        work::{FORWARD, Flops, activation, work},
    },
    pixels,
};
use lcf_store::bench::Outcome;
use serde_json::json;

/// Measures a batch of samples, from noise to bytes on the host. The ODE is integrated to t = 0, as for a model that was
/// trained at all times.
///
/// # Errors
/// Samples that are not finite.
pub fn run(bench: Bench, config: &Config, shapes: &Shapes, batch_size: usize) -> Result<Outcome> {
    let Shapes { model, input, .. } = shapes;
    let device = bench.device();
    let dit = shapes.dit(config.precision, device);
    let resolved = config.clone().resolve(0.0)?;
    let n = batch_size.min(config.num);
    let _no_grad = tch::no_grad_guard();
    let times = bench.time(1, || {
        let broken = |_| anyhow!("samples of random weights are not finite: --set sample.precision=fp32");
        pixels::bytes(&batch(&dit, &resolved, 0, n, device).map_err(broken)?);
        anyhow::Ok(())
    })?;
    let nfe = resolved.nfe() as f64;
    let flop = nfe * Flops::velocity(model, input).forward();
    let bytes = nfe * model.depth as f64 * FORWARD * activation(model, input, config.precision);
    let measured = Measured {
        what: format!("{n} samples, NFE {nfe}, {}", config.precision.name()),
        times,
        items: (n as f64, "images"),
        work: work(flop, bytes, device),
    };
    let settings = json!({ "run": resolved, "nfe": nfe, "model": model, "input": input, "batch": n });
    Ok(bench.finish("sample", config.precision, vec![measured], settings))
}
