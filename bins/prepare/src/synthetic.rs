//! Images drawn from a seed: ten classes that overlap, so that a linear probe tells them apart only partly.
//!
//! A class is a hue, a direction of stripes and their width. Hues of neighbouring classes overlap and can be read off
//! the pixels linearly; stripes have a random phase, so they can not, but features can learn them. Position, size,
//! contrast, background and noise are drawn at random. Only additions, multiplications, divisions and square roots
//! are used, which IEEE 754 defines to the bit, so every machine draws the same images.

use crate::{
    config::Synthetic,
    random::{Purpose, Stream},
    source::{Pixels, Source, Split},
};
use std::path::PathBuf;

/// Number of classes.
pub const CLASSES: usize = 10;
/// How far hues stray from that of their class, in units of the distance between neighbouring classes.
const HUE_SPREAD: f32 = 0.65;
/// How far directions stray, in half turns.
const TURN_SPREAD: f32 = 0.12;
/// Standard deviation of the pixel noise, of values in `[-1, 1]`.
const NOISE: f32 = 0.12;

/// The dataset that `config` describes. Labels go round: image i has label i mod 10.
pub fn source(config: &Synthetic, seed: u64) -> Source {
    let split = |count: usize, purpose: Purpose| {
        let side = config.side;
        let pixels: Pixels = Box::new(move |index, out| {
            draw(index % CLASSES, Stream::new(seed, purpose, index as u64), side, out);
            Ok(())
        });
        Split { labels: (0..count).map(|index| (index % CLASSES) as i64).collect(), pixels }
    };
    Source {
        path: PathBuf::from("synthetic"),
        classes: (0..CLASSES).map(|class| format!("class-{class}")).collect(),
        shape: [3, config.side, config.side],
        train: split(config.train, Purpose::TrainPixels),
        test: split(config.test, Purpose::TestPixels),
    }
}

/// What is drawn at random for one image, before its pixels.
struct Scene {
    background: [f32; 3],
    tint: [f32; 3],
    centre: [f32; 2],
    radius: f32,
    normal: [f32; 2],
    frequency: f32,
    phase: f32,
    contrast: f32,
}

/// Draws of the scene; those of the pixels come after them.
const SCENE_DRAWS: u64 = 16;

impl Scene {
    fn new(class: usize, random: Stream) -> Self {
        let hue = (class as f32 + HUE_SPREAD * (random.signed(0) + random.signed(1))) / CLASSES as f32;
        // Neighbours in hue are two fifths of a half turn apart, and every other class has narrow stripes.
        let turn = (2 * class % 5) as f32 / 5.0 + TURN_SPREAD * (random.signed(2) + random.signed(3));
        let narrow = if class.is_multiple_of(2) { 1.0 } else { 1.8 };
        let saturation = 0.3 + 0.4 * random.unit(4);
        let grey = 0.3 * random.signed(5);
        Self {
            background: [6, 7, 8].map(|n| grey + 0.08 * random.signed(n)),
            tint: [0.0, 1.0, 2.0].map(|third| saturation * triangle(hue - third / 3.0)),
            centre: [9, 10].map(|n| 0.2 * random.signed(n)),
            radius: 0.35 + 0.2 * random.unit(11),
            normal: direction(turn),
            frequency: 2.2 * narrow * (1.0 + 0.15 * random.signed(12)),
            phase: random.unit(13),
            contrast: 0.2 + 0.25 * random.unit(14),
        }
    }

    /// Colour at a point of the square `[-0.5, 0.5]^2`, in `[-1, 1]` mostly.
    fn colour(&self, at: [f32; 2]) -> [f32; 3] {
        let [x, y] = [at[0] - self.centre[0], at[1] - self.centre[1]];
        // A bump of finite width: 1 in the centre, 0 from the radius on, smooth between.
        let bump = (1.0 - (x * x + y * y) / (self.radius * self.radius)).max(0.0);
        let along = x * self.normal[0] + y * self.normal[1];
        let stripe = self.contrast * triangle(along * self.frequency + self.phase);
        [0, 1, 2].map(|c| self.background[c] + bump * (self.tint[c] + stripe))
    }
}

/// A wave of period 1 from 1 at 0 to -1 at 1/2 and back: the cosine's shape without the cosine.
fn triangle(x: f32) -> f32 {
    4.0 * (x - x.floor() - 0.5).abs() - 1.0
}

/// The unit vector at `turn` half turns, nearly evenly spaced.
fn direction(turn: f32) -> [f32; 2] {
    let turn = turn - turn.floor();
    let (x, y) = (1.0 - 2.0 * turn, 1.0 - (1.0 - 2.0 * turn).abs());
    let length = (x * x + y * y).sqrt();
    [x / length, y / length]
}

