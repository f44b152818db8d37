//! `README.md` of an exported model: the model card.

use crate::{
    fid::features,
    store::Store,
    text::{columns, head, plain},
};
use lcf_store::{Artifact, say};
use serde_json::Value;
use std::collections::BTreeSet;

/// The card of the weights called `name` in `artifact`, whose `train.json` is `train`. Numbers are those of every
/// evaluation of these weights in `store`.
pub fn text(artifact: &Artifact, train: &Value, name: &str, store: &Store) -> String {
    let field = |path: &str| train.pointer(path).and_then(plain).unwrap_or_else(|| "unknown".into());
    let [objective, dataset, depth, width] = ["/objective", "/dataset", "/model/depth", "/model/width"].map(field);
    let mut out = format!(
        "---\nlibrary_name: pytorch\npipeline_tag: unconditional-image-generation\n\
         tags: [flow-matching, dit, lcf]\n---\n\n# {objective} on {dataset}: DiT {depth} x {width}\n\n\
         An unconditional DiT trained to predict the velocity v = eps - x_0 of x_t = (1 - t) x_0 + t eps, with t = 0 at \
         the data and t = 1 at the noise.\n\n"
    );
    out += &facts(artifact, train, name);
    out += &numbers(artifact, name, store);
    out += HOW;
    out + &origin(artifact, train, name)
}

const HOW: &str = r#"
## Use

```sh
pip install torch safetensors pillow
python sample.py samples.png
```

in this folder draws 64 images as lcf-sample draws them, with Euler and 50 steps from seed 0. In a program:

```python
import torch
from dit import DiT, noise

model = DiT.from_pretrained(".")
with torch.no_grad():
    x = noise(0, 16, model.image)                # [16, C, H, W], what samples start from
    t = torch.ones(len(x))                       # 1 is noise, 0 is data
    velocity = model(x, t)                       # [16, C, H, W]
    tokens, _ = model.features(x, t, layer=1)    # [16, N, D] after the first block, for probes
```

`dit.py` is all of the network; parameters have the names of facebookresearch/DiT. `model.safetensors` is fp32; images are
in [-1, 1].
"#;

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = head.iter().map(|&name| name.to_owned()).collect();
    let rule = vec!["---".to_owned(); head.len()];
    [&head, &rule].into_iter().chain(rows).map(|row| line(row)).collect()
}

fn facts(artifact: &Artifact, train: &Value, name: &str) -> String {
    let fields = [
        ("objective", "/objective"),
        ("dataset", "/dataset"),
        ("parameters", "/parameters"),
        ("epochs", "/epochs"),
        ("steps", "/steps"),
        ("steps left out as not finite", "/skipped"),
        ("flow loss of the last epoch, per dimension", "/final_loss"),
        ("velocity trained for t from", "/velocity_from"),
    ];
    let known = |(text, path): &(&str, &str)| {
        let value = train.pointer(path)?;
        // Numbers that were measured have more digits than meaning; those that were chosen have few.
        let short = value.as_f64().filter(|_| *path == "/final_loss").map(|loss| format!("{loss:.4}"));
        Some(vec![(*text).to_owned(), short.or_else(|| plain(value))?])
    };
    let mut rows: Vec<Vec<String>> = fields.iter().filter_map(known).collect();
    let batch = artifact.manifest().config.get("batch").and_then(plain);
    rows.extend(batch.map(|batch| vec!["batch".to_owned(), batch]));
    rows.push(vec!["weights".to_owned(), name.to_owned()]);
    table(&["", ""], &rows)
}

/// What was measured of these weights.
fn numbers(artifact: &Artifact, name: &str, store: &Store) -> String {
    let of = |stage: &'static str, file: &'static str, at: &'static str| {
        store.artifacts.iter().filter(move |found| found.manifest().stage == stage).filter_map(move |found| {
            let content: Value = found.json(file).ok()?;
            let about = content.pointer(at)?;
            let ours = about["model"].as_str() == Some(artifact.digest()) && about["weights"].as_str() == Some(name);
            (ours && verifies(found)).then(|| (content, head(found.digest()).to_owned()))
        })
    };
    // What was measured again with more seeds stands once, where they are.
    let mut measured: Vec<(Value, String)> = of("fid", "fid.json", "/sample").collect();
    measured.sort_by_key(|(fid, _)| !fid["spread"].is_object());
    let mut known = BTreeSet::new();
    let fids: Vec<Vec<String>> = measured
        .iter()
        .flat_map(|(fid, digest)| fid_rows(fid, digest))
        .filter(|row| known.insert(row[..row.len() - 1].to_vec()))
        .collect();
    let probes: Vec<Vec<String>> =
        of("probe", "probe.json", "").flat_map(|(probe, digest)| probe_rows(&probe, &digest)).collect();
    let mut out = "\n## Numbers\n\n".to_owned();
    if fids.is_empty() && probes.is_empty() {
        return out + "None: nothing of these weights had been evaluated when this was written.\n";
    }
    if !fids.is_empty() {
        out += &table(&["samples", "against", "FID", "KID", "precision", "recall", "artifact"], &fids);
        out += "\nFID and KID of Inception features, images resized as by TensorFlow 1 unless stated; FID falls with the \
                number of samples, so compare equal numbers only.\n";
    }
    if !probes.is_empty() {
        out += if fids.is_empty() { "" } else { "\n" };
        out += &table(&["linear probe", "at t = 0", "peak", "at T", "artifact"], &probes);
        out += "\nTest accuracy in % on features of a block, as they are and standardised.\n";
    }
    out
}

