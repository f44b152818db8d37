//! Sample grids side by side.

use crate::{
    figure,
    lettering::{label_on, shortened},
    page::escape,
    run::Run,
};
use anyhow::Result;
use base64::{Engine, engine::general_purpose::STANDARD};
use image::{Rgb, RgbImage, imageops};
use lcf_store::npy::Npy;
use std::collections::BTreeSet;

/// Images along each side of a grid.
const SIDE: usize = 8;
/// Pixels between images.
const GAP: usize = 1;
/// Pixels between grids, and around them.
const MARGIN: u32 = 12;
/// Pixels above a grid for its name.
const NAME: u32 = 34;
/// Grids in a row of the figure.
const COLUMNS: usize = 4;
/// A grid is enlarged by the whole factor that brings it to this many pixels.
const LARGE: usize = 560;

/// The first samples of a run.
#[derive(Clone, Debug)]
pub struct Sheet {
    /// Of the run.
    pub name: String,
    /// Seed of the noise they started from.
    pub seed: Option<u64>,
    /// How many there are.
    pub count: usize,
    /// Pixels as they are, row by row.
    pub image: RgbImage,
}

/// The sheet of a run that has samples.
///
/// # Errors
/// Samples that are not what they have to be.
pub fn sheet(run: &Run) -> Result<Option<Sheet>> {
    let Some(artifact) = &run.last.sample else { return Ok(None) };
    let path = artifact.verified("images.npy")?;
    let images = Npy::<u8>::open(&path)?;
    let &[n, height, width, channels] = images.shape() else {
        let message = format!("found shape {:?}, expected [N, H, W, C]", images.shape());
        return Err(lcf_store::Error::bad(path, message).into());
    };
    let count = n.min(SIDE * SIDE);
    let rows = count.div_ceil(SIDE);
    let side = |tiles: usize, pixels: usize| (tiles * (pixels + GAP)).saturating_sub(GAP) as u32;
    let mut image = RgbImage::from_pixel(side(SIDE.min(count), width), side(rows, height), Rgb([128; 3]));
    for i in 0..count {
        let (left, top) = ((i % SIDE) * (width + GAP), (i / SIDE) * (height + GAP));
        let pixels = images.rows(i, 1);
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            let pixel = &pixels[(y * width + x) * channels..][..channels];
            // One channel is grey; of more than three the first three are shown.
            let colour = [0, 1, 2].map(|c: usize| pixel[c.min(channels - 1)]);
            image.put_pixel((left + x) as u32, (top + y) as u32, Rgb(colour));
        }
    }
    let seed = artifact.manifest().config.get("seed").and_then(serde_json::Value::as_u64);
    Ok(Some(Sheet { name: run.name.clone(), seed, count, image }))
}

/// What to know about the sheets of these runs.
pub fn notes(runs: &[Run], sheets: &[Sheet]) -> Vec<String> {
    let mut notes = Vec::new();
    let seeds: BTreeSet<Option<u64>> = sheets.iter().map(|sheet| sheet.seed).collect();
    match seeds.first().copied().flatten() {
        Some(seed) if seeds.len() == 1 && sheets.len() > 1 => {
            notes.push(format!(
                "Images at the same place started from the same noise (seed {seed}), where they are of one size."
            ));
        }
        _ if seeds.len() > 1 => {
            let seed = |sheet: &Sheet| sheet.seed.map_or("unknown".into(), |seed| seed.to_string());
            let list: Vec<String> = sheets.iter().map(|sheet| format!("{} {}", sheet.name, seed(sheet))).collect();
            notes.push(format!("These samples started from different noise; seeds: {}.", list.join(", ")));
        }
        _ => {}
    }
    let without: Vec<&str> = runs.iter().filter(|run| run.last.sample.is_none()).map(|run| run.name.as_str()).collect();
    if !without.is_empty() {
        notes.push(format!("Not shown for want of samples: {}.", without.join(", ")));
    }
    notes
}

/// Where a sheet lies in the figure: left, top, and the factor it is enlarged by.
type Place = (u32, u32, u32);

