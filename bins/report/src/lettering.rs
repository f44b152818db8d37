//! Text in figures: how wide it is, where it breaks, and what the font of PNG files can write.

use crate::{
    figure::{FINE, cannot},
    palette::TEXT,
};
use anyhow::Result;
use image::RgbImage;
use plotters::{
    prelude::*,
    style::{
        FontStyle, register_font,
        text_anchor::{HPos, Pos, VPos},
    },
};
use std::sync::Once;

/// Size of titles, in pixels.
pub const TITLE_SIZE: i32 = 19;
/// What plotters calls the family; browsers take their own, the PNG takes the one below.
pub const FAMILY: &str = "sans-serif";
/// Roboto Regular, Copyright 2015 Google Inc., Apache License 2.0, cut down to Latin letters and a few signs.
static FONT: &[u8] = include_bytes!("../font/Roboto-subset.ttf");

/// Width in pixels, as wide as browsers' fonts may make it: a tenth more than here, and a square for each character that
/// is not in [`FONT`].
pub fn text_width(text: &str, size: i32) -> i32 {
    register();
    let (known, other): (String, String) = text.chars().partition(|c| in_font(*c));
    let font = (FAMILY, size * FINE).into_font();
    let width = font.box_size(&known).map_or(size * known.chars().count() as i32, |(width, _)| width as i32 / FINE + 1);
    width * 11 / 10 + size * other.chars().count() as i32
}

/// The text in rows of at most `width` pixels, broken after what parts words where there is such a place. At least one.
pub fn wrap(text: &str, width: i32, size: i32) -> Vec<String> {
    let fits = |text: &str| text_width(text, size) <= width;
    let mut rows = Vec::new();
    let mut rest = text;
    while !rest.is_empty() && !fits(rest) {
        let ends: Vec<usize> = rest.char_indices().skip(1).map(|(i, _)| i).take_while(|&i| fits(&rest[..i])).collect();
        let parted = ends.iter().rev().find(|&&i| rest[..i].ends_with([' ', ',', '-', '_', '.', '/']));
        let end = parted.or(ends.last()).copied().unwrap_or_else(|| rest.chars().next().map_or(0, char::len_utf8));
        rows.push(rest[..end].trim_end().to_owned());
        rest = rest[end..].trim_start();
    }
    if !rest.is_empty() || rows.is_empty() {
        rows.push(rest.to_owned());
    }
    rows
}

/// The text with a question mark for each character that is not in [`FONT`], which would leave no trace.
pub fn latin(text: &str) -> String {
    text.chars().map(|c| if in_font(c) { c } else { '?' }).collect()
}

fn in_font(c: char) -> bool {
    matches!(c, ' '..='~' | '\u{a0}'..='\u{ff}' | 'λ' | 'τ' | '–' | '—' | '…' | '−')
}

/// The text without its middle where it is wider than `width` pixels.
pub fn shortened(text: &str, width: u32) -> String {
    let chars: Vec<char> = text.chars().collect();
    let cut = |kept: usize| -> String {
        let (head, tail) = (&chars[..kept.div_ceil(2)], &chars[chars.len() - kept / 2..]);
        if kept < chars.len() { head.iter().chain(&['…']).chain(tail).collect() } else { text.to_owned() }
    };
    (1..=chars.len()).rev().map(cut).find(|text| text_width(text, TITLE_SIZE) <= width as i32).unwrap_or_default()
}

/// Makes the font known to plotters.
pub fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = register_font(FAMILY, FontStyle::Normal, FONT);
    });
}

/// Writes a name onto an image, its left end and middle at `at`.
///
/// # Errors
/// plotters'.
pub fn label_on(image: &mut RgbImage, text: &str, at: (u32, u32)) -> Result<()> {
    register();
    let size = image.dimensions();
    let area = BitMapBackend::with_buffer(image, size).into_drawing_area();
    let style = (FAMILY, TITLE_SIZE).into_font().color(&TEXT.light).pos(Pos::new(HPos::Left, VPos::Center));
    area.draw_text(&latin(text), &style, (at.0 as i32, at.1 as i32)).map_err(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn long_names_take_rows_and_none_is_cut() {
        let name = "cifar10-lcf-lambda0.1-tau0.5-tmin0.02-layer8-width384-epochs1200-seed1";
        for text in [name, &name.replace('-', ""), "日本".repeat(80).as_str(), "", "a"] {
            let rows = wrap(text, 200, 15);
            assert_eq!(rows.concat(), text);
            assert!(rows.iter().all(|row| text_width(row, 15) <= 200), "{rows:?}");
        }
        assert!(wrap(name, 200, 15)[0].ends_with('-'));
        assert_eq!(wrap("an m", 1, 15), ["a", "n", "m"]);
    }

    #[test]
    fn what_the_font_lacks_leaves_a_trace() {
        assert_eq!(latin("run 日本 é"), "run ?? é");
        register();
        let ink = |text: &str| {
            let mut image = RgbImage::from_pixel(80, 40, Rgb([255; 3]));
            label_on(&mut image, text, (4, 20)).unwrap();
            image.pixels().filter(|pixel| pixel.0 != [255; 3]).count()
        };
        assert!(ink("日") > 0 && ink(" ") == 0);
    }

    #[test]
    fn a_name_over_samples_is_no_wider_than_they_are() {
        assert_eq!(shortened("lcf", 100), "lcf");
        let short = shortened("cifar10-lcf-with-a-long-name-seed-1", 150);
        assert!(short.starts_with("cifar10") && short.ends_with("-1") && short.contains('…'), "{short}");
        assert!(text_width(&short, TITLE_SIZE) <= 150);
    }
}
