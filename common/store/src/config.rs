//! Configuration files: one JSON a run, one section a stage.
//!
//! `{"base": "other.json", "train": {...}}` merges over `other.json` beside it; `--set train.epochs=20` overrides one
//! value. What a stage keys on is its own section, resolved and typed.

use crate::{Error, Result, strict::Strict};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, error::Category};
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

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

/// Largest file: far beyond any config, and an end to what has none, like a device.
const MAX_BYTES: u64 = 1 << 20;

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
    section(&root, path, overrides)
}

fn section<S: Section>(root: &Value, path: &Path, overrides: &[String]) -> Result<S> {
    let at = |message: String| {
        let place = set_by(overrides, &message).unwrap_or_else(|| path.display().to_string());
        Error::usage(format!("{place}: {message}")).with_hint("the README has every key, in section Configuration")
    };
    if let Some(unknown) = root.as_object().and_then(|map| map.keys().find(|key| !SECTIONS.contains(&key.as_str()))) {
        return Err(at(format!("{unknown}: unknown section, expected one of {}", SECTIONS.join(", "))));
    }
    let value = root.get(S::NAME).ok_or_else(|| at(format!("{}: section missing", S::NAME)))?;
    let section: S = serde_path_to_error::deserialize(value).map_err(|error| {
        let inner = error.path().to_string();
        let dot = if inner == "." { String::new() } else { format!(".{inner}") };
        at(format!("{}{dot}: {}", S::NAME, plainly(&error.inner().to_string())))
    })?;
    section.validate().map_err(|message| at(format!("{}.{message}", S::NAME)))?;
    Ok(section)
}

/// The `--set` that an error, which starts with the path of a value, is about.
fn set_by(overrides: &[String], message: &str) -> Option<String> {
    let (path, what) = message.split_once(": ")?;
    let below = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'));
    // A value that is missing is missing from the file, whatever else was set beside it.
    let missing = what.starts_with("missing") || what.starts_with("section missing");
    let is_it = |name: &str| name == path || below(path, name) || (below(name, path) && !missing);
    let found = overrides.iter().rev().find(|text| text.split_once('=').is_some_and(|(name, _)| is_it(name)))?;
    Some(format!("--set {found}"))
}

/// serde's messages without the names of Rust's types.
fn plainly(message: &str) -> String {
    let Some((found, expected)) = message.rsplit_once(", expected ") else { return message.to_owned() };
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i64" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        other if other.starts_with("struct ") => "an object, {...}",
        other => other,
    };
    format!("{found}, expected {expected}")
}

fn read(path: &Path, depth: usize) -> Result<Value> {
    let usage = |message: String| Error::usage(format!("{}: {message}", path.display()));
    if depth == MAX_DEPTH {
        return Err(usage(format!("base: more than {MAX_DEPTH} files in a chain")));
    }
    let text = read_text(path).map_err(|error| {
        usage(format!("cannot read the config: {error}")).with_hint("pipelines/ has configs to start from")
    })?;
    // Editors on some systems start a file with this mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let Strict(value) = serde_json::from_str(text).map_err(|error| match error.classify() {
        Category::Data => usage(error.to_string()),
        _ => usage(format!("not JSON: {error}")),
    })?;
    let Value::Object(mut own) = value else { return Err(usage("expected a JSON object".into())) };
    match own.remove("base") {
        None => Ok(Value::Object(own)),
        Some(Value::String(base)) => {
            let below = path.parent().unwrap_or(Path::new(".")).join(base);
            let mut merged = read(&below, depth + 1).map_err(|error| match error {
                Error::Usage { message, hint } => {
                    Error::Usage { message: format!("{}: base: {message}", path.display()), hint }
                }
                other => other,
            })?;
            merge(&mut merged, Value::Object(own));
            Ok(merged)
        }
        Some(other) => Err(usage(format!("base: {other} is not a file name"))),
    }
}

/// Objects merge key by key; anything else is replaced.
fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    match text.len() as u64 > MAX_BYTES {
        true => Err(io::Error::other(format!("larger than {MAX_BYTES} bytes"))),
        false => Ok(text),
    }
}

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
    let parsed = serde_json::from_str(value).map(|Strict(value)| value);
    let mut over = parsed.unwrap_or_else(|_| Value::String(value.to_owned()));
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
    use std::fs;

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
        match text.starts_with("--set ") {
            true => text,
            false => text.split_once("run.json: ").map_or(text.clone(), |(_, rest)| rest.to_owned()),
        }
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
        let set = |text| message(&[("run.json", GOOD)], &[text]);
        assert_eq!(set("train.batch=0"), "--set train.batch=0: train.batch: 0 is not in 1..=65536");
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
        assert!(set("train.bacth=3").contains("unknown field `bacth`"));
    }

    #[test]
    fn errors_name_the_file_or_the_override_that_the_value_is_from() {
        let files = [("run.json", r#"{"train": {"batch": -1, "objective": "fm"}}"#)];
        let expected = "train.batch: invalid value: integer `-1`, expected a whole number, 0 or more";
        assert_eq!(message(&files, &["train.objective=lcf"]), expected);
        let set = |text| message(&[("run.json", GOOD)], &[text]);
        for text in ["train.batch=-1", "train.batch.x=1", "train.batch=[1]"] {
            assert!(set(text).starts_with(&format!("--set {text}: train.batch: invalid")), "{}", set(text));
        }
        // What is missing is not the fault of what was set beside it.
        let lacking = [("run.json", r#"{"train": {"objective": "fm"}}"#)];
        assert!(message(&lacking, &["train.objective=lcf"]).starts_with("train: missing field `batch`"));
        let files = [("run.json", r#"{"base": "base.json"}"#)];
        assert!(message(&files, &[]).starts_with("base: "), "{}", message(&files, &[]));
        assert!(message(&files, &[]).contains("base.json: cannot read the config"));
    }

    #[test]
    fn a_key_that_is_given_twice_is_refused() {
        let bad = |text: &str| message(&[("run.json", text)], &[]);
        let twice = r#"{"train": {"batch": 4, "objective": "fm", "batch": 8}}"#;
        assert!(bad(twice).starts_with("key \"batch\" is given twice at line 1"), "{}", bad(twice));
        assert!(bad(r#"{"train": {}, "train": {}}"#).contains("\"train\" is given twice"));
        let set = message(&[("run.json", GOOD)], &[r#"train.batch={"a": 1, "a": 2}"#]);
        assert!(set.contains("train.batch: invalid type: string"), "{set}");
    }

    #[test]
    fn odd_files_are_read_to_their_end_or_refused() {
        let marked = format!("\u{feff}{GOOD}");
        assert_eq!(load_text(&[("run.json", &marked)], &[]).unwrap().batch, 4);
        let error = load::<Train>(Path::new("/dev/zero"), &[]).unwrap_err();
        assert!(error.to_string().contains("larger than 1048576 bytes"), "{error}");
        assert!(error.hint().unwrap().contains("pipelines/"));
    }
}
