//! `neighbours.png`: samples, each beside the training images nearest to it.

use crate::images::{Images, Pixels};
use anyhow::Result;
use image::{Rgb, RgbImage, imageops};

/// Pixels between images and around them.
const MARGIN: u32 = 2;
/// Pixels between a sample and its neighbours, and between one list of neighbours and the next.
const GAP: u32 = 12;
/// Smaller images are enlarged by the whole factor that brings them to this many pixels.
const TILE: u32 = 64;
const BACKGROUND: Rgb<u8> = Rgb([255; 3]);

/// Neighbours to show: places in `images`, one list a row.
#[derive(Debug)]
pub struct Column<'a> {
    /// Where they are.
    pub images: &'a Images,
    /// Of each row, its images.
    pub rows: Vec<Vec<usize>>,
}

/// The sheet: the samples down the left, and each column's images beside them.
///
/// # Errors
/// An image that cannot be read.
pub fn sheet(samples: &Images, rows: &[usize], columns: &[Column]) -> Result<RgbImage> {
    let first = Column { images: samples, rows: rows.iter().map(|&i| vec![i]).collect() };
    let mut parts: Vec<Vec<Vec<RgbImage>>> = Vec::new();
    for column in std::iter::once(&first).chain(columns) {
        let read = |row: &Vec<usize>| row.iter().map(|&i| tile(column.images, i)).collect::<Result<Vec<_>>>();
        parts.push(column.rows.iter().map(read).collect::<Result<Vec<_>>>()?);
    }
    let tiles = || parts.iter().flatten().flatten();
    let width = tiles().map(RgbImage::width).max().unwrap_or(TILE) + MARGIN;
    let height = tiles().map(RgbImage::height).max().unwrap_or(TILE) + MARGIN;
    let across = |part: &[Vec<RgbImage>]| part.iter().map(Vec::len).max().unwrap_or(0) as u32 * width;
    let total = parts.iter().map(|part| across(part) + GAP).sum::<u32>() - GAP + MARGIN;
    let mut sheet = RgbImage::from_pixel(total, rows.len() as u32 * height + MARGIN, BACKGROUND);
    let mut left = MARGIN;
    for part in &parts {
        for (y, row) in part.iter().enumerate() {
            for (x, tile) in row.iter().enumerate() {
                let (x, y) = (left + x as u32 * width, MARGIN + y as u32 * height);
                imageops::replace(&mut sheet, tile, i64::from(x), i64::from(y));
            }
        }
        left += across(part) + GAP;
    }
    Ok(sheet)
}

/// Image `i`, enlarged without smoothing: every pixel stays visible.
fn tile(images: &Images, i: usize) -> Result<RgbImage> {
    let pixels = images.read(i..i + 1)?;
    let image = rgb(&pixels[0]);
    let scale = (TILE / image.width().max(image.height())).max(1);
    Ok(imageops::resize(&image, image.width() * scale, image.height() * scale, imageops::FilterType::Nearest))
}

/// The first of `pixels`; one channel is shown as grey.
fn rgb(pixels: &Pixels) -> RgbImage {
    let Pixels { data, channels, height, width, planes, .. } = pixels;
    RgbImage::from_fn(*width as u32, *height as u32, |x, y| {
        let place = y as usize * width + x as usize;
        let at = |c: usize| if *planes { data[c * height * width + place] } else { data[place * channels + c] };
        Rgb([0, 1, 2].map(|c: usize| at(c.min(channels - 1))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcf_store::npy;

    fn images(dir: &std::path::Path, name: &str, side: usize, values: &[u8]) -> Images {
        let path = dir.join(name);
        let data: Vec<u8> = values.iter().flat_map(|&v| vec![v; side * side * 3]).collect();
        npy::write(&path, &[values.len(), side, side, 3], &data).unwrap();
        Images::open(&path, None).unwrap()
    }

    #[test]
    fn every_image_lies_beside_its_sample() {
        let dir = tempfile::tempdir().unwrap();
        let samples = images(dir.path(), "s.npy", 32, &[10, 20]);
        let train = images(dir.path(), "t.npy", 16, &[30, 40, 50]);
        let rows = [vec![2, 0], vec![1, 2]];
        let one = rows.iter().map(|row| row[..1].to_vec()).collect();
        let columns = [Column { images: &train, rows: rows.to_vec() }, Column { images: &train, rows: one }];
        let sheet = sheet(&samples, &[1, 0], &columns).unwrap();
        // Four tiles of 64 across in three parts, two down.
        assert_eq!(sheet.dimensions(), (4 * 66 + 2 * 12 + 2, 2 * 66 + 2));
        let row = |y| [2, 80, 146, 224].map(|x| sheet.get_pixel(x, y).0[0]);
        assert_eq!((row(2), row(68)), ([20, 50, 30, 50], [10, 40, 50, 40]));
        // Between the parts there is nothing.
        assert_eq!([70, 212].map(|x| sheet.get_pixel(x, 2).0[0]), [255, 255]);
    }

    #[test]
    fn planes_and_pixels_are_told_apart() {
        let pixels = |planes| Pixels { data: (0..6).collect(), count: 1, channels: 3, height: 1, width: 2, planes };
        assert_eq!(rgb(&pixels(false)).get_pixel(1, 0).0, [3, 4, 5]);
        assert_eq!(rgb(&pixels(true)).get_pixel(1, 0).0, [1, 3, 5]);
        let grey = Pixels { data: vec![9], count: 1, channels: 1, height: 1, width: 1, planes: false };
        assert_eq!(rgb(&grey).get_pixel(0, 0).0, [9; 3]);
    }
}
