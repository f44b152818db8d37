//! Where images come from: a dataset, a sample artifact, a folder, a `.npy` or a `.npz`.

use crate::{config::Split, folder, npz};
use lcf_store::{
    Artifact, Error, Result,
    artifact::MANIFEST,
    dataset::{self, Dataset},
    npy::Npy,
};
use serde_json::Value;
use std::{
    ops::Range,
    path::{Path, PathBuf},
};

/// Stage that makes sample artifacts.
pub const SAMPLE_STAGE: &str = "sample";
/// What a sample artifact says of them.
pub const SAMPLE_META: &str = "sample.json";
/// Samples of a sample artifact, uint8 `[N, H, W, C]`.
pub const SAMPLE_IMAGES: &str = "images.npy";

/// uint8 images of one size.
#[derive(Debug, PartialEq)]
pub struct Pixels {
    /// The bytes, image by image.
    pub data: Vec<u8>,
    /// N.
    pub count: usize,
    /// C: 3, or 1 for grey.
    pub channels: usize,
    /// H.
    pub height: usize,
    /// W.
    pub width: usize,
    /// Whether an image is stored channel by channel, `[C, H, W]`, rather than `[H, W, C]`.
    pub planes: bool,
}

/// A list of images that are read when asked for.
#[derive(Debug)]
pub struct Images {
    path: PathBuf,
    kind: &'static str,
    split: Option<Split>,
    /// Digest of the dataset that they are of, or that the model behind them was trained on.
    data: Option<String>,
    source: Source,
    chosen: Vec<usize>,
}

#[derive(Debug)]
enum Source {
    /// uint8 `[n, C, H, W]` in shards.
    Dataset { split: dataset::Split, shape: [usize; 3] },
    /// uint8 `[N, H, W, C]`, memory-mapped.
    Mapped { array: Npy<u8>, shape: [usize; 3] },
    /// uint8 `[N, H, W, C]`, unpacked.
    Memory { data: Vec<u8>, shape: [usize; 3] },
    /// One file an image, each of its own size.
    Files(Vec<PathBuf>),
}

impl Images {
    /// The images at `path`: an artifact of stage prepare or sample (or a link to one), a folder, a `.npy` or a `.npz`.
    /// `split` chooses the half of a dataset, by default the training images.
    ///
    /// # Errors
    /// [`Error::Bad`] with what was found there; [`Error::Usage`] for a `split` of something that has none.
    pub fn open(path: &Path, split: Option<Split>) -> Result<Self> {
        let images = if path.join(MANIFEST).exists() {
            Self::artifact(path, split.unwrap_or_default())?
        } else if path.is_dir() {
            let files = folder::list(path)?;
            Self::new(path, "folder", files.len(), Source::Files(files))
        } else {
            Self::array(path)?
        };
        match (split, images.split) {
            (Some(split), None) => Err(Error::usage(format!(
                "a {} split was asked for, but {} is a {}, not a dataset",
                split.name(),
                path.display(),
                images.kind
            ))),
            _ => Ok(images),
        }
    }

    fn new(path: &Path, kind: &'static str, count: usize, source: Source) -> Self {
        Self { path: path.to_owned(), kind, split: None, data: None, source, chosen: (0..count).collect() }
    }

    /// `data`, uint8 `[N, H, W, C]` of `shape` `[H, W, C]`.
    ///
    /// # Panics
    /// When `data` is no whole number of images.
    pub fn of(data: Vec<u8>, shape: [usize; 3]) -> Self {
        let size = shape.iter().product::<usize>();
        assert!(data.len().is_multiple_of(size), "{} bytes in images of {size}", data.len());
        Self::new(Path::new("memory"), "memory", data.len() / size, Source::Memory { data, shape })
    }

    fn artifact(path: &Path, split: Split) -> Result<Self> {
        let artifact = Artifact::open_any(path)?;
        let stage = artifact.manifest().stage.clone();
        match stage.as_str() {
            dataset::STAGE => Self::dataset(Dataset::of(artifact)?, split),
            SAMPLE_STAGE => Self::samples(&artifact),
            _ => {
                let message =
                    format!("found an artifact of stage {stage}, expected {} or {SAMPLE_STAGE}", dataset::STAGE);
                Err(Error::bad(path, message))
            }
        }
    }

