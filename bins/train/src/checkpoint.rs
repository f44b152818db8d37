//! Checkpoints: everything that training changes, in the stage's own work directory, where a restart finds it.
//!
//! `.checkpoint.json` names a file and the snapshots made so far, with sizes and hashes, and is replaced in one rename
//! after they are on disk: a crash at any moment leaves the old checkpoint or the new one. Its own hash is in it, and so is
//! the directory it belongs to.

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
    /// The lowest of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lowest_epoch_flow: Option<f64>,
    /// A number for what makes the steps, see [`crate::run::Pace::by`]; 0 where that is not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub by: u64,
    /// Whether steps were made by something else before: the same command does not repeat that.
    #[serde(default, skip_serializing_if = "is_false")]
    pub mixed: bool,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// A flow loss so many times the lowest has not come about by chance, which is about a hundredth.
const DIVERGED: f64 = 3.0;

/// What to do about a training that is not stable.
pub const CALMER: &str = "lower train.optim.lr or train.contrast.lambda, or train.optim.beta2 to 0.95";

impl Progress {
    /// Ends an epoch. Returns what there is to say where the flow loss has left what it had come down to.
    pub fn end_epoch(&mut self) -> Option<String> {
        let (sum, count) = std::mem::take(&mut self.epoch_flow);
        let before = std::mem::replace(&mut self.last_epoch_flow, (count > 0.0).then(|| sum / count));
        let flow = self.last_epoch_flow?;
        let lowest = self.lowest_epoch_flow.map_or(flow, |lowest| lowest.min(flow));
        self.lowest_epoch_flow = Some(lowest);
        let diverged = |flow: f64| flow > DIVERGED * lowest;
        (diverged(flow) && !before.is_some_and(diverged)).then(|| {
            format!(
                "flow loss {flow:.4} in the epoch up to step {}, {lowest:.4} in the best one: this training has diverged; {CALMER}",
                self.step
            )
        })
    }

    /// Goes on by `by`.
    pub fn hand_over(&mut self, by: u64) {
        self.mixed |= self.step > 0 && self.by != by;
        self.by = by;
    }
}

/// `.checkpoint.json`.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    /// Of `pointer` as JSON without spaces.
    sha256: String,
    pointer: Pointer,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Pointer {
    /// The work directory, whose name holds the key.
    work: String,
    tensors: Stored,
    /// Weights of earlier epochs, which nobody writes again.
    snapshots: Vec<Stored>,
    progress: Progress,
    updates: u64,
}

/// A file in the work directory.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    file: String,
    bytes: u64,
    sha256: String,
}

impl Stored {
    /// Makes the file survive a power cut, and hashes it.
    fn sync(dir: &Path, file: String) -> Result<Self> {
        let path = dir.join(&file);
        File::open(&path).and_then(|f| f.sync_all()).map_err(Error::io(&path, "sync"))?;
        let (bytes, sha256) = digest::of_file(&path)?;
        Ok(Self { file, bytes, sha256 })
    }

    fn verify(&self, dir: &Path) -> Result<()> {
        let path = dir.join(&self.file);
        let (bytes, sha256) = digest::of_file(&path)?;
        if (bytes, &sha256) == (self.bytes, &self.sha256) {
            return Ok(());
        }
        let message = format!("found {bytes} bytes with sha256 {sha256}, expected {} with {}", self.bytes, self.sha256);
        Err(Error::bad(path, message))
    }
}

impl Sealed {
    fn of(pointer: Pointer) -> Self {
        Self { sha256: hash(&pointer), pointer }
    }

    /// The pointer in `text`, which lies in the work directory `work`.
    fn open(text: &[u8], work: &str) -> Result<Pointer, String> {
        let Self { sha256, pointer } = serde_json::from_slice(text).map_err(|e| format!("not a checkpoint: {e}"))?;
        match hash(&pointer) {
            found if found != sha256 => Err(format!("found sha256 {found} of its content, expected {sha256}")),
            _ if pointer.work != work => Err(format!("found the checkpoint of {}, expected {work}", pointer.work)),
            _ => Ok(pointer),
        }
    }
}

fn hash(pointer: &Pointer) -> String {
    digest::of_bytes(&serde_json::to_vec(pointer).expect("plain data serialises"))
}

