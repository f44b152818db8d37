//! `distances.svg`: histograms of the distances to the nearest training image, as a drawing that needs no program.

use crate::memorisation::{Distances, Histogram};
use std::fmt::Write;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 16.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 40.0;
const SAMPLES: &str = "#c2410c";
const TEST: &str = "#2563eb";

/// One panel below the other: a title and its distances.
pub fn svg(panels: &[(&str, &Distances)]) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {h}\" width=\"{WIDTH}\" height=\"{h}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        h = HEIGHT * panels.len() as f64
    );
    for (i, (title, distances)) in panels.iter().enumerate() {
        writeln!(out, "<g transform=\"translate(0 {})\">", HEIGHT * i as f64).expect("a string takes everything");
        out += &panel(title, distances);
        out += "</g>\n";
    }
    out + "</svg>\n"
}

fn panel(title: &str, distances: &Distances) -> String {
    let Histogram { edges, samples, test } = &distances.histogram;
    let (samples, test) = (shares(samples), shares(test));
    let top = samples.iter().chain(&test).copied().fold(f64::MIN_POSITIVE, f64::max);
    let floor = HEIGHT - BOTTOM;
    let across = (WIDTH - 2.0 * LEFT) / samples.len() as f64;
    let steps = |values: &[f64]| {
        let mut path = format!("M{LEFT:.1} {floor:.1}");
        for (i, value) in values.iter().enumerate() {
            let y = floor - value / top * (floor - TOP);
            let x = LEFT + i as f64 * across;
            write!(path, "L{x:.1} {y:.1}L{:.1} {y:.1}", x + across).expect("a string takes everything");
        }
        path + &format!("L{:.1} {floor:.1}", WIDTH - LEFT)
    };
    let right = WIDTH - LEFT;
    let most = edges.last().copied().unwrap_or_default();
    let (n_train, near) = (distances.n_train, 100.0 * distances.near);
    format!(
        "<text x=\"{LEFT}\" y=\"16\" font-weight=\"bold\">{title}</text>\n\
         <text x=\"{LEFT}\" y=\"33\"><tspan fill=\"{SAMPLES}\">samples</tspan>, <tspan fill=\"{TEST}\">test images</tspan>: \
         distance to the nearest of {n_train}; {near:.1} % near</text>\n\
         <path d=\"{}\" fill=\"{TEST}\" fill-opacity=\".25\" stroke=\"{TEST}\"/>\n\
         <path d=\"{}\" fill=\"{SAMPLES}\" fill-opacity=\".15\" stroke=\"{SAMPLES}\"/>\n\
         <path d=\"M{LEFT} {floor}H{right}\" stroke=\"#333\"/>\n\
         <text x=\"{LEFT}\" y=\"{below}\">0</text><text x=\"{right}\" y=\"{below}\" text-anchor=\"end\">{most:.1}</text>\n",
        steps(&test),
        steps(&samples),
        below = floor + 16.0,
    )
}

/// Counts as shares of their sum.
fn shares(counts: &[u64]) -> Vec<f64> {
    let total = counts.iter().sum::<u64>().max(1) as f64;
    counts.iter().map(|&count| count as f64 / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_bar_reaches_the_top_and_an_empty_one_the_floor() {
        let distances = Distances::of(&[0.0, 0.0, 50.0], &[50.0], 7);
        let text = svg(&[("Features", &distances), ("Pixels", &distances)]);
        assert_eq!(text.matches("<g ").count(), 2);
        // Test images are all in the last of 50 bins, samples by two thirds in the first.
        let floor = HEIGHT - BOTTOM;
        let first = format!("M{LEFT:.1} {floor:.1}L{LEFT:.1} {:.1}L", floor - 2.0 / 3.0 * (floor - TOP));
        let last = format!("L{:.1} {TOP:.1}L{:.1} {floor:.1}", WIDTH - LEFT, WIDTH - LEFT);
        assert!(text.contains(&first) && text.contains(&last), "{text}");
        assert!(text.contains("nearest of 7; 66.7 % near") && text.contains(">50.0</text>"), "{text}");
    }
}
