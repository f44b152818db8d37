//! The dataset artifact: images as memory-mapped uint8 shards `[n, C, H, W]`, labels, class names and statistics.
//! `lcf-prepare` writes it, every later stage reads it.

use crate::{Artifact, Error, Result, npy::Npy};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Name of the file that describes the rest.
pub const META: &str = "dataset.json";
/// The stage that makes datasets.
pub const STAGE: &str = "prepare";

/// `dataset.json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// What it is: `cifar10`, `tiny-imagenet`, ...
    pub name: String,
    /// C.
    pub channels: usize,
    /// H.
    pub height: usize,
    /// W.
    pub width: usize,
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    /// Mean of each channel over the training images, of values in `[-1, 1]`.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, likewise.
    pub std: Vec<f64>,
    /// Training images.
    pub train: SplitMeta,
    /// Held-out images.
    pub test: SplitMeta,
}

/// Files of one split.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SplitMeta {
    /// Number of images.
    pub count: usize,
    /// uint8 `[n, C, H, W]` each, in order.
    pub shards: Vec<String>,
    /// int64 `[count]`.
    pub labels: String,
}

/// An opened dataset.
#[derive(Debug)]
pub struct Dataset {
    /// Where it lies.
    pub artifact: Artifact,
    /// What it is.
    pub meta: Meta,
    /// Training images.
    pub train: Split,
    /// Held-out images.
    pub test: Split,
}

/// One split of a dataset, memory-mapped.
#[derive(Debug)]
pub struct Split {
    /// Number of images, N.
    pub count: usize,
    /// uint8 `[n, C, H, W]` each.
    pub shards: Vec<Npy<u8>>,
    labels: Npy<i64>,
}

impl Dataset {
    /// Opens and verifies the artifact at `path`.
    ///
    /// # Errors
    /// [`Error::Bad`] naming the file that does not fit the rest.
    pub fn open(path: &Path) -> Result<Self> {
        Self::of(Artifact::open(path, STAGE)?)
    }

    /// The dataset in an artifact that is open already.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn of(artifact: Artifact) -> Result<Self> {
        let meta: Meta = artifact.json(META)?;
        let open = |split| Split::open(&artifact, &meta, split).map_err(|error| artifact.suspect(error));
        let (train, test) = (open(&meta.train)?, open(&meta.test)?);
        Ok(Self { artifact, meta, train, test })
    }
}

impl Split {
    fn open(artifact: &Artifact, meta: &Meta, split: &SplitMeta) -> Result<Self> {
        let image = [meta.channels, meta.height, meta.width];
        let mut shards = Vec::new();
        for name in &split.shards {
            let shard = Npy::<u8>::open(&artifact.file(name)?)?;
            if shard.shape().get(1..) != Some(&image[..]) {
                let found = shard.shape();
                return Err(Error::bad(
                    shard.path(),
                    format!("found shape {found:?}, expected [n, C, H, W] {image:?}"),
                ));
            }
            shards.push(shard);
        }
        let labels = Npy::<i64>::open(&artifact.file(&split.labels)?)?;
        let images = shards.iter().try_fold(0usize, |sum, shard| sum.checked_add(shard.len())).unwrap_or(usize::MAX);
        if split.count == 0 || image.contains(&0) {
            return Err(Error::bad(labels.path(), format!("found {images} images of {image:?}, expected some")));
        }
        if images != split.count || labels.shape() != [split.count] {
            let found = labels.len();
            let message = format!("found {images} images and {found} labels, expected {} of each", split.count);
            return Err(Error::bad(labels.path(), message));
        }
        if let Some(bad) = labels.values().iter().find(|&&label| !(0..meta.classes.len() as i64).contains(&label)) {
            return Err(Error::bad(labels.path(), format!("label {bad}, expected 0..{}", meta.classes.len())));
        }
        Ok(Self { count: split.count, shards, labels })
    }

    /// Class indices, `[N]`.
    pub fn labels(&self) -> &[i64] {
        self.labels.values()
    }

    /// Copies images `start..start + n` to `out`, uint8 `[n, C, H, W]`.
    ///
    /// # Panics
    /// When they are out of range or `out` has another size.
    pub fn copy(&self, start: usize, n: usize, out: &mut [u8]) {
        let mut first = 0;
        let mut filled = 0;
        for shard in &self.shards {
            let from = start.max(first);
            let to = (start + n).min(first + shard.len());
            if from < to {
                let rows = shard.rows(from - first, to - from);
                out[filled..filled + rows.len()].copy_from_slice(rows);
                filled += rows.len();
            }
            first += shard.len();
        }
        assert_eq!(filled, out.len(), "images {start}..{} are out of range", start + n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::StageArgs,
        npy,
        stage::{Begin, Plan, Work},
    };
    use std::fs;

    fn meta() -> Meta {
        let split = |name: &str, shards: &[&str], count| SplitMeta {
            count,
            shards: shards.iter().map(|&s| s.to_owned()).collect(),
            labels: format!("{name}-labels.npy"),
        };
        Meta {
            name: "demo".into(),
            channels: 1,
            height: 1,
            width: 2,
            classes: vec!["a".into(), "b".into()],
            mean: vec![0.0],
            std: vec![1.0],
            train: split("train", &["train-0.npy", "train-1.npy"], 3),
            test: split("test", &["test-0.npy"], 1),
        }
    }

    fn write(work: &Work, meta: &Meta, labels: &[i64]) {
        npy::write(&work.path("train-0.npy"), &[2, 1, 1, 2], &[0u8, 1, 2, 3]).unwrap();
        npy::write(&work.path("train-1.npy"), &[1, 1, 1, 2], &[4u8, 5]).unwrap();
        npy::write(&work.path("test-0.npy"), &[1, 1, 1, 2], &[6u8, 7]).unwrap();
        npy::write(&work.path("train-labels.npy"), &[labels.len()], labels).unwrap();
        npy::write(&work.path("test-labels.npy"), &[1], &[1i64]).unwrap();
        fs::write(work.path(META), serde_json::to_vec(meta).unwrap()).unwrap();
    }

    fn open(meta: &Meta, labels: &[i64]) -> Result<Dataset> {
        let dir = tempfile::tempdir().unwrap();
        let args = StageArgs { store: dir.path().to_owned(), ..StageArgs::default() };
        let Begin::Build(work) = Plan::new(STAGE, 1, &()).begin(&args).unwrap() else { panic!() };
        write(&work, meta, labels);
        Dataset::of(work.publish().unwrap())
    }

    #[test]
    fn copies_across_shards() {
        let dataset = open(&meta(), &[0, 1, 0]).unwrap();
        let mut out = [0; 4];
        dataset.train.copy(1, 2, &mut out);
        assert_eq!(out, [2, 3, 4, 5]);
        assert_eq!(dataset.train.labels(), [0, 1, 0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let message = |meta: &Meta, labels: &[i64]| open(meta, labels).unwrap_err().to_string();
        assert!(message(&meta(), &[0, 1]).contains("3 images and 2 labels, expected 3"));
        assert!(message(&meta(), &[0, 2, 0]).contains("label 2, expected 0..2"));
        let none = Meta { train: SplitMeta { count: 0, shards: Vec::new(), ..meta().train }, ..meta() };
        assert!(message(&none, &[]).contains("found 0 images of [1, 1, 2], expected some"));
        let wide = Meta { width: 3, ..meta() };
        assert!(message(&wide, &[0, 1, 0]).contains("found shape [2, 1, 1, 2]"));
    }
}