    /// One split of a dataset.
    ///
    /// # Errors
    /// [`Error::Bad`] when its images are neither grey nor RGB.
    pub fn dataset(dataset: Dataset, split: Split) -> Result<Self> {
        let Dataset { artifact, meta, train, test } = dataset;
        let half = if split == Split::Train { train } else { test };
        check(artifact.dir(), &[half.count, meta.height, meta.width, meta.channels])?;
        let shape = [meta.channels, meta.height, meta.width];
        let images = Self::new(artifact.dir(), "dataset", half.count, Source::Dataset { split: half, shape });
        Ok(Self { split: Some(split), data: Some(artifact.digest().to_owned()), ..images })
    }

    /// The images of a sample artifact.
    ///
    /// # Errors
    /// [`Error::Bad`] when they are not uint8 `[N, H, W, C]`.
    pub fn samples(artifact: &Artifact) -> Result<Self> {
        let images = Self::array(&artifact.file(SAMPLE_IMAGES)?)?;
        let meta: Value = artifact.json(SAMPLE_META)?;
        let data = meta["data"].as_str().map(str::to_owned);
        Ok(Self { path: artifact.dir().to_owned(), kind: "sample artifact", data, ..images })
    }

    fn array(path: &Path) -> Result<Self> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("npy") => {
                let array = Npy::<u8>::open(path)?;
                let shape = check(path, array.shape())?;
                Ok(Self::new(path, "npy", array.len(), Source::Mapped { array, shape }))
            }
            Some("npz") => {
                let (data, shape) = npz::read(path)?;
                let image = check(path, &shape)?;
                Ok(Self::new(path, "npz", shape[0], Source::Memory { data, shape: image }))
            }
            _ if path.exists() => {
                Err(Error::bad(path, "found a file, expected an artifact, a folder of images, a .npy or a .npz"))
            }
            _ => Err(Error::bad(path, "nothing here, expected an artifact, a folder of images, a .npy or a .npz")),
        }
    }

    /// What it is: `dataset`, `sample artifact`, `folder`, `npy` or `npz`.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Digest of the dataset that they are of, or that the model behind them was trained on, where that is known.
    pub fn data(&self) -> Option<&str> {
        self.data.as_deref()
    }

    /// The half of a dataset.
    pub fn split(&self) -> Option<Split> {
        self.split
    }

    /// Number of images, N.
    pub fn len(&self) -> usize {
        self.chosen.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }

    /// `[C, H, W]` where all have one size by construction; `None` of a folder.
    pub fn shape(&self) -> Option<[usize; 3]> {
        match self.source {
            Source::Dataset { shape, .. } => Some(shape),
            Source::Mapped { shape: [h, w, c], .. } | Source::Memory { shape: [h, w, c], .. } => Some([c, h, w]),
            Source::Files(_) => None,
        }
    }

    /// `[C, H, W]` of the first image, as far as its file says.
    pub fn first_shape(&self) -> Option<[usize; 3]> {
        let Source::Files(files) = &self.source else { return self.shape() };
        let (width, height) = folder::dimensions(&files[*self.chosen.first()?])?;
        Some([3, height as usize, width as usize])
    }

    /// Place of image `i` among all that are there.
    pub fn place(&self, i: usize) -> usize {
        self.chosen[i]
    }

    /// Image `i` as an error names it: its file, or its place.
    pub fn name(&self, i: usize) -> String {
        match (&self.source, self.split) {
            (Source::Files(files), _) => files[self.chosen[i]].display().to_string(),
            (_, Some(split)) => format!("{}: {} image {}", self.path.display(), split.name(), self.chosen[i]),
            _ => format!("{}: image {}", self.path.display(), self.chosen[i]),
        }
    }

    /// Keeps the images of `indices` alone, in that order.
    pub fn select(&mut self, indices: &[usize]) {
        self.chosen = indices.iter().map(|&i| self.chosen[i]).collect();
    }

    /// Checks that there are enough for a covariance.
    ///
    /// # Errors
    /// [`Error::Bad`] when there is less than two.
    pub fn at_least_two(&self) -> Result<()> {
        match self.len() {
            n @ 0..2 => Err(Error::bad(&self.path, format!("found {n} image(s), expected at least 2"))),
            _ => Ok(()),
        }
    }

    /// The images of `range`, in order, as runs of equal size.
    ///
    /// # Errors
    /// [`Error::Bad`] naming an image that cannot be decoded.
    ///
    /// # Panics
    /// When `range` is out of range.
    pub fn read(&self, range: Range<usize>) -> Result<Vec<Pixels>> {
        let chosen = &self.chosen[range];
        let rows = |values: &[u8], &[height, width, channels]: &[usize; 3]| {
            let size = height * width * channels;
            let data: Vec<u8> = chosen.iter().flat_map(|&i| &values[i * size..(i + 1) * size]).copied().collect();
            vec![Pixels { data, count: chosen.len(), channels, height, width, planes: false }]
        };
        match &self.source {
            Source::Mapped { array, shape } => Ok(rows(array.values(), shape)),
            Source::Memory { data, shape } => Ok(rows(data, shape)),
            Source::Files(files) => folder::read(&chosen.iter().map(|&i| files[i].as_path()).collect::<Vec<_>>()),
            Source::Dataset { split, shape: [channels, height, width] } => {
                let (channels, height, width) = (*channels, *height, *width);
                let size = channels * height * width;
                let mut data = vec![0; chosen.len() * size];
                data.chunks_exact_mut(size).zip(chosen).for_each(|(out, &i)| split.copy(i, 1, out));
                Ok(vec![Pixels { data, count: chosen.len(), channels, height, width, planes: true }])
            }
        }
    }
}