fn work_name(dir: &Path) -> String {
    dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Writes a checkpoint to `dir` and then removes the one before.
///
/// # Errors
/// [`Error::Bad`] when a number in it is not finite, which no later step mends; [`Error::Io`]. The one before is intact
/// then.
pub fn save(dir: &Path, trainer: &Trainer, progress: Progress) -> Result<()> {
    let file = format!(".checkpoint-{}.safetensors", progress.step);
    for (name, tensor) in tensors(trainer) {
        weights::all_finite(&dir.join(name), &trainer.params.layout, &tensor)
            .map_err(|error| error.with_hint(format!("{CALMER}; the last good checkpoint is kept")))?;
    }
    weights::write(&dir.join(&file), tensors(trainer).into_iter())?;
    let tensors = Stored::sync(dir, file)?;
    let snapshots = snapshots(dir)?.into_iter().map(|file| Stored::sync(dir, file)).collect::<Result<_>>()?;
    let updates = trainer.optim.updates;
    let sealed = Sealed::of(Pointer { work: work_name(dir), tensors, snapshots, progress, updates });
    stage::write_atomic(&dir.join(POINTER), &stage::pretty(&sealed))?;
    remove_others(dir, &sealed.pointer.tensors.file)
}

/// Snapshots in the work directory, sorted.
fn snapshots(dir: &Path) -> Result<Vec<String>> {
    let weights = dir.join("weights");
    let entries = match fs::read_dir(&weights) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io(&weights, "list"))?,
    };
    let names: std::io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name())).collect();
    let names = names.map_err(Error::io(&weights, "list"))?;
    let mut files: Vec<String> = names.iter().map(|name| format!("weights/{}", name.to_string_lossy())).collect();
    files.sort();
    Ok(files)
}

