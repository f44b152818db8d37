//! Probe accuracy against t: of every run, of one run at several epochs, and by the number of training images.

use super::{Section, figure, line, slug};
use crate::{
    axis::{Axis, Scale},
    figure::{Figure, Line},
    group::{Group, without},
    palette::{distinct, ramp},
    read::{Features, Probe},
    run::{Evaluation, Run},
};
use std::collections::{BTreeMap, BTreeSet};

const BOTH: [Features; 2] = [Features::Raw, Features::Std];
const UNIT: &str = "accuracy on held-out images, %";
/// Below this T the axis is linear, above it logarithmic.
const LINEAR_BELOW: f64 = 10.0;

/// Figure 4.
pub fn probe(groups: &[Group]) -> Section {
    let about = "A linear classifier on the frozen features of images with noise of level t; t = 0 is a clean image. \
                 Figure 4 of the paper.";
    let mut section = Section::new("probe", "Probe accuracy by noise level", about);
    for features in BOTH {
        let last = |run: &Run| curve(run.last.probe.as_ref(), features);
        let lines: Vec<Line> = groups
            .iter()
            .enumerate()
            .map(|(i, group)| {
                line(&group.name, distinct(i), &group.runs.iter().map(|run| last(run)).collect::<Vec<_>>())
            })
            .collect();
        let title = format!("Linear probe, {}", features.name());
        section.add(format!("probe-{}", features.id()), over_t(&title, lines));
    }
    let mut datasets: BTreeMap<(String, String), Vec<&str>> = BTreeMap::new();
    for run in groups.iter().flat_map(|group| &group.runs).filter(|run| run.last.probe.is_some()) {
        if let Some(dataset) = run.dataset() {
            datasets.entry(dataset).or_default().push(&run.name);
        }
    }
    if datasets.len() > 1 {
        let list: Vec<String> =
            datasets.iter().map(|((name, _), runs)| format!("{} ({name})", runs.join(", "))).collect();
        let list = list.join("; ");
        section.notes.push(format!("These runs are of several datasets, whose accuracies are not comparable: {list}."));
    }
    section.without(groups, "a probe", |run| run.last.probe.is_some());
    section
}

/// Figure 8.
pub fn by_epoch(groups: &[Group]) -> Section {
    let about = "The same curve from the averaged weights after some of the epochs. Figure 8 of the paper.";
    let mut section = Section::new("probe-epochs", "Probe accuracy over training", about);
    let mut single = Vec::new();
    for group in groups {
        let probed =
            |run: &Run| run.evaluations().into_iter().filter(|(_, e)| e.probe.is_some()).map(|(n, _)| n).collect();
        let epochs: BTreeSet<u64> = group.runs.iter().flat_map(|run| -> Vec<u64> { probed(run) }).collect();
        if epochs.len() < 2 {
            single.push(group.name.as_str());
            continue;
        }
        for features in BOTH {
            let at = |run: &Run, epoch: u64| {
                let found = run.evaluations().into_iter().find(|(n, _)| *n == epoch).map(|(_, e): (_, &Evaluation)| e);
                curve(found.and_then(|e| e.probe.as_ref()), features)
            };
            let lines: Vec<Line> = epochs
                .iter()
                .enumerate()
                .map(|(i, &epoch)| {
                    let curves: Vec<_> = group.runs.iter().map(|run| at(run, epoch)).collect();
                    line(&format!("epoch {epoch}"), ramp(i, epochs.len()), &curves)
                })
                .collect();
            let title = format!("{}, {}", group.name, features.name());
            section.add(format!("probe-epochs-{}-{}", slug(&group.name), features.id()), over_t(&title, lines));
        }
    }
    if !single.is_empty() {
        let names = single.join(", ");
        section.notes.push(format!("Not shown for want of probes at two epochs or more: {names} (make snapshots)."));
    }
    section
}

/// Figure 9.
pub fn by_size(groups: &[Group]) -> Section {
    let about =
        "The same curve of trainings that differ in the number of training images alone. Figure 9 of the paper.";
    let mut section = Section::new("probe-sizes", "Probe accuracy by number of training images", about);
    let mut families: Vec<Vec<&Group>> = Vec::new();
    for group in groups.iter().filter(|group| size(group).is_some() && group.runs[0].last.probe.is_some()) {
        match families.iter_mut().find(|family| same_but_size(family[0], group)) {
            Some(family) => family.push(group),
            None => families.push(vec![group]),
        }
    }
    for family in &mut families {
        family.sort_by_key(|group| size(group));
        let mut again: Vec<&str> = Vec::new();
        family.dedup_by(|next, first| {
            let same = size(next) == size(first);
            again.extend(same.then_some(next.name.as_str()));
            same
        });
        if family.len() > 1 && !again.is_empty() {
            section.notes.push(format!("Not shown, of a size that is there already: {}.", again.join(", ")));
        }
    }
    for family in families.iter().filter(|family| family.len() > 1) {
        for features in BOTH {
            let lines: Vec<Line> = family
                .iter()
                .enumerate()
                .map(|(i, group)| {
                    let curves: Vec<_> =
                        group.runs.iter().map(|run| curve(run.last.probe.as_ref(), features)).collect();
                    line(&format!("{} images", size(group).unwrap_or(0)), ramp(i, family.len()), &curves)
                })
                .collect();
            let objective = family[0].runs[0].train.as_ref().map_or("", |train| train.objective.as_str());
            let title = format!("{objective}, {}", features.name());
            let name = format!("probe-sizes-{}-{}", slug(&family[0].name), features.id());
            section.add(name, over_t(&title, lines));
        }
    }
    if section.figures.is_empty() {
        let note = "Not shown: no two of these runs that have a probe differ in the number of training images alone \
                    (prepare.limit).";
        section.notes.push(note.into());
    }
    section
}

fn curve(probe: Option<&Probe>, features: Features) -> Vec<(f64, f64)> {
    probe.map(|probe| probe.curve(features)).unwrap_or_default()
}

fn over_t(title: &str, lines: Vec<Line>) -> Option<Figure> {
    let mut times: Vec<f64> = lines.iter().flat_map(|line| line.points.iter().map(|point| point.0)).collect();
    times.sort_by(f64::total_cmp);
    times.dedup();
    let ends = (0.0, times.last().copied().unwrap_or(0.0).max(1.0));
    let x = Axis::with_ticks("T = 1000 t", Scale::Symlog(LINEAR_BELOW), ends, &times);
    figure(title, x, (UNIT, Scale::Linear), lines)
}

fn size(group: &Group) -> Option<u64> {
    group.runs[0].images
}

/// Whether two groups differ in their seeds, snapshots and number of training images at most, as far as a probe is
/// concerned.
fn same_but_size(a: &Group, b: &Group) -> bool {
    let same = |stage: &str, but: &[&str]| {
        let config = |group: &Group| Some(without(but, &group.runs[0].artifact(stage)?.manifest().config));
        config(a) == config(b)
    };
    let raw = |group: &Group| group.runs[0].artifact("prepare").map(|made| made.manifest().inputs.clone());
    // How many images are made of nothing is among the settings of those.
    let made = |group: &Group| {
        let artifact = group.runs[0].artifact("prepare")?;
        Some(without(&["train"], artifact.manifest().config.get("synthetic")?))
    };
    same("prepare", &["limit", "seed", "synthetic"])
        && raw(a) == raw(b)
        && made(a) == made(b)
        && same("train", &["seed", "snapshots"])
        && same("extract", &["seed"])
        && same("probe", &["seed"])
}