/// The `[H, W, C]` of an array `[N, H, W, C]` of grey or RGB images.
fn check(path: &Path, shape: &[usize]) -> Result<[usize; 3]> {
    match *shape {
        [_, height, width, channels @ (1 | 3)] if height > 0 && width > 0 => Ok([height, width, channels]),
        _ => Err(Error::bad(path, format!("found uint8 of shape {shape:?}, expected [N, H, W, 3]"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcf_store::npy;

    fn npy_of(shape: &[usize]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        let values: Vec<u8> = (0..shape.iter().product::<usize>()).map(|i| i as u8).collect();
        npy::write(&path, shape, &values).unwrap();
        (dir, path)
    }

    #[test]
    fn arrays_are_read_by_index() {
        let (_dir, path) = npy_of(&[4, 1, 2, 3]);
        let mut images = Images::open(&path, None).unwrap();
        images.select(&[3, 1, 0]);
        let pixels = images.read(1..3).unwrap();
        let data = vec![6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5];
        assert_eq!(pixels, [Pixels { data, count: 2, channels: 3, height: 1, width: 2, planes: false }]);
        assert_eq!((images.len(), images.kind()), (3, "npy"));
    }

    #[test]
    fn what_holds_no_images_is_refused() {
        let message = |path: &Path, split| Images::open(path, split).unwrap_err().to_string();
        let (dir, path) = npy_of(&[4, 3, 2, 2]);
        assert!(message(&path, None).contains("found uint8 of shape [4, 3, 2, 2], expected [N, H, W, 3]"));
        assert!(message(&dir.path().join("missing"), None).contains("nothing here, expected an artifact"));
        std::fs::write(dir.path().join("x.txt"), "x").unwrap();
        assert!(message(&dir.path().join("x.txt"), None).contains("found a file, expected"));
        let (_dir, path) = npy_of(&[1, 2, 2, 3]);
        assert!(message(&path, Some(Split::Test)).contains("a test split was asked for"));
        let one = Images::open(&path, None).unwrap();
        assert!(one.at_least_two().unwrap_err().to_string().ends_with("found 1 image(s), expected at least 2"));
    }
}
