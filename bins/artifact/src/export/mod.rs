//! `lcf-artifact export`: an artifact as a folder of files that other programs open.

mod arrays;
mod card;
mod model;
mod samples;

use crate::store::entries;
use clap::ValueEnum;
use lcf_store::{Artifact, Error, Result};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// Files of exported samples.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Format {
    /// One PNG file an image
    #[default]
    Png,
    /// One samples.npz with uint8 [N,H,W,3] as arr_0
    Npz,
}

/// What may be chosen; each belongs to one kind of artifact.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Of a training: which weights.
    pub weights: Option<String>,
    /// Of samples: which files.
    pub format: Option<Format>,
}

/// What was written.
#[derive(Debug)]
pub struct Exported {
    /// The folder.
    pub dir: PathBuf,
    /// Files in it.
    pub files: usize,
    /// The kind of artifact that it came from.
    pub stage: String,
}

/// Writes the artifact at `path`, verified, to the folder `out`, which is not there yet or empty. It appears there when
/// it is complete.
///
/// # Errors
/// An artifact that does not verify or is of no kind that can be exported, a choice that its kind does not have, a
/// folder that is not empty or cannot be written.
pub fn export(path: &Path, out: &Path, choice: &Choice) -> Result<Exported> {
    let artifact = Artifact::read(path)?;
    let stage = artifact.manifest().stage.clone();
    check_choice(&stage, choice)?;
    check_free(out)?;
    artifact.verify()?;
    let part = Part::create(out)?;
    match stage.as_str() {
        "train" => model::write_model(&artifact, choice.weights.as_deref().unwrap_or("ema"), &part.0)?,
        "sample" => samples::write(&artifact, choice.format.unwrap_or_default(), &part.0)?,
        "probe" => arrays::probe(&artifact, &part.0)?,
        // Their arrays are .npy already.
        "extract" | "fid" | "reference" => arrays::copy_all(&artifact, &part.0)?,
        _ => {
            let message =
                format!("found an artifact of stage {stage}, expected train, sample, extract, probe, fid or reference");
            return Err(Error::bad(path, message));
        }
    }
    let files = entries(&part.0)?.len();
    part.publish(out)?;
    Ok(Exported { dir: out.to_owned(), files, stage })
}

fn check_choice(stage: &str, choice: &Choice) -> Result<()> {
    let wrong = |flag, of| Err(Error::usage(format!("{flag} is for artifacts of stage {of}, this one is of {stage}")));
    match choice {
        Choice { weights: Some(_), .. } if stage != "train" => wrong("--weights", "train"),
        Choice { format: Some(_), .. } if stage != "sample" => wrong("--format", "sample"),
        _ => Ok(()),
    }
}

/// Whether a folder can be put at `out`.
fn check_free(out: &Path) -> Result<()> {
    let hint = "give another folder, or remove it first";
    if out.is_dir() {
        return match entries(out)?.is_empty() {
            true => Ok(()),
            false => {
                Err(Error::bad(out, "found a folder that is not empty, expected none or an empty one").with_hint(hint))
            }
        };
    }
    match out.symlink_metadata() {
        Ok(_) => Err(Error::bad(out, "found a file, expected nothing or an empty folder").with_hint(hint)),
        Err(_) => Ok(()),
    }
}

/// A folder under way beside its place, removed when it does not get there.
struct Part(PathBuf);

impl Part {
    fn create(out: &Path) -> Result<Self> {
        let name = out.file_name().ok_or_else(|| Error::usage(format!("{}: no name for a folder", out.display())))?;
        let part = out.with_file_name(format!(".{}.part-{}", name.to_string_lossy(), std::process::id()));
        fs::create_dir_all(&part).map_err(Error::io(&part, "create"))?;
        Ok(Self(part))
    }

    /// A rename onto an empty folder replaces it.
    fn publish(self, out: &Path) -> Result<()> {
        fs::rename(&self.0, out).map_err(Error::io(out, "put the folder there"))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Gone once it is published; what stays after an error is of no use and named after this process.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Copies the content of one file of an artifact, not its permissions: others may read an export.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(from).map_err(Error::io(from, "open"))?;
    let mut target = File::create(to).map_err(Error::io(to, "create"))?;
    io::copy(&mut source, &mut target).map_err(Error::io(to, "write"))?;
    Ok(())
}

/// Writes one file.
fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).map_err(Error::io(path, "write"))
}