/// Whether a result is as it was published; says so where it is not.
fn verifies(found: &Artifact) -> bool {
    found.verify().inspect_err(|error| say!("artifact: warning: left out of the card: {error}")).is_ok()
}

/// One row a half of the dataset; a result of the stage's first version knows one.
fn fid_rows(fid: &Value, digest: &str) -> Vec<Vec<String>> {
    let sample = |name: &str| fid["sample"].get(name).and_then(plain).unwrap_or_default();
    let field = |name: &str| fid.get(name).and_then(plain).unwrap_or_default();
    let mut samples =
        format!("{}, {} {} steps, seed {}", field("n"), sample("sampler"), sample("steps"), sample("seed"));
    if field("resize") != "tf1" {
        samples += &format!(", {} resize", field("resize"));
    }
    if let Some(features) = features(fid) {
        samples += &format!(", {features}");
    }
    let number = |value: Option<&Value>, digits: usize| {
        value.and_then(Value::as_f64).map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
    };
    // Images that the model was not trained on are another dataset, whatever it is called.
    let (data, against) = (fid.pointer("/digests/data"), fid.pointer("/sample/data"));
    let of = if data.is_some() && against.is_some() && data != against { " images of another dataset" } else { "" };
    let row = |against: &Value, split: &str| {
        let few = if against["rank_deficient"] == true { " (too few images)" } else { "" };
        let reference = against["n_reference"].as_u64().unwrap_or_default();
        vec![
            samples.clone(),
            format!("{reference} {split}{of}"),
            number(against.get("fid"), 3) + few,
            number(against.pointer("/kid/mean"), 5),
            number(against.get("precision"), 3),
            number(against.get("recall"), 3),
            digest.to_owned(),
        ]
    };
    let halves: Vec<Vec<String>> = ["train", "test"]
        .iter()
        .filter_map(|half| Some(row(fid.get("against")?.get(half).filter(|half| half.is_object())?, half)))
        .collect();
    let rows = if halves.is_empty() { vec![row(fid, &field("split"))] } else { halves };
    rows.into_iter().chain(over_seeds(fid, digest)).collect()
}

/// Mean and standard deviation over the seeds of several samplings.
fn over_seeds(fid: &Value, digest: &str) -> Option<Vec<String>> {
    let spread = fid.get("spread").filter(|spread| spread.is_object())?;
    let number = |name: &str, digits: usize| {
        let part = |part: &str| spread.get(name)?.get(part)?.as_f64();
        let (mean, std) = part("mean").zip(part("std"))?;
        Some(format!("{mean:.digits$} ± {std:.digits$}"))
    };
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let few = if fid["rank_deficient"] == true { " (too few images)" } else { "" };
    let [n, reference, split, seeds] = [fid.get("n"), fid.get("n_reference"), fid.get("split"), spread.get("seeds")]
        .map(|field| or_none(field.and_then(plain)));
    Some(vec![
        format!("{n}, mean ± std of {seeds} seeds"),
        format!("{reference} {split}"),
        or_none(number("fid", 3)) + few,
        or_none(number("kid", 5)),
        or_none(number("precision", 3)),
        or_none(number("recall", 3)),
        digest.to_owned(),
    ])
}

/// One row for features as they are and one for standardised ones, as far as they were probed.
fn probe_rows(probe: &Value, digest: &str) -> Vec<Vec<String>> {
    let kinds = [("raw", "as they are"), ("std", "standardised")];
    kinds.iter().filter(|(key, _)| probe[key].is_object()).map(|kind| probe_row(probe, *kind, digest)).collect()
}

fn probe_row(probe: &Value, (key, name): (&str, &str), digest: &str) -> Vec<String> {
    let percent = |path: &str| {
        probe
            .pointer(path)
            .and_then(Value::as_f64)
            .map_or_else(|| "-".to_owned(), |value| format!("{:.2}", 100.0 * value))
    };
    let layer = probe.get("layer").and_then(plain).unwrap_or_default();
    let peak = probe.pointer(&format!("/{key}/peak_timestep")).and_then(plain).unwrap_or_default();
    let share = |part: &str| percent(&format!("/{key}/{part}"));
    vec![format!("block {layer}, {name}"), share("t0"), share("peak"), peak, digest.to_owned()]
}

/// Where it comes from, in hashes.
fn origin(artifact: &Artifact, train: &Value, name: &str) -> String {
    let manifest = artifact.manifest();
    let file = format!("weights/{name}.safetensors");
    let sha256 = manifest.outputs.iter().find(|output| output.path == file).map_or("", |output| &output.sha256);
    let made = &manifest.provenance;
    let rows: Vec<Vec<String>> = [
        ("train artifact", manifest.digest.as_str()),
        ("dataset", train["data"].as_str().unwrap_or("unknown")),
        ("model.safetensors, SHA-256", sha256),
        ("revision of the code", &made.revision),
        ("device", &made.device),
        ("libtorch", &made.libtorch),
    ]
    .iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(what, value)| vec![format!("    {what}"), (*value).to_owned()])
    .collect();
    let seconds = vec!["    seconds of the last run".to_owned(), made.seconds.to_string()];
    let rows: Vec<Vec<String>> = rows.into_iter().chain([seconds]).collect();
    format!(
        "\n## Origin\n\nTrained with LCF, lcf-train. Digests of artifacts; `config.json` has the whole configuration.\n\n{}",
        columns("ll", &rows)
    )
}
