//! The first samples on one sheet, for a person to look at.

use image::{Rgb, RgbImage};

/// Most images on a sheet.
pub const MOST: usize = 100;
/// Pixels between images and around them.
const MARGIN: u32 = 2;
const BACKGROUND: Rgb<u8> = Rgb([255; 3]);
/// Smaller images are enlarged by the whole factor that brings them to this many pixels.
const TILE: usize = 64;

/// Up to [`MOST`] images, uint8 `[n, H, W, C]`, row by row in a square of tiles, enlarged without smoothing: every pixel
/// stays visible. One channel is shown as grey; of more than three the first three are shown.
///
/// # Panics
/// When `images` does not hold whole images of `shape` (H, W, C).
pub fn sheet(images: &[u8], shape: [usize; 3]) -> RgbImage {
    let [height, width, channels] = shape;
    let size = height * width * channels;
    assert!(images.len().is_multiple_of(size) && !images.is_empty(), "{} bytes are not images", images.len());
    let count = (images.len() / size).min(MOST);
    let columns = (count as f64).sqrt().ceil() as usize;
    let rows = count.div_ceil(columns);
    let scale = (TILE / height.max(width)).max(1);
    let side = |tiles: usize, pixels: usize| (tiles * pixels * scale) as u32 + (tiles as u32 + 1) * MARGIN;
    let mut sheet = RgbImage::from_pixel(side(columns, width), side(rows, height), BACKGROUND);
    for (i, image) in images.chunks_exact(size).take(count).enumerate() {
        let left = side(i % columns, width);
        let top = side(i / columns, height);
        for (y, x) in (0..height * scale).flat_map(|y| (0..width * scale).map(move |x| (y, x))) {
            let pixel = &image[((y / scale) * width + x / scale) * channels..][..channels];
            let colour = [0, 1, 2].map(|c: usize| pixel[c.min(channels - 1)]);
            sheet.put_pixel(left + x as u32, top + y as u32, Rgb(colour));
        }
    }
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_lies_in_its_tile() {
        // Three images of 16x32 in one channel: two columns, two rows, enlarged twice.
        let images: Vec<u8> = [10u8, 20, 30].iter().flat_map(|&v| vec![v; 16 * 32]).collect();
        let sheet = sheet(&images, [16, 32, 1]);
        assert_eq!(sheet.dimensions(), (2 * 64 + 6, 2 * 32 + 6));
        let at = |x, y| sheet.get_pixel(x, y).0;
        assert_eq!([at(2, 2), at(65, 33), at(68, 2), at(2, 36)], [[10; 3], [10; 3], [20; 3], [30; 3]]);
        assert_eq!([at(1, 1), at(66, 2), at(68, 36)], [[255; 3]; 3]);
    }

    #[test]
    fn colours_keep_their_order_and_a_hundred_is_the_most() {
        let images: Vec<u8> = (0..101).flat_map(|i| [i, 100, 200]).collect();
        let sheet = sheet(&images, [1, 1, 3]);
        assert_eq!(sheet.dimensions(), (10 * 66 + 2, 10 * 66 + 2));
        assert_eq!(sheet.get_pixel(2 + 66, 2).0, [1, 100, 200]);
        assert_eq!(sheet.get_pixel(659, 659).0, [99, 100, 200]);
    }
}