/// Restores the checkpoint in `dir`, if there is one.
///
/// # Errors
/// [`Error::Bad`] when it is damaged, or a number in it is not finite, with the command that starts over; [`Error::Io`] when
/// it cannot be read.
pub fn restore(dir: &Path, trainer: &mut Trainer) -> Result<Option<Progress>> {
    let path = dir.join(POINTER);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(Error::io(&path, "read"))?,
    };
    let start_over = |error: Error| error.with_hint(format!("rm -r {} to start this training over", dir.display()));
    let pointer = Sealed::open(&text, &work_name(dir)).map_err(|message| start_over(Error::bad(&path, message)))?;
    let mut files = pointer.snapshots.iter().chain([&pointer.tensors]);
    files.try_for_each(|stored| stored.verify(dir)).map_err(start_over)?;
    let path = dir.join(&pointer.tensors.file);
    let stored = weights::read(&path)?;
    let bad = |message| start_over(Error::bad(&path, message));
    for (name, mut tensor) in tensors(trainer) {
        let fits = |found: &&Tensor| found.size() == tensor.size() && found.kind() == tensor.kind();
        let found = stored.get(name).filter(fits);
        let found = found.ok_or_else(|| bad(format!("tensor {name} is missing or of another size or type")))?;
        if let Some((part, index)) = trainer.params.layout.first_not_finite(found) {
            return Err(bad(format!("{name}: number {index} of {part} is not finite")));
        }
        tensor.copy_(found);
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
        Progress {
            step,
            skipped: 1,
            epoch_flow: (0.1 + 0.2, 3.0),
            last_epoch_flow: Some(1.0 / 3.0),
            ..Progress::default()
        }
    }

    #[test]
    fn a_flow_loss_that_rises_from_where_it_was_is_reported_once() {
        let mut progress = Progress::default();
        // The epochs of a training that diverged, then some of another one after it had come down again.
        let said: Vec<_> = [1.2524, 0.5712, 0.2263, 0.1934, 0.1906, f64::NAN, 1.2763, 1.2911, 0.2, 0.21, 1.3]
            .map(|flow| {
                progress.step += 195;
                progress.epoch_flow = if flow.is_nan() { (0.0, 0.0) } else { (flow * 256.0, 256.0) };
                progress.end_epoch()
            })
            .into();
        let expected = "flow loss 1.2763 in the epoch up to step 1365, 0.1906 in the best one: this training has diverged; lower \
                        train.optim.lr or train.contrast.lambda, or train.optim.beta2 to 0.95";
        assert_eq!(said[6].as_deref(), Some(expected));
        let spoken: Vec<usize> = (0..said.len()).filter(|&i| said[i].is_some()).collect();
        assert_eq!(spoken, [6, 10]);
        assert_eq!(progress.lowest_epoch_flow, Some(0.1906));
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
    fn a_training_made_by_one_thing_and_another_is_mixed_for_ever() {
        let mut progress = Progress::default();
        progress.hand_over(7);
        progress.step = 3;
        progress.hand_over(7);
        assert!(!progress.mixed);
        progress.hand_over(8);
        progress.hand_over(8);
        assert!(progress.mixed && progress.by == 8);
        // What an earlier version left does not say.
        let text = serde_json::to_string(&Progress { step: 1, ..Progress::default() }).unwrap();
        assert!(!text.contains("by") && !text.contains("mixed"), "{text}");
        let mut old: Progress = serde_json::from_str(&text).unwrap();
        old.hand_over(7);
        assert!(old.mixed);
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
        fs::create_dir(dir.path().join("weights")).unwrap();
        fs::write(dir.path().join("weights/epoch-1.safetensors"), "x").unwrap();
        save(dir.path(), &trainer(), progress(1)).unwrap();
        let refused = |expected: &str| {
            let error = restore(dir.path(), &mut trainer()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error} lacks {expected}");
            assert!(error.hint().unwrap().contains("start this training over"));
        };
        for name in [".checkpoint-1.safetensors", "weights/epoch-1.safetensors"] {
            let path = dir.path().join(name);
            let good = fs::read(&path).unwrap();
            let mut bytes = good.clone();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(&path, &bytes).unwrap();
            refused("with sha256");
            fs::write(&path, &good).unwrap();
        }
        let pointer = dir.path().join(POINTER);
        let good = fs::read_to_string(&pointer).unwrap();
        fs::write(&pointer, good.replace("\"updates\": 0", "\"updates\": 1")).unwrap();
        refused(".checkpoint.json: found sha256");
        fs::write(&pointer, &good[..9]).unwrap();
        refused("not a checkpoint");
        fs::remove_file(dir.path().join("weights/epoch-1.safetensors")).unwrap();
        fs::write(&pointer, &good).unwrap();
        assert!(restore(dir.path(), &mut trainer()).unwrap_err().to_string().contains("epoch-1.safetensors"));
    }

    #[test]
    fn numbers_that_are_not_finite_do_not_replace_a_good_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let good = trainer();
        save(dir.path(), &good, progress(1)).unwrap();
        let bad = trainer();
        let _ = bad.optim.second.get(0).fill_(f64::NAN);
        let error = save(dir.path(), &bad, progress(2)).unwrap_err();
        assert!(error.to_string().contains("second_moment: number 0 of tensor x_embedder"), "{error}");
        assert!(error.hint().unwrap().contains("last good checkpoint"));
        assert_eq!(restore(dir.path(), &mut trainer()).unwrap(), Some(progress(1)));
    }

    /// Its hash is right, as it is when a program wrote it that does not look at its numbers.
    #[test]
    fn numbers_that_are_not_finite_are_not_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let bad = trainer();
        let _ = bad.optim.first.get(1).fill_(f64::INFINITY);
        let file = ".checkpoint-1.safetensors".to_owned();
        weights::write(&dir.path().join(&file), tensors(&bad).into_iter()).unwrap();
        let tensors = Stored::sync(dir.path(), file).unwrap();
        let work = work_name(dir.path());
        let sealed = Sealed::of(Pointer { work, tensors, snapshots: vec![], progress: progress(1), updates: 1 });
        fs::write(dir.path().join(POINTER), stage::pretty(&sealed)).unwrap();
        let error = restore(dir.path(), &mut trainer()).unwrap_err();
        let place = ".checkpoint-1.safetensors: first_moment: number 1 of x_embedder.proj.weight is not finite";
        assert!(error.to_string().ends_with(place), "{error}");
        assert!(error.hint().unwrap().contains("start this training over"));
    }

    #[test]
    fn the_checkpoint_of_another_training_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join(".work-1"), dir.path().join(".work-2"));
        fs::create_dir(&one).unwrap();
        save(&one, &trainer(), progress(1)).unwrap();
        fs::rename(&one, &two).unwrap();
        let error = restore(&two, &mut trainer()).unwrap_err().to_string();
        assert!(error.ends_with("found the checkpoint of .work-1, expected .work-2"), "{error}");
    }
}
