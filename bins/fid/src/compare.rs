//! `lcf-fid compare`: all metrics of any two sets of images.

use crate::{
    config::{K, MANY, MOST_NEIGHBOURS, Precision, Resize, Split},
    distances::Nearest,
    images::Images,
    inception::{ComputeArgs, DIM},
    kid::Subsets,
    memorisation::{Quantiles, authenticity},
    metrics::{self, Metrics, Set, Settings},
    neighbours,
    picture::{self, Column},
    report,
    subset::{self, Purpose},
    text,
};
use anyhow::Result;
use clap::Args;
use lcf_store::{Error, stage::sync_dir, text::head};
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
    /// Number types of the network, on any device: fp16 is several times as fast on CUDA (docs/metrics.md)
    #[arg(long, default_value = "fp32")]
    pub precision: Precision,
    /// Write both matrices of features, "real" and "fake", to this safetensors file
    #[arg(long, value_name = "FILE")]
    pub features_out: Option<PathBuf>,
    /// Write a picture of generated images, each beside the real images nearest to it by features, to this PNG file
    #[arg(long, value_name = "FILE")]
    pub neighbours_out: Option<PathBuf>,
    /// Precision and recall: the neighbour that ends the ball around a point
    #[arg(long, value_name = "K", default_value_t = K, value_parser = in_range(1, MOST_NEIGHBOURS))]
    pub k: usize,
    /// KID: pairs of subsets
    #[arg(long, value_name = "N", default_value_t = Subsets::default().subsets, value_parser = in_range(1, MANY))]
    pub kid_subsets: usize,
    /// KID: images in a subset; fewer where a set has fewer
    #[arg(long, value_name = "N", default_value_t = Subsets::default().subset_size, value_parser = in_range(2, MANY))]
    pub kid_subset_size: usize,
    /// KID: seed of the subsets
    #[arg(long, value_name = "SEED", default_value_t = Subsets::default().seed)]
    pub kid_seed: u32,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Where and how to compute
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// Checks a number on the command line as the config is checked.
fn in_range(least: usize, most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync {
    move |text| match text.parse() {
        Ok(value) if (least..=most).contains(&value) => Ok(value),
        _ => Err(format!("{text} is not in {least}..={most}")),
    }
}

/// The result of `compare`.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The metrics.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// What a reader of these numbers has to know before quoting them.
    pub warnings: Vec<String>,
    /// One set.
    pub real: Side,
    /// The other.
    pub fake: Side,
    /// How far it is to the nearest real image.
    pub nearest: Nearness,
    /// Scaling to 299x299.
    pub resize: Resize,
    /// Number types of the network.
    pub feature_precision: Precision,
}

