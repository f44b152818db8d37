//! `lcf-fid --bench`: Inception features of random images, and the Frechet distance of random features.

use crate::{
    config::{Config, Precision},
    frechet,
    images::Images,
    inception::{ComputeArgs, DIM},
    stats::Moments,
};
use anyhow::Result;
use lcf_model::{
    bench::{BenchArgs, Measured},
    config::Precision as Products,
};
use lcf_store::{
    bench::{Outcome, Work},
    cli::StageArgs,
    prepare::{self, Shape},
};
use serde_json::json;
use tch::{Device, Kind, Tensor};

/// Batches between two looks at the clock on CUDA, where the start and the end of a set are a small share of it.
const BATCHES: usize = 32;
/// Random features that moments are taken of: more than they have dimensions.
const ROWS: i64 = 4096;

/// Measures features of images as the config prepares them, from bytes on the host to numbers there, and the distance of
/// two sets of moments, both roots included.
///
/// # Errors
/// A wrong config; the network cannot be fetched; libtorch's.
pub fn run(args: &StageArgs, bench: &BenchArgs, compute: &ComputeArgs) -> Result<Outcome> {
    let config: Config = args.section()?;
    let Shape { side, channels, .. } = args.section::<prepare::Config>()?.shape()?;
    let network = compute.open(config.resize, config.precision)?;
    let (device, batch) = (network.device(), network.batch());
    let bench = bench.on(device, 1);
    let count = batch * if device == Device::Cpu { 1 } else { BATCHES };
    let pixels = Tensor::randint(256, [(count * side * side * channels) as i64], (Kind::Uint8, Device::Cpu));
    let images = Images::of(Vec::try_from(pixels)?, [side, side, channels]);
    let times = bench.time(2, || network.compute(&images, |_| {}).map(drop))?;
    let features = Measured {
        what: format!("{count} Inception features of {side}x{side} images, {}, batch {batch}", config.precision.name()),
        times,
        items: (count as f64, "images"),
        work: Work { flop_per_item: Some(inception_flop()), bytes_per_item: None },
    };
    let (a, b) = (moments(device)?, moments(device)?);
    // Shared anew each time: moments keep their root.
    let times = bench.time(0, || frechet::distance(&a.share(), &b.share()).map(drop))?;
    let items = (1.0, "distances");
    let distance = Measured {
        what: format!("Frechet distance, {DIM} dimensions, fp64 on the CPU"),
        times,
        items,
        work: Work::default(),
    };
    let settings = json!({ "run": config, "side": side, "batch": batch });
    // Tensor cores are as fast in fp16 as in bf16; a CPU computes both precisions in fp32.
    let products = match (device, config.precision) {
        (Device::Cuda(_), Precision::Fp16) => Products::Bf16,
        _ => Products::Fp32,
    };
    Ok(bench.finish("fid", products, vec![features, distance], settings))
}

fn moments(device: Device) -> Result<Moments> {
    let values = Tensor::randn([ROWS * DIM as i64], (Kind::Float, Device::Cpu));
    Moments::of(&Vec::<f32>::try_from(values)?, DIM, device)
}

/// A convolution of the network: side of its output, numbers in and out, size of the kernel.
type Convolution = (u64, u64, u64, u64);

/// Operations of the convolutions of an image, two for a multiplication and addition: Szegedy et al. 2015, "Rethinking the
/// Inception Architecture for Computer Vision" (arXiv 1512.00567), as the network of FID has them.
fn inception_flop() -> f64 {
    let macs = |(side, from, to, kernel): &Convolution| side * side * from * to * kernel;
    2.0 * convolutions().iter().map(macs).sum::<u64>() as f64
}

fn convolutions() -> Vec<Convolution> {
    let mut all = vec![(149, 3, 32, 9), (147, 32, 32, 9), (147, 32, 64, 9), (73, 64, 80, 1), (71, 80, 192, 9)];
    for (from, pool) in [(192, 32), (256, 64), (288, 64)] {
        all.extend([(35, from, 64, 1), (35, from, 48, 1), (35, 48, 64, 25), (35, from, pool, 1)]);
        all.extend([(35, from, 64, 1), (35, 64, 96, 9), (35, 96, 96, 9)]);
    }
    all.extend([(17, 288, 384, 9), (35, 288, 64, 1), (35, 64, 96, 9), (17, 96, 96, 9)]);
    for c in [128, 160, 160, 192] {
        all.extend([(17, 768, 192, 1), (17, 768, c, 1), (17, c, c, 7), (17, c, 192, 7), (17, 768, 192, 1)]);
        all.extend([(17, 768, c, 1), (17, c, c, 7), (17, c, c, 7), (17, c, c, 7), (17, c, 192, 7)]);
    }
    all.extend([(17, 768, 192, 1), (8, 192, 320, 9)]);
    all.extend([(17, 768, 192, 1), (17, 192, 192, 7), (17, 192, 192, 7), (8, 192, 192, 9)]);
    for from in [1280, 2048] {
        all.extend([(8, from, 320, 1), (8, from, 384, 1), (8, 384, 384, 3), (8, 384, 384, 3), (8, from, 192, 1)]);
        all.extend([(8, from, 448, 1), (8, 448, 384, 9), (8, 384, 384, 3), (8, 384, 384, 3)]);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// torchvision's inception_v3, which has the same convolutions, is listed with 94 of them and 5.71 GFLOPS, by which it means
    /// multiplications.
    #[test]
    fn an_image_is_11_4_gflop() {
        assert_eq!(convolutions().len(), 94);
        assert!((inception_flop() / 2e9 - 5.71).abs() < 0.005, "{}", inception_flop());
    }
}
