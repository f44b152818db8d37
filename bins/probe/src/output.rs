//! What a probe run leaves: `probe.csv`, `probe.json`, `weights.safetensors`, and the table that is printed.

use crate::run::Trained;
use lcf_model::{
    features::{self, Features, Part, time},
    weights,
};
use lcf_store::{
    Artifact, Error, Result,
    stage::{self, Work},
};
use serde::{Deserialize, Serialize};
use std::{fmt::Write, path::Path};
use tch::Tensor;

/// Accuracy at each timestep.
pub const CURVE: &str = "probe.csv";
/// Peaks and what they belong to.
pub const SUMMARY: &str = "probe.json";
/// The classifiers.
pub const WEIGHTS: &str = "weights.safetensors";

/// One line of [`CURVE`]: shares of right answers.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Row {
    /// Paper step T.
    pub timestep: u32,
    /// T / 1000.
    pub t: f64,
    /// Training images, features as they are.
    pub train_acc_raw: f64,
    /// Held-out images, features as they are.
    pub test_acc_raw: f64,
    /// Training images, standardised features.
    pub train_acc_std: f64,
    /// Held-out images, standardised features.
    pub test_acc_std: f64,
}

/// Accuracies as [`Trained::accuracy`] gives them, as lines.
pub fn rows(timesteps: &[u32], train: &[f64], test: &[f64]) -> Vec<Row> {
    let n = timesteps.len();
    let row = |(i, &timestep): (usize, &u32)| Row {
        timestep,
        t: time(timestep),
        train_acc_raw: train[i],
        test_acc_raw: test[i],
        train_acc_std: train[n + i],
        test_acc_std: test[n + i],
    };
    timesteps.iter().enumerate().map(row).collect()
}

/// Held-out accuracy at its best and on clean images.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Peak {
    /// The largest accuracy.
    pub peak: f64,
    /// Where it is; the smallest T if there are several.
    pub peak_timestep: u32,
    /// Accuracy at t = 0.
    pub t0: f64,
    /// peak - t0.
    pub gap: f64,
}

impl Peak {
    /// Of one curve over `rows`, the first of which is t = 0.
    pub fn of(rows: &[Row], accuracy: impl Fn(&Row) -> f64) -> Self {
        let best = rows.iter().reduce(|best, row| if accuracy(row) > accuracy(best) { row } else { best });
        let (best, first) = (best.expect("timesteps include 0"), &rows[0]);
        let (peak, t0) = (accuracy(best), accuracy(first));
        // Six decimals, as in the curve: a difference of two of them has no more to say.
        let gap = ((peak - t0) * 1e6).round() / 1e6;
        Self { peak, peak_timestep: best.timestep, t0, gap }
    }
}

/// [`SUMMARY`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Name of the dataset.
    pub dataset: String,
    /// Number of classes.
    pub classes: usize,
    /// Training images.
    pub n_train: usize,
    /// Held-out images.
    pub n_test: usize,
    /// Block the features come from.
    pub layer: usize,
    /// D, width of a feature.
    pub width: usize,
    /// Name of the model's weights.
    pub weights: String,
    /// Digest of the train artifact.
    pub model: String,
    /// On features as they are.
    pub raw: Peak,
    /// On standardised features.
    pub std: Peak,
    /// What a reader of these numbers has to know before quoting them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What [`Summary::warnings`] says of features, where all images have the same one at the timesteps numbered `constant`.
fn warnings(meta: &features::Meta, constant: &[usize]) -> Vec<String> {
    let mut found = Vec::new();
    if meta.trained_on.is_some() {
        found.push("the model was trained on another dataset artifact than the one these features are of".into());
    }
    if meta.classes.len() == 1 {
        found.push("there is one class, so every answer is right".into());
    }
    if !constant.is_empty() {
        let at: Vec<String> = constant.iter().map(|&i| meta.timesteps[i].to_string()).collect();
        found.push(format!(
            "all training images have the same feature at T={}: its probe can only guess",
            at.join(", ")
        ));
    }
    found
}

