//! A run: the artifacts that the links in its directory lead to, and those of its snapshots one directory below.

use crate::{
    links::{self, CONFIGURED, Linked, find},
    read::{self, Fid, Metrics, Probe, Train},
};
use lcf_store::{Artifact, Error, Result, dataset};
use serde_json::Value;
use std::{collections::BTreeMap, path::Path};

/// Where the names of runs are.
pub const LIST: &str = "`lcf-artifact list` names the runs there are";

/// A run.
#[derive(Clone, Debug)]
pub struct Run {
    /// The name of its directory.
    pub name: String,
    /// What it links to by stage, those of snapshots as `epoch-N/STAGE`.
    pub artifacts: Vec<Linked>,
    /// Of the training.
    pub train: Option<Train>,
    /// Of the training.
    pub metrics: Option<Metrics>,
    /// Number of training images.
    pub images: Option<u64>,
    /// Of the final weights.
    pub last: Evaluation,
    /// Of snapshots, by epoch.
    pub snapshots: Vec<Evaluation>,
}

/// What the later stages say about one set of weights.
#[derive(Clone, Debug, Default)]
pub struct Evaluation {
    /// Epochs those weights were trained for, where a training is there.
    pub epoch: Option<u64>,
    /// The curve.
    pub probe: Option<Probe>,
    /// The distance.
    pub fid: Option<Fid>,
    /// The samples.
    pub sample: Option<Artifact>,
}

impl Run {
    /// Reads the run in `dir`; adds to `gaps` what it lacks.
    ///
    /// # Errors
    /// [`Error::Usage`] when nothing in `dir` is a run's, [`Error::Bad`] when a file is not what it has to be.
    pub fn read(dir: &Path, name: &str, gaps: &mut Vec<String>) -> Result<Self> {
        let mut artifacts = links::read(dir, gaps, name)?;
        if artifacts.is_empty() {
            let message = format!("{}: no run here (a directory with links like train, probe and fid)", dir.display());
            return Err(Error::usage(message).with_hint(LIST));
        }
        links::missing(&artifacts, name, gaps);
        links::drop_strangers(&mut artifacts, &[], name, gaps);
        let of = |stage: &str| find(&artifacts, stage);
        let train: Option<Train> = of("train").map(|artifact| read::json(artifact, "train.json")).transpose()?;
        let metrics = of("train").map(read::metrics).transpose()?;
        let images = of("prepare").map(images).transpose()?;
        let model = of("train").map(|artifact| artifact.digest().to_owned());
        let mut last = Evaluation::read(&artifacts, model.as_deref(), name, gaps)?;
        last.epoch = train.as_ref().map(|train| train.epochs);
        let mut snapshots = Vec::new();
        for (epoch, path) in links::epochs(dir)? {
            let mut below = links::read(&path, gaps, &format!("{name}/epoch-{epoch}"))?;
            links::drop_strangers(&mut below, &artifacts, &format!("{name}/epoch-{epoch}"), gaps);
            if let Some(other) = below.iter().find_map(|(stage, artifact)| links::other_weights(stage, artifact, epoch))
            {
                gaps.push(format!("{name}/epoch-{epoch}: it is of weights {other}; left out"));
                continue;
            }
            let at = format!("{name}/epoch-{epoch}");
            snapshots.push(Evaluation { epoch: Some(epoch), ..Evaluation::read(&below, model.as_deref(), &at, gaps)? });
            artifacts.extend(below.into_iter().map(|(stage, artifact)| (format!("epoch-{epoch}/{stage}"), artifact)));
        }
        links::unevaluated(&artifacts, snapshots.iter().filter_map(|one| one.epoch), name, gaps);
        Ok(Self { name: name.to_owned(), artifacts, train, metrics, images, last, snapshots })
    }

    /// The artifact of a stage, or of a snapshot's as `epoch-N/STAGE`.
    pub fn artifact(&self, role: &str) -> Option<&Artifact> {
        find(&self.artifacts, role)
    }

    /// Which images its accuracies are of: the name of the dataset, and what else makes it another.
    pub fn dataset(&self) -> Option<(String, String)> {
        let made = self.artifact("prepare")?.manifest();
        let setting = |name: &str| made.config.get(name).unwrap_or(&Value::Null);
        let more = format!("{} {} {:?}", setting("side"), setting("synthetic"), made.inputs);
        Some((setting("dataset").as_str()?.to_owned(), more))
    }

