//! Tests of the lcf-train binary, as a user runs it.

#[path = "golden.rs"]
mod golden;
#[path = "ranks.rs"]
mod ranks;
#[path = "tensorboard.rs"]
mod tensorboard;

use lcf_model::trained::Trained;
use lcf_store::{
    bench::Outcome,
    cli::StageArgs,
    dataset::{META, Meta, STAGE, SplitMeta},
    npy,
    stage::{Begin, Plan},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const CONFIG: &str = r#"{"train": {
    "model": {"depth": 2, "width": 16, "heads": 2, "mlp": 32, "patch": 2},
    "objective": "lcf", "t_min": 0.3,
    "contrast": {"lambda": 1, "tau": 0.5, "layer": 1, "denominator": "infonce", "norm": "none"},
    "reduction": "mean", "precision": "fp32", "seed": 0, "batch": 8, "epochs": 3, "flip": true,
    "optim": {"lr": 1e-3, "warmup_epochs": 0.5, "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8,
              "clip": 1},
    "ema": {"decay": 0.99, "ramp": true},
    "snapshots": [1, 2]
}}"#;

/// A directory with a config and a dataset of 40 images of 4x4.
struct Bench {
    dir: TempDir,
    data: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("run.json"), CONFIG).unwrap();
        let args = StageArgs { store: dir.path().join("store"), ..StageArgs::default() };
        let Begin::Build(work) = Plan::new(STAGE, 1, &()).begin(&args).unwrap() else { panic!("a fresh store") };
        let pixels: Vec<u8> = (0..40 * 48u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let labels: Vec<i64> = (0..40).map(|i| i % 2).collect();
        let split = |name: &str| {
            npy::write(&work.path(&format!("{name}-000.npy")), &[40, 3, 4, 4], &pixels).unwrap();
            npy::write(&work.path(&format!("{name}-labels.npy")), &[40], &labels).unwrap();
            SplitMeta { count: 40, shards: vec![format!("{name}-000.npy")], labels: format!("{name}-labels.npy") }
        };
        let meta = Meta {
            name: "demo".into(),
            channels: 3,
            height: 4,
            width: 4,
            classes: vec!["a".into(), "b".into()],
            mean: vec![0.0; 3],
            std: vec![1.0; 3],
            train: split("train"),
            test: split("test"),
        };
        fs::write(work.path(META), serde_json::to_vec(&meta).unwrap()).unwrap();
        let data = work.publish().unwrap().dir().to_owned();
        Self { dir, data }
    }

    fn command(&self, store: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lcf-train"));
        command.arg("--config").arg(self.dir.path().join("run.json"));
        command.arg("--store").arg(self.dir.path().join(store));
        command.arg("--link").arg(self.link(store));
        // Tests run side by side, and more threads only slow so small a model.
        let defaults = [("--data", self.data.to_str().unwrap()), ("--device", "cpu"), ("--threads", "1")];
        for (flag, value) in defaults.iter().filter(|(flag, _)| !more.contains(flag)) {
            command.args([flag, value]);
        }
        command.args(more);
        command
    }

    fn link(&self, store: &str) -> PathBuf {
        self.dir.path().join(store).join("run/train")
    }

    fn train(&self, store: &str, more: &[&str]) -> Trained {
        let output = self.command(store, more).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        Trained::open(&self.link(store)).unwrap()
    }

    fn fails(&self, more: &[&str], code: i32, message: &str) {
        let output = self.command("store", more).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains(message), "{}", stderr(&output));
        assert!(!stderr(&output).contains("panicked"));
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn trains_once_and_is_then_up_to_date() {
    let bench = Bench::new();
    let trained = bench.train("store", &["--log-steps", "5"]);
    assert_eq!(trained.weights(), ["ema", "epoch-1", "epoch-2", "raw"]);
    assert_eq!((trained.meta.steps, trained.meta.skipped, trained.meta.velocity_from), (15, 0, 0.3));
    let metrics = fs::read_to_string(trained.artifact.file("metrics.csv").unwrap()).unwrap();
    assert_eq!(metrics.lines().count(), 4);
    let again = bench.command("store", &["--json"]).output().unwrap();
    assert!(String::from_utf8_lossy(&again.stdout).contains("\"built\":false"));
    // Another interval of logging is not another training.
    assert_eq!(bench.train("other", &["--log-steps", "1"]).artifact.digest(), trained.artifact.digest());
}

#[test]
fn stopped_at_any_moment_it_goes_on_bit_for_bit() {
    let bench = Bench::new();
    let more = ["--set", "train.epochs=40", "--checkpoint-steps", "3"];
    let whole = bench.train("whole", &more);
    for (store, signal) in [("killed", "KILL"), ("terminated", "TERM")] {
        let mut child = bench.command(store, &more).stderr(Stdio::piped()).spawn().unwrap();
        wait_for_checkpoint(&bench.dir.path().join(store).join("train"));
        Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
        let status = child.wait().unwrap();
        // The signal may come after the last step; what counts is that the result is the same.
        assert!(status.success() || signal == "KILL" || status.code() == Some(75));
        assert_eq!(bench.train(store, &more).artifact.digest(), whole.artifact.digest(), "{signal}");
    }
}

/// The work directory of the training under way.
fn work_dir(stage: &Path) -> Option<PathBuf> {
    let mut entries = fs::read_dir(stage).ok()?.flatten();
    entries.find(|e| e.file_name().to_string_lossy().starts_with(".work-")).map(|e| e.path())
}

fn wait_for_checkpoint(stage: &Path) {
    let start = Instant::now();
    while !work_dir(stage).is_some_and(|work| work.join(".checkpoint.json").exists()) {
        assert!(start.elapsed() < Duration::from_secs(120), "no checkpoint after two minutes");
        sleep(Duration::from_millis(2));
    }
}