/// Distances of features to the nearest real image.
#[derive(Clone, Debug, Serialize)]
pub struct Nearness {
    /// Of generated images.
    pub fake: Quantiles,
    /// Of real images, themselves left out.
    pub real: Quantiles,
    /// Share of generated images farther from their nearest real image than that one is from the next.
    pub authenticity: f64,
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

/// Computes the metrics.
///
/// # Errors
/// Sets of images that are not there, unreadable or too small; a failed computation.
pub fn run(args: &CompareArgs) -> Result<Comparison> {
    let real = open(&args.real, args.real_split, args.num)?;
    let fake = open(&args.fake, args.fake_split, args.num)?;
    check_parent("--features-out", args.features_out.as_deref())?;
    check_parent("--neighbours-out", args.neighbours_out.as_deref())?;
    let network = args.compute.open(args.resize, args.precision)?;
    let of_real = network.features(&real, "real")?;
    let of_fake = network.features(&fake, "fake")?;
    if let Some(path) = &args.features_out {
        save(path, &of_real, &of_fake)?;
    }
    let kid = Subsets { subsets: args.kid_subsets, subset_size: args.kid_subset_size, seed: args.kid_seed };
    let settings = Settings { kid, k: args.k, device: network.device() };
    let of_real = Set::of(&of_real, DIM, &settings, "real")?;
    let of_fake = Set::of(&of_fake, DIM, &settings, "fake")?;
    let (metrics, nearest) = metrics::compare(&of_fake, &of_real, &settings, neighbours::SHOWN, "fake")?;
    if let Some(path) = &args.neighbours_out {
        draw(path, &fake, &real, &nearest)?;
    }
    let mut warnings = report::warnings(fake.len(), real.len(), &metrics.kid, kid.subset_size);
    warnings.extend(report::alike(&of_real.moments, "real images"));
    warnings.extend(report::alike(&of_fake.moments, "fake images"));
    warnings.extend(other_size(&real, &fake));
    warnings.extend(other_data(&real, &fake));
    Ok(Comparison {
        warnings,
        metrics,
        nearest: Nearness {
            fake: Quantiles::of(&nearest.distances_at(0)),
            real: Quantiles::of(&of_real.own.distances_at(1)),
            authenticity: authenticity(&nearest, &of_real.own),
        },
        real: Side::of(&args.real, &real),
        fake: Side::of(&args.fake, &fake),
        resize: args.resize,
        feature_precision: args.precision,
    })
}

/// What has to be said about images that have to do with different datasets, as far as artifacts tell.
fn other_data(real: &Images, fake: &Images) -> Option<String> {
    let (of_real, of_fake) = (real.data()?, fake.data()?);
    let digests = format!("{}, {}", head(of_real), head(of_fake));
    (of_real != of_fake).then(|| format!("real and fake images are of different dataset artifacts: {digests}"))
}

/// What has to be said about images of different sizes, by the first of each.
fn other_size(real: &Images, fake: &Images) -> Option<String> {
    let (of_real, of_fake) = (real.first_shape()?, fake.first_shape()?);
    let shape = |[c, h, w]: [usize; 3]| format!("{c}x{h}x{w}");
    let (real, fake) = (shape(of_real), shape(of_fake));
    (of_real != of_fake)
        .then(|| format!("real images are {real}, fake ones {fake}: FID sees that they were scaled differently"))
}

/// Writes the picture.
fn draw(path: &Path, fake: &Images, real: &Images, nearest: &Nearest) -> Result<()> {
    let shown = neighbours::shown(nearest);
    let rows = shown.iter().map(|&i| nearest.indices[i * nearest.k..][..nearest.k].to_vec()).collect();
    let sheet = picture::sheet(fake, &shown, &[Column { images: real, rows }])?;
    sheet
        .save_with_format(path, image::ImageFormat::Png)
        .map_err(|error| Error::bad(path, format!("cannot be written: {error}")).into())
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
pub fn summary(result: &Comparison) -> String {
    let Comparison { metrics, real, fake, resize, feature_precision, nearest, warnings } = result;
    let mark = if metrics.rank_deficient { format!("{}: ", text::MARK) } else { String::new() };
    let sides = format!("{} vs {}, resize {}{}", fake.text(), real.text(), resize.name(), feature_precision.note());
    let mut out = format!("FID {:.4}  ({mark}{sides})\n{}\n", metrics.fid, text::beside_fid(metrics));
    let Nearness { fake, real, authenticity } = nearest;
    out += &format!(
        "nearest real image by features: fake median {:.2}, least {:.2}; real {:.2}, {:.2}; authentic {:.1} %\n",
        fake.median,
        fake.min,
        real.median,
        real.min,
        100.0 * authenticity
    );
    warnings.iter().for_each(|warning| out += &format!("warning: {warning}\n"));
    out
}

/// The directory of a file to be written is looked for before minutes are spent.
fn check_parent(flag: &str, path: Option<&Path>) -> Result<()> {
    match path {
        Some(path) if !parent(path).is_dir() => {
            Err(Error::usage(format!("{flag} {}: no such directory", path.display())).into())
        }
        _ => Ok(()),
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
        let check = |path| check_parent("--features-out", Some(Path::new(path)));
        let error = check("/missing/x.safetensors").unwrap_err();
        assert_eq!(error.downcast_ref::<Error>().unwrap().exit_code(), 2);
        check("x.safetensors").unwrap();
    }
}
