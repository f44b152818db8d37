//! Configuration files: one JSON a run, one section a stage.
//!
//! `{"base": "other.json", "train": {...}}` merges over `other.json` beside it; `--set train.epochs=20` overrides one
//! value. What a stage keys on is its own section, resolved and typed.

use crate::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::{fs, path::Path};

/// One stage's section of a config. Implementors derive `Deserialize` with `deny_unknown_fields`.
pub trait Section: Serialize + DeserializeOwned {
    /// The section's name, which is the stage's.
    const NAME: &'static str;

    /// Checks the values. The error starts with the path inside the section: `batch: 0 is not in 1..=65536`.
    ///
    /// # Errors
    /// The first value out of range.
    fn validate(&self) -> Result<(), String>;
}

/// Sections a config may have. A stage reads its own and ignores the others, so a misspelt one must be caught here.
const SECTIONS: [&str; 6] = ["prepare", "train", "extract", "probe", "sample", "fid"];

/// How many files a chain of `base` may have.
const MAX_DEPTH: usize = 8;

/// How many names the path of a `--set` may have. Each is an object in another, and those are walked recursively.
const MAX_NAMES: usize = 64;

/// Reads the file at `path`, its bases and the `--set` overrides (`a.b=c`), and returns the section of `S`, validated.
///
/// # Errors
/// [`Error::Usage`] naming the file and the JSON path.
pub fn load<S: Section>(path: &Path, overrides: &[String]) -> Result<S> {
    let mut root = read(path, 0)?;
    for text in overrides {
        set(&mut root, text)?;
    }
    section(&root, path)
}

fn section<S: Section>(root: &Value, path: &Path) -> Result<S> {
    let at = |message: String| Error::usage(format!("{}: {message}", path.display()));
    if let Some(unknown) = root.as_object().and_then(|map| map.keys().find(|key| !SECTIONS.contains(&key.as_str()))) {
        return Err(at(format!("{unknown}: unknown section, expected one of {}", SECTIONS.join(", "))));
    }
    let value = root.get(S::NAME).ok_or_else(|| at(format!("{}: section missing", S::NAME)))?;
    let section: S = serde_path_to_error::deserialize(value).map_err(|error| {
        let inner = error.path().to_string();
        let dot = if inner == "." { String::new() } else { format!(".{inner}") };
        at(format!("{}{dot}: {}", S::NAME, error.inner()))
    })?;
    section.validate().map_err(|message| at(format!("{}.{message}", S::NAME)))?;
    Ok(section)
}

fn read(path: &Path, depth: usize) -> Result<Value> {
    let usage = |message: String| Error::usage(format!("{}: {message}", path.display()));
    if depth == MAX_DEPTH {
        return Err(usage(format!("base: more than {MAX_DEPTH} files in a chain")));
    }
    let text = fs::read_to_string(path).map_err(|error| usage(format!("cannot read the config: {error}")))?;
    let value: Value = serde_json::from_str(&text).map_err(|error| usage(format!("not JSON: {error}")))?;
    let Value::Object(mut own) = value else { return Err(usage("expected a JSON object".into())) };
    match own.remove("base") {
        None => Ok(Value::Object(own)),
        Some(Value::String(base)) => {
            let mut merged = read(&path.parent().unwrap_or(Path::new(".")).join(base), depth + 1)?;
            merge(&mut merged, Value::Object(own));
            Ok(merged)
        }
        Some(other) => Err(usage(format!("base: {other} is not a file name"))),
    }
}

/// Objects merge key by key; anything else is replaced.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

fn set(root: &mut Value, text: &str) -> Result<()> {
    let usage = || Error::usage(format!("--set {text}: expected SECTION.NAME=VALUE, like train.epochs=20"));
    let (path, value) = text.split_once('=').ok_or_else(usage)?;
    let parts: Vec<&str> = path.split('.').collect();
    if !(2..=MAX_NAMES).contains(&parts.len()) || parts.iter().any(|part| part.is_empty()) {
        return Err(usage());
    }
    // What is not JSON is a string, so that `--set train.objective=fm` needs no quotes.
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    let mut over = value;
    for part in parts.iter().rev() {
        over = Value::Object(Map::from_iter([((*part).to_owned(), over)]));
    }
    merge(root, over);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize, PartialEq, Serialize)]
    #[serde(deny_unknown_fields)]
    struct Train {
        batch: usize,
        objective: String,
    }

    impl Section for Train {
        const NAME: &'static str = "train";
        fn validate(&self) -> Result<(), String> {
            if self.batch == 0 { Err("batch: 0 is not in 1..=65536".into()) } else { Ok(()) }
        }
    }

    fn load_text(files: &[(&str, &str)], overrides: &[&str]) -> Result<Train> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        load(&dir.path().join("run.json"), &overrides.iter().map(|&s| s.to_owned()).collect::<Vec<_>>())
    }

    fn message(files: &[(&str, &str)], overrides: &[&str]) -> String {
        let error = load_text(files, overrides).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        text.split_once("run.json: ").map_or(text.clone(), |(_, rest)| rest.to_owned())
    }

    const GOOD: &str = r#"{"train": {"batch": 4, "objective": "fm"}}"#;

    #[test]
    fn base_and_set_override_in_order() {
        let files = [("base.json", GOOD), ("run.json", r#"{"base": "base.json", "train": {"objective": "lcf"}}"#)];
        assert_eq!(load_text(&files, &[]).unwrap(), Train { batch: 4, objective: "lcf".into() });
        let set = load_text(&files, &["train.batch=8", "train.objective=fm"]).unwrap();
        assert_eq!(set, Train { batch: 8, objective: "fm".into() });
    }

    #[test]
    fn errors_name_the_json_path() {
        let bad = |text: &str| message(&[("run.json", text)], &[]);
        assert_eq!(message(&[("run.json", GOOD)], &["train.batch=0"]), "train.batch: 0 is not in 1..=65536");
        assert_eq!(bad(r#"{"train": {"batch": "x", "objective": "fm"}}"#).split(':').next(), Some("train.batch"));
        assert!(bad(r#"{"train": {"batch": 1, "objective": "fm", "bacth": 2}}"#).contains("unknown field `bacth`"));
        assert!(bad(r#"{"train": {"batch": 1}}"#).contains("missing field `objective`"));
        assert!(bad(r#"{"trian": {}}"#).starts_with("trian: unknown section"));
        assert!(bad("{}").starts_with("train: section missing"));
        assert!(bad("[1]").starts_with("expected a JSON object"));
        assert!(bad(r#"{"base": "run.json"}"#).contains("more than 8 files"));
        let deep = format!("train.{}b=1", "a.".repeat(100_000));
        for text in ["batch=3", "train.=3", &deep] {
            assert!(message(&[("run.json", GOOD)], &[text]).contains("expected SECTION.NAME=VALUE"));
        }
        assert!(message(&[("run.json", GOOD)], &["train.bacth=3"]).contains("unknown field `bacth`"));
    }
}
