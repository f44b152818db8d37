//! A training as PyTorch and Hugging Face know it: weights by DiT's names, `config.json`, a model card, and the network.

use super::{arrays::each_tensor, card, copy, write};
use crate::{show::store_of, text};
use lcf_store::{Artifact, Error, Result, stage::pretty};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The network in plain PyTorch.
const DIT: &str = include_str!("../../pytorch/dit.py");
/// An example that draws samples with it.
const EXAMPLE: &str = include_str!("../../pytorch/sample.py");

/// Writes the weights called `name` and all around them to the folder `to`.
pub fn write_model(artifact: &Artifact, name: &str, to: &Path) -> Result<()> {
    let train: Value = artifact.json("train.json")?;
    let weights = weights(artifact, name)?;
    each_tensor(&weights, |_, _, _| Ok(())).map_err(|error| artifact.suspect(error))?;
    copy(&weights, &to.join("model.safetensors"))?;
    let config = config(artifact, &train, name)?;
    write(&to.join("config.json"), &pretty(&config))?;
    write(&to.join("dit.py"), DIT.as_bytes())?;
    write(&to.join("sample.py"), EXAMPLE.as_bytes())?;
    let card = card::text(artifact, &train, name, &store_of(artifact)?);
    write(&to.join("README.md"), card.as_bytes())
}

fn weights(artifact: &Artifact, name: &str) -> Result<std::path::PathBuf> {
    let file = format!("weights/{name}.safetensors");
    let outputs = &artifact.manifest().outputs;
    if outputs.iter().any(|output| output.path == file) {
        return Ok(artifact.dir().join(file));
    }
    let there = outputs.iter().filter_map(|o| o.path.strip_prefix("weights/")?.strip_suffix(".safetensors"));
    let there = there.collect::<Vec<_>>().join(", ");
    let dir = text::short(artifact.dir());
    Err(Error::usage(format!("--weights {name}: {} has {there}", dir.display())))
}

/// Shape of the network, what it was trained for, and the whole config of the training.
fn config(artifact: &Artifact, train: &Value, name: &str) -> Result<Value> {
    let mut model = Map::new();
    for part in ["model", "input"] {
        match train[part].as_object() {
            Some(fields) => model.extend(fields.clone()),
            None => return Err(Error::bad(artifact.file("train.json")?, format!("found no {part} in it"))),
        }
    }
    Ok(json!({
        "architectures": ["DiT"],
        "model_type": "lcf-dit",
        "model": model,
        "velocity_from": train["velocity_from"],
        "weights": name,
        "objective": train["objective"],
        "dataset": train["dataset"],
        "digest": artifact.digest(),
        "training": artifact.manifest().config,
    }))
}