/// What is wrong with features whose probe number `probe`, of 2T, is not finite.
pub fn broken(features: &Features, probe: usize) -> Error {
    let (meta, timesteps) = (&features.meta, features.meta.timesteps.len());
    let timestep = meta.timesteps[probe % timesteps];
    let kind = if probe < timesteps { "as they are" } else { "standardised" };
    let path = features.artifact.dir().join(Part::Train.file(timestep));
    Error::bad(path, format!("the probe of the features at T={timestep}, {kind}, is not finite"))
        .with_hint("--set probe.lr=0.0001, or run lcf-extract again on a model with smaller features")
}

/// Writes the three files into `work`; `constant` are the timesteps, by number, whose features do not differ.
///
/// # Errors
/// [`Error::Io`].
pub fn write(work: &Work, meta: &features::Meta, trained: &Trained, rows: &[Row], constant: &[usize]) -> Result<()> {
    stage::write_atomic(&work.path(CURVE), csv_of(rows).as_bytes())?;
    // From the rounded curve, so that the two files agree to the last digit.
    let rounded = parse(csv_of(rows).as_bytes(), Path::new(CURVE))?;
    let summary = Summary {
        dataset: meta.dataset.clone(),
        classes: meta.classes.len(),
        n_train: meta.train,
        n_test: meta.test,
        layer: meta.layer,
        width: meta.width,
        weights: meta.weights.clone(),
        model: meta.model.clone(),
        raw: Peak::of(&rounded, |row| row.test_acc_raw),
        std: Peak::of(&rounded, |row| row.test_acc_std),
        warnings: warnings(meta, constant),
    };
    stage::write_atomic(&work.path(SUMMARY), &stage::pretty(&summary))?;
    let named = named(&meta.timesteps, trained);
    weights::write(&work.path(WEIGHTS), named.iter().map(|(name, tensor)| (name.as_str(), tensor.shallow_clone())))
}

fn csv_of(rows: &[Row]) -> String {
    let mut text = "timestep,t,train_acc_raw,test_acc_raw,train_acc_std,test_acc_std\n".to_owned();
    for row in rows {
        let Row { timestep, t, train_acc_raw, test_acc_raw, train_acc_std, test_acc_std } = row;
        let accuracies = format!("{train_acc_raw:.6},{test_acc_raw:.6},{train_acc_std:.6},{test_acc_std:.6}");
        writeln!(text, "{timestep},{t:.3},{accuracies}").expect("a string takes everything");
    }
    text
}

fn parse(text: &[u8], path: &Path) -> Result<Vec<Row>> {
    let rows: Result<Vec<Row>, csv::Error> = csv::Reader::from_reader(text).deserialize().collect();
    let rows = rows.map_err(|error| Error::bad(path, format!("not a probe curve: {error}")))?;
    let shares = |row: &Row| [row.train_acc_raw, row.test_acc_raw, row.train_acc_std, row.test_acc_std];
    match rows.iter().find(|row| !shares(row).iter().all(|share| (0.0..=1.0).contains(share))) {
        Some(row) => {
            let (found, timestep) = (shares(row), row.timestep);
            Err(Error::bad(path, format!("found {found:?} at T={timestep}, expected accuracies from 0 to 1")))
        }
        None if rows.is_empty() => Err(Error::bad(path, "no timestep in it")),
        None => Ok(rows),
    }
}

/// Reads [`CURVE`] and [`SUMMARY`].
///
/// # Errors
/// [`Error::Bad`] when one is missing or is not what it has to be.
pub fn read(artifact: &Artifact) -> Result<(Vec<Row>, Summary)> {
    let path = artifact.file(CURVE)?;
    let text = std::fs::read(&path).map_err(Error::io(&path, "read"))?;
    Ok((parse(&text, &path)?, artifact.json(SUMMARY)?))
}

