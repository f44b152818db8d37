//! Colours: each has a twin for dark pages.

use plotters::style::RGBColor;

/// A colour on white, and the one that stands for it on black.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Colour {
    /// On a light page and in the figures' own files.
    pub light: RGBColor,
    /// On a dark page.
    pub dark: RGBColor,
}

const fn pair(light: u32, dark: u32) -> Colour {
    Colour { light: rgb(light), dark: rgb(dark) }
}

const fn rgb(hex: u32) -> RGBColor {
    let [_, r, g, b] = hex.to_be_bytes();
    RGBColor(r, g, b)
}

/// The page behind a figure.
pub const PAPER: Colour = pair(0xffffff, 0x15181d);
/// Titles and labels.
pub const TEXT: Colour = pair(0x22262b, 0xe4e7eb);
/// Axes.
pub const AXIS: Colour = pair(0x8a9099, 0x7b828d);
/// Lines behind the data.
pub const GRID: Colour = pair(0xe6e8ec, 0x2b3037);

/// Colours of things that have no order; told apart by the colour-blind too when taken from the front.
const DISTINCT: [Colour; 8] = [
    pair(0x1f6fb4, 0x6cb4f2),
    pair(0xd96b0c, 0xf7a252),
    pair(0x2a8f4f, 0x62ca88),
    pair(0xa23db0, 0xd98fe6),
    pair(0xc4314b, 0xf57b90),
    pair(0x138a8a, 0x50c9c9),
    pair(0x8a6239, 0xcba67f),
    pair(0x5c6370, 0xabb2be),
];

/// Colour of the `i`-th of things that have no order: those above, then the same nearer to the text's colour, and then
/// from the front again.
pub fn distinct(i: usize) -> Colour {
    let colour = DISTINCT[i % DISTINCT.len()];
    if (i / DISTINCT.len()).is_multiple_of(2) {
        return colour;
    }
    Colour { light: blend(colour.light, TEXT.light, 0.5), dark: blend(colour.dark, TEXT.dark, 0.6) }
}

/// Ends and ways of [`ramp`]: of even lightness steps, so that the order shows without colour.
const RAMP: [Colour; 5] = [
    pair(0xf09c2e, 0xffcf7d),
    pair(0xdf5a5f, 0xff9a83),
    pair(0xae2a8f, 0xe37fd0),
    pair(0x6a0da8, 0xb083fa),
    pair(0x150a80, 0x7f8bff),
];

/// Colour of the `i`-th of `n` things in order.
pub fn ramp(i: usize, n: usize) -> Colour {
    let at = if n > 1 { i as f64 / (n - 1) as f64 * (RAMP.len() - 1) as f64 } else { 0.0 };
    let low = (at as usize).min(RAMP.len() - 2);
    let (a, b, share) = (RAMP[low], RAMP[low + 1], at - low as f64);
    Colour { light: blend(a.light, b.light, share), dark: blend(a.dark, b.dark, share) }
}

/// Between two colours: the first at 0, the second at 1.
fn blend(a: RGBColor, b: RGBColor, share: f64) -> RGBColor {
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * share).round() as u8;
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

/// `#RRGGBB` as SVG files here write it.
pub fn hex(colour: RGBColor) -> String {
    format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ramps_reach_both_ends_and_differ_in_every_step() {
        let colours: Vec<Colour> = (0..10).map(|i| ramp(i, 10)).collect();
        assert_eq!((colours[0], colours[9]), (RAMP[0], RAMP[4]));
        assert!(colours.windows(2).all(|two| two[0] != two[1]));
        assert_eq!(ramp(0, 1), RAMP[0]);
        let sixteen: std::collections::BTreeSet<String> = (0..16).map(|i| hex(distinct(i).light)).collect();
        assert_eq!((sixteen.len(), distinct(16)), (16, distinct(0)));
        assert_eq!(hex(ramp(2, 5).light), "#AE2A8F");
    }
}
