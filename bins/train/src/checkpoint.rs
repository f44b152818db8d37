//! Checkpoints: everything that training changes, in the stage's own work directory, where a restart finds it.
//!
//! `.checkpoint.json` names a file, its size and its hash, and is replaced in one rename after the file is on disk: a
//! crash at any moment leaves the old checkpoint or the new one.

use crate::step::Trainer;
use lcf_model::weights;
use lcf_store::{Error, Result, digest, stage};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    path::Path,
};
use tch::Tensor;

const POINTER: &str = ".checkpoint.json";

/// How far a training is, beside its tensors.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Steps made.
    pub step: u64,
    /// Steps left out because loss or gradient was not finite.
    pub skipped: u64,
    /// Sum and number of the flow losses of the epoch under way.
    pub epoch_flow: (f64, f64),
    /// Mean flow loss of the last epoch that ended and had one.
    pub last_epoch_flow: Option<f64>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Pointer {
    file: String,
    bytes: u64,
    sha256: String,
    progress: Progress,
    updates: u64,
}

/// Writes a checkpoint to `dir` and then removes the one before.
///
/// # Errors
/// [`Error::Io`]; the one before is intact then.
pub fn save(dir: &Path, trainer: &Trainer, progress: Progress) -> Result<()> {
    let file = format!(".checkpoint-{}.safetensors", progress.step);
    let path = dir.join(&file);
    weights::write(&path, tensors(trainer).into_iter())?;
    File::open(&path).and_then(|f| f.sync_all()).map_err(Error::io(&path, "sync"))?;
    let (bytes, sha256) = digest::of_file(&path)?;
    let pointer = Pointer { file, bytes, sha256, progress, updates: trainer.optim.updates };
    stage::write_atomic(&dir.join(POINTER), &stage::pretty(&pointer))?;
    remove_others(dir, &pointer.file)
}

/// Restores the checkpoint in `dir`, if there is one.
///
/// # Errors
/// [`Error::Bad`] when it is damaged, with the command that starts over; [`Error::Io`] when it cannot be read.
pub fn restore(dir: &Path, trainer: &mut Trainer) -> Result<Option<Progress>> {
    let path = dir.join(POINTER);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(Error::io(&path, "read"))?,
    };
    let start_over = |error: Error| error.with_hint(format!("rm -r {} to start this training over", dir.display()));
    let pointer: Pointer =
        serde_json::from_slice(&text).map_err(|e| start_over(Error::bad(&path, format!("not a checkpoint: {e}"))))?;
    let path = dir.join(&pointer.file);
    let (bytes, sha256) = digest::of_file(&path).map_err(start_over)?;
    if (bytes, &sha256) != (pointer.bytes, &pointer.sha256) {
        let message =
            format!("found {bytes} bytes with sha256 {sha256}, expected {} with {}", pointer.bytes, pointer.sha256);
        return Err(start_over(Error::bad(path, message)));
    }
    let stored = weights::read(&path)?;
    for (name, mut tensor) in tensors(trainer) {
        match stored.get(name) {
            Some(found) if found.size() == tensor.size() => tensor.copy_(found),
            _ => return Err(start_over(Error::bad(path, format!("tensor {name} is missing or of another size")))),
        }
    }
    trainer.optim.updates = pointer.updates;
    trainer.refresh();
    Ok(Some(pointer.progress))
}

fn tensors(trainer: &Trainer) -> [(&'static str, Tensor); 4] {
    [
        ("average", trainer.average.shallow_clone()),
        ("first_moment", trainer.optim.first.shallow_clone()),
        ("parameters", trainer.params.flat.shallow_clone()),
        ("second_moment", trainer.optim.second.shallow_clone()),
    ]
}

fn remove_others(dir: &Path, keep: &str) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io(dir, "list"))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".checkpoint-") && name != keep {
            fs::remove_file(entry.path()).map_err(Error::io(entry.path(), "remove"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{batch::numbered, config::tests::small};
    use lcf_model::config::Input;

    fn trainer() -> Trainer {
        Trainer::new(&small("lcf"), Input { channels: 3, side: 4 }, numbered(50, 3, 4))
    }

    fn progress(step: u64) -> Progress {
        Progress { step, skipped: 1, epoch_flow: (0.1 + 0.2, 3.0), last_epoch_flow: Some(1.0 / 3.0) }
    }

    fn steps(trainer: &mut Trainer, range: std::ops::Range<u64>) {
        for step in range {
            trainer.step(step);
        }
    }

    #[test]
    fn a_restored_training_continues_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let mut straight = trainer();
        steps(&mut straight, 0..4);
        save(dir.path(), &straight, progress(4)).unwrap();
        steps(&mut straight, 4..9);

        let mut resumed = trainer();
        assert_eq!(restore(dir.path(), &mut resumed).unwrap(), Some(progress(4)));
        steps(&mut resumed, 4..9);
        assert_eq!(resumed.params.flat, straight.params.flat);
        assert_eq!(resumed.average, straight.average);
    }

    #[test]
    fn the_newest_checkpoint_is_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(restore(dir.path(), &mut trainer()).unwrap(), None);
        save(dir.path(), &trainer(), progress(1)).unwrap();
        save(dir.path(), &trainer(), progress(2)).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(restore(dir.path(), &mut trainer()).unwrap(), Some(progress(2)));
    }

    /// Whoever takes it for none starts over and clears the directory.
    #[test]
    fn what_cannot_be_read_is_an_error_and_not_a_fresh_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(POINTER)).unwrap();
        let error = restore(dir.path(), &mut trainer()).unwrap_err();
        assert!(matches!(error, Error::Io { action: "read", .. }), "{error}");
    }

    #[test]
    fn damage_is_refused_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &trainer(), progress(1)).unwrap();
        let path = dir.path().join(".checkpoint-1.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        let error = restore(dir.path(), &mut trainer()).unwrap_err();
        assert!(error.to_string().contains("sha256") && error.hint().unwrap().contains("start this training over"));
        fs::write(dir.path().join(POINTER), "{").unwrap();
        assert!(restore(dir.path(), &mut trainer()).unwrap_err().to_string().contains("not a checkpoint"));
    }
}
