//! `lcf-artifact list`.

use crate::{
    store::{Link, Store},
    text,
};
use lcf_store::Artifact;
use serde_json::{Value, json};

/// Bytes of all files of an artifact, by its manifest.
pub fn bytes(artifact: &Artifact) -> u64 {
    artifact.manifest().outputs.iter().map(|output| output.bytes).sum()
}

/// When it was published, seconds since 1970.
pub fn made(artifact: &Artifact) -> u64 {
    let provenance = &artifact.manifest().provenance;
    provenance.started + provenance.seconds as u64
}

/// One row an artifact, in the order of the store; `now` is seconds since 1970.
pub fn table(store: &Store, links: &[Link], now: u64) -> String {
    if store.artifacts.is_empty() {
        return "no artifacts yet: `make smoke` makes some\n".into();
    }
    let head = ["stage", "key", "size", "age", "runs"].map(str::to_owned).to_vec();
    let rows = store.artifacts.iter().map(|artifact| {
        let manifest = artifact.manifest();
        vec![
            manifest.stage.clone(),
            text::head(&manifest.key).to_owned(),
            text::size(bytes(artifact)),
            text::age(now.saturating_sub(made(artifact))),
            runs(artifact, links).join(", "),
        ]
    });
    let total: u64 = store.artifacts.iter().map(bytes).sum();
    let table = text::columns("llrrl", &std::iter::once(head).chain(rows).collect::<Vec<_>>());
    format!("{table}{} artifacts, {}\n", store.artifacts.len(), text::size(total))
}

/// The same as one JSON object.
pub fn json(store: &Store, links: &[Link]) -> Value {
    let artifacts: Vec<Value> = store
        .artifacts
        .iter()
        .map(|artifact| {
            let manifest = artifact.manifest();
            json!({
                "stage": manifest.stage,
                "key": manifest.key,
                "digest": manifest.digest,
                "path": text::short(artifact.dir()),
                "bytes": bytes(artifact),
                "made": made(artifact),
                "runs": runs(artifact, links),
            })
        })
        .collect();
    json!({ "artifacts": artifacts })
}

/// The runs that link to it.
fn runs(artifact: &Artifact, links: &[Link]) -> Vec<String> {
    let here = links.iter().filter(|link| link.target.as_deref() == Some(artifact.dir()));
    here.map(|link| link.run.clone()).collect()
}
