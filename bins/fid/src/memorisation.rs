//! Whether samples copy training images: their distances to the nearest one, beside those of images that the model has
//! never seen.

use crate::distances::Nearest;
use serde::{Deserialize, Serialize};

/// Bins of a histogram.
const BINS: usize = 50;
/// Test images nearer to a training image than this share of them are what "near" is measured by.
const NEAR: f64 = 0.01;

/// Distances to the nearest training image.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Quantiles {
    /// The smallest.
    pub min: f64,
    /// One per cent are below.
    pub p01: f64,
    /// Half are below.
    pub median: f64,
    /// 99 per cent are below.
    pub p99: f64,
}

impl Quantiles {
    /// Of at least one number.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            min: sorted[0],
            p01: quantile(&sorted, NEAR),
            median: quantile(&sorted, 0.5),
            p99: quantile(&sorted, 0.99),
        }
    }
}

/// As NumPy's default: linear between the two numbers it falls between.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// Distances of samples and of other images to the nearest training image.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Distances {
    /// Training images looked through.
    pub n_train: usize,
    /// Of the samples.
    pub samples: Quantiles,
    /// Of the test images.
    pub test: Quantiles,
    /// Share of samples nearer than all but the nearest 1 % of test images. Samples that copy no more than chance would
    /// give 0.01; all copies give 1.
    pub near: f64,
    /// Both sets counted over the same bins.
    pub histogram: Histogram,
}

/// Counts of distances.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Histogram {
    /// Bin i is from edge i to edge i + 1.
    pub edges: Vec<f64>,
    /// Samples in each.
    pub samples: Vec<u64>,
    /// Test images in each.
    pub test: Vec<u64>,
}

impl Distances {
    /// Of the distances of each sample and of each test image to the nearest of `n_train` training images.
    pub fn of(samples: &[f64], test: &[f64], n_train: usize) -> Self {
        let of_test = Quantiles::of(test);
        let near = samples.iter().filter(|&&distance| distance < of_test.p01).count();
        Self {
            n_train,
            samples: Quantiles::of(samples),
            test: of_test,
            near: near as f64 / samples.len() as f64,
            histogram: Histogram::of(samples, test),
        }
    }
}

impl Histogram {
    fn of(samples: &[f64], test: &[f64]) -> Self {
        let most = samples.iter().chain(test).copied().fold(0.0, f64::max);
        // Something to divide by where every image is in the training set.
        let width = if most > 0.0 { most / BINS as f64 } else { 1.0 };
        let count = |values: &[f64]| {
            let mut counts = vec![0; BINS];
            values.iter().for_each(|value| counts[((value / width) as usize).min(BINS - 1)] += 1);
            counts
        };
        let edges = (0..=BINS).map(|i| i as f64 * width).collect();
        Self { edges, samples: count(samples), test: count(test) }
    }
}

/// Share of points farther from their nearest training image than that one is from the rest of its kind (Alaa et al.
/// 2022, "How faithful is your synthetic data?", Section 4.3; `authpct` of dgm-eval, as a fraction). `own` holds each
/// training image itself and at least one other.
pub fn authenticity(to_train: &Nearest, own: &Nearest) -> f64 {
    let (distance, place, others) = (to_train.distances_at(0), to_train.first(), own.distances_at(1));
    let authentic = distance.iter().zip(place).filter(|&(&distance, place)| others[place] < distance).count();
    authentic as f64 / distance.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{distances::nearest, points::Features};
    use tch::Device;

    #[test]
    fn quantiles_are_numpys() {
        // numpy.quantile([0, 1, 2, 3, 10], [0.01, 0.5, 0.99])
        let found = Quantiles::of(&[3.0, 1.0, 10.0, 0.0, 2.0]);
        assert_eq!((found.min, found.median), (0.0, 2.0));
        assert!((found.p01 - 0.04).abs() < 1e-12 && (found.p99 - 9.72).abs() < 1e-12, "{found:?}");
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
    }

    #[test]
    fn copies_are_near_and_chance_is_one_in_a_hundred() {
        let test: Vec<f64> = (0..1001).map(f64::from).collect();
        assert!((Distances::of(&test, &test, 9).near - 0.01).abs() < 1e-3);
        let copies = Distances::of(&[0.0, 0.0, 500.0, 700.0], &test, 9);
        assert_eq!((copies.near, copies.samples.median), (0.5, 250.0));
        assert_eq!(copies.histogram.samples.iter().sum::<u64>(), 4);
        assert_eq!((copies.histogram.test.iter().sum::<u64>(), copies.histogram.edges[BINS]), (1001, 1000.0));
        assert_eq!(copies.histogram.samples[0], 2);
        let same = Histogram::of(&[0.0], &[0.0]);
        assert_eq!((same.samples[0], same.edges[0]), (1, 0.0));
    }

    /// On a line: training images at 0, 1, 10. The nearest other of them is at 1, 1 and 9.
    #[test]
    fn authenticity_by_hand() {
        let of = |values| Features { values, dim: 1 };
        let (train, samples) = ([0.0f32, 1.0, 10.0], [0.5f32, -2.0, 12.0, 25.0]);
        let own = nearest(&of(&train), &of(&train), 4, Device::Cpu, "test").unwrap();
        let to_train = nearest(&of(&samples), &of(&train), 1, Device::Cpu, "test").unwrap();
        // 0.5 < 1: no; 2 > 1: yes; 2 < 9: no; 15 > 9: yes.
        assert_eq!(authenticity(&to_train, &own), 0.5);
    }
}
