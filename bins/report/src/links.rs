//! The links of a run: which artifacts they lead to, which belong together, and which are missing.

use lcf_store::{Artifact, Error, Result, artifact::MANIFEST};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Links of a run, in the order its stages run; references are linked beside `fid`.
pub const STAGES: [&str; 9] =
    ["prepare", "train", "extract", "probe", "sample", "reference", "reference-train", "reference-test", "fid"];
/// Links to samples from further seeds, which `fid` was given as well: this and the seed.
const SEEDED: &str = "sample-seed-";
/// Those with a section in the config.
pub const CONFIGURED: [&str; 6] = ["prepare", "train", "extract", "probe", "sample", "fid"];
/// Those that look at one set of weights.
const EVALUATION: [&str; 4] = ["extract", "probe", "sample", "fid"];

/// Which input of a stage is which other stage's artifact, in the order they run.
const MADE_FROM: [(&str, &str, &str); 6] = [
    ("extract", "model", "train"),
    ("extract", "data", "prepare"),
    ("probe", "features", "extract"),
    ("sample", "model", "train"),
    ("fid", "samples", "sample"),
    ("fid", "data", "prepare"),
];

/// An artifact by its stage, or `epoch-N/STAGE`.
pub type Linked = (String, Artifact);

/// The artifact of a role.
pub fn find<'a>(artifacts: &'a [Linked], role: &str) -> Option<&'a Artifact> {
    artifacts.iter().find(|(name, _)| name == role).map(|(_, artifact)| artifact)
}

/// Removes artifacts that were made from others than those linked beside them (or in `above`), as links are after a
/// stage has run again and those after it have not; what was made from them; and samples that `fid` was not given.
pub fn drop_strangers(artifacts: &mut Vec<Linked>, above: &[Linked], at: &str, gaps: &mut Vec<String>) {
    let mut strange: Vec<&str> = Vec::new();
    // A run is its training: images that were prepared anew since then are not what it is about.
    if let (Some(train), Some(data)) = (find(artifacts, "train"), find(artifacts, "prepare"))
        && train.manifest().inputs.get("data").is_some_and(|digest| digest != data.digest())
    {
        gaps.push(format!("{at}: train was made from another prepare than the one linked, which is left out"));
        artifacts.retain(|(stage, _)| stage != "prepare");
    }
    let linked = |name: &str| find(artifacts, name).or_else(|| find(above, name));
    // Without the link the training says what it was made from, and nothing else is what the run is about.
    let trained_on = linked("train").and_then(|train| train.manifest().inputs.get("data"));
    for (stage, role, from) in MADE_FROM {
        let Some(made) = find(artifacts, stage) else { continue };
        let (source, what) = match linked(from) {
            Some(source) => (Some(source.digest()), format!("another {from} than the one linked")),
            None => {
                (trained_on.filter(|_| from == "prepare").map(String::as_str), "other images than train".to_owned())
            }
        };
        let other =
            source.is_some_and(|source| made.manifest().inputs.get(role).is_some_and(|digest| digest != source));
        if !strange.contains(&stage) && (other || strange.contains(&from)) {
            gaps.push(format!("{at}: {stage} was made from {what}; left out"));
            strange.push(stage);
        }
    }
    artifacts.retain(|(stage, _)| !strange.contains(&stage.as_str()));
    let given: Vec<String> =
        find(artifacts, "fid").map(|fid| fid.manifest().inputs.values().cloned().collect()).unwrap_or_default();
    artifacts.retain(|(role, made)| !role.starts_with(SEEDED) || given.iter().any(|digest| digest == made.digest()));
}

/// The artifacts that the links in `dir` lead to, by stage. A link that leads nowhere is a gap.
pub fn read(dir: &Path, gaps: &mut Vec<String>, at: &str) -> Result<Vec<Linked>> {
    let mut found: Vec<Linked> = Vec::new();
    let stages: Vec<String> = STAGES.map(str::to_owned).into_iter().chain(seeded(dir)?).collect();
    for stage in stages.iter().map(String::as_str) {
        let path = dir.join(stage);
        if path.join(MANIFEST).exists() {
            let artifact = Artifact::read(&path)?;
            let expected = stage.split('-').next().unwrap_or(stage);
            if artifact.manifest().stage != expected {
                let message = format!("found an artifact of stage {}, expected {expected}", artifact.manifest().stage);
                return Err(Error::bad(path, message));
            }
            found.push((stage.to_owned(), artifact));
        } else if path.is_symlink() {
            gaps.push(format!("{at}: the link {stage} leads nowhere"));
        }
    }
    Ok(found)
}

/// Names of links to samples from further seeds, in the order of the seeds.
fn seeded(dir: &Path) -> Result<Vec<String>> {
    let mut seeds: Vec<u64> = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
        let name = entry.map_err(Error::io(dir, "list"))?.file_name().to_string_lossy().into_owned();
        seeds.extend(name.strip_prefix(SEEDED).and_then(|seed| seed.parse::<u64>().ok()));
    }
    seeds.sort_unstable();
    Ok(seeds.into_iter().map(|seed| format!("{SEEDED}{seed}")).collect())
}

/// Names the stages that there is no artifact of.
pub fn missing(artifacts: &[Linked], name: &str, gaps: &mut Vec<String>) {
    let stages: Vec<&str> = CONFIGURED.into_iter().filter(|stage| find(artifacts, stage).is_none()).collect();
    let target = if let [stage] = stages[..] { stage } else { "all" };
    if !stages.is_empty() {
        gaps.push(format!("{name}: no {} (make {target} P={name})", stages.join(", ")));
    }
}

/// Snapshots that lack a stage, those without a directory of their own included.
pub fn unevaluated(artifacts: &[Linked], read: impl Iterator<Item = u64>, name: &str, gaps: &mut Vec<String>) {
    let Some(train) = find(artifacts, "train") else { return };
    let config = train.manifest().config.get("snapshots").and_then(Value::as_array);
    let mut epochs: Vec<u64> = config.into_iter().flatten().filter_map(Value::as_u64).collect();
    epochs.extend(read);
    epochs.sort_unstable();
    epochs.dedup();
    for epoch in epochs {
        let lacks = |stage: &&&str| find(artifacts, &format!("epoch-{epoch}/{stage}")).is_none();
        let stages: Vec<&str> = EVALUATION.iter().filter(lacks).copied().collect();
        if !stages.is_empty() {
            gaps.push(format!("{name}: epoch {epoch} has no {} (make snapshots P={name})", stages.join(", ")));
        }
    }
}

/// The directories `epoch-N` in `dir`, by N.
pub fn epochs(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
        let path = entry.map_err(Error::io(dir, "list"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(epoch) = name.strip_prefix("epoch-").and_then(|n| n.parse().ok())
            && path.is_dir()
        {
            found.push((epoch, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The weights that a stage took when they are not those of `epoch`.
pub fn other_weights(stage: &str, artifact: &Artifact, epoch: u64) -> Option<String> {
    let takes = matches!(stage, "extract" | "sample");
    let weights = artifact.manifest().config.get("weights").and_then(Value::as_str).filter(|_| takes)?;
    (weights != format!("epoch-{epoch}")).then(|| weights.to_owned())
}
