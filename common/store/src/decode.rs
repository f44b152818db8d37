//! Image files to RGB pixels: what every stage that reads images refuses and converts in the same way.

use image::{ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};
use std::io::{Cursor, Read};

/// What names of images end in, in any case. The content decides the format, not the name.
pub const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// Longest side of an image that is decoded.
const MAX_SIDE: u32 = 16_384;
/// Most memory one decoded image may take; a few kilobytes of PNG can ask for gigabytes.
const MAX_BYTES: u64 = 128 << 20;

/// Largest file that is read. An image of more is not one.
const MAX_FILE: u64 = 64 << 20;

/// All of a file of an image, which is about `size` bytes long.
///
/// # Errors
/// Why it cannot be read, or that it is too large to be one.
pub fn file(file: impl Read, size: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(size.min(MAX_FILE) as usize);
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(format!("larger than {} MiB", MAX_FILE >> 20)),
        false => Ok(bytes),
    }
}

/// Whether `name` ends like the name of an image.
pub fn is_image_name(name: &str) -> bool {
    let Some((_, extension)) = name.rsplit_once('.') else { return false };
    EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// Decodes a PNG, JPEG or WebP file, told by its content, to 8-bit RGB: the first frame, 16 bits rounded to 8, grey and
/// CMYK converted, alpha dropped (as Pillow's `convert("RGB")` does, which the field uses). EXIF rotation is ignored.
///
/// # Errors
/// Why it cannot be decoded.
pub fn rgb(bytes: &[u8]) -> Result<RgbImage, String> {
    let reader = reader(bytes)?;
    if reader.format() == Some(ImageFormat::Jpeg) && !is_whole_jpeg(bytes) {
        return Err("a JPEG that is cut off".into());
    }
    Ok(reader.decode().map_err(|e| message(&e))?.into_rgb8())
}

/// Width and height from a file's header.
///
/// # Errors
/// Why there are none.
pub fn dimensions(bytes: &[u8]) -> Result<(u32, u32), String> {
    Ok(reader(bytes)?.into_decoder().map_err(|e| message(&e))?.dimensions())
}

fn reader(bytes: &[u8]) -> Result<ImageReader<Cursor<&[u8]>>, String> {
    if bytes.is_empty() {
        return Err("empty".into());
    }
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    if reader.format().is_none_or(|format| !format.reading_enabled()) {
        return Err("not a PNG, JPEG or WebP image".into());
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    Ok(reader)
}

fn message(error: &ImageError) -> String {
    match error {
        ImageError::Limits(_) => format!("larger than {MAX_SIDE}x{MAX_SIDE} or {} MiB decoded", MAX_BYTES >> 20),
        other => other.to_string().lines().next().unwrap_or("unreadable").to_owned(),
    }
}

/// Whether the end marker (EOI) follows the last scan (SOS). The decoder fills what is missing with grey and says
/// nothing, so a file cut off in its scan would pass for an image.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    match (last(0xda), last(0xd9)) {
        (Some(scan), Some(end)) => end > scan,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, GrayImage, ImageBuffer, Luma, Rgba, RgbaImage};

    fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8 * 10, y as u8 * 10, 200]))
    }

    #[test]
    fn every_kind_of_pixel_becomes_rgb() {
        let grey = DynamicImage::from(GrayImage::from_pixel(4, 4, Luma([77])));
        for format in [ImageFormat::Png, ImageFormat::Jpeg] {
            assert_eq!(rgb(&encode(&grey, format)).unwrap().get_pixel(1, 2).0, [77; 3]);
        }
        let deep = DynamicImage::ImageLuma16(ImageBuffer::from_pixel(2, 2, Luma([0x8000])));
        assert_eq!(rgb(&encode(&deep, ImageFormat::Png)).unwrap().get_pixel(0, 0).0, [128; 3]);
        let clear = DynamicImage::from(RgbaImage::from_pixel(2, 2, Rgba([1, 2, 3, 0])));
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            assert_eq!(rgb(&encode(&clear, format)).unwrap().get_pixel(0, 0).0, [1, 2, 3]);
        }
    }

    #[test]
    fn what_is_no_whole_image_is_refused() {
        let image = DynamicImage::from(gradient(16, 16));
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
            let whole = encode(&image, format);
            assert_eq!(dimensions(&whole).unwrap(), (16, 16));
            for length in [whole.len() / 3, whole.len() / 2, whole.len() - 9] {
                assert!(rgb(&whole[..length]).is_err(), "{format:?} cut to {length} of {} bytes", whole.len());
            }
        }
        assert_eq!(rgb(b"").unwrap_err(), "empty");
        assert_eq!(rgb(b"GIF89a, or so it says").unwrap_err(), "not a PNG, JPEG or WebP image");
    }

    #[test]
    fn a_file_without_an_end_is_not_read_to_it() {
        assert_eq!(file(std::io::repeat(7), u64::MAX).unwrap_err(), "larger than 64 MiB");
        assert_eq!(file(&b"abc"[..], 0).unwrap(), b"abc");
    }

    #[test]
    fn names_of_images() {
        assert!(["a.png", "x/b.JPG", "c.d.Jpeg", "e.webp"].into_iter().all(is_image_name));
        assert!(!["a.gif", "png", "x/notes.txt", "b.png/c"].into_iter().any(is_image_name));
    }

    /// A PNG of 50,000 x 50,000 white pixels in its header, and 12 bytes of data.
    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let mut bomb = encode(&DynamicImage::from(GrayImage::new(1, 1)), ImageFormat::Png);
        for offset in [16, 20] {
            bomb[offset..offset + 4].copy_from_slice(&50_000u32.to_be_bytes());
        }
        let checksum = crc32(&bomb[12..29]);
        bomb[29..33].copy_from_slice(&checksum.to_be_bytes());
        assert!(rgb(&bomb).unwrap_err().starts_with("larger than 16384x16384"), "{:?}", rgb(&bomb));
    }

    /// CRC-32 of PNG chunks.
    fn crc32(bytes: &[u8]) -> u32 {
        let bit = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), bit))
    }
}
