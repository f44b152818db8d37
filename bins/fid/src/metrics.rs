//! All numbers of one set of features held against another: FID, KID, precision and recall.

use crate::{
    distances::{self, Best, Nearest},
    frechet,
    kid::{self, Kid, Subsets},
    points::Features,
    rank_warning,
    stats::Moments,
};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, TchError, Tensor};

/// What the metrics are taken with.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Subsets of KID.
    pub kid: Subsets,
    /// Neighbour that ends the ball around a point, for precision and recall.
    pub k: usize,
    /// Where to compute.
    pub device: Device,
}

/// One set of features against another.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Metrics {
    /// Frechet Inception distance.
    pub fid: f64,
    /// Whether either side has too few images for a covariance of full rank.
    pub rank_deficient: bool,
    /// Kernel Inception distance.
    pub kid: Kid,
    /// Share of generated images that lie within the balls around real ones; none where a side has k points or fewer.
    pub precision: Option<f64>,
    /// Share of real images that lie within the balls around generated ones.
    pub recall: Option<f64>,
    /// A ball reaches to the k-th neighbour of its centre in its own set.
    pub k: usize,
}

/// The features of a set with what does not depend on what they are held against.
#[derive(Debug)]
pub struct Set<'a> {
    /// The features.
    pub features: Features<'a>,
    /// Their mean and covariance.
    pub moments: Moments,
    /// Of each point itself and its k nearest others.
    pub own: Nearest,
}

impl<'a> Set<'a> {
    /// Takes moments and neighbours of the rows of `values`, `[n, dim]`. `what` names the work in progress.
    ///
    /// # Errors
    /// Fewer than two rows; libtorch's.
    pub fn of(values: &'a [f32], dim: usize, settings: &Settings, what: &str) -> Result<Self> {
        Self::with(Moments::of(values, dim, settings.device)?, values, dim, settings, what)
    }

    /// [`Set::of`] with moments that are known.
    ///
    /// # Errors
    /// libtorch's.
    pub fn with(moments: Moments, values: &'a [f32], dim: usize, settings: &Settings, what: &str) -> Result<Self> {
        let features = Features { values, dim };
        let label = format!("{what}: neighbours");
        let own = distances::nearest(&features, &features, settings.k + 1, settings.device, &label)?;
        Ok(Self { features, moments, own })
    }

    /// Number of images.
    pub fn n(&self) -> usize {
        self.features.values.len() / self.features.dim
    }

    /// Radii of the balls, `[n]`; none where there is no k-th neighbour.
    fn radii(&self, settings: &Settings) -> Result<Option<Tensor>, TchError> {
        let enough = self.own.k == settings.k + 1;
        let radii = || Tensor::f_from_slice(&self.own.distances_at(settings.k))?.f_to_device(settings.device);
        enough.then(radii).transpose()
    }
}

/// `fake` against `real`, and the `neighbours` real images nearest to each generated one.
///
/// # Errors
/// A failed computation.
pub fn compare(
    fake: &Set,
    real: &Set,
    settings: &Settings,
    neighbours: usize,
    what: &str,
) -> Result<(Metrics, Nearest)> {
    let Features { values, dim } = fake.features;
    let coverage = Coverage::of(fake, real, settings, neighbours, what)?;
    let metrics = Metrics {
        fid: frechet::distance(&real.moments, &fake.moments)?,
        rank_deficient: rank_warning(fake.n().min(real.n())).is_some(),
        kid: kid::distance(values, real.features.values, dim, settings.kid, settings.device)?,
        precision: coverage.precision,
        recall: coverage.recall,
        k: settings.k,
    };
    Ok((metrics, coverage.nearest))
}

/// Which points lie in whose balls (Kynkaanniemi et al. 2019, "Improved precision and recall metric for assessing
/// generative models", Eq. 1 and 2), by one pass over all distances. On the edge is inside, as in torch-fidelity.
struct Coverage {
    precision: Option<f64>,
    recall: Option<f64>,
    nearest: Nearest,
}

impl Coverage {
    fn of(fake: &Set, real: &Set, settings: &Settings, neighbours: usize, what: &str) -> Result<Self> {
        let (of_fake, of_real) = (fake.radii(settings)?, real.radii(settings)?);
        let none_yet = |set: &Set| Tensor::f_zeros([set.n() as i64], (Kind::Bool, settings.device));
        let (mut precise, mut recalled) = (none_yet(fake)?, none_yet(real)?);
        let mut best = Best::new(neighbours.min(real.n()));
        let label = format!("{what}: precision and recall");
        distances::walk(&fake.features, &real.features, settings.device, &label, |block| {
            let part =
                |x: &Tensor, range: &std::ops::Range<usize>| x.f_narrow(0, range.start as i64, range.len() as i64);
            if let (Some(of_fake), Some(of_real)) = (&of_fake, &of_real) {
                let inside = block.distances.f_le_tensor(&part(of_real, &block.base)?)?.f_any_dim(1, false)?;
                let _ = part(&precise, &block.queries)?.f_logical_or_(&inside)?;
                let radii = part(of_fake, &block.queries)?.f_unsqueeze(1)?;
                let inside = block.distances.f_le_tensor(&radii)?.f_any_dim(0, false)?;
                let _ = part(&recalled, &block.base)?.f_logical_or_(&inside)?;
            }
            best.add(block)
        })?;
        let known = of_fake.is_some() && of_real.is_some();
        let share = |inside: &mut Tensor| f64::try_from(inside.f_to_kind(Kind::Double)?.f_mean(Kind::Double)?);
        let share = |inside: &mut Tensor| known.then(|| share(inside)).transpose();
        Ok(Self { precision: share(&mut precise)?, recall: share(&mut recalled)?, nearest: best.finish() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Settings = Settings { kid: Subsets { subsets: 1, subset_size: 2, seed: 0 }, k: 1, device: Device::Cpu };

    fn of(fake: &[f32], real: &[f32], settings: &Settings) -> (Metrics, Nearest) {
        let set = |values| Set::of(values, 1, settings, "test").unwrap();
        compare(&set(fake), &set(real), settings, 1, "test").unwrap()
    }

    /// On a line with k = 1. Balls of the real points 0, 1, 10: radii 1, 1, 9. Of the generated 1.5, 5, 30: 3.5, 3.5, 25.
    #[test]
    fn precision_and_recall_on_a_line() {
        let (metrics, nearest) = of(&[1.5, 5.0, 30.0], &[0.0, 1.0, 10.0], &CPU);
        // 1.5 is within 1 of 1; 5 within 9 of 10; 30 in none.
        assert_eq!(metrics.precision, Some(2.0 / 3.0));
        // 0 and 1 are within 3.5 of 1.5; 10 within 25 of 30.
        assert_eq!(metrics.recall, Some(1.0));
        assert_eq!((nearest.distances, nearest.indices), (vec![0.5, 4.0, 20.0], vec![1, 1, 2]));
        // On the edge is inside.
        assert_eq!(of(&[2.0, 20.0], &[0.0, 1.0], &CPU).0.precision, Some(0.5));
    }

    #[test]
    fn too_few_points_have_no_neighbourhoods() {
        let settings = Settings { k: 3, ..CPU };
        let (metrics, nearest) = of(&[0.0, 1.0, 2.0], &[0.0, 1.0, 2.0, 3.0], &settings);
        assert_eq!((metrics.precision, metrics.recall), (None, None));
        assert_eq!(nearest.indices, [0, 1, 2]);
    }
}
