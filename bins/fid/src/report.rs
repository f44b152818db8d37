//! `fid.json`, and how people read it.

use crate::{
    config::{Precision, Resize, Split},
    kid::Kid,
    metrics::Metrics,
    neighbours::Memorisation,
    rank_warning,
    stats::Moments,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Name of the file.
pub const REPORT: &str = "fid.json";

/// `fid.json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The distance of the (first) samples from the half `split`: the headline.
    pub fid: f64,
    /// Number of samples.
    pub n: usize,
    /// Number of real images.
    pub n_reference: usize,
    /// Name of the dataset they are from.
    pub dataset: String,
    /// Half of it.
    pub split: Split,
    /// Scaling to 299x299.
    pub resize: Resize,
    /// Number types of the network.
    #[serde(default, skip_serializing_if = "Precision::is_fp32")]
    pub feature_precision: Precision,
    /// Whether either side has too few images for a covariance of full rank.
    pub rank_deficient: bool,
    /// What a reader of these numbers has to know before quoting them.
    pub warnings: Vec<String>,
    /// What real images would get.
    pub floor: Floor,
    /// All metrics of the (first) samples, against each half.
    pub against: Halves,
    /// The same model sampled with several seeds, against the half `split`; empty for one.
    pub seeds: Vec<Seed>,
    /// What the seed changes; none for one.
    pub spread: Option<Spread>,
    /// Whether samples copy training images; none where there are not two test images to compare with.
    pub memorisation: Option<Memorisation>,
    /// `sample.json` of the (first) samples as it is: sampler, steps, weights, seed.
    pub sample: Value,
    /// Content of the inputs.
    pub digests: Digests,
}

/// The bias floor: the distance of n of the reference's own images from all of them. FID falls with n, so samples that
/// are perfect still get about this much.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Floor {
    /// The distance, or null for `reason`.
    pub fid: Option<f64>,
    /// Number of real images taken.
    pub n: usize,
    /// Seed they were drawn with.
    pub seed: u64,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Metrics by half of the dataset.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Halves {
    /// Against training images.
    pub train: Option<Against>,
    /// Against test images.
    pub test: Option<Against>,
}

/// Samples against one half of the dataset.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Against {
    /// Number of real images.
    pub n_reference: usize,
    /// The numbers.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// Digest of the reference artifact.
    pub reference: String,
}

/// One of several samplings.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Seed {
    /// Of the noise that the samples started from.
    pub seed: u64,
    /// The numbers.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// Digest of the sample artifact.
    pub samples: String,
}

/// Each number over the seeds.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// Number of seeds.
    pub seeds: usize,
    /// Of FID.
    pub fid: Range,
    /// Of the mean of KID.
    pub kid: Range,
    /// Of precision.
    pub precision: Option<Range>,
    /// Of recall.
    pub recall: Option<Range>,
}

/// Several values of one number.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation, with one less than their number in the denominator.
    pub std: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

/// Digests of artifacts, and the hash of the network.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Digests {
    /// The (first) sample artifact.
    pub samples: String,
    /// The dataset.
    pub data: String,
    /// The reference artifact of the half `split`.
    pub reference: String,
    /// SHA-256 of the network.
    pub weights: String,
}

impl Halves {
    /// Each half there is, with its name.
    pub fn each(&self) -> impl Iterator<Item = (Split, &Against)> {
        [(Split::Train, &self.train), (Split::Test, &self.test)]
            .into_iter()
            .filter_map(|(split, half)| Some((split, half.as_ref()?)))
    }
}

impl Range {
    /// Of at least two values.
    fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Self { mean, std: (squares / (n - 1.0)).sqrt(), min: least, max: most }
    }
}

impl Spread {
    /// Over the seeds; none for one.
    pub fn of(seeds: &[Seed]) -> Option<Self> {
        let over = |value: fn(&Metrics) -> f64| Range::of(&seeds.iter().map(|s| value(&s.metrics)).collect::<Vec<_>>());
        let share = |value: fn(&Metrics) -> Option<f64>| {
            let values: Option<Vec<f64>> = seeds.iter().map(|seed| value(&seed.metrics)).collect();
            values.map(|values| Range::of(&values))
        };
        (seeds.len() > 1).then(|| Self {
            seeds: seeds.len(),
            fid: over(|m| m.fid),
            kid: over(|m| m.kid.mean),
            precision: share(|m| m.precision),
            recall: share(|m| m.recall),
        })
    }
}

/// What has to be said about numbers of `n` images against `n_reference`.
pub fn warnings(n: usize, n_reference: usize, kid: &Kid, asked: usize) -> Vec<String> {
    let small = || {
        let size = kid.subset_size;
        format!("KID on subsets of {size} images instead of {asked}: its mean is comparable, its spread is not")
    };
    rank_warning(n.min(n_reference)).into_iter().chain((kid.subset_size < asked).then(small)).collect()
}

/// What has to be said about images that are all the same to the network, as copies of one are.
pub fn alike(moments: &Moments, what: &str) -> Option<String> {
    moments.is_point().then(|| format!("all {what} have the same features: distances from them say little"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Metrics of too few images.
    pub fn metrics(fid: f64, precision: Option<f64>) -> Metrics {
        let kid = Kid { mean: fid / 100.0, std: 0.0, subsets: 1, subset_size: 2, seed: 0 };
        Metrics { fid, rank_deficient: true, kid, precision, recall: None, k: 3 }
    }

    /// One of several samplings.
    pub fn seed(fid: f64, precision: Option<f64>) -> Seed {
        Seed { seed: fid as u64, metrics: metrics(fid, precision), samples: String::new() }
    }

    #[test]
    fn the_spread_is_that_of_a_sample() {
        assert_eq!(Spread::of(&[seed(1.0, None)]), None);
        let spread = Spread::of(&[seed(1.0, Some(0.5)), seed(2.0, Some(0.5)), seed(3.0, Some(0.5))]).unwrap();
        assert_eq!(spread.fid, Range { mean: 2.0, std: 1.0, min: 1.0, max: 3.0 });
        assert_eq!((spread.seeds, spread.kid.mean, spread.precision.unwrap().std), (3, 0.02, 0.0));
        assert_eq!(spread.recall, None);
    }

    #[test]
    fn numbers_that_mislead_have_a_warning() {
        let small = metrics(1.0, None);
        let found = warnings(2048, 50_000, &small.kid, 1000);
        assert!(found[0].starts_with("2048 images give a rank-deficient covariance"), "{found:?}");
        assert!(found[1].starts_with("KID on subsets of 2 images instead of 1000"), "{found:?}");
        assert!(warnings(2049, 50_000, &small.kid, 2).is_empty());
    }
}
