//! Artifacts: directories of files with a `manifest.json` that names, sizes and hashes every one of them.

use crate::{Error, Result, digest, provenance::Provenance};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind},
    path::{Component, Path, PathBuf},
};

/// Version of the manifest's own layout.
pub const SCHEMA: u32 = 1;
/// Name of the file that makes a directory an artifact.
pub const MANIFEST: &str = "manifest.json";

/// One file of an artifact.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Path inside the artifact, with `/`.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the content.
    pub sha256: String,
    /// A record of how the run went (timings), verified like any file but left out of [`Manifest::digest`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub log: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// What `manifest.json` holds. See `docs/artifact-format.md`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The stage that made it: `prepare`, `train`, ...
    pub stage: String,
    /// The stage's version, bumped by hand when its meaning changes.
    pub version: u32,
    /// What was asked for: [`key`] of stage, version, config and inputs.
    pub key: String,
    /// The resolved section of the config, in the order of its struct.
    pub config: Value,
    /// Digests of the input artifacts by role.
    pub inputs: BTreeMap<String, String>,
    /// Every file, sorted by path.
    pub outputs: Vec<Output>,
    /// What came out: [`content_digest`] of `outputs`.
    pub digest: String,
    /// Who, where, when, with what. Never hashed.
    pub provenance: Provenance,
}

/// The name of a build: SHA-256 of what was asked for.
pub fn key(stage: &str, version: u32, config: &Value, inputs: &BTreeMap<String, String>) -> String {
    #[derive(Serialize)]
    struct Asked<'a> {
        stage: &'a str,
        version: u32,
        config: &'a Value,
        inputs: &'a BTreeMap<String, String>,
    }
    let text = serde_json::to_string(&Asked { stage, version, config, inputs }).expect("plain data serialises");
    digest::of_bytes(text.as_bytes())
}

/// SHA-256 over `SHA256 BYTES PATH` lines of the outputs in the order of their paths, logs left out.
pub fn content_digest(outputs: &[Output]) -> String {
    let mut hashed: Vec<_> = outputs.iter().filter(|output| !output.log).collect();
    hashed.sort_by(|a, b| a.path.cmp(&b.path));
    let text: String = hashed.iter().map(|o| format!("{} {} {}\n", o.sha256, o.bytes, o.path)).collect();
    digest::of_bytes(text.as_bytes())
}

/// A published directory whose files have been verified against its manifest.
#[derive(Clone, Debug)]
pub struct Artifact {
    dir: PathBuf,
    manifest: Manifest,
}

impl Artifact {
    /// Opens the artifact at `path` (or behind the link at `path`), checks that `stage` made it, and verifies the size
    /// and SHA-256 of every file.
    ///
    /// # Errors
    /// [`Error::Bad`] naming the first file that differs, with both hashes and the command that rebuilds it.
    pub fn open(path: impl AsRef<Path>, stage: &str) -> Result<Self> {
        let path = path.as_ref();
        let below = path.join(stage);
        let artifact = Self::open_any(path).map_err(|error| match below.join(MANIFEST).exists() {
            true => error.with_hint(format!("{} is one", below.display())),
            false => error,
        })?;
        if artifact.manifest.stage != stage {
            let found = &artifact.manifest.stage;
            return Err(Error::bad(path, format!("found an artifact of stage {found}, expected {stage}"))
                .with_hint(format!("name the one that lcf-{stage} made, like data/runs/RUN/{stage}")));
        }
        Ok(artifact)
    }

    /// [`Artifact::open`] for an artifact of any stage.
    ///
    /// # Errors
    /// As [`Artifact::open`].
    pub fn open_any(path: &Path) -> Result<Self> {
        let artifact = Self::read(path)?;
        artifact.verify()?;
        Ok(artifact)
    }

