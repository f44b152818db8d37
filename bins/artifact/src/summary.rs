//! `lcf-artifact show data/runs/RUN`: the results of a run on one screen.

use crate::{
    fid, list, store,
    text::{self, plain},
};
use lcf_store::{Artifact, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// In the order they run.
const STAGES: [&str; 7] = ["prepare", "train", "extract", "probe", "sample", "fid", "report"];

/// The artifacts a run links to, and the numbers in them that people ask for first.
#[derive(Debug)]
pub struct Summary {
    dir: PathBuf,
    artifacts: Vec<Artifact>,
    /// Stages whose links lead nowhere.
    broken: Vec<String>,
    train: Option<Value>,
    probe: Option<Vec<Accuracy>>,
    fid: Option<Value>,
    /// What the stages say about their numbers, with the stage.
    warnings: Vec<String>,
}

/// A row of `probe.csv`: accuracies as fractions at one timestep. `timestep` is t * 1000.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Accuracy {
    timestep: f64,
    t: f64,
    train_acc_raw: f64,
    test_acc_raw: f64,
    train_acc_std: f64,
    test_acc_std: f64,
}

/// Where a probe curve is highest, and how much lower it is on clean images.
#[derive(Debug, PartialEq, Serialize)]
pub struct Peak {
    /// Highest test accuracy.
    pub peak: f64,
    /// The t it is reached at; the smallest of several.
    pub peak_t: f64,
    /// Test accuracy at t = 0, where that was measured.
    pub at_zero: Option<f64>,
    /// `peak - at_zero`.
    pub gap: Option<f64>,
}

/// The peak of `(t, test accuracy)` pairs; `None` of none.
pub fn peak(curve: &[(f64, f64)]) -> Option<Peak> {
    let best = curve.iter().copied().reduce(|best, next| if next.1 > best.1 { next } else { best })?;
    let at_zero = curve.iter().find(|(t, _)| *t == 0.0).map(|(_, accuracy)| *accuracy);
    Some(Peak { peak: best.1, peak_t: best.0, at_zero, gap: at_zero.map(|zero| best.1 - zero) })
}

impl Summary {
    /// Reads the run whose links lie in `dir`; `None` when none of them is a stage's.
    ///
    /// # Errors
    /// [`Error::Bad`] when an artifact, or a result in it, cannot be read.
    pub fn of(dir: &Path) -> Result<Option<Self>> {
        let links: Vec<PathBuf> = STAGES.map(|stage| dir.join(stage)).into_iter().filter(|p| p.is_symlink()).collect();
        if links.is_empty() {
            return Ok(None);
        }
        let (whole, broken): (Vec<_>, Vec<_>) = links.into_iter().partition(|link| link.exists());
        let artifacts = whole.iter().map(|link| Artifact::read(link)).collect::<Result<Vec<_>>>()?;
        let broken = broken.iter().map(|link| store::name(link)).collect();
        let of = |stage: &str| artifacts.iter().find(|artifact| artifact.manifest().stage == stage);
        let train = of("train").map(|artifact| artifact.json("train.json")).transpose()?;
        let probe = of("probe").map(accuracies).transpose()?;
        let fid = of("fid").map(|artifact| artifact.json("fid.json")).transpose()?;
        let mut warnings = Vec::new();
        for (stage, file) in [("probe", "probe.json"), ("fid", "fid.json")] {
            let said = of(stage).filter(|artifact| artifact.file(file).is_ok());
            let said: Option<Value> = said.map(|artifact| artifact.json(file)).transpose()?;
            let said = said.as_ref().and_then(|said| said.get("warnings")?.as_array());
            warnings.extend(said.into_iter().flatten().filter_map(plain).map(|text| format!("{stage}: {text}")));
        }
        Ok(Some(Self { dir: dir.to_owned(), broken, train, probe, fid, warnings, artifacts }))
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = format!("run {}\n\n", self.name());
        let head = ["stage", "artifact", "digest", "size", "took"].map(str::to_owned).to_vec();
        let rows = self.artifacts.iter().map(|artifact| {
            let manifest = artifact.manifest();
            vec![
                manifest.stage.clone(),
                text::short(artifact.dir()).display().to_string(),
                text::head(&manifest.digest).to_owned(),
                text::size(list::bytes(artifact)),
                format!("{} s", manifest.provenance.seconds),
            ]
        });
        out += &text::columns("lllrr", &std::iter::once(head).chain(rows).collect::<Vec<_>>());
        for stage in &self.broken {
            out += &format!("{stage}: the link leads nowhere; make {stage} again\n");
        }
        if let Some(train) = &self.train {
            out += &format!("\ntraining: {}\n", headline(train));
        }
        if let Some(probe) = &self.probe {
            out += &format!("\n{}", curve(probe));
        }
        if let Some(fid) = &self.fid {
            out += &format!("\n{}\n{}", fid::line(fid), fid::others(fid));
        }
        self.warnings.iter().for_each(|warning| out += &format!("warning: {warning}\n"));
        out
    }

