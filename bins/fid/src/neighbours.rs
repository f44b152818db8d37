//! The training images nearest to samples and to test images: distances for every image, a drawing and a picture.

use crate::{
    chart,
    distances::{self, Nearest},
    images::Images,
    memorisation::{Distances, authenticity},
    metrics::{Set, Settings},
    picture::{self, Column},
};
use anyhow::Result;
use lcf_store::{Error, stage::Work};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt::Write, fs};

/// Neighbours of a sample that are shown.
pub const SHOWN: usize = 5;
/// Samples shown: so many nearest to a training image, and as many of the first ones.
const ROWS: usize = 8;
/// All distances.
pub const TABLE: &str = "neighbours.csv";
/// Samples beside their neighbours.
pub const PICTURE: &str = "neighbours.png";
/// Histograms.
pub const DRAWING: &str = "distances.svg";

/// What `fid.json` says about copies of training images.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Memorisation {
    /// Distances of Inception features, to the training images of the reference.
    pub features: Distances,
    /// Root mean square differences of grey levels, 0 to 255, to all training images; none where images differ in size.
    pub pixels: Option<Distances>,
    /// Share of samples farther from their nearest training image than that one is from the next, by features.
    pub authenticity: f64,
    /// The same of test images: what images that copy nothing get.
    pub authenticity_test: f64,
    /// Samples of the rows of the picture, from above: the nearest to a training image, then the first ones.
    pub shown: Vec<usize>,
}

/// The images around a training set.
#[derive(Debug)]
pub struct Around<'a> {
    /// Generated.
    pub samples: &'a Images,
    /// Held out.
    pub test: &'a Images,
    /// The training images whose features are known.
    pub reference: &'a Images,
    /// All training images.
    pub train: &'a Images,
}

/// Nearest training images of both, in one space.
struct Space {
    samples: Nearest,
    test: Nearest,
    n_train: usize,
}

impl Space {
    fn distances(&self) -> Distances {
        Distances::of(&self.samples.distances_at(0), &self.test.distances_at(0), self.n_train)
    }
}

/// Looks through the training images and writes the table, the drawing and the picture. `nearest` holds the places in
/// the reference of the samples' neighbours by features.
///
/// # Errors
/// Images that cannot be read, files that cannot be written, a failed computation.
pub fn look(
    around: &Around,
    (nearest, train, test): (Nearest, &Set, &Set),
    settings: &Settings,
    work: &Work,
) -> Result<Memorisation> {
    let to_train = "test images: nearest by features";
    let of_test = distances::nearest(&test.features, &train.features, 1, settings.device, to_train)?;
    let features = Space { samples: nearest, test: of_test, n_train: train.n() };
    let same_size = around.samples.shape() == around.train.shape();
    let pixels = same_size.then(|| pixel_space(around, settings)).transpose()?;
    let shown = shown(&features.samples);
    write(work, TABLE, table(around, &features, pixels.as_ref()).as_bytes())?;
    let by_features = features.distances();
    let by_pixels = pixels.as_ref().map(Space::distances);
    let mut panels = vec![("Inception features", &by_features)];
    panels.extend(by_pixels.as_ref().map(|distances| ("Pixels (root mean square, 0 to 255)", distances)));
    write(work, DRAWING, chart::svg(&panels).as_bytes())?;
    let path = work.path(PICTURE);
    let sheet = draw(around, &shown, &features, pixels.as_ref())?;
    sheet.save(&path).map_err(|error| Error::bad(&path, format!("cannot be written: {error}")))?;
    Ok(Memorisation {
        authenticity: authenticity(&features.samples, &train.own),
        authenticity_test: authenticity(&features.test, &train.own),
        features: by_features,
        pixels: by_pixels,
        shown,
    })
}

fn write(work: &Work, name: &str, content: &[u8]) -> Result<()> {
    let path = work.path(name);
    Ok(fs::write(&path, content).map_err(Error::io(&path, "write"))?)
}

fn pixel_space(around: &Around, settings: &Settings) -> Result<Space> {
    let Around { samples, test, train, .. } = around;
    let root = (train.shape().map_or(1, |shape| shape.iter().product::<usize>()) as f64).sqrt();
    let nearest = |images: &Images, k, what: &str| {
        let mut found = distances::nearest(images, *train, k, settings.device, &format!("{what}: nearest by pixels"))?;
        found.distances.iter_mut().for_each(|distance| *distance /= root);
        anyhow::Ok(found)
    };
    Ok(Space {
        samples: nearest(samples, SHOWN, "samples")?,
        test: nearest(test, 1, "test images")?,
        n_train: train.len(),
    })
}

/// Of the queries of `nearest`, those nearest to their neighbour, and after them the first ones.
pub fn shown(nearest: &Nearest) -> Vec<usize> {
    let distances = nearest.distances_at(0);
    let mut order: Vec<usize> = (0..distances.len()).collect();
    order.sort_by(|&a, &b| distances[a].total_cmp(&distances[b]));
    order.truncate(ROWS);
    let near: BTreeSet<usize> = order.iter().copied().collect();
    order.extend((0..distances.len()).filter(|i| !near.contains(i)).take(ROWS));
    order
}

fn draw(around: &Around, shown: &[usize], features: &Space, pixels: Option<&Space>) -> Result<image::RgbImage> {
    let of = |space: &Space| {
        let k = space.samples.k;
        shown.iter().map(|&i| space.samples.indices[i * k..][..k.min(SHOWN)].to_vec()).collect()
    };
    let mut columns = vec![Column { images: around.reference, rows: of(features) }];
    columns.extend(pixels.map(|space| Column { images: around.train, rows: of(space) }));
    picture::sheet(around.samples, shown, &columns)
}

/// One line a sample and a test image: where its nearest training image lies in the training half, and how far.
fn table(around: &Around, features: &Space, pixels: Option<&Space>) -> String {
    let mut text = "set,index,feature_train,feature_distance,pixel_train,pixel_rms\n".to_owned();
    let sets = [
        ("sample", around.samples, &features.samples, pixels.map(|space| &space.samples)),
        ("test", around.test, &features.test, pixels.map(|space| &space.test)),
    ];
    for (name, images, by_features, by_pixels) in sets {
        for i in 0..images.len() {
            let (place, at) = (around.reference.place(by_features.indices[i * by_features.k]), images.place(i));
            let distance = by_features.distances[i * by_features.k];
            write!(text, "{name},{at},{place},{distance:.6},").expect("a string takes everything");
            if let Some(nearest) = by_pixels {
                let (place, rms) = (nearest.indices[i * nearest.k], nearest.distances[i * nearest.k]);
                write!(text, "{place},{rms:.6}").expect("a string takes everything");
            } else {
                text.push(',');
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_are_shown_and_then_the_first() {
        let distances: Vec<f64> = (0..30).map(|i| f64::from(i * 7 % 30)).collect();
        let nearest = Nearest { k: 1, distances, indices: vec![0; 30] };
        let shown = shown(&nearest);
        // i * 7 = 0, 1, 2, ... modulo 30 at multiples of 13.
        assert_eq!(shown[..ROWS], [0, 13, 26, 9, 22, 5, 18, 1]);
        assert_eq!(shown[ROWS..], [2, 3, 4, 6, 7, 8, 10, 11]);
    }
}
