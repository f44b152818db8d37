//! Runs that differ in their seeds alone are one line with a spread.

use crate::{links::STAGES, run::Run};
use serde_json::Value;
use std::collections::BTreeMap;

/// Runs of the same settings but the seeds.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// What the names of its runs have in common, and how many there are.
    pub name: String,
    /// In the order they were given.
    pub runs: Vec<&'a Run>,
}

/// Groups `runs`; groups are in the order of their first runs.
pub fn groups(runs: &[Run]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = Vec::new();
    for run in runs {
        match groups.iter_mut().find(|group| group.runs.iter().all(|other| same_but_seeds(other, run))) {
            Some(group) => group.runs.push(run),
            None => groups.push(Group { name: String::new(), runs: vec![run] }),
        }
    }
    for group in &mut groups {
        let names: Vec<&str> = group.runs.iter().map(|run| run.name.as_str()).collect();
        group.name = group_name(&names);
    }
    groups
}

/// Whether two runs ask for the same in every stage that both have, seeds and snapshots aside, and are not one run under
/// two names. Without a training nothing is known.
fn same_but_seeds(a: &Run, b: &Run) -> bool {
    let twice = |stage: &str| match (a.artifact(stage), b.artifact(stage)) {
        (Some(a), Some(b)) => a.digest() == b.digest(),
        _ => true,
    };
    let same = |stage: &str| {
        let (Some(a), Some(b)) = (a.artifact(stage), b.artifact(stage)) else { return stage != "train" };
        let (a, b) = (a.manifest(), b.manifest());
        // Raw data has no settings of its own: what was read is known by its digest.
        let raw = stage != "prepare" || a.inputs == b.inputs;
        raw && a.version == b.version
            && without(&["seed", "snapshots"], &a.config) == without(&["seed", "snapshots"], &b.config)
    };
    STAGES.iter().all(|stage| same(stage)) && !STAGES.iter().all(|stage| twice(stage))
}

/// The config of a stage but for some of its settings.
pub fn without(settings: &[&str], config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(map) = config.as_object_mut() {
        settings.iter().for_each(|name| drop(map.remove(*name)));
    }
    config
}

fn group_name(names: &[&str]) -> String {
    let [first, rest @ ..] = names else { return String::new() };
    if rest.is_empty() {
        return (*first).to_owned();
    }
    let common =
        first.chars().enumerate().take_while(|(i, c)| rest.iter().all(|name| name.chars().nth(*i) == Some(*c)));
    let common: String = common.map(|(_, c)| c).collect();
    let stem = common.trim_end_matches(|c: char| !c.is_alphanumeric());
    let stem = stem.strip_suffix("seed").or_else(|| stem.strip_suffix("-s")).unwrap_or(stem);
    let stem = stem.trim_end_matches(|c: char| !c.is_alphanumeric());
    let stem = if stem.is_empty() { names.join(", ") } else { stem.to_owned() };
    format!("{stem} ({} seeds)", names.len())
}

/// Mean, lowest and highest of several curves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spread {
    /// `(x, mean)`.
    pub mean: Vec<(f64, f64)>,
    /// `(x, lowest, highest)`; empty for one curve.
    pub band: Vec<(f64, f64, f64)>,
}

impl Spread {
    /// Of curves by x. Where only some have a value, it is theirs.
    pub fn of(curves: &[Vec<(f64, f64)>]) -> Self {
        let mut by_x: BTreeMap<u64, (f64, Vec<f64>)> = BTreeMap::new();
        for &(x, y) in curves.iter().flatten() {
            // The bits of numbers that are not negative are in their order.
            by_x.entry(x.max(0.0).to_bits()).or_insert((x, Vec::new())).1.push(y);
        }
        let mean = by_x.values().map(|(x, ys)| (*x, ys.iter().sum::<f64>() / ys.len() as f64)).collect();
        let ends = |ys: &[f64]| ys.iter().fold((f64::MAX, f64::MIN), |(low, high), &y| (low.min(y), high.max(y)));
        let band = |(x, ys): &(f64, Vec<f64>)| (*x, ends(ys).0, ends(ys).1);
        let several = curves.iter().filter(|curve| !curve.is_empty()).count() > 1;
        Self { mean, band: if several { by_x.values().map(band).collect() } else { Vec::new() } }
    }
}

/// Means of `(x, y)` over `n` equal parts of `0..end`, so that long curves stay small and those of several seeds share
/// their x.
pub fn binned(curve: &[(f64, f64)], end: f64, n: usize) -> Vec<(f64, f64)> {
    let mut bins = vec![(0.0, 0.0); n];
    for &(x, y) in curve {
        // A row is the mean of the steps before it: at a border it belongs below.
        let bin = ((x / end * n as f64).ceil() as usize).clamp(1, n) - 1;
        bins[bin] = (bins[bin].0 + y, bins[bin].1 + 1.0);
    }
    let at = |i: usize| (i as f64 + 0.5) * end / n as f64;
    bins.iter()
        .enumerate()
        .filter(|(_, (_, count))| *count > 0.0)
        .map(|(i, (sum, count))| (at(i), sum / count))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_called_by_what_their_names_share() {
        assert_eq!(group_name(&["cifar10-lcf"]), "cifar10-lcf");
        assert_eq!(group_name(&["lcf-0", "lcf-1"]), "lcf (2 seeds)");
        assert_eq!(group_name(&["lcf", "lcf-seed1", "lcf-seed2"]), "lcf (3 seeds)");
        assert_eq!(group_name(&["lcf-seed1", "lcf-seed2"]), "lcf (2 seeds)");
        assert_eq!(group_name(&["a", "b"]), "a, b (2 seeds)");
    }

    #[test]
    fn the_spread_is_from_the_lowest_to_the_highest() {
        let spread = Spread::of(&[vec![(0.0, 1.0), (5.0, 2.0)], vec![(0.0, 3.0)]]);
        assert_eq!(spread.mean, [(0.0, 2.0), (5.0, 2.0)]);
        assert_eq!(spread.band, [(0.0, 1.0, 3.0), (5.0, 2.0, 2.0)]);
        assert_eq!(Spread::of(&[vec![(1.0, 1.0)], vec![]]).band, []);
        assert_eq!(Spread::of(&[]), Spread::default());
    }

    #[test]
    fn bins_average_and_none_is_invented() {
        let curve = [(1.0, 2.0), (2.0, 4.0), (8.0, 1.0)];
        assert_eq!(binned(&curve, 8.0, 4), [(1.0, 3.0), (7.0, 1.0)]);
    }
}
