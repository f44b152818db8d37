//! Kernel Inception Distance.

use crate::numpy_random::RandomState;
use anyhow::{Result, ensure};
use lcf_store::progress;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, TchError, Tensor};

/// What KID is taken over: torch-fidelity's values are the defaults.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Subsets {
    /// Pairs of subsets.
    pub subsets: usize,
    /// Images in each; fewer where a set has fewer.
    pub subset_size: usize,
    /// Seed of the draws.
    pub seed: u32,
}

impl Default for Subsets {
    fn default() -> Self {
        Self { subsets: 100, subset_size: 1000, seed: 2020 }
    }
}

/// The distance.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Kid {
    /// Mean over the subsets. Unbiased, so a little below 0 is possible.
    pub mean: f64,
    /// Standard deviation over the subsets (with their number in the denominator): how far one subset strays, not how
    /// well the mean is known.
    pub std: f64,
    /// Pairs of subsets.
    pub subsets: usize,
    /// Images in each.
    pub subset_size: usize,
    /// Seed of the draws.
    pub seed: u32,
}

/// KID of `fake` from `real`, the rows of `[n, dim]` matrices in C order (Binkowski et al. 2018, "Demystifying MMD GANs",
/// Section 4): the unbiased estimate of the squared maximum mean discrepancy under the kernel (x.y / D + 1)^3, on
/// subsets drawn without replacement. In fp64 on `device`; torch-fidelity computes the same in fp32.
///
/// # Errors
/// Fewer than two rows on a side; libtorch's.
pub fn distance(fake: &[f32], real: &[f32], dim: usize, asked: Subsets, device: Device) -> Result<Kid> {
    let (n_fake, n_real) = (fake.len() / dim, real.len() / dim);
    let size = asked.subset_size.min(n_fake).min(n_real);
    ensure!(size >= 2, "KID of {n_fake} and {n_real} images, expected at least 2 of each");
    let mut random = RandomState::new(asked.seed);
    let bar = progress::bar(asked.subsets as u64, "KID", "subsets");
    let mut values = Vec::with_capacity(asked.subsets);
    for _ in 0..asked.subsets {
        // In torch-fidelity's order: its first input is the generated one.
        let x = gather(fake, dim, &random.choice(n_fake, size), device)?;
        let y = gather(real, dim, &random.choice(n_real, size), device)?;
        values.push(unbiased_mmd2(&x, &y)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let (mean, std) = mean_and_std(&values);
    Ok(Kid { mean, std, subsets: asked.subsets, subset_size: size, seed: asked.seed })
}

/// Mean, and standard deviation with the number of values in the denominator.
pub fn mean_and_std(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n).sqrt())
}

/// The rows of `indices`, fp64 on `device`.
fn gather(values: &[f32], dim: usize, indices: &[usize], device: Device) -> Result<Tensor, TchError> {
    let rows: Vec<f32> = indices.iter().flat_map(|&i| &values[i * dim..][..dim]).copied().collect();
    Tensor::f_from_slice(&rows)?.f_view([-1, dim as i64])?.f_to_device(device)?.f_to_kind(Kind::Double)
}

/// Binkowski et al. 2018, Eq. 4, of m points x and m points y:
/// `sum_{i != j} (k(x_i, x_j) + k(y_i, y_j)) / (m (m - 1)) - 2 sum_{ij} k(x_i, y_j) / m^2`.
fn unbiased_mmd2(x: &Tensor, y: &Tensor) -> Result<f64, TchError> {
    let m = x.size()[0] as f64;
    let off_diagonal = |z: &Tensor| {
        let k = kernel(z, z)?;
        Ok::<_, TchError>(sum(&k)? - sum(&k.f_diagonal(0, 0, 1)?)?)
    };
    let within = (off_diagonal(x)? + off_diagonal(y)?) / (m * (m - 1.0));
    Ok(within - 2.0 * sum(&kernel(x, y)?)? / (m * m))
}

/// `(x.y / D + 1)^3` of all pairs.
fn kernel(x: &Tensor, y: &Tensor) -> Result<Tensor, TchError> {
    let d = x.size()[1] as f64;
    x.f_matmul(&y.f_transpose(0, 1)?)?.f_div_scalar(d)?.f_add_scalar(1.0)?.f_pow_tensor_scalar(3.0)
}

fn sum(x: &Tensor) -> Result<f64, TchError> {
    f64::try_from(x.f_sum(Kind::Double)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kid(fake: &[f32], real: &[f32], dim: usize, subsets: usize, subset_size: usize) -> Kid {
        distance(fake, real, dim, Subsets { subsets, subset_size, seed: 1 }, Device::Cpu).unwrap()
    }

    /// One dimension, X = {0, 1}, Y = {2, 3}, k = (xy + 1)^3. Off the diagonal: k(0, 1) = 1 twice and k(2, 3) = 343
    /// twice, over 2. Between: 1, 1, 27, 64, over 4.
    #[test]
    fn two_points_a_side_by_hand() {
        let found = kid(&[0.0, 1.0], &[2.0, 3.0], 1, 1, 2);
        assert_eq!((found.mean, found.std), ((2.0 + 686.0) / 2.0 - 2.0 * 93.0 / 4.0, 0.0));
    }

    #[test]
    fn subsets_are_no_larger_than_the_sets() {
        let (fake, real): (Vec<f32>, Vec<f32>) = ((0..10).map(|i| i as f32).collect(), vec![1.0; 8]);
        let found = kid(&fake, &real, 2, 3, 1000);
        assert_eq!((found.subsets, found.subset_size), (3, 4));
        let error = distance(&fake[..2], &real, 2, Subsets::default(), Device::Cpu).unwrap_err().to_string();
        assert_eq!(error, "KID of 1 and 4 images, expected at least 2 of each");
    }

    #[test]
    fn the_spread_has_the_number_of_values_below() {
        assert_eq!(mean_and_std(&[1.0, 3.0]), (2.0, 1.0));
        assert_eq!(mean_and_std(&[5.0]), (5.0, 0.0));
    }
}
