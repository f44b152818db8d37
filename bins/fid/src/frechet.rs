//! The Frechet distance between two normal distributions.

use crate::stats::Moments;
use anyhow::{Result, ensure};
use tch::{Kind, TchError, Tensor};

/// `|mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))`, in fp64.
///
/// The square of the 2-Wasserstein distance of N(mu1, S1) and N(mu2, S2) (Dowson & Landau 1982, "The Frechet distance
/// between multivariate normal distributions", Eq. 4), which Heusel et al. (2017), "GANs trained by a two time-scale
/// update rule", Eq. 6, apply to Inception features and call FID.
///
/// The trace needs no square root of the unsymmetric S1 S2: with R = V L^(1/2) from the eigenvectors of S1 = V L V', its
/// eigenvalues are those of the symmetric R' S2 R, and its trace is the sum of their square roots. Both eigenproblems are
/// symmetric, so nothing is complex and rank-deficient covariances need no offset on the diagonal; eigenvalues that
/// rounding made negative count as 0.
///
/// # Errors
/// Moments of different dimensions, features that are not finite, or libtorch's.
pub fn distance(a: &Moments, b: &Moments) -> Result<f64> {
    let (da, db) = (a.mean.size(), b.mean.size());
    ensure!(da == db, "means of shapes {da:?} and {db:?}, expected the same");
    let offset = a.mean.f_sub(&b.mean)?.f_square()?;
    let total = sum(&offset)? + sum(&a.cov.f_trace()?)? + sum(&b.cov.f_trace()?)?;
    ensure!(total.is_finite(), "the features are not finite");
    let distance = total - 2.0 * trace_of_root(a.root()?, &b.cov)?;
    ensure!(distance.is_finite(), "the distance is not finite");
    // A square, which rounding takes below 0 when the two are equal.
    Ok(distance.max(0.0))
}

/// `tr((S1 S2)^(1/2))` of symmetric positive semidefinite S1 = R R' and S2, `[D, D]` each.
fn trace_of_root(root: &Tensor, s2: &Tensor) -> Result<f64, TchError> {
    let product = root.f_transpose(0, 1)?.f_matmul(&s2.f_matmul(root)?)?;
    let symmetric = product.f_add(&product.f_transpose(0, 1)?)?.f_div_scalar(2.0)?;
    sum(&symmetric.f_linalg_eigvalsh("L")?.f_clamp_min(0.0)?.f_sqrt()?)
}

fn sum(x: &Tensor) -> Result<f64, TchError> {
    f64::try_from(x.f_sum(Kind::Double)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(mean: &[f64], cov: &[f64]) -> Moments {
        let d = mean.len() as i64;
        Moments::new(Tensor::from_slice(mean), Tensor::from_slice(cov).view([d, d]))
    }

    fn diagonal(mean: &[f64], variances: &[f64]) -> Moments {
        let cov = Tensor::from_slice(variances).diag(0);
        Moments::new(Tensor::from_slice(mean), cov)
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12 * expected.abs().max(1.0), "{found}, expected {expected}");
    }

    #[test]
    fn diagonal_covariances_have_a_closed_form() {
        // Sum over dimensions of (m1 - m2)^2 + (s1 - s2)^2 with the standard deviations s.
        let a = diagonal(&[1.0, -2.0, 0.5], &[4.0, 9.0, 0.25]);
        let b = diagonal(&[0.0, 1.0, 0.5], &[1.0, 16.0, 2.25]);
        close(distance(&a, &b).unwrap(), 1.0 + 9.0 + 1.0 + 1.0 + 1.0);
        close(distance(&b, &a).unwrap(), 13.0);
    }

    #[test]
    fn scaled_identities_have_a_closed_form() {
        // D (sqrt(c1) - sqrt(c2))^2.
        let (a, b) = (diagonal(&[0.0; 50], &[4.0; 50]), diagonal(&[0.0; 50], &[9.0; 50]));
        close(distance(&a, &b).unwrap(), 50.0);
    }

    #[test]
    fn equal_distributions_are_at_distance_0() {
        let a = moments(&[1.0, 2.0], &[2.0, 0.5, 0.5, 1.0]);
        close(distance(&a, &a).unwrap(), 0.0);
    }

    #[test]
    fn singular_covariances_need_no_offset() {
        // Rank 1 along u = (3, 4) / 5 and along v = (1, 0): tr((S1 S2)^(1/2)) = sqrt(l1 l2) |u . v|.
        let (l1, l2) = (25.0, 4.0);
        let a = moments(&[0.0, 0.0], &[l1 * 0.36, l1 * 0.48, l1 * 0.48, l1 * 0.64]);
        let b = moments(&[0.0, 0.0], &[l2, 0.0, 0.0, 0.0]);
        close(distance(&a, &b).unwrap(), l1 + l2 - 2.0 * (l1 * l2).sqrt() * 0.6);
        // Orthogonal supports share nothing.
        let c = moments(&[0.0, 0.0], &[0.0, 0.0, 0.0, 7.0]);
        close(distance(&b, &c).unwrap(), 4.0 + 7.0);
        close(distance(&diagonal(&[0.0; 3], &[0.0; 3]), &diagonal(&[1.0; 3], &[0.0; 3])).unwrap(), 3.0);
    }

    /// Full covariances, against numpy and `scipy.linalg.sqrtm(s1 @ s2)` (SciPy 1.17).
    #[test]
    fn full_covariances_agree_with_scipy() {
        let s1 = [
            0.4534, 0.81, -0.3187, -1.1473, 0.81, 3.0137, -0.8472, -1.1395, -0.3187, -0.8472, 2.4889, 2.6562, -1.1473,
            -1.1395, 2.6562, 7.5727,
        ];
        let s2 = [
            2.4652, 0.1801, 0.9644, 0.7459, 0.1801, 2.2121, 0.5464, -0.582, 0.9644, 0.5464, 1.3242, -0.0953, 0.7459,
            -0.582, -0.0953, 0.4909,
        ];
        let a = moments(&[-0.54, -0.32, 0.41, 1.04], &s1);
        let b = moments(&[-0.65, -0.13, 0.78, 1.49], &s2);
        close(distance(&a, &b).unwrap(), 8.940545395485614);
    }

    #[test]
    fn what_has_no_distance_is_refused() {
        let (a, b) = (diagonal(&[0.0; 2], &[1.0; 2]), diagonal(&[0.0; 3], &[1.0; 3]));
        assert!(distance(&a, &b).unwrap_err().to_string().contains("expected the same"));
        assert!(distance(&a, &diagonal(&[f64::NAN; 2], &[1.0; 2])).unwrap_err().to_string().contains("not finite"));
    }
}