/// The place of each sheet, and the size of the figure.
fn layout(sheets: &[Sheet]) -> (Vec<Place>, (u32, u32)) {
    let largest = sheets.iter().map(|sheet| sheet.image.width().max(sheet.image.height())).max().unwrap_or(1);
    let cell = sheets.iter().map(|sheet| sheet.image.width() * scale(sheet)).max().unwrap_or(largest);
    let height = sheets.iter().map(|sheet| sheet.image.height() * scale(sheet)).max().unwrap_or(largest);
    let columns = sheets.len().clamp(1, COLUMNS);
    let at = |i: usize| {
        let (column, row) = ((i % columns) as u32, (i / columns) as u32);
        (MARGIN + column * (cell + MARGIN), NAME + row * (height + NAME), scale(&sheets[i]))
    };
    let rows = sheets.len().div_ceil(columns) as u32;
    let size = (MARGIN + columns as u32 * (cell + MARGIN), rows * (height + NAME) + MARGIN);
    ((0..sheets.len()).map(at).collect(), size)
}

fn scale(sheet: &Sheet) -> u32 {
    (LARGE as u32 / sheet.image.width().max(sheet.image.height())).max(1)
}

/// All sheets as one PNG file.
///
/// # Errors
/// The encoder's.
pub fn png(sheets: &[Sheet]) -> Result<Vec<u8>> {
    let (places, (width, height)) = layout(sheets);
    let mut canvas = RgbImage::from_pixel(width, height, Rgb([255; 3]));
    for (sheet, (x, y, scale)) in sheets.iter().zip(places) {
        let (w, h) = sheet.image.dimensions();
        let large = imageops::resize(&sheet.image, w * scale, h * scale, imageops::FilterType::Nearest);
        imageops::replace(&mut canvas, &large, x.into(), y.into());
        label_on(&mut canvas, &shortened(&sheet.name, w * scale), (x, y - NAME / 2))?;
    }
    figure::png(&canvas)
}

/// All sheets as one SVG file, with the pixels in it.
///
/// # Errors
/// The encoder's.
pub fn svg(sheets: &[Sheet]) -> Result<String> {
    let (places, (width, height)) = layout(sheets);
    let mut text = format!(
        "<svg width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" xmlns=\"http://www.w3.org/2000/svg\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#FFFFFF\"/>\n"
    );
    for (sheet, (x, y, scale)) in sheets.iter().zip(places) {
        let (w, h) = (sheet.image.width() * scale, sheet.image.height() * scale);
        let (name, base, data) = (escape(&shortened(&sheet.name, w)), y - NAME / 3, data_uri(&sheet.image)?);
        text += &format!(
            "<text x=\"{x}\" y=\"{base}\" font-family=\"sans-serif\" font-size=\"15\" fill=\"#22262B\">{name}</text>\n\
             <image x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" style=\"image-rendering:pixelated\" href=\"{data}\"/>\n"
        );
    }
    Ok(text + "</svg>\n")
}

/// The image as it can stand in a page.
///
/// # Errors
/// The encoder's.
pub fn data_uri(image: &RgbImage) -> Result<String> {
    Ok(format!("data:image/png;base64,{}", STANDARD.encode(figure::png(image)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, side: u32) -> Sheet {
        let image = RgbImage::from_pixel(side, side, Rgb([200, 10, 10]));
        Sheet { name: name.into(), seed: Some(0), count: 1, image }
    }

    #[test]
    fn sheets_lie_beside_each_other_and_overlap_nowhere() {
        let sheets: Vec<Sheet> = [100, 100, 50, 100, 100].iter().map(|&side| of("a", side)).collect();
        let (places, size) = layout(&sheets);
        assert_eq!((places[0], places[2].2, places[4].1 > places[0].1), ((12, 34, 5), 11, true));
        assert!(
            places.iter().zip(&sheets).all(|((x, y, k), s)| x + 100 <= size.0 && y + s.image.height() * k <= size.1)
        );
        let drawn = image::load_from_memory(&png(&sheets).unwrap()).unwrap().to_rgb8();
        assert_eq!(drawn.dimensions(), size);
        assert_eq!((drawn.get_pixel(12, 34).0, drawn.get_pixel(11, 34).0), ([200, 10, 10], [255; 3]));
        assert!(svg(&[of("a<b", 8)]).unwrap().contains(">a&lt;b</text>"));
    }
}
