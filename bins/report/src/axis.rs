//! Axes: how values become positions, and where the ticks are.

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use std::ops::Range;

/// How values lie along an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// As they are.
    Linear,
    /// By their logarithm.
    Log,
    /// Linear near 0 and logarithmic far above this value: asinh(value / it).
    Symlog(f64),
}

impl Scale {
    /// The position of a value.
    pub fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log => value.log10(),
            Self::Symlog(near) => (value / near).asinh(),
        }
    }
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What is along it, with the unit.
    pub title: String,
    /// How.
    pub scale: Scale,
    /// The positions of its ends.
    pub range: (f64, f64),
    /// Positions of its ticks with their labels.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis for `values` with round ticks.
    pub fn of(title: &str, scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values
            .filter(|value| value.is_finite() && (scale != Scale::Log || *value > 0.0))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low > high { (1.0, 2.0) } else { (low, high) };
        let ticks = if scale == Scale::Log { log_ticks(low, high) } else { linear_ticks(low, high) };
        Self::with_ticks(title, scale, (low, high), &ticks)
    }

    /// An axis from `ends.0` to `ends.1` and a little beyond, with ticks at given values, those that would touch left out.
    pub fn with_ticks(title: &str, scale: Scale, ends: (f64, f64), ticks: &[f64]) -> Self {
        let (low, high) = (scale.place(ends.0), scale.place(ends.1));
        let span = if high > low { high - low } else { 1.0 };
        let range = (low - 0.04 * span, high + 0.04 * span);
        let mut kept: Vec<(f64, String)> = Vec::new();
        for &tick in ticks {
            let at = scale.place(tick);
            let text = label(tick);
            let free = kept
                .last()
                .is_none_or(|(last, before)| at - last > (0.035 + 0.008 * (text.len() + before.len()) as f64) * span);
            if (range.0..=range.1).contains(&at) && free {
                kept.push((at, text));
            }
        }
        Self { title: title.to_owned(), scale, range, ticks: kept }
    }
}

/// plotters' view of it: positions, with lines at the ticks.
impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        let share = (value - self.range.0) / (self.range.1 - self.range.0);
        first + (share * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.iter().map(|(at, _)| *at).collect()
    }

    fn range(&self) -> Range<f64> {
        self.range.0..self.range.1
    }
}

/// Four to eight multiples of 1, 2 or 5 times a power of ten.
fn linear_ticks(low: f64, high: f64) -> Vec<f64> {
    let span = if high > low { high - low } else { low.abs().max(1.0) };
    let power = 10f64.powf((span / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| span / step <= 6.5).unwrap_or(power);
    let (first, last) = (((low - 0.05 * span) / step).ceil() as i64, ((high + 0.05 * span) / step).floor() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// 1, 2 and 5 times powers of ten, only powers of ten over more than three of them, and round steps where those leave
/// fewer than three.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let multiples: &[f64] = if last - first > 3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let ticks: Vec<f64> =
        (first..=last).flat_map(|power| multiples.iter().map(move |m| m * 10f64.powi(power))).collect();
    let inside = ticks.iter().filter(|tick| (low..=high).contains(*tick)).count();
    if inside >= 3 { ticks } else { linear_ticks(low, high).into_iter().filter(|tick| *tick > 0.0).collect() }
}

/// A number without the noise of binary fractions.
pub fn label(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if !(1e-4..1e6).contains(&size) => format!("{value:.0e}"),
        _ => format!("{}", (value * 1e6).round() / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = Axis::of("x", Scale::Linear, [0.31, 0.62].into_iter());
        assert_eq!(labels(&axis), ["0.3", "0.35", "0.4", "0.45", "0.5", "0.55", "0.6"]);
        assert_eq!(labels(&Axis::of("x", Scale::Linear, [0.0, 1200.0].into_iter()))[..3], ["0", "200", "400"]);
        assert_eq!(labels(&Axis::of("x", Scale::Log, [0.12, 2.3].into_iter())), ["0.2", "0.5", "1", "2"]);
        assert_eq!(labels(&Axis::of("x", Scale::Log, [1e-7, 2.0].into_iter()))[..2], ["1e-7", "1e-6"]);
        // Less than a power of ten: one label would leave the axis unread.
        assert_eq!(
            labels(&Axis::of("x", Scale::Log, [0.09, 0.13].into_iter())),
            ["0.09", "0.1", "0.11", "0.12", "0.13"]
        );
        // One value, none, and what has no logarithm.
        assert!(!Axis::of("x", Scale::Linear, [5.0].into_iter()).ticks.is_empty());
        assert!(!Axis::of("x", Scale::Log, [f64::NAN, 0.0].into_iter()).ticks.is_empty());
    }

    #[test]
    fn small_times_are_apart_and_none_of_their_labels_touch() {
        let times = [0.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0, 200.0, 400.0, 600.0];
        let axis = Axis::with_ticks("T", Scale::Symlog(10.0), (0.0, 600.0), &times);
        let span = axis.range.1 - axis.range.0;
        assert!(axis.ticks.windows(2).all(|two| two[1].0 - two[0].0 > 0.05 * span));
        assert!(labels(&axis).starts_with(&["0"]) && labels(&axis).contains(&"600"));
        assert!(Scale::Symlog(10.0).place(5.0) > 0.09 * span);
    }
}
