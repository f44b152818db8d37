//! Folders of images: PNG, JPEG and WebP at any depth.

use crate::images::Pixels;
use lcf_store::{
    Error, Result,
    decode::{self, EXTENSIONS, is_image_name},
    say,
    text::visible,
};
use rayon::prelude::*;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

/// Most bytes of images that are handed on as one run. They become floats before they become small.
const MOST_BYTES: usize = 32 << 20;

/// Every image below `dir`, sorted by path. Names that start with a dot and links to directories are passed over; other
/// files are too, with a note on stderr.
///
/// # Errors
/// [`Error::Bad`] when there is none, or a name of an image is that of something else.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut others) = (Vec::new(), Vec::new());
    walk(dir, &mut files, &mut others)?;
    if let Some(first) = others.iter().min() {
        let (n, first) = (others.len(), visible(&first.display().to_string()));
        say!("fid: note: {}: ignored {n} files that are not images, like {first}", dir.display());
    }
    if files.is_empty() {
        let message = format!("found no image, expected files named *.{{{}}}", EXTENSIONS.join(","));
        return Err(Error::bad(dir, message));
    }
    files.sort();
    Ok(files)
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>, others: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
        let entry = entry.map_err(Error::io(dir, "list"))?;
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if entry.file_type().map_err(Error::io(&path, "stat"))?.is_dir() {
            walk(&path, files, others)?;
        } else if !is_image_name(&path.to_string_lossy()) {
            others.push(path);
        } else if path.is_file() {
            files.push(path);
        } else if !path.is_dir() {
            let message = "found neither a file nor a link to one, expected an image";
            return Err(Error::bad(path, message).with_hint("repair or remove it"));
        }
    }
    Ok(())
}

/// Decodes `files` in parallel to RGB, and joins neighbours of equal size.
///
/// # Errors
/// [`Error::Bad`] naming the first file, in order, that is no image.
pub fn read(files: &[&Path]) -> Result<Vec<Pixels>> {
    let decoded: Vec<Result<Pixels>> = files.par_iter().map(|path| read_one(path)).collect();
    let mut runs: Vec<Pixels> = Vec::new();
    for pixels in decoded {
        let pixels = pixels?;
        match runs.last_mut() {
            Some(run)
                if (run.height, run.width) == (pixels.height, pixels.width)
                    && run.data.len() + pixels.data.len() <= MOST_BYTES =>
            {
                run.data.extend(pixels.data);
                run.count += 1;
            }
            _ => runs.push(pixels),
        }
    }
    Ok(runs)
}

/// Width and height as the header of the file says, where that can be read.
pub fn dimensions(path: &Path) -> Option<(u32, u32)> {
    decode::dimensions(&bytes(path).ok()?.ok()?).ok()
}

/// The file, or why it is none of an image.
fn bytes(path: &Path) -> Result<std::result::Result<Vec<u8>, String>> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let size = file.metadata().map_or(0, |meta| meta.len());
    Ok(decode::file(file, size))
}

/// As prepare decodes them ([`decode::rgb`]).
fn read_one(path: &Path) -> Result<Pixels> {
    let bad = |reason| Error::bad(path, format!("not a readable image: {reason}")).with_hint("repair or remove it");
    let image = bytes(path)?.and_then(|bytes| decode::rgb(&bytes)).map_err(bad)?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    Ok(Pixels { data: image.into_raw(), count: 1, channels: 3, height, width, planes: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma, Rgb, RgbImage};

    #[test]
    fn files_are_sorted_decoded_and_joined() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("sub")).unwrap();
        RgbImage::from_pixel(2, 1, Rgb([1, 2, 3])).save(at("b.png")).unwrap();
        GrayImage::from_pixel(2, 1, Luma([9])).save(at("sub/c.PNG")).unwrap();
        RgbImage::from_pixel(1, 1, Rgb([7, 7, 7])).save(at("a.webp")).unwrap();
        fs::write(at("notes.txt"), "no image").unwrap();
        fs::write(at(".hidden.png"), "no image").unwrap();
        let files = list(dir.path()).unwrap();
        assert_eq!(files, [at("a.webp"), at("b.png"), at("sub/c.PNG")]);
        let runs = read(&files.iter().map(PathBuf::as_path).collect::<Vec<_>>()).unwrap();
        assert_eq!(runs.iter().map(|run| (run.count, run.width)).collect::<Vec<_>>(), [(1, 1), (2, 2)]);
        assert_eq!(runs[1].data, [1, 2, 3, 1, 2, 3, 9, 9, 9, 9, 9, 9]);
    }

    #[test]
    fn a_file_that_is_too_large_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large.png");
        GrayImage::new(2, 2).save(&path).unwrap();
        // A hole takes no room on the disk.
        File::options().append(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        let message = read(&[&path]).unwrap_err().to_string();
        assert!(message.ends_with("large.png: not a readable image: larger than 64 MiB"), "{message}");
        assert_eq!(dimensions(&path), None);
    }

    #[test]
    fn large_images_are_not_joined() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        // 27 MB of pixels each.
        GrayImage::new(3000, 3000).save(&path).unwrap();
        assert_eq!(read(&[&path, &path]).unwrap().iter().map(|run| run.count).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn links_lead_to_images_or_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        GrayImage::new(2, 2).save(at("a.png")).unwrap();
        fs::create_dir(at("real")).unwrap();
        std::os::unix::fs::symlink("a.png", at("b.png")).unwrap();
        std::os::unix::fs::symlink("real", at("c.png")).unwrap();
        assert_eq!(list(dir.path()).unwrap(), [at("a.png"), at("b.png")]);
        std::os::unix::fs::symlink("nowhere", at("d.png")).unwrap();
        let error = list(dir.path()).unwrap_err();
        assert!(error.to_string().contains("d.png: found neither a file nor a link to one"), "{error}");
        assert_eq!(error.hint().unwrap(), "repair or remove it");
    }

    #[test]
    fn what_is_no_image_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(list(dir.path()).unwrap_err().to_string().contains("found no image"));
        let path = dir.path().join("x.png");
        fs::write(&path, "text").unwrap();
        let message = read(&[&path]).unwrap_err().to_string();
        assert!(message.contains("x.png: not a readable image"), "{message}");
        // A decoder alone would fill the lower half with grey and say nothing.
        let path = dir.path().join("half.jpg");
        RgbImage::from_fn(64, 64, |x, y| Rgb([4 * x as u8, 4 * y as u8, (x * y) as u8])).save(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        assert_eq!(read(&[&path]).unwrap()[0].height, 64);
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let error = read(&[&path]).unwrap_err();
        let message = error.to_string();
        assert!(message.ends_with("half.jpg: not a readable image: a JPEG that is cut off"), "{message}");
        assert_eq!(error.hint().unwrap(), "repair or remove it");
    }
}