    /// Every setting of every stage by its path, like `train.optim.lr`.
    pub fn settings(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for (stage, artifact) in self.artifacts.iter().filter(|(role, _)| CONFIGURED.contains(&role.as_str())) {
            flatten(stage, &artifact.manifest().config, &mut found);
        }
        found
    }

    /// One of [`Run::settings`].
    pub fn setting(&self, path: &str) -> Option<String> {
        self.settings().remove(path)
    }

    /// Hours that training took: of a resumed one the manifest has the last part alone, and `metrics.csv` all steps.
    pub fn training_hours(&self) -> Option<f64> {
        let made = self.artifact("train")?.manifest().provenance.seconds;
        let steps = self.metrics.as_ref().map_or(0.0, Metrics::seconds);
        Some(made.max(steps) / 3600.0)
    }

    /// Hours of all stages that ran on a GPU, snapshots included; `None` when none did. References are made within the
    /// time of `fid`, and one serves many.
    pub fn gpu_hours(&self) -> Option<f64> {
        let hours = |(role, artifact): &Linked| {
            if artifact.manifest().stage == "reference" {
                return None;
            }
            let made = &artifact.manifest().provenance;
            let hours = if role == "train" { self.training_hours()? } else { made.seconds / 3600.0 };
            gpus(&made.device).map(|gpus| gpus * hours)
        };
        let all: Vec<f64> = self.artifacts.iter().filter_map(hours).collect();
        (!all.is_empty()).then(|| all.iter().sum())
    }

    /// Every evaluation by epoch. Of two at one epoch it is the final weights'.
    pub fn evaluations(&self) -> Vec<(u64, &Evaluation)> {
        let all = self.snapshots.iter().chain([&self.last]).filter_map(|one| Some((one.epoch?, one)));
        all.collect::<BTreeMap<_, _>>().into_iter().collect()
    }
}

impl Evaluation {
    fn read(artifacts: &[Linked], model: Option<&str>, at: &str, gaps: &mut Vec<String>) -> Result<Self> {
        // Where the link between is missing, the result itself says which training it is of.
        let mut of_model = |what: &str, found: Option<&str>| {
            let same = found.is_none() || model.is_none() || found == model;
            if !same {
                gaps.push(format!("{at}: {what} is of another training than the link train; left out"));
            }
            same
        };
        let probe = find(artifacts, "probe").map(read::probe).transpose()?;
        let probe = probe.filter(|probe| of_model("probe", Some(&probe.model)));
        let warnings = probe.iter().flat_map(|probe| &probe.warnings);
        let warnings: Vec<String> = warnings.map(|warning| format!("{at}: probe: {warning}")).collect();
        let fid = find(artifacts, "fid").map(|artifact| read::json(artifact, "fid.json").map(Fid)).transpose()?;
        let fid = fid.filter(|fid| of_model("fid", fid.text("/sample/model")));
        gaps.extend(warnings);
        Ok(Self { epoch: None, probe, fid, sample: find(artifacts, "sample").cloned() })
    }
}

fn images(artifact: &Artifact) -> Result<u64> {
    let meta: Value = read::json(artifact, dataset::META)?;
    let count = meta.pointer("/train/count").and_then(Value::as_u64);
    count.ok_or_else(|| Error::bad(artifact.dir().join(dataset::META), "no train.count in it"))
}

/// How many GPUs `cuda:0 NVIDIA H100` or `4 x cuda NVIDIA H100` is.
fn gpus(device: &str) -> Option<f64> {
    let (count, name) = device.split_once(" x ").unwrap_or(("1", device));
    count.parse().ok().filter(|_| name.starts_with("cuda"))
}

/// Values by their path, objects gone through.
fn flatten(path: &str, value: &Value, found: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| flatten(&format!("{path}.{name}"), value, found)),
        Value::Null => {}
        Value::String(text) => drop(found.insert(path.to_owned(), text.clone())),
        other => drop(found.insert(path.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_paths_and_null_is_none() {
        let mut found = BTreeMap::new();
        let config =
            serde_json::json!({"lr": 1e-4, "optim": {"clip": 1.0, "name": "a"}, "limit": null, "list": [1, 2]});
        flatten("train", &config, &mut found);
        let found: Vec<String> = found.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(found, ["train.list=[1,2]", "train.lr=0.0001", "train.optim.clip=1.0", "train.optim.name=a"]);
    }

    #[test]
    fn gpus_are_counted() {
        assert_eq!(gpus("cuda:0 NVIDIA H100"), Some(1.0));
        assert_eq!(gpus("4 x cuda NVIDIA H100"), Some(4.0));
        assert_eq!(gpus("cpu"), None);
    }
}
