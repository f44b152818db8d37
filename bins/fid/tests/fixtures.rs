//! Artifacts, arrays and weights for the tests.

use lcf_store::{
    Artifact,
    cli::StageArgs,
    dataset::{META, Meta, STAGE, SplitMeta},
    npy,
    stage::{Begin, Plan, Work},
};
use serde_json::{Value, json};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Runs the binary in `dir`.
pub fn fid(dir: &Path, args: &[&str]) -> Output {
    // Threads that spin while they wait for each other slow tests that run side by side by a factor of ten.
    let mut command = Command::new(env!("CARGO_BIN_EXE_lcf-fid"));
    command.env("OMP_WAIT_POLICY", "passive").current_dir(dir).args(args).output().unwrap()
}

/// Exit code, stdout and stderr.
pub fn outcome(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// The weights, or a visible note that the test is skipped.
pub fn weights(test: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let default = root.join("data/downloads/inception-fid.pt");
    let path = env::var_os("LCF_INCEPTION").map_or(default, PathBuf::from);
    if path.exists() {
        return Some(path);
    }
    // Straight to the file descriptor: the test harness hides what eprintln! says in tests that pass.
    use std::io::Write;
    let note = format!("skipped: {test}: no {}; fetch it or set LCF_INCEPTION\n", path.display());
    let _ = std::io::stderr().write_all(note.as_bytes());
    None
}

/// `sources.json` and `downloads/` in `dir` that lead to `weights`.
pub fn provide(dir: &Path, weights: &Path) {
    let downloads = dir.join("data/downloads");
    fs::create_dir_all(&downloads).unwrap();
    std::os::unix::fs::symlink(fs::canonicalize(weights).unwrap(), downloads.join("inception-fid.pt")).unwrap();
    let source = json!({"inception": {
        "file": "inception-fid.pt",
        "bytes": fs::metadata(weights).unwrap().len(),
        "sha256": lcf_store::digest::of_file(weights).unwrap().1,
        "from": {"url": "https://localhost/none"},
    }});
    fs::write(dir.join("data/SOURCES.json"), source.to_string()).unwrap();
}

/// Deterministic bytes that look like neither noise nor a constant.
pub fn bytes(n: usize, seed: usize) -> Vec<u8> {
    (0..n).map(|i| ((i * i * 31 + i * (17 + seed) + seed * 101) % 251) as u8).collect()
}

fn work(store: &Path, stage: &str, config: &Value) -> Work {
    let args = StageArgs { store: store.to_owned(), ..StageArgs::default() };
    let Begin::Build(work) = Plan::new(stage, 1, config).begin(&args).unwrap() else { panic!("expected a build") };
    work
}

/// A dataset of `train` training and `test` test images, 4x4 RGB, in two classes.
pub fn dataset(store: &Path, train: usize, test: usize) -> Artifact {
    let work = work(store, STAGE, &Value::Null);
    let split = |name: &str, count: usize, seed| {
        npy::write(&work.path(&format!("{name}.npy")), &[count, 3, 4, 4], &bytes(count * 48, seed)).unwrap();
        let labels: Vec<i64> = (0..count as i64).map(|i| i % 2).collect();
        npy::write(&work.path(&format!("{name}-labels.npy")), &[count], &labels).unwrap();
        SplitMeta { count, shards: vec![format!("{name}.npy")], labels: format!("{name}-labels.npy") }
    };
    let meta = Meta {
        name: "demo".into(),
        channels: 3,
        height: 4,
        width: 4,
        classes: vec!["a".into(), "b".into()],
        mean: vec![0.0; 3],
        std: vec![1.0; 3],
        train: split("train", train, 1),
        test: split("test", test, 2),
    };
    fs::write(work.path(META), serde_json::to_vec(&meta).unwrap()).unwrap();
    work.publish().unwrap()
}

/// A sample artifact of `n` images, 4x4 RGB, whose `sample.json` says `num` and that the model was trained on `data`.
pub fn samples(store: &Path, n: usize, num: usize, data: &str) -> Artifact {
    samples_of(store, n, &json!({ "num": num, "data": data, "seed": 7, "steps": 50 }))
}

/// A sample artifact of `n` images whose `sample.json` says this and what is usual. The seed decides the images, and `side`
/// their size where it is there.
pub fn samples_of(store: &Path, n: usize, said: &Value) -> Artifact {
    let work = work(store, "sample", said);
    let seed = said["seed"].as_u64().unwrap() as usize;
    let side = said["side"].as_u64().unwrap_or(4) as usize;
    npy::write(&work.path("images.npy"), &[n, side, side, 3], &bytes(n * side * side * 3, seed - 4)).unwrap();
    let mut meta = json!({ "sampler": "euler", "nfe": 50, "weights": "ema", "t_stop": 0.02, "through_t0": false });
    meta.as_object_mut().unwrap().extend(said.as_object().unwrap().clone());
    fs::write(work.path("sample.json"), meta.to_string()).unwrap();
    work.publish().unwrap()
}

/// An artifact that has no images.
pub fn other(store: &Path) -> Artifact {
    let work = work(store, "train", &Value::Null);
    fs::write(work.path("x.txt"), "x").unwrap();
    work.publish().unwrap()
}
