//! What is fuzzed: each function takes any bytes to a reader of files from strangers, which may refuse them but must
//! neither panic nor accept what contradicts itself. `fuzz/` feeds them from libFuzzer, `tests/seeds.rs` from the seeds
//! and from every input that ever broke one.

mod images;
mod store;
mod training;

use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// A target.
pub type Target = fn(&[u8]);

/// All of them by name.
pub const TARGETS: [(&str, Target); 12] = [
    ("cifar", images::cifar),
    ("checkpoint", training::checkpoint),
    ("config", store::config),
    ("dataset", store::dataset),
    ("decode", images::decode),
    ("manifest", store::manifest),
    ("npy", store::npy),
    ("npz", images::npz),
    ("tar", images::tar),
    ("tiny_imagenet", images::tiny_imagenet),
    ("weights", training::weights),
    ("zip", images::zip),
];

/// Runs the target called `name`.
///
/// # Panics
/// When there is none, or it found something.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(own, _)| *own == name).expect("a target of that name");
    target(data);
}

/// A directory in memory, one for each thread of the fuzzer, whose files are replaced from case to case.
struct Scratch {
    dir: TempDir,
}

impl Scratch {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Self { dir: dir.expect("a directory for files") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file, and the directories above it.
    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("below the directory")).expect("a directory");
        fs::write(&path, content).expect("a file");
        path
    }
}

thread_local! {
    static SCRATCH: Scratch = Scratch::new();
}

/// The input cut at its first bytes of 0xff, as several files.
fn parts<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut parts = data.splitn(N, |&byte| byte == 0xff);
    [(); N].map(|()| parts.next().unwrap_or_default())
}