    /// Reads the manifest alone, without looking at the files it names.
    ///
    /// # Errors
    /// [`Error::Bad`] when there is no manifest or it contradicts itself; [`Error::Io`] when it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let missing = |error: io::Error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => {
                Error::bad(path, "no artifact here (a directory with manifest.json)")
                    .with_hint("run the stage that makes it, or `lcf-artifact list` to see what there is")
            }
            _ => Error::io(path.join(MANIFEST), "read")(error),
        };
        let dir = fs::canonicalize(path).map_err(missing)?;
        let file = dir.join(MANIFEST);
        let text = fs::read(&file).map_err(missing)?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|e| rebuild(&dir, &file, format!("not a manifest: {e}")))?;
        if manifest.schema != SCHEMA {
            return Err(rebuild(&dir, &file, format!("schema {}, expected {SCHEMA}", manifest.schema)));
        }
        if key(&manifest.stage, manifest.version, &manifest.config, &manifest.inputs) != manifest.key {
            return Err(rebuild(&dir, &file, "its key is not that of its config and inputs".into()));
        }
        if content_digest(&manifest.outputs) != manifest.digest {
            return Err(rebuild(&dir, &file, "its digest is not that of its outputs".into()));
        }
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        if is_key(&name) && !manifest.key.starts_with(&*name) {
            return Err(rebuild(&dir, &file, format!("found key {}, expected that of its directory", manifest.key)));
        }
        if let Some(bad) = manifest.outputs.iter().find(|output| !is_plain(&output.path)) {
            return Err(rebuild(&dir, &file, format!("output {:?} points outside the artifact", bad.path)));
        }
        Ok(Self { dir, manifest })
    }

    /// Verifies size and SHA-256 of every file, in parallel. Returns the bytes read.
    ///
    /// # Errors
    /// [`Error::Bad`] for the first file, by path, that is missing or differs.
    pub fn verify(&self) -> Result<u64> {
        let checks: Vec<Result<u64>> = self.manifest.outputs.par_iter().map(|o| self.verify_file(o)).collect();
        checks.into_iter().sum()
    }

    /// Verifies one file against its line of the manifest. Returns its size.
    ///
    /// # Errors
    /// [`Error::Bad`] when it is missing or differs.
    pub fn verify_file(&self, output: &Output) -> Result<u64> {
        let path = self.dir.join(&output.path);
        let meta = fs::metadata(&path).map_err(|_| rebuild(&self.dir, &path, "missing".into()))?;
        if !meta.is_file() {
            return Err(rebuild(&self.dir, &path, "found something else than a file".into()));
        }
        let bytes = meta.len();
        if bytes != output.bytes {
            return Err(rebuild(&self.dir, &path, format!("found {bytes} bytes, expected {}", output.bytes)));
        }
        let (_, sha256) = digest::of_file(&path)?;
        if sha256 != output.sha256 {
            return Err(rebuild(&self.dir, &path, format!("found sha256 {sha256}, expected {}", output.sha256)));
        }
        Ok(bytes)
    }

    /// The directory itself, links resolved.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What `manifest.json` says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The digest of its content: what later keys are made of.
    pub fn digest(&self) -> &str {
        &self.manifest.digest
    }

    /// Path of one of its files.
    ///
    /// # Errors
    /// [`Error::Bad`] when the manifest does not list `name`.
    pub fn file(&self, name: &str) -> Result<PathBuf> {
        match self.manifest.outputs.iter().any(|output| output.path == name) {
            true => Ok(self.dir.join(name)),
            false => Err(rebuild(&self.dir, &self.dir.join(name), "not in the artifact's manifest".into())),
        }
    }

    /// [`Artifact::file`] once its size and SHA-256 are verified: for who has read the manifest alone.
    ///
    /// # Errors
    /// As [`Artifact::file`] and [`Artifact::verify`].
    pub fn verified(&self, name: &str) -> Result<PathBuf> {
        let path = self.file(name)?;
        self.manifest
            .outputs
            .iter()
            .filter(|output| output.path == name)
            .try_for_each(|o| self.verify_file(o).map(|_| ()))?;
        Ok(path)
    }

    /// Adds to an error about what is in the artifact, where it has no hint, the command that rebuilds it.
    #[must_use]
    pub fn suspect(&self, error: Error) -> Error {
        error.or_hint(rebuild_hint(&self.dir))
    }

    /// Reads one of its JSON files.
    ///
    /// # Errors
    /// [`Error::Bad`] when it is not listed or is not a `T`.
    pub fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.file(name)?;
        let text = fs::read(&path).map_err(Error::io(&path, "read"))?;
        serde_json::from_slice(&text).map_err(|e| rebuild(&self.dir, &path, format!("unexpected content: {e}")))
    }
}

/// An error about a file of the artifact at `dir`, with the command that rebuilds it.
fn rebuild(dir: &Path, file: &Path, message: String) -> Error {
    Error::bad(file, message).with_hint(rebuild_hint(dir))
}

fn rebuild_hint(dir: &Path) -> String {
    format!("rm -r {} and run make again to rebuild it", dir.display())
}

/// Whether `name` is the first 12 digits of a key, as artifacts are called in a store; a copy elsewhere may have any name.
pub fn is_key(name: &str) -> bool {
    name.len() == 12 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_plain(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_twelve_lowercase_digits() {
        assert!(is_key("0123456789ab"));
        for name in ["0123456789AB", "0123456789a", ".work-012345", "0123456789abc"] {
            assert!(!is_key(name), "{name}");
        }
    }

    #[test]
    fn a_manifest_that_cannot_be_read_is_not_called_missing() {
        let dir = tempfile::tempdir().unwrap();
        let said = |path: &Path| Artifact::read(path).unwrap_err().to_string();
        assert!(said(dir.path()).contains("no artifact here"));
        fs::create_dir(dir.path().join(MANIFEST)).unwrap();
        assert!(said(dir.path()).ends_with("manifest.json: cannot read"));
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(said(&dir.path().join("file")).contains("no artifact here"));
    }

    #[test]
    fn outputs_stay_inside() {
        assert!(is_plain("a") && is_plain("weights/a.b"));
        for path in ["", "/etc/passwd", "..", "a/../../b", "./a"] {
            assert!(!is_plain(path), "{path}");
        }
    }
}