    /// The same as one JSON object.
    pub fn json(&self) -> Value {
        let stages: serde_json::Map<String, Value> = self
            .artifacts
            .iter()
            .map(|artifact| {
                let manifest = artifact.manifest();
                let path = text::short(artifact.dir());
                (manifest.stage.clone(), json!({ "path": path, "key": manifest.key, "digest": manifest.digest }))
            })
            .collect();
        let probe = self
            .probe
            .as_ref()
            .map(|rows| json!({ "curve": rows, "raw": peak(&raw(rows)), "standardised": peak(&standardised(rows)) }));
        json!({ "run": self.name(), "stages": stages, "broken": self.broken, "train": self.train, "probe": probe, "fid": self.fid, "warnings": self.warnings })
    }

    fn name(&self) -> String {
        self.dir.display().to_string().trim_end_matches('/').to_owned()
    }
}

fn accuracies(artifact: &Artifact) -> Result<Vec<Accuracy>> {
    let path = artifact.file("probe.csv")?;
    let bad = |error: csv::Error| Error::bad(&path, format!("unexpected content: {error}"));
    let rows: Result<Vec<Accuracy>> =
        csv::Reader::from_path(&path).map_err(bad)?.deserialize().map(|row| row.map_err(bad)).collect();
    let rows = rows?;
    let shares = |row: &Accuracy| [row.train_acc_raw, row.test_acc_raw, row.train_acc_std, row.test_acc_std];
    match rows.iter().find(|row| !shares(row).iter().all(|share| (0.0..=1.0).contains(share))) {
        Some(row) => {
            let message = format!("found {:?} at T={}, expected accuracies from 0 to 1", shares(row), row.timestep);
            Err(artifact.suspect(Error::bad(&path, message)))
        }
        None => Ok(rows),
    }
}

fn raw(rows: &[Accuracy]) -> Vec<(f64, f64)> {
    rows.iter().map(|row| (row.t, row.test_acc_raw)).collect()
}

fn standardised(rows: &[Accuracy]) -> Vec<(f64, f64)> {
    rows.iter().map(|row| (row.t, row.test_acc_std)).collect()
}

/// Test accuracy per t, and the peaks.
fn curve(rows: &[Accuracy]) -> String {
    let percent = |value: f64| format!("{:.2}", 100.0 * value);
    let head = ["T", "t", "raw", "standardised"].map(str::to_owned).to_vec();
    let cells = rows.iter().map(|row| {
        let t = (row.t * 1e6).round() / 1e6;
        vec![row.timestep.to_string(), t.to_string(), percent(row.test_acc_raw), percent(row.test_acc_std)]
    });
    let mut out = "linear probe, accuracy on test images in percent:\n".to_owned();
    out += &text::columns("rrrr", &std::iter::once(head).chain(cells).collect::<Vec<_>>());
    for (name, curve) in [("raw", raw(rows)), ("standardised", standardised(rows))] {
        let Some(Peak { peak, peak_t, at_zero, gap }) = peak(&curve) else { continue };
        out += &format!("{name}: peak {} at t={peak_t}", percent(peak));
        if let (Some(zero), Some(gap)) = (at_zero, gap) {
            out += &format!(", at t=0 {}, gap {}", percent(zero), percent(gap));
        }
        out.push('\n');
    }
    out
}

/// What `train.json` says, fields that are not there left out.
fn headline(train: &Value) -> String {
    let fields = [("objective", ""), ("parameters", " parameters"), ("epochs", " epochs"), ("steps", " steps")];
    let mut parts: Vec<String> =
        fields.iter().filter_map(|(name, unit)| Some(format!("{}{unit}", plain(train.get(name)?)?))).collect();
    if let Some(loss) = train.get("final_loss").and_then(Value::as_f64) {
        parts.push(format!("final loss {loss:.4}"));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_the_first_highest_and_the_gap_is_to_clean_images() {
        let found = peak(&[(0.0, 0.25), (0.02, 0.5), (0.1, 0.5)]).unwrap();
        assert_eq!(found, Peak { peak: 0.5, peak_t: 0.02, at_zero: Some(0.25), gap: Some(0.25) });
        assert_eq!(peak(&[(0.1, 0.5)]).unwrap().gap, None);
        assert_eq!(peak(&[]), None);
    }

    #[test]
    fn the_headline_leaves_out_what_is_not_known() {
        let train = json!({ "objective": "fm", "parameters": 10, "final_loss": 0.5 });
        assert_eq!(headline(&train), "fm, 10 parameters, final loss 0.5000");
    }
}
