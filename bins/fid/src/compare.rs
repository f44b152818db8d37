//! `lcf-fid compare`: the distance between any two sets of images.

use crate::{
    config::{Resize, Split},
    frechet,
    images::Images,
    inception::{ComputeArgs, DIM},
    rank_warning,
    stats::Moments,
    subset::{self, Purpose},
};
use anyhow::Result;
use clap::Args;
use lcf_store::{Error, stage::sync_dir};
use safetensors::{Dtype, tensor::TensorView};
use serde::Serialize;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Seed of `--num`.
const SEED: u64 = 0;

/// Flags of `compare`.
#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    /// Real images: an artifact of prepare or sample, a folder of images, or a .npy or .npz of uint8 [N,H,W,3]
    #[arg(long, value_name = "PATH")]
    pub real: PathBuf,
    /// Generated images, likewise
    #[arg(long, value_name = "PATH")]
    pub fake: PathBuf,
    /// Half of --real, where that is a dataset [default: train]
    #[arg(long, value_name = "SPLIT")]
    pub real_split: Option<Split>,
    /// Half of --fake, where that is a dataset [default: train]
    #[arg(long, value_name = "SPLIT")]
    pub fake_split: Option<Split>,
    /// Take only N images of each, drawn without replacement with a fixed seed: a list sorted by class has no fair head.
    /// Sets of equal size lose the same positions
    #[arg(long, value_name = "N")]
    pub num: Option<usize>,
    /// Scaling to 299x299
    #[arg(long, default_value = "tf1")]
    pub resize: Resize,
    /// Write both matrices of features, "real" and "fake", to this safetensors file
    #[arg(long, value_name = "FILE")]
    pub features_out: Option<PathBuf>,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Where and how to compute
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// The result of `compare`.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The distance.
    pub fid: f64,
    /// One set.
    pub real: Side,
    /// The other.
    pub fake: Side,
    /// Scaling to 299x299.
    pub resize: Resize,
    /// Whether either side has too few images for a covariance of full rank.
    pub rank_deficient: bool,
}

/// What was compared.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// Where it lies.
    pub path: PathBuf,
    /// What it is: dataset, sample artifact, folder, npy or npz.
    pub kind: &'static str,
    /// The half of a dataset.
    pub split: Option<Split>,
    /// Number of images.
    pub n: usize,
}

/// Computes the distance.
///
/// # Errors
/// Sets of images that are not there, unreadable or too small; a failed computation.
pub fn run(args: &CompareArgs) -> Result<Comparison> {
    let real = open(&args.real, args.real_split, args.num)?;
    let fake = open(&args.fake, args.fake_split, args.num)?;
    if let Some(path) = &args.features_out {
        check_parent(path)?;
    }
    let network = args.compute.open(args.resize)?;
    let of_real = network.features(&real, "real")?;
    let of_fake = network.features(&fake, "fake")?;
    if let Some(path) = &args.features_out {
        save(path, &of_real, &of_fake)?;
    }
    let moments = |features: &[f32]| Moments::of(features, DIM, network.device());
    Ok(Comparison {
        fid: frechet::distance(&moments(&of_real)?, &moments(&of_fake)?)?,
        rank_deficient: rank_warning(real.len().min(fake.len())).is_some(),
        real: Side::of(&args.real, &real),
        fake: Side::of(&args.fake, &fake),
        resize: args.resize,
    })
}

fn open(path: &Path, split: Option<Split>, num: Option<usize>) -> Result<Images> {
    let mut images = Images::open(path, split)?;
    if let Some(num) = num {
        if num > images.len() {
            let message = format!("found {} images, expected at least the {num} of --num", images.len());
            return Err(Error::bad(path, message).into());
        }
        images.select(&subset::uniform(images.len(), num, SEED, Purpose::Compare));
    }
    images.at_least_two()?;
    Ok(images)
}

impl Side {
    fn of(path: &Path, images: &Images) -> Self {
        Self { path: path.to_owned(), kind: images.kind(), split: images.split(), n: images.len() }
    }

    fn text(&self) -> String {
        let split = self.split.map_or(String::new(), |split| format!(" {}", split.name()));
        format!("{}{split} {}", self.path.display(), self.n)
    }
}

/// The result as people read it.
pub fn text(result: &Comparison) -> String {
    let Comparison { fid, real, fake, resize, .. } = result;
    let mut text = format!("FID {fid:.4}  ({} vs {}, resize {})\n", fake.text(), real.text(), resize.name());
    if let Some(warning) = rank_warning(real.n.min(fake.n)) {
        text += &format!("warning: {warning}\n");
    }
    text
}

/// The directory of a file to be written is looked for before minutes are spent.
fn check_parent(path: &Path) -> Result<()> {
    match parent(path).is_dir() {
        true => Ok(()),
        false => Err(Error::usage(format!("--features-out {}: no such directory", path.display())).into()),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes `real` and `fake`, fp32 `[n, 2048]`, so that a crash leaves no part of a file.
fn save(path: &Path, real: &[f32], fake: &[f32]) -> Result<()> {
    let view =
        |values| TensorView::new(Dtype::F32, vec![<[f32]>::len(values) / DIM, DIM], bytemuck::cast_slice(values));
    let part = path.with_extension("part");
    safetensors::serialize_to_file([("real", view(real)?), ("fake", view(fake)?)], None, &part)
        .map_err(|error| Error::bad(&part, format!("cannot be written: {error}")))?;
    fs::rename(&part, path).map_err(Error::io(path, "rename into place"))?;
    Ok(sync_dir(parent(path))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    #[test]
    fn features_are_written_under_both_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("features.safetensors");
        let (real, fake) = (vec![1.0; 2 * DIM], vec![2.0; 3 * DIM]);
        save(&path, &real, &fake).unwrap();
        let bytes = fs::read(&path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.tensor("real").unwrap().shape(), [2, DIM]);
        assert_eq!(tensors.tensor("fake").unwrap().data(), bytemuck::cast_slice::<f32, u8>(&fake));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_directory_is_wrong_usage() {
        let error = check_parent(Path::new("/missing/x.safetensors")).unwrap_err();
        assert_eq!(error.downcast_ref::<Error>().unwrap().exit_code(), 2);
        check_parent(Path::new("x.safetensors")).unwrap();
    }
}
