//! What changes over training: FID, the loss by noise level, and the distances of the contrast.

use super::{Section, epochs_axis, figure, line, slug};
use crate::{
    axis::{Axis, Scale},
    figure::Line,
    group::{Group, binned},
    palette::{distinct, ramp},
    read::Fid,
    run::Run,
    table::RANK_NOTE,
};
use std::collections::BTreeSet;

/// Points of a curve over training.
const POINTS: usize = 150;
/// Bins of t in metrics.csv.
const BINS: usize = 10;
/// Share of the epochs that count as the end of training.
const END: f64 = 0.1;

/// Figure 5.
pub fn fid(groups: &[Group]) -> Section {
    let about = "Frechet Inception distance of samples from real images, lower is better. Figure 5 of the paper.";
    let mut section = Section::new("fid", "FID over training", about);
    let lines: Vec<Line> = groups
        .iter()
        .enumerate()
        .map(|(i, group)| line(&group.name, distinct(i), &group.runs.iter().map(|run| fids(run)).collect::<Vec<_>>()))
        .collect();
    section.add(
        "fid-epochs".into(),
        figure("FID by epoch", epochs_axis(groups), ("FID, lower is better", Scale::Linear), lines),
    );
    let runs = || groups.iter().flat_map(|group| &group.runs);
    let all = || runs().flat_map(|run| run.evaluations()).filter_map(|(_, evaluation)| evaluation.fid.as_ref());
    let protocols: BTreeSet<String> = all().map(Fid::protocol).collect();
    let references: BTreeSet<&str> = all().filter_map(|fid| fid.text("/digests/reference")).collect();
    if protocols.len() > 1 {
        let list = protocols.iter().cloned().collect::<Vec<_>>().join("; ");
        section.notes.push(format!("These FIDs are not comparable, they were measured in several ways: {list}."));
    } else if let Some(protocol) = protocols.first() {
        section.notes.push(format!("Measured with {protocol}."));
    }
    if protocols.len() == 1 && references.len() > 1 {
        let note = "These FIDs are not comparable: the real images are not the same for all.";
        section.notes.push(note.into());
    }
    if all().any(|fid| fid.0["rank_deficient"] == true) {
        section.notes.push(RANK_NOTE.trim_start_matches("* ").replacen("from", "From", 1));
    }
    section.without(groups, "a FID", |run| run.last.fid.is_some());
    let single: Vec<&str> = runs().filter(|run| fids(run).len() == 1).map(|run| run.name.as_str()).collect();
    if !single.is_empty() {
        section.notes.push(format!("A single point, for want of snapshots: {} (make snapshots).", single.join(", ")));
    }
    section
}

fn fids(run: &Run) -> Vec<(f64, f64)> {
    let of = run.evaluations();
    of.into_iter().filter_map(|(epoch, e)| Some((epoch as f64, e.fid.as_ref()?.number("/fid")?))).collect()
}

/// Figure 1a and 1b.
pub fn loss(groups: &[Group]) -> Section {
    let about = "Mean square error of the velocity per dimension, by the noise level t of the images. \
                 Figures 1a and 1b of the paper.";
    let mut section = Section::new("loss", "Loss by noise level", about);
    let lines: Vec<Line> = groups
        .iter()
        .enumerate()
        .map(|(i, group)| line(&group.name, distinct(i), &group.runs.iter().map(|run| at_end(run)).collect::<Vec<_>>()))
        .collect();
    let x = Axis::of("t", Scale::Linear, [0.0, 1.0].into_iter());
    let title = format!("At the end of training (last {:.0} % of the epochs)", 100.0 * END);
    section.add("loss-end".into(), figure(&title, x, ("flow loss per dimension", Scale::Log), lines));
    for group in groups {
        let bins: Vec<Vec<Vec<(f64, f64)>>> =
            (0..BINS).map(|bin| group.runs.iter().map(|run| over_training(run, &column(bin))).collect()).collect();
        let empty: Vec<usize> = (0..BINS).filter(|&bin| bins[bin].iter().all(Vec::is_empty)).collect();
        let lines: Vec<Line> =
            bins.iter().enumerate().map(|(bin, curves)| line(&range(bin), ramp(bin, BINS), curves)).collect();
        let drawn = figure(
            &group.name,
            epochs_axis(std::slice::from_ref(group)),
            ("flow loss per dimension, by t", Scale::Log),
            lines,
        );
        if drawn.is_some() && !empty.is_empty() {
            let bins = empty.into_iter().map(range).collect::<Vec<_>>().join(", ");
            section.notes.push(format!("{}: no velocity is trained for t in {bins}.", group.name));
        }
        section.add(format!("loss-{}", slug(&group.name)), drawn);
    }
    section.without(groups, "a loss by noise level", |run| !at_end(run).is_empty());
    section
}

fn column(bin: usize) -> String {
    format!("flow_t0.{bin}")
}

/// The times of a bin.
fn range(bin: usize) -> String {
    format!("{:.1}–{:.1}", bin as f64 / BINS as f64, (bin + 1) as f64 / BINS as f64)
}

/// `(middle of the bin, mean loss)` over the last epochs.
fn at_end(run: &Run) -> Vec<(f64, f64)> {
    let Some(metrics) = &run.metrics else { return Vec::new() };
    let last = metrics.column("epoch").last().copied().unwrap_or(0.0);
    let mean = |bin: usize| {
        let rows = metrics.over_epochs(&column(bin));
        let end: Vec<f64> = rows.iter().filter(|(at, _)| *at > (1.0 - END) * last).map(|(_, loss)| *loss).collect();
        let count = end.len() as f64;
        (count > 0.0).then(|| ((bin as f64 + 0.5) / BINS as f64, end.iter().sum::<f64>() / count))
    };
    (0..BINS).filter_map(mean).collect()
}

fn over_training(run: &Run, column: &str) -> Vec<(f64, f64)> {
    let (Some(metrics), Some(train)) = (&run.metrics, &run.train) else { return Vec::new() };
    let rows = metrics.over_epochs(column);
    if rows.len() <= POINTS { rows } else { binned(&rows, train.epochs as f64, POINTS) }
}

/// Pull and push.
pub fn distances(groups: &[Group]) -> Section {
    let about = "Squared distance of an anchor's features from its positive (pull, small is wanted) and from the other \
                 images of the batch (push, large is wanted), as the contrast sees them.";
    let mut section = Section::new("distances", "Pull and push distances", about);
    for (name, title) in [("pull", "Pull: distance to the positive"), ("push", "Push: distance to the negatives")] {
        let curves = |group: &Group| group.runs.iter().map(|run| over_training(run, name)).collect::<Vec<_>>();
        let lines: Vec<Line> =
            groups.iter().enumerate().map(|(i, group)| line(&group.name, distinct(i), &curves(group))).collect();
        section.add(name.to_owned(), figure(title, epochs_axis(groups), ("distance", Scale::Log), lines));
    }
    section.without(groups, "a contrast in their objective", |run| !over_training(run, "pull").is_empty());
    section
}