/// `T0020.raw.weight` `[C, D]` and `.bias` `[C]` as `torch.nn.Linear` has them, likewise `.std`, and the `mean` and `scale`
/// `[D]` that make standardised features: (x - mean) * scale.
fn named(timesteps: &[u32], trained: &Trained) -> Vec<(String, Tensor)> {
    let mut named = Vec::new();
    for (i, timestep) in timesteps.iter().enumerate() {
        for (kind, probe) in [("raw", i), ("std", i + timesteps.len())] {
            let prefix = format!("T{timestep:04}.{kind}");
            named.push((format!("{prefix}.weight"), trained.probes.weight().get(probe as i64).tr()));
            named.push((format!("{prefix}.bias"), trained.probes.bias().get(probe as i64).squeeze_dim(0)));
        }
        for (name, all) in [("mean", &trained.standardise.mean), ("scale", &trained.standardise.scale)] {
            named.push((format!("T{timestep:04}.std.{name}"), all.get(i as i64).squeeze_dim(0)));
        }
    }
    named
}

/// The table and the peaks as people read them, in percent.
pub fn table(rows: &[Row], summary: &Summary) -> String {
    let Summary { dataset, n_train, n_test, classes, layer, weights, .. } = summary;
    let mut text =
        format!("{dataset}: {n_train} train, {n_test} test, {classes} classes; layer {layer}, weights {weights}\n");
    text += "accuracy in %       raw            standardised\n";
    text += "   T      t    train    test     train    test\n";
    for row in rows {
        let percent = [row.train_acc_raw, row.test_acc_raw, row.train_acc_std, row.test_acc_std].map(|a| 100.0 * a);
        let [a, b, c, d] = percent;
        text += &format!("{:>4}  {:.3}   {a:>6.2}  {b:>6.2}    {c:>6.2}  {d:>6.2}\n", row.timestep, row.t);
    }
    for (name, peak) in [("raw", summary.raw), ("standardised", summary.std)] {
        let Peak { peak, peak_timestep, t0, gap } = peak;
        let [peak, t0, gap] = [peak, t0, gap].map(|a| 100.0 * a);
        text += &format!("{name}: peak {peak:.2} at T={peak_timestep}, {t0:.2} at t=0, {gap:.2} points below\n");
    }
    summary.warnings.iter().for_each(|warning| text += &format!("warning: {warning}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve() -> Vec<Row> {
        rows(&[0, 20, 50], &[0.5, 0.75, 1.0, 0.1, 0.2, 0.3], &[0.4, 0.6, 0.6, 2.0 / 3.0, 0.5, 0.25])
    }

    #[test]
    fn the_curve_has_six_decimals_and_reads_back() {
        let text = csv_of(&curve());
        let mut lines = text.lines();
        assert_eq!(lines.next().unwrap(), "timestep,t,train_acc_raw,test_acc_raw,train_acc_std,test_acc_std");
        assert_eq!(lines.next().unwrap(), "0,0.000,0.500000,0.400000,0.100000,0.666667");
        assert_eq!(lines.next().unwrap(), "20,0.020,0.750000,0.600000,0.200000,0.500000");
        let back = parse(text.as_bytes(), Path::new("x")).unwrap();
        assert_eq!((back.len(), back[0].test_acc_std, back[2].t), (3, 0.666667, 0.05));
        assert!(parse(b"timestep,t\n0,0\n", Path::new("x")).is_err());
        let nan = text.replace("0.400000", "NaN");
        let error = parse(nan.as_bytes(), Path::new("x")).unwrap_err().to_string();
        assert!(error.starts_with("x: found [0.5, NaN, 0.1, 0.666667] at T=0"), "{error}");
    }

    #[test]
    fn the_peak_is_the_first_of_the_best() {
        let raw = Peak::of(&curve(), |row| row.test_acc_raw);
        assert_eq!(raw, Peak { peak: 0.6, peak_timestep: 20, t0: 0.4, gap: 0.2 });
        let std = Peak::of(&curve(), |row| row.test_acc_std);
        assert_eq!((std.peak_timestep, std.gap), (0, 0.0));
    }
}
