//! `lcf-artifact show` of one artifact.

use crate::{list, store::Store, text};
use lcf_store::{Artifact, Result};
use serde_json::{Map, Value, json};

/// The store an artifact lies in, which is where its inputs are looked for.
///
/// # Errors
/// [`lcf_store::Error::Io`] when the store cannot be listed.
pub fn store_of(artifact: &Artifact) -> Result<Store> {
    match artifact.dir().parent().and_then(|stage| stage.parent()) {
        Some(root) => Store::scan(root),
        None => Ok(Store::default()),
    }
}

/// Everything the manifest says, and where the inputs are.
pub fn text(artifact: &Artifact, store: &Store) -> String {
    let manifest = artifact.manifest();
    let config = serde_json::to_string_pretty(&manifest.config).expect("JSON serialises");
    let mut out = format!("{}\n", text::short(artifact.dir()).display());
    let mut line = |name: &str, value: String| out += &format!("{name:<10}{value}\n");
    line("stage", format!("{} (version {})", manifest.stage, manifest.version));
    line("key", manifest.key.clone());
    line("digest", manifest.digest.clone());
    line("config", config.replace('\n', &format!("\n{:10}", "")));
    for (role, digest) in &manifest.inputs {
        let place = store.by_digest(digest).map(|input| text::short(input.dir()).display().to_string());
        let place = place.unwrap_or_else(|| "not in this store".into());
        line("input", format!("{role}: {place}, digest {}", text::head(digest)));
    }
    line("files", format!("{}, {}", manifest.outputs.len(), text::size(list::bytes(artifact))));
    let rows: Vec<Vec<String>> = manifest
        .outputs
        .iter()
        .map(|file| {
            let note = if file.log { "log, not in the digest" } else { "" };
            let sha256 = format!("sha256 {}", text::head(&file.sha256));
            vec![String::new(), file.path.clone(), text::size(file.bytes), sha256, note.into()]
        })
        .collect();
    out += &text::columns("llrll", &rows).lines().map(|row| format!("{:8}{row}\n", "")).collect::<String>();
    out + &provenance(artifact)
}

fn provenance(artifact: &Artifact) -> String {
    let made = &artifact.manifest().provenance;
    let mut out = format!("{:<10}{} in {} s\n", "made", text::date(made.started), made.seconds);
    let fields = [
        ("on", &made.host),
        ("device", &made.device),
        ("libtorch", &made.libtorch),
        ("repeats", &made.reproducible),
        ("from", &made.revision),
    ];
    for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
        out += &format!("{name:<10}{value}\n");
    }
    out + &format!("{:<10}{}\n", "by", made.argv.join(" "))
}

/// The manifest as it is, its path, and the inputs with theirs.
pub fn json(artifact: &Artifact, store: &Store) -> Value {
    let inputs: Map<String, Value> = artifact
        .manifest()
        .inputs
        .iter()
        .map(|(role, digest)| (role.clone(), json!(store.by_digest(digest).map(|input| text::short(input.dir())))))
        .collect();
    json!({ "path": text::short(artifact.dir()), "input_paths": inputs, "manifest": artifact.manifest() })
}
