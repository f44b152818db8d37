//! Mean and covariance of features, in fp64.

use anyhow::{Result, ensure};
use lcf_store::{Error, npy};
use std::{cell::OnceCell, path::Path};
use tch::{Device, Kind, TchError, Tensor};

/// Rows taken at once: 64 MiB of fp64 at D = 2048.
const CHUNK: usize = 4096;

/// The first two moments of n points in D dimensions, fp64 on the CPU.
#[derive(Debug)]
pub struct Moments {
    /// Mean, `[D]`.
    pub mean: Tensor,
    /// Covariance with n - 1 in the denominator, `[D, D]`.
    pub cov: Tensor,
    root: OnceCell<Tensor>,
}

impl Moments {
    /// These.
    pub fn new(mean: Tensor, cov: Tensor) -> Self {
        Self { mean, cov, root: OnceCell::new() }
    }

    /// An R with R R' = S, `[D, D]`: the eigenvectors of the covariance times the roots of its eigenvalues, where those
    /// that rounding made negative count as 0. Computed once: a reference is held against several sets.
    ///
    /// # Errors
    /// libtorch's.
    pub fn root(&self) -> Result<&Tensor, TchError> {
        if let Some(root) = self.root.get() {
            return Ok(root);
        }
        let (values, vectors) = self.cov.f_linalg_eigh("L")?;
        let root = vectors.f_mul(&values.f_clamp_min(0.0)?.f_sqrt()?)?;
        Ok(self.root.get_or_init(|| root))
    }

    /// Moments of the rows of `values`, `[n, dim]` in C order, computed on `device`: the mean first, then the products
    /// of what is left, so that large means cancel nothing.
    ///
    /// # Errors
    /// Fewer than two rows, or libtorch's.
    pub fn of(values: &[f32], dim: usize, device: Device) -> Result<Self> {
        let n = values.len() / dim;
        ensure!(n >= 2, "{n} images have no covariance, expected at least 2");
        let (d, options) = (dim as i64, (Kind::Double, device));
        let chunk =
            |part: &[f32]| Tensor::f_from_slice(part)?.f_view([-1, d])?.f_to_device(device)?.f_to_kind(Kind::Double);
        let mut mean = Tensor::f_zeros([d], options)?;
        for part in values.chunks(CHUNK * dim) {
            mean = mean.f_add(&chunk(part)?.f_sum_dim_intlist(0, false, Kind::Double)?)?;
        }
        let mean = mean.f_div_scalar(n as f64)?;
        let mut products = Tensor::f_zeros([d, d], options)?;
        for part in values.chunks(CHUNK * dim) {
            let centred = chunk(part)?.f_sub(&mean)?;
            products = products.f_addmm(&centred.f_transpose(0, 1)?, &centred)?;
        }
        let cov = products.f_div_scalar((n - 1) as f64)?;
        Ok(Self::new(mean.f_to_device(Device::Cpu)?, cov.f_to_device(Device::Cpu)?))
    }

    /// Whether the points are one, up to rounding.
    pub fn is_point(&self) -> bool {
        let total = |x: &Tensor| x.sum(Kind::Double).double_value(&[]);
        total(&self.cov.trace()) <= 1e-9 * total(&self.mean.square())
    }

    /// The same moments once more, in the same memory.
    #[must_use]
    pub fn share(&self) -> Self {
        Self::new(self.mean.shallow_clone(), self.cov.shallow_clone())
    }

