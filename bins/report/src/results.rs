//! The numbers of every run, as rows of the table.

use crate::{
    read::{Features, Fid, Probe, Train},
    run::Run,
    table::{Cell, NONE, Row, grouped},
};

/// Numbers of every run. Rows that no run has a value in stay: they are what is not known.
pub fn rows(runs: &[&Run]) -> Vec<Row> {
    let mut rows = training(runs);
    rows.extend(samples(runs));
    rows.extend([Features::Raw, Features::Std].iter().flat_map(|&features| probe(runs, features)));
    rows
}

fn row(runs: &[&Run], part: &str, key: &str, label: &str, cell: impl Fn(&Run) -> Cell) -> Row {
    let cells = runs.iter().map(|run| cell(run)).collect();
    Row { key: key.to_owned(), part: part.to_owned(), label: label.to_owned(), cells }
}

fn training(runs: &[&Run]) -> Vec<Row> {
    let text = |key: &str, label: &str, of: fn(&Train) -> String| {
        row(runs, "training", key, label, |run| Cell::text(run.train.as_ref().map(of)))
    };
    let number = |key: &str, label: &str, decimals: usize, of: fn(&Run) -> Option<f64>| {
        row(runs, "training", key, label, |run| Cell::number(of(run), decimals))
    };
    let count = |key: &str, label: &str, of: fn(&Run) -> Option<u64>| {
        row(runs, "training", key, label, |run| Cell::count(of(run)))
    };
    let device = |run: &Run| run.artifact("train").map(|artifact| artifact.manifest().provenance.device.clone());
    vec![
        text("objective", "objective", |train| train.objective.clone()),
        text("dataset", "dataset", |train| train.dataset.clone()),
        count("images", "training images", |run| run.images),
        row(runs, "training", "seed", "seed", |run| Cell::text(run.setting("train.seed"))),
        count("parameters", "parameters", |run| Some(run.train.as_ref()?.parameters)),
        count("epochs", "epochs", |run| Some(run.train.as_ref()?.epochs)),
        text("steps", "steps (skipped)", |train| format!("{} ({})", grouped(train.steps), train.skipped)),
        number("final_loss", "flow loss, last epoch", 4, |run| run.train.as_ref()?.final_loss),
        row(runs, "training", "device", "device", |run| Cell::text(device(run))),
        number("ms_per_step", "ms/step, median", 1, |run| run.metrics.as_ref()?.median("ms_per_step")),
        number("training_hours", "hours", 3, Run::training_hours),
        number("gpu_hours", "GPU hours, all stages", 3, Run::gpu_hours),
    ]
}

fn samples(runs: &[&Run]) -> Vec<Row> {
    let number = |key: &str, label: &str, scale: f64, decimals: usize, path: &'static str| {
        row(runs, "samples", key, label, |run| {
            let fid = run.last.fid.as_ref();
            let marked = path == "/fid" && fid.is_some_and(|fid| fid.0["rank_deficient"] == true);
            Cell::number(fid.and_then(|fid| fid_number(fid, path)).map(|value| scale * value), decimals).marked(marked)
        })
    };
    let images = |fid: &Fid| {
        let count = |path: &str| fid.number(path).map_or(NONE.into(), |n| grouped(n as u64));
        format!("{} / {} {}", count("/n"), count("/n_reference"), fid.text("/split").unwrap_or(NONE))
    };
    vec![
        number("fid", "FID", 1.0, 2, "/fid"),
        number("fid_floor", "FID of real images", 1.0, 2, "/floor/fid"),
        row(runs, "samples", "fid_images", "samples / images", |run| Cell::text(run.last.fid.as_ref().map(images))),
        row(runs, "samples", "fid_seeds", "FID over sample seeds", |run| {
            Cell::text(run.last.fid.as_ref().and_then(seeds))
        }),
        row(runs, "samples", "fid_other", "FID, other half", |run| {
            Cell::number(run.last.fid.as_ref().and_then(other_half), 2)
        }),
        number("kid", "KID x 1000", 1e3, 3, "kid"),
        number("kid_std", "its std over subsets", 1e3, 3, "kid/std"),
        number("precision", "precision", 1.0, 3, "precision"),
        number("recall", "recall", 1.0, 3, "recall"),
        number("near", "copies, %", 1e2, 1, "/memorisation/features/near"),
    ]
}

fn probe(runs: &[&Run], features: Features) -> Vec<Row> {
    let part = format!("linear probe, {}, %", features.name());
    let number = |name: &str, label: &str, decimals: usize, of: fn(Peak) -> Option<f64>| {
        let peak = |run: &Run| run.last.probe.as_ref().and_then(|probe| Peak::of(probe, features));
        let key = format!("probe_{}_{name}", features.id());
        row(runs, &part, &key, label, |run| Cell::number(peak(run).and_then(of), decimals))
    };
    vec![
        number("t0", "at t=0", 2, |peak| peak.zero),
        number("peak", "peak", 2, |peak| Some(peak.peak)),
        number("gap", "peak minus t=0", 2, |peak| Some(peak.peak - peak.zero?)),
        number("peak_T", "T of the peak", 0, |peak| Some(peak.at)),
    ]
}

/// A number of `fid.json`; KID, precision and recall are where it holds the samples against its own half.
fn fid_number(fid: &Fid, path: &str) -> Option<f64> {
    if path.starts_with('/') {
        return fid.number(path);
    }
    let half = format!("/against/{}/{path}", fid.text("/split")?);
    fid.number(&half).or_else(|| fid.number(&format!("{half}/mean")))
}

/// Mean, spread and number of FIDs of several samplings.
fn seeds(fid: &Fid) -> Option<String> {
    let number = |name: &str| fid.number(&format!("/spread/{name}"));
    Some(format!("{:.2} ± {:.2} ({})", number("fid/mean")?, number("fid/std")?, number("seeds")?))
}

/// FID against test images where the headline is against training images, and the other way round.
fn other_half(fid: &Fid) -> Option<f64> {
    fid.number(if fid.text("/split")? == "train" { "/against/test/fid" } else { "/against/train/fid" })
}

/// Where a probe's curve is highest.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Peak {
    peak: f64,
    at: f64,
    zero: Option<f64>,
}

impl Peak {
    fn of(probe: &Probe, features: Features) -> Option<Self> {
        let curve = probe.curve(features);
        let (at, peak) = curve.iter().copied().reduce(|best, next| if next.1 > best.1 { next } else { best })?;
        Some(Self { peak, at, zero: curve.iter().find(|(t, _)| *t == 0.0).map(|(_, accuracy)| *accuracy) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kid_is_found_against_its_own_half() {
        let fid =
            Fid(json!({"fid": 3.0, "split": "test", "against": {"test": {"kid": {"mean": 0.002}, "recall": 0.5}}}));
        assert_eq!((fid_number(&fid, "kid"), fid_number(&fid, "recall")), (Some(0.002), Some(0.5)));
        assert_eq!((fid_number(&fid, "precision"), fid_number(&fid, "/fid")), (None, Some(3.0)));
    }

    #[test]
    fn the_peak_is_the_first_highest() {
        let rows = [(0.0, 0.25), (20.0, 0.5), (50.0, 0.5)];
        let rows =
            rows.map(|(timestep, test_acc_raw)| crate::read::Accuracy { timestep, test_acc_raw, test_acc_std: 0.0 });
        let probe = Probe { rows: rows.to_vec(), model: String::new(), warnings: Vec::new() };
        assert_eq!(Peak::of(&probe, Features::Raw), Some(Peak { peak: 50.0, at: 20.0, zero: Some(25.0) }));
    }
}