/// As in `lcf-train 2>&1 | head -1`.
#[test]
fn who_is_not_listened_to_any_more_goes_on() {
    let bench = Bench::new();
    let whole = bench.train("whole", &[]);
    let mut command = bench.command("unheard", &["--log-steps", "1"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert!(child.wait().unwrap().success());
    assert_eq!(Trained::open(&bench.link("unheard")).unwrap().artifact.digest(), whole.artifact.digest());
}

#[test]
fn a_termination_says_where_it_stopped() {
    let bench = Bench::new();
    let more = ["--set", "train.epochs=100000", "--checkpoint-steps", "3"];
    let child = bench.command("store", &more).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_checkpoint(&bench.dir.path().join("store/train"));
    Command::new("kill").args(["-TERM".to_owned(), child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(75));
    let text = stderr(&output);
    assert!(text.contains("stopped by a signal after step") && text.contains("hint: run the same command"), "{text}");
}

/// Make passes a signal on that was sent to its whole process group, so that one comes twice.
#[test]
fn many_signals_are_as_good_as_one_and_the_last_steps_have_their_row() {
    let bench = Bench::new();
    let more = ["--set", "train.epochs=100000", "--checkpoint-steps", "3", "--log-steps", "1000000"];
    for (store, signal) in [("terminated", "-TERM"), ("interrupted", "-INT")] {
        let mut child = bench.command(store, &more).stderr(Stdio::piped()).spawn().unwrap();
        let stage = bench.dir.path().join(store).join("train");
        wait_for_checkpoint(&stage);
        while child.try_wait().unwrap().is_none() {
            Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(75), "{text}");
        let step = text.split("stopped by a signal after step ").nth(1).and_then(|rest| rest.split(';').next());
        let step = step.unwrap_or_else(|| panic!("no step in {text}"));
        let work = work_dir(&stage).unwrap();
        assert!(work.join(format!(".checkpoint-{step}.safetensors")).exists(), "{signal}: {text}");
        let metrics = fs::read_to_string(work.join("metrics.csv")).unwrap();
        assert_eq!(metrics.lines().count(), 2, "{metrics}");
        assert!(metrics.lines().nth(1).unwrap().starts_with(&format!("{step},")), "{metrics}");
    }
}

#[test]
fn wrong_input_is_refused_with_its_place() {
    let bench = Bench::new();
    bench.fails(&["--set", "train.batch=0"], 2, "train.batch: 0 is not in 1..=65536");
    bench.fails(&["--set", "train.batch=41"], 2, "train.batch: 41 is more than the 40 training images");
    bench.fails(&["--set", "train.objective=lfc"], 2, "train.objective: unknown variant `lfc`");
    bench.fails(&["--set", "train.model.patch=3"], 2, "train.model.patch: 3 does not divide the image side 4");
    bench.fails(&["--set", "train.optim.lr=2"], 2, "train.optim.lr: 2 is not in 0..=1");
    bench.fails(&["--device", "cuda:99"], 2, "--device cuda:99");
    bench.fails(&["--checkpoint-steps", "0"], 2, "--checkpoint-steps");
    bench.fails(&["--data", "/nowhere"], 1, "/nowhere: no artifact here");
}

#[test]
fn losses_that_are_not_finite_end_the_training_with_the_step() {
    let bench = Bench::new();
    // A contrast this strong overflows fp32 at once.
    bench.fails(
        &[
            "--set",
            "train.contrast.lambda=1e9",
            "--set",
            "train.contrast.tau=1e-6",
            "--set",
            "train.contrast.norm=none",
            "--set",
            "train.model.width=64",
            "--set",
            "train.optim.lr=1",
            "--set",
            "train.optim.warmup_epochs=0",
            "--set",
            "train.optim.clip=1e12",
            "--set",
            "train.epochs=200",
        ],
        1,
        "10 steps in a row",
    );
}

/// No time is asserted: only that something was measured, and against what.
#[test]
fn the_bench_needs_no_artifacts_and_makes_none() {
    let dir = tempfile::tempdir().unwrap();
    let bench = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lcf-train"));
        command.env("OMP_WAIT_POLICY", "passive").current_dir(dir.path());
        command.args(["--bench", "--json", "--bench-seconds", "0.02", "--device", "cpu", "--config"]);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../pipelines/smoke.json"));
        command.args(more).output().unwrap()
    };
    for ranks in ["1", "2"] {
        let output = bench(&["--ranks", ranks]);
        assert!(output.status.success(), "{}", stderr(&output));
        let outcome: Outcome = serde_json::from_slice(&output.stdout).unwrap();
        let step = &outcome.measurements[0];
        let times = step.times;
        assert!(times.n > 0 && times.p5_ms > 0.0 && times.p5_ms <= times.median_ms && times.median_ms <= times.p95_ms);
        assert!(outcome.rates.flop_per_s > 0.0 && outcome.rates.bytes_per_s > 0.0 && outcome.peak_bytes.unwrap() > 0);
        assert!(step.items_per_s > 0.0 && step.share.unwrap() > 0.0, "{step:?}");
        let settings = &outcome.settings;
        assert_eq!((&settings["anchors"], &settings["engine"]), (&5.0.into(), &"reference".into()));
        assert_eq!((step.items, outcome.machine.device.ends_with("cpu")), (50.0, true));
    }
    let output = bench(&["--set", "train.batch=1001"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("train.batch: 1001 is more than the 1000 training images"));
    let output = bench(&["--data", "x"]);
    assert!(output.status.code() == Some(2) && stderr(&output).contains("cannot be used with"), "{}", stderr(&output));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