    /// Writes `mean.npy` and `cov.npy`, fp64, to `dir`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let d = self.mean.size1()? as usize;
        npy::write(&dir.join("mean.npy"), &[d], &Vec::<f64>::try_from(&self.mean)?)?;
        npy::write(&dir.join("cov.npy"), &[d, d], &Vec::<f64>::try_from(self.cov.f_flatten(0, -1)?)?)?;
        Ok(())
    }

    /// Reads what [`Moments::write`] wrote.
    ///
    /// # Errors
    /// Files that are not of that form, and numbers in them that are not finite.
    pub fn read(mean: &Path, cov: &Path) -> Result<Self> {
        let mean = npy::Npy::<f64>::open(mean)?;
        let cov = npy::Npy::<f64>::open(cov)?;
        let d = mean.len();
        if mean.shape().len() != 1 || cov.shape() != [d, d] {
            let found = (mean.shape(), cov.shape());
            return Err(Error::bad(cov.path(), format!("found shapes {found:?}, expected [D] and [D, D]")).into());
        }
        for file in [&mean, &cov] {
            if let Some(at) = file.values().iter().position(|value| !value.is_finite()) {
                let message = format!("number {at} is {}, expected finite numbers", file.values()[at]);
                return Err(Error::bad(file.path(), message).into());
            }
        }
        if let Some(i) = (0..d).find(|i| cov.values()[i * d + i] < 0.0) {
            let message = format!("number {}, a variance, is {}", i * d + i, cov.values()[i * d + i]);
            return Err(Error::bad(cov.path(), format!("{message}, expected 0 or more")).into());
        }
        let matrix = Tensor::f_from_slice(cov.values())?.f_view([d as i64, d as i64])?;
        Ok(Self::new(Tensor::f_from_slice(mean.values())?, matrix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// mean and covariance by the textbook's two loops.
    fn by_hand(values: &[f32], d: usize) -> (Vec<f64>, Vec<f64>) {
        let n = values.len() / d;
        let at = |i: usize, j: usize| f64::from(values[i * d + j]);
        let mean: Vec<f64> = (0..d).map(|j| (0..n).map(|i| at(i, j)).sum::<f64>() / n as f64).collect();
        let cov = |a: usize, b: usize| (0..n).map(|i| (at(i, a) - mean[a]) * (at(i, b) - mean[b])).sum::<f64>();
        let cov = (0..d * d).map(|k| cov(k / d, k % d) / (n - 1) as f64).collect();
        (mean, cov)
    }

    fn close(tensor: &Tensor, expected: &[f64], tolerance: f64) {
        let ours = Vec::<f64>::try_from(tensor.flatten(0, -1)).unwrap();
        assert_eq!(ours.len(), expected.len());
        for (a, b) in ours.iter().zip(expected) {
            assert!((a - b).abs() <= tolerance, "{a} {b}");
        }
    }

    #[test]
    fn agrees_with_the_definition_across_chunks() {
        // The large offset would cost fp32 sums, or E[xx] - E[x]E[x], most of their digits.
        let n = 2 * CHUNK + 7;
        let values: Vec<f32> = (0..n * 3).map(|i| 1000.0 + ((i * 7919) % 1013) as f32 / 1013.0).collect();
        let moments = Moments::of(&values, 3, Device::Cpu).unwrap();
        let (mean, cov) = by_hand(&values, 3);
        close(&moments.mean, &mean, 1e-9);
        close(&moments.cov, &cov, 1e-9);
    }

    #[test]
    fn one_row_has_no_covariance() {
        assert!(Moments::of(&[1.0, 2.0], 2, Device::Cpu).unwrap_err().to_string().contains("at least 2"));
    }

    #[test]
    fn a_round_trip_through_files_is_exact() {
        let dir = tempfile::tempdir().unwrap();
        let moments = Moments::of(&[0.1, 0.2, 0.3, 0.5, 0.7, 1.1], 2, Device::Cpu).unwrap();
        moments.write(dir.path()).unwrap();
        let (mean, cov) = (dir.path().join("mean.npy"), dir.path().join("cov.npy"));
        let read = Moments::read(&mean, &cov).unwrap();
        assert!(read.mean == moments.mean && read.cov == moments.cov);
        assert!(Moments::read(&mean, &mean).unwrap_err().to_string().contains("expected [D] and [D, D]"));
        npy::write(&cov, &[2, 2], &[1.0, 0.0, f64::NAN, 1.0]).unwrap();
        let error = Moments::read(&dir.path().join("mean.npy"), &cov).unwrap_err().to_string();
        assert!(error.ends_with("cov.npy: number 2 is NaN, expected finite numbers"), "{error}");
        npy::write(&cov, &[2, 2], &[1.0, 0.0, 0.0, -1.0]).unwrap();
        let error = Moments::read(&dir.path().join("mean.npy"), &cov).unwrap_err().to_string();
        assert!(error.ends_with("cov.npy: number 3, a variance, is -1, expected 0 or more"), "{error}");
    }

    #[test]
    fn copies_of_one_point_are_one() {
        let point = |values: &[f32]| Moments::of(values, 2, Device::Cpu).unwrap().is_point();
        assert!(point(&[0.3, 0.7, 0.3, 0.7, 0.3, 0.7]) && point(&[0.0; 4]));
        assert!(!point(&[0.3, 0.7, 0.3, 0.701]));
    }
}
