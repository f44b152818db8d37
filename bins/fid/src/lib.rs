//! Stage `fid`: Inception features of images, and the distances between two sets of them: Frechet distance, KID,
//! precision and recall, and whether one copies the other.
//!
//! Images are uint8; features are those of the Inception network of Heusel et al. (2017), `[N, 2048]` fp32 (D = 2048);
//! statistics are fp64. The order of things: [`images`] reads, [`resize`] scales to 299x299, [`inception`] maps to
//! features (in fp16 by [`network`]), [`stats`] takes mean and covariance, [`frechet`] and [`kid`] the distances, [`distances`] those between
//! single points, of which [`metrics`] makes precision and recall and [`memorisation`] says what is near. [`evaluate`] is
//! the stage, [`reference`] the artifact of the real images' statistics, [`report`], [`text`] and [`neighbours`] what it says,
//! [`compare`] the subcommand for any two sets.

pub mod bench;
pub mod chart;
pub mod compare;
pub mod config;
pub mod distances;
pub mod evaluate;
pub mod folder;
pub mod frechet;
pub mod images;
pub mod inception;
pub mod kid;
pub mod memorisation;
pub mod metrics;
pub mod neighbours;
pub mod network;
pub mod npz;
pub mod numpy_random;
pub mod picture;
pub mod points;
pub mod reference;
pub mod report;
pub mod resize;
pub mod samples;
pub mod stats;
pub mod subset;
pub mod text;

/// The line to show with a distance from too few images, where one is due.
///
/// The covariance of n points has rank n - 1 at most, so below D + 1 points it says nothing about most directions.
pub fn rank_warning(n: usize) -> Option<String> {
    let least = inception::DIM + 1;
    (n < least).then(|| {
        format!("{n} images give a rank-deficient covariance (it takes {least}): not comparable with published numbers")
    })
}
