//! The network against PyTorch running the same TorchScript, by numbers stored here.

use crate::fixtures::{bytes, fid, outcome, provide, weights};
use lcf_fid::{
    config::{Precision, Resize},
    images::Images,
    inception::{DIM, Inception, SHA256},
};
use lcf_store::npy;
use tch::Device;

/// Another network is another metric.
#[test]
fn tampered_weights_are_refused_before_they_are_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("inception-fid.pt");
    std::fs::write(&path, "not the network").unwrap();
    let found = lcf_store::digest::of_bytes(b"not the network");
    let error = Inception::load(&path, Device::Cpu, Resize::Tf1, Precision::Fp32, None).unwrap_err().to_string();
    assert!(error.contains(&format!("found sha256 {found}, expected {SHA256}")), "{error}");
    // Nor when data/SOURCES.json vouches for it.
    provide(dir.path(), &path);
    npy::write(&dir.path().join("x.npy"), &[2, 4, 4, 3], &bytes(96, 0)).unwrap();
    let args = ["compare", "--real", "x.npy", "--fake", "x.npy", "--device", "cpu"];
    let (code, _, stderr) = outcome(&fid(dir.path(), &args));
    assert!(code == 1 && stderr.contains(&found) && stderr.contains(SHA256), "{stderr}");
}

/// For each of four images, over its features f: the sums of f, of f^2 and of k f_k / D, by PyTorch 2.11 on the CPU in fp32
/// with TensorFlow's bilinear formula written out in torch.
const TF1: [[f64; 3]; 4] = [
    [468.2294, 437.7627, 206.447],
    [535.0266, 502.242, 238.7822],
    [490.4747, 435.6402, 222.8664],
    [510.857, 456.6849, 233.6384],
];

/// Likewise with `F.interpolate(mode="bilinear", align_corners=False)`.
const HALF_PIXEL: [[f64; 3]; 4] = [
    [438.2714, 397.2247, 193.9782],
    [472.8571, 446.3464, 207.9788],
    [461.1195, 428.2627, 204.446],
    [460.0946, 462.7723, 195.8022],
];

/// fp32 sums over a hundred layers in another order (batch, memory layout) move a feature by 1e-6 of its size.
const TOLERANCE: f64 = 1e-4;

/// Those sums of the features of four 32x32 images.
fn sums(resize: Resize, batch: usize) -> Option<Vec<[f64; 3]>> {
    let weights = weights("golden features")?;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    npy::write(&path, &[4, 32, 32, 3], &bytes(4 * 32 * 32 * 3, 5)).unwrap();
    let network = Inception::load(&weights, Device::Cpu, resize, Precision::Fp32, Some(batch)).unwrap();
    let features = network.features(&Images::open(&path, None).unwrap(), "golden").unwrap();
    let sum = |row: &[f32], weight: fn(usize, f64) -> f64| -> f64 {
        row.iter().enumerate().map(|(k, &f)| weight(k, f64::from(f))).sum()
    };
    let of = |row| [sum(row, |_, f| f), sum(row, |_, f| f * f), sum(row, |k, f| k as f64 * f / DIM as f64)];
    Some(features.chunks(DIM).map(of).collect())
}

fn worst(found: &[[f64; 3]], expected: &[[f64; 3]; 4]) -> f64 {
    let pairs = found.as_flattened().iter().zip(expected.as_flattened());
    pairs.map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max)
}

#[test]
fn features_are_pytorchs() {
    // Three and one: the last batch is not full.
    for (resize, expected, other) in [(Resize::Tf1, &TF1, &HALF_PIXEL), (Resize::HalfPixel, &HALF_PIXEL, &TF1)] {
        let Some(found) = sums(resize, 3) else { return };
        assert!(worst(&found, expected) < TOLERANCE, "{found:?}, expected {expected:?}");
        // The test has power: the other way of scaling is told apart.
        assert!(worst(&found, other) > 100.0 * TOLERANCE);
    }
}
