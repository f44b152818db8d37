//! Decoded images to planes of the wanted size.

use image::{RgbImage, imageops};

/// Cuts out the centre square and resizes it to `side` with a bicubic filter that averages where it shrinks.
pub fn centre_square(image: &RgbImage, side: u32) -> RgbImage {
    let (width, height) = image.dimensions();
    let edge = width.min(height);
    let square = imageops::crop_imm(image, (width - edge) / 2, (height - edge) / 2, edge, edge);
    match edge == side {
        true => square.to_image(),
        false => imageops::resize(&*square, side, side, imageops::FilterType::CatmullRom),
    }
}

/// Writes `image` as planes, uint8 `[3, H, W]`.
///
/// # Errors
/// When its size is not the `shape`, `[3, H, W]`, of `out`.
pub fn planes(image: &RgbImage, shape: [usize; 3], out: &mut [u8]) -> Result<(), String> {
    let [_, height, width] = shape;
    let (found_width, found_height) = image.dimensions();
    if (found_height as usize, found_width as usize) != (height, width) {
        return Err(format!("found {found_width}x{found_height} pixels, expected {width}x{height}"));
    }
    for (channel, plane) in out.chunks_exact_mut(height * width).enumerate() {
        for (pixel, rgb) in plane.iter_mut().zip(image.as_raw().chunks_exact(3)) {
            *pixel = rgb[channel];
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8 * 10, y as u8 * 10, 200]))
    }

    #[test]
    fn planes_are_channels_first() {
        let image = gradient(3, 2);
        let mut out = [0; 18];
        planes(&image, [3, 2, 3], &mut out).unwrap();
        assert_eq!(out, [0, 10, 20, 0, 10, 20, 0, 0, 0, 10, 10, 10, 200, 200, 200, 200, 200, 200]);
        assert_eq!(planes(&image, [3, 3, 2], &mut out).unwrap_err(), "found 3x2 pixels, expected 2x3");
    }

    #[test]
    fn the_centre_is_kept() {
        let image = gradient(6, 4);
        assert_eq!(centre_square(&image, 4).get_pixel(0, 0).0, [10, 0, 200]);
        let small = centre_square(&image, 2);
        assert_eq!((small.dimensions(), small.get_pixel(0, 0).0[2]), ((2, 2), 200));
        assert!(small.get_pixel(0, 0).0[0] < small.get_pixel(1, 0).0[0]);
    }
}
