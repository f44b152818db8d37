//! What the stages left, as far as a report needs it. Fields that an older or newer version of a stage does not write are
//! absent here, not errors.

use lcf_store::{Artifact, Error, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Of `train.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Train {
    /// `fm`, `lcf`, ...
    pub objective: String,
    /// Trained parameters.
    pub parameters: u64,
    /// Passes over the images.
    pub epochs: u64,
    /// Updates asked for.
    pub steps: u64,
    /// Updates left out.
    pub skipped: u64,
    /// Flow loss of the last epoch, per dimension.
    pub final_loss: Option<f64>,
    /// Name of the dataset.
    pub dataset: String,
    /// Its digest.
    pub data: String,
}

/// `metrics.csv` by column; an empty cell is NaN.
#[derive(Clone, Debug, Default)]
pub struct Metrics(BTreeMap<String, Vec<f64>>);

impl Metrics {
    /// The column, empty where there is none.
    pub fn column(&self, name: &str) -> &[f64] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// `(epoch, value)` of a column, without empty cells.
    pub fn over_epochs(&self, name: &str) -> Vec<(f64, f64)> {
        let pairs = self.column("epoch").iter().copied().zip(self.column(name).iter().copied());
        pairs.filter(|(_, value)| value.is_finite()).collect()
    }

    /// Seconds of all steps.
    pub fn seconds(&self) -> f64 {
        let steps = self.column("step");
        let before = std::iter::once(&0.0).chain(steps);
        let ms = steps.iter().zip(before).zip(self.column("ms_per_step")).map(|((step, last), ms)| (step - last) * ms);
        ms.filter(|ms| ms.is_finite()).sum::<f64>() / 1e3
    }

    /// Median of a column.
    pub fn median(&self, name: &str) -> Option<f64> {
        let mut values: Vec<f64> = self.column(name).iter().copied().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }
}

/// A probe's curve and what it is of.
#[derive(Clone, Debug)]
pub struct Probe {
    /// By timestep.
    pub rows: Vec<Accuracy>,
    /// Digest of the training.
    pub model: String,
    /// What a reader of it has to know.
    pub warnings: Vec<String>,
}

/// Shares of right answers on held-out images. `timestep` is 1000 t.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
pub struct Accuracy {
    /// T.
    pub timestep: f64,
    /// Features as they are.
    pub test_acc_raw: f64,
    /// Standardised features.
    pub test_acc_std: f64,
}

/// Which features a probe saw.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Features {
    /// As they are.
    Raw,
    /// Standardised.
    Std,
}

impl Features {
    /// For people.
    pub fn name(self) -> &'static str {
        if self == Self::Raw { "features as they are" } else { "standardised features" }
    }

    /// For files.
    pub fn id(self) -> &'static str {
        if self == Self::Raw { "raw" } else { "std" }
    }
}

impl Probe {
    /// `(T, accuracy in percent)`.
    pub fn curve(&self, features: Features) -> Vec<(f64, f64)> {
        let of = |row: &Accuracy| if features == Features::Raw { row.test_acc_raw } else { row.test_acc_std };
        self.rows.iter().map(|row| (row.timestep, 100.0 * of(row))).collect()
    }
}

/// Of `fid.json`.
#[derive(Clone, Debug)]
pub struct Fid(pub Value);

impl Fid {
    /// A number by its path, like `/floor/fid`.
    pub fn number(&self, path: &str) -> Option<f64> {
        self.0.pointer(path)?.as_f64()
    }

    /// A text by its path.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.0.pointer(path)?.as_str()
    }

    /// What a FID has to share with another to be comparable: both numbers of images, dataset, split, resize and
    /// precision of the features, sampler and its steps.
    pub fn protocol(&self) -> String {
        let part = |path: &str| self.0.pointer(path).map_or("?".into(), |v| v.to_string().replace('"', ""));
        // Features are of fp32 where nothing is said.
        let features = self.text("/feature_precision").filter(|&kind| kind != "fp32");
        let features = features.map(|kind| format!(", {kind} features")).unwrap_or_default();
        format!(
            "{} samples ({}, {} steps) against {} {} {} images, {} resize{features}",
            part("/n"),
            part("/sample/sampler"),
            part("/sample/steps"),
            part("/n_reference"),
            part("/dataset"),
            part("/split"),
            part("/resize")
        )
    }
}

/// Reads a CSV of numbers by columns.
///
/// # Errors
/// [`Error::Bad`] naming the file.
pub fn metrics(artifact: &Artifact) -> Result<Metrics> {
    let path = artifact.verified("metrics.csv")?;
    let bad = |error: csv::Error| Error::bad(&path, format!("unexpected content: {error}"));
    let mut reader = csv::Reader::from_path(&path).map_err(bad)?;
    let names: Vec<String> = reader.headers().map_err(bad)?.iter().map(str::to_owned).collect();
    let mut columns = vec![Vec::new(); names.len()];
    for row in reader.records() {
        let row = row.map_err(bad)?;
        columns.iter_mut().zip(row.iter()).for_each(|(column, cell)| column.push(cell.parse().unwrap_or(f64::NAN)));
    }
    Ok(Metrics(names.into_iter().zip(columns).collect()))
}

/// Reads the artifact of a probe.
///
/// # Errors
/// [`Error::Bad`] naming the file.
pub fn probe(artifact: &Artifact) -> Result<Probe> {
    #[derive(Deserialize)]
    struct Summary {
        model: String,
        #[serde(default)]
        warnings: Vec<String>,
    }
    let path = artifact.verified("probe.csv")?;
    let bad = |error: csv::Error| Error::bad(&path, format!("unexpected content: {error}"));
    let rows: Result<Vec<Accuracy>> =
        csv::Reader::from_path(&path).map_err(bad)?.deserialize().map(|row| row.map_err(bad)).collect();
    let rows = rows?;
    let is_share = |value: f64| (0.0..=1.0).contains(&value);
    if let Some(row) = rows.iter().find(|row| !is_share(row.test_acc_raw) || !is_share(row.test_acc_std)) {
        let found = (row.test_acc_raw, row.test_acc_std);
        let message = format!("found {found:?} at T={}, expected accuracies from 0 to 1", row.timestep);
        return Err(artifact.suspect(Error::bad(&path, message)));
    }
    let Summary { model, warnings } = json(artifact, "probe.json")?;
    Ok(Probe { rows, model, warnings })
}

/// Reads one of an artifact's JSON files, verified.
///
/// # Errors
/// [`Error::Bad`] naming the file.
pub fn json<T: serde::de::DeserializeOwned>(artifact: &Artifact, name: &str) -> Result<T> {
    artifact.verified(name)?;
    artifact.json(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_know_their_time_and_skip_empty_cells() {
        let columns = [
            ("step", vec![10.0, 20.0, 25.0]),
            ("epoch", vec![1.0, 2.0, 2.5]),
            ("ms_per_step", vec![100.0, 50.0, 200.0]),
            ("pull", vec![f64::NAN, 3.0, 4.0]),
        ];
        let metrics = Metrics(columns.into_iter().map(|(name, column)| (name.to_owned(), column)).collect());
        assert_eq!((metrics.seconds(), metrics.median("ms_per_step")), (2.5, Some(100.0)));
        assert_eq!(metrics.over_epochs("pull"), [(2.0, 3.0), (2.5, 4.0)]);
        assert_eq!((metrics.median("none"), metrics.over_epochs("none").len()), (None, 0));
    }

    #[test]
    fn what_is_absent_from_a_fid_is_none() {
        let mut fid =
            Fid(serde_json::json!({"fid": 2.5, "n": 64, "n_reference": 128, "split": "train", "resize": "tf1",
            "dataset": "cifar10", "sample": {"sampler": "euler"}}));
        assert_eq!((fid.number("/fid"), fid.number("/kid"), fid.text("/sample/model")), (Some(2.5), None, None));
        assert_eq!(fid.protocol(), "64 samples (euler, ? steps) against 128 cifar10 train images, tf1 resize");
        fid.0["feature_precision"] = "fp16".into();
        assert!(fid.protocol().ends_with("images, tf1 resize, fp16 features"), "{}", fid.protocol());
    }
}