fn draw(class: usize, random: Stream, side: usize, out: &mut [u8]) {
    let scene = Scene::new(class, random);
    let plane = side * side;
    let at = |i: usize| (i as f32 + 0.5) / side as f32 - 0.5;
    for pixel in 0..plane {
        let colour = scene.colour([at(pixel % side), at(pixel / side)]);
        for (channel, value) in colour.into_iter().enumerate() {
            let place = channel * plane + pixel;
            let noisy = value + NOISE * random.normal(SCENE_DRAWS + place as u64);
            out[place] = ((noisy + 1.0) * 127.5 + 0.5).clamp(0.0, 255.0) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Synthetic = Synthetic { side: 16, train: 3000, test: 1000 };
    /// Planes are averaged to 8x8 before they are classified.
    const FEATURES: usize = 3 * 8 * 8 + 1;

    fn images(split: &Split) -> Vec<Vec<u8>> {
        let image = |index| {
            let mut out = vec![0; 3 * SMALL.side * SMALL.side];
            (split.pixels)(index, &mut out).unwrap();
            out
        };
        (0..split.labels.len()).map(image).collect()
    }

    /// 2x2 averages in [-1, 1] and a constant.
    fn features(image: &[u8]) -> Vec<f64> {
        let average = |c: usize, y: usize, x: usize| {
            let at = |dy, dx| f64::from(image[c * 256 + (2 * y + dy) * 16 + 2 * x + dx]);
            (at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1)) / 510.0 - 1.0
        };
        let mut all: Vec<f64> = (0..192).map(|i| average(i / 64, i / 8 % 8, i % 8)).collect();
        all.push(1.0);
        all
    }

    /// Ridge regression to one-hot targets: weights `[FEATURES][CLASSES]`, by Gaussian elimination without pivoting,
    /// which is safe for a positive definite matrix.
    fn fit(inputs: &[Vec<f64>], labels: &[i64]) -> Vec<Vec<f64>> {
        let mut rows = vec![vec![0.0; FEATURES + CLASSES]; FEATURES];
        for (x, &label) in inputs.iter().zip(labels) {
            for i in 0..FEATURES {
                for j in 0..FEATURES {
                    rows[i][j] += x[i] * x[j];
                }
                rows[i][FEATURES + label as usize] += x[i];
            }
        }
        for pivot in 0..FEATURES {
            rows[pivot][pivot] += 1.0;
            let scale = 1.0 / rows[pivot][pivot];
            rows[pivot].iter_mut().for_each(|value| *value *= scale);
            let pivot_row = rows[pivot].clone();
            for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != pivot) {
                let factor = row[pivot];
                row.iter_mut().zip(&pivot_row).for_each(|(value, p)| *value -= factor * p);
            }
        }
        rows.into_iter().map(|row| row[FEATURES..].to_vec()).collect()
    }

    fn accuracy(weights: &[Vec<f64>], inputs: &[Vec<f64>], labels: &[i64]) -> f64 {
        let predict = |x: &Vec<f64>| {
            let score = |class: usize| x.iter().zip(weights).map(|(x, w)| x * w[class]).sum::<f64>();
            (0..CLASSES).max_by(|&a, &b| score(a).total_cmp(&score(b))).unwrap() as i64
        };
        let right = inputs.iter().zip(labels).filter(|(x, label)| predict(x) == **label).count();
        right as f64 / labels.len() as f64
    }

    #[test]
    fn a_linear_classifier_tells_classes_apart_only_partly() {
        let source = source(&SMALL, 0);
        let train: Vec<_> = images(&source.train).iter().map(|image| features(image)).collect();
        let test: Vec<_> = images(&source.test).iter().map(|image| features(image)).collect();
        let weights = fit(&train, &source.train.labels);
        let found = accuracy(&weights, &test, &source.test.labels);
        println!("accuracy of a linear classifier on pixels: {found}");
        assert!((0.35..0.75).contains(&found), "{found}");
    }

    #[test]
    fn seeds_splits_and_images_differ_and_repeat() {
        let (one, two) = (source(&SMALL, 0), source(&SMALL, 1));
        let pixels = |split: &Split, index| {
            let mut out = vec![0; 768];
            (split.pixels)(index, &mut out).unwrap();
            out
        };
        assert_eq!(pixels(&one.train, 3), pixels(&source(&SMALL, 0).train, 3));
        assert_ne!(pixels(&one.train, 3), pixels(&two.train, 3));
        assert_ne!(pixels(&one.train, 3), pixels(&one.test, 3));
        assert_ne!(pixels(&one.train, 3), pixels(&one.train, 13));
    }

    /// Bytes of one image, so that a change of the drawing cannot pass unnoticed: bump the stage's version with it.
    #[test]
    fn the_drawing_is_pinned() {
        let mut out = vec![0; 3 * 8 * 8];
        (source(&Synthetic { side: 8, ..SMALL }, 0).train.pixels)(7, &mut out).unwrap();
        assert_eq!(
            lcf_store::digest::of_bytes(&out),
            "3d81c4035b23ca7eb215d3c3722e0bf0ef4db0235333a8658cca655ab7f12b50"
        );
    }
}
