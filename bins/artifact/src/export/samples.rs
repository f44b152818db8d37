//! Samples as PNG files or as one `.npz`.

use super::Format;
use image::{ExtendedColorType, ImageFormat};
use lcf_store::{Artifact, Error, Result, npy::Npy};
use rayon::prelude::*;
use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

const IMAGES: &str = "images.npy";
/// Name of the `.npz`.
const NPZ: &str = "samples.npz";
/// What `numpy.savez` calls an array without a name, and what guided-diffusion's evaluator reads.
const ARRAY: &str = "arr_0.npy";
/// Files larger than this need zip64; the header says so beforehand.
const LARGE: u64 = u32::MAX as u64;

/// Writes the images in `artifact` to the folder `to`.
pub fn write(artifact: &Artifact, format: Format, to: &Path) -> Result<()> {
    let path = artifact.file(IMAGES)?;
    let images = Npy::<u8>::open(&path)?;
    let &[_, height, width, 3] = images.shape() else {
        return Err(Error::bad(&path, format!("found shape {:?}, expected [N, H, W, 3]", images.shape())));
    };
    match format {
        Format::Png => pngs(&images, height, width, to),
        Format::Npz => npz(&path, &to.join(NPZ)),
    }
}

/// `000000.png`, `000001.png`, ...: the order of the samples is that of the names.
fn pngs(images: &Npy<u8>, height: usize, width: usize, to: &Path) -> Result<()> {
    let digits = images.len().saturating_sub(1).to_string().len().max(6);
    (0..images.len()).into_par_iter().try_for_each(|i| {
        let path = to.join(format!("{i:0digits$}.png"));
        let (width, height) = (width as u32, height as u32);
        image::save_buffer_with_format(
            &path,
            images.rows(i, 1),
            width,
            height,
            ExtendedColorType::Rgb8,
            ImageFormat::Png,
        )
        .map_err(|error| Error::bad(&path, format!("cannot be written: {error}")))
    })
}

/// An `.npz` is a zip of `.npy` files, and [`IMAGES`] is one: its bytes, without compression, as `numpy.savez` stores it.
fn npz(images: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(images).map_err(Error::io(images, "open"))?;
    let bytes = source.metadata().map_err(Error::io(images, "stat"))?.len();
    let file = BufWriter::new(File::create(to).map_err(Error::io(to, "create"))?);
    let pack = || -> io::Result<()> {
        let mut zip = ZipWriter::new(file);
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        zip.start_file(ARRAY, stored.large_file(bytes >= LARGE))?;
        io::copy(&mut source, &mut zip)?;
        zip.finish()?.flush()
    };
    pack().map_err(Error::io(to, "write"))
}
