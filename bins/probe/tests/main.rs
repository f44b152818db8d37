//! The program on features with a known answer, errors included.

use lcf_model::{
    Precision,
    features::{META, Meta, Part, STAGE},
    rng::{Purpose, Rng},
    weights,
};
use lcf_probe::output::{self, Row};
use lcf_store::{
    Artifact,
    bench::Outcome,
    cli::StageArgs,
    npy,
    stage::{self, Begin, Plan},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tch::{Device, Kind, Tensor};

const WIDTH: usize = 8;
const CLASSES: usize = 4;
const COUNTS: [usize; 2] = [1000, 400];

/// Features that hold less of the class the larger T is: separable at T = 20, noisy at 0, pure noise at 1000.
fn spread(timestep: u32) -> f64 {
    match timestep {
        20 => 8.0,
        0 => 0.6,
        _ => 0.0,
    }
}

/// An extract artifact; `edit` may break the features at the last timestep of `train`.
fn features(root: &Path, timesteps: &[u32], edit: impl Fn(&mut [f32])) -> Artifact {
    described(root, timesteps, edit, |_| {})
}

/// The same, described by a `features.json` that `describe` may change.
fn described(root: &Path, timesteps: &[u32], edit: impl Fn(&mut [f32]), describe: impl Fn(&mut Meta)) -> Artifact {
    let args = StageArgs { store: root.join("store"), ..StageArgs::default() };
    let salt = fs::read_dir(root.join("store/extract")).map_or(0, Iterator::count);
    let Begin::Build(work) = Plan::new(STAGE, 1, &salt).begin(&args).unwrap() else { panic!("made twice") };
    for (part, count) in Part::ALL.into_iter().zip(COUNTS) {
        let labels: Vec<i64> = (0..count).map(|i| (i * 7 % CLASSES) as i64).collect();
        npy::write(&work.path(&part.labels_file()), &[count], &labels).unwrap();
        for &timestep in timesteps {
            let index = Tensor::arange(count as i64, (Kind::Int64, Device::Cpu));
            let rng = Rng::new(u64::from(timestep), Purpose::Noise).fork(part as u64);
            let noise = rng.normal(&index, WIDTH as i64);
            let own = Tensor::from_slice(&labels).one_hot(WIDTH as i64) * spread(timestep) + noise;
            let mut values = Vec::<f32>::try_from(own.to_kind(Kind::Float).flatten(0, -1)).unwrap();
            if part == Part::Train && Some(&timestep) == timesteps.last() {
                edit(&mut values);
            }
            npy::write(&work.path(&part.file(timestep)), &[count, WIDTH], &values).unwrap();
        }
    }
    let mut meta = Meta {
        dataset: "tiny".into(),
        classes: ["a", "b", "c", "d"].map(str::to_owned).to_vec(),
        train: COUNTS[0],
        test: COUNTS[1],
        width: WIDTH,
        layer: 8,
        timesteps: timesteps.to_vec(),
        weights: "ema".into(),
        precision: Precision::Fp32,
        seed: 0,
        model: "00".into(),
        data: "11".into(),
        trained_on: None,
    };
    describe(&mut meta);
    fs::write(work.path(META), stage::pretty(&meta)).unwrap();
    work.publish().unwrap()
}

fn probe(root: &Path, features: &Path, more: &[&str]) -> Output {
    let config = json!({"probe": {"epochs": 15, "batch": 128, "lr": 0.01, "weight_decay": 0.01, "seed": 0}});
    fs::write(root.join("run.json"), config.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lcf-probe"));
    command.arg("--config").arg(root.join("run.json")).arg("--features").arg(features).args(["--device", "cpu"]);
    if !more.contains(&"--store") {
        command.arg("--store").arg(root.join("store"));
    }
    command.args(more).output().unwrap()
}

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_str(&ok(output)).unwrap()
}

/// stderr of a run that has to fail with `code`, naming `part`.
fn fails(output: &Output, code: i32, part: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains("probe: error: ") && stderr.contains(part), "{stderr}");
    assert!(output.stdout.is_empty());
}

fn curve(artifact: &Value) -> (Artifact, Vec<Row>) {
    let artifact = Artifact::open(PathBuf::from(artifact["artifact"].as_str().unwrap()), "probe").unwrap();
    let (rows, _) = output::read(&artifact).unwrap();
    (artifact, rows)
}

#[test]
fn the_curve_follows_the_features_and_a_second_run_is_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let features = features(dir.path(), &[0, 20, 1000], |_| {});
    let link = dir.path().join("runs/tiny/probe");
    let first = json_of(&probe(dir.path(), features.dir(), &["--json", "--link", link.to_str().unwrap()]));
    let (artifact, rows) = curve(&first);
    assert_eq!(fs::canonicalize(&link).unwrap(), artifact.dir());
    for accuracy in [|row: &Row| row.test_acc_raw, |row: &Row| row.test_acc_std] {
        assert!(accuracy(&rows[1]) > 0.99, "{rows:?}");
        assert!((0.35..0.7).contains(&accuracy(&rows[0])), "{rows:?}");
        // Chance is 0.25, and 400 images give a standard error of 0.022.
        assert!((accuracy(&rows[2]) - 0.25).abs() < 0.11, "{rows:?}");
    }
    let raw = &first["probe"]["raw"];
    assert_eq!((&raw["peak_timestep"], &raw["t0"]), (&json!(20), &json!(rows[0].test_acc_raw)));

    let weights = weights::read(&artifact.file(output::WEIGHTS).unwrap()).unwrap();
    assert_eq!(weights.len(), 3 * 6);
    assert_eq!(weights["T0020.raw.weight"].size(), [CLASSES as i64, WIDTH as i64]);
    assert_eq!(weights["T0020.std.mean"].size(), [WIDTH as i64]);
    // The stored classifier gives the stored accuracy.
    let x = npy::Npy::<f32>::open(&features.file("test-T0000.npy").unwrap()).unwrap();
    let x = Tensor::from_slice(x.values()).view([-1, WIDTH as i64]);
    let x = (x - &weights["T0000.std.mean"]) * &weights["T0000.std.scale"];
    let logits = x.linear(&weights["T0000.std.weight"], Some(&weights["T0000.std.bias"]));
    let labels = npy::Npy::<i64>::open(&features.file("test-labels.npy").unwrap()).unwrap();
    let accuracy = logits.accuracy_for_logits(&Tensor::from_slice(labels.values())).double_value(&[]);
    assert!((accuracy - rows[0].test_acc_std).abs() < 1e-6);

    let table = ok(&probe(dir.path(), features.dir(), &[]));
    assert!(table.contains("raw: peak ") && table.contains(" at T=20, "), "{table}");
    assert!(table.trim_end().ends_with("(up to date)"), "{table}");
}

#[test]
fn equal_runs_give_equal_bytes_and_a_timestep_more_changes_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let three = features(dir.path(), &[0, 20, 1000], |_| {});
    let two = features(dir.path(), &[0, 20], |_| {});
    let run = |features: &Artifact, store: &str| {
        let store = dir.path().join(store);
        json_of(&probe(dir.path(), features.dir(), &["--json", "--store", store.to_str().unwrap()]))
    };
    let (one, other) = (run(&three, "a"), run(&three, "b"));
    assert_eq!((&one["built"], &other["built"]), (&json!(true), &json!(true)));
    assert_eq!(one["digest"], other["digest"]);
    assert_eq!(curve(&run(&two, "a")).1, curve(&one).1[..2]);
}

#[test]
fn wrong_settings_exit_2_and_wrong_inputs_exit_1() {
    let dir = tempfile::tempdir().unwrap();
    let good = features(dir.path(), &[0, 20], |_| {});
    for (set, part) in [
        ("probe.epochs=0", "probe.epochs: 0 is not in"),
        ("probe.batch=0", "probe.batch: 0"),
        ("probe.lr=-1", "probe.lr: -1 is not in (0, 10]"),
        ("probe.momentum=1", "unknown field `momentum`"),
    ] {
        fails(&probe(dir.path(), good.dir(), &["--set", set]), 2, part);
    }
    let bad = features(dir.path(), &[0, 20], |values| values[3 * WIDTH + 1] = f32::NAN);
    let output = probe(dir.path(), bad.dir(), &[]);
    fails(&output, 1, "train-T0020.npy: the feature of image 3 is not finite (T=20, train)");
    assert!(String::from_utf8_lossy(&output.stderr).contains("hint: "));
    fails(&probe(dir.path(), &dir.path().join("none"), &[]), 1, "no artifact here");
    let probed = json_of(&probe(dir.path(), good.dir(), &["--json"]));
    let probed = PathBuf::from(probed["artifact"].as_str().unwrap());
    fails(&probe(dir.path(), &probed, &[]), 1, "found an artifact of stage probe, expected extract");
}

/// No time is asserted: only that something was measured, and against what.
#[test]
fn the_bench_needs_no_artifacts_and_makes_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lcf-probe"));
    command.env("OMP_WAIT_POLICY", "passive").current_dir(dir.path());
    command.args(["--bench", "--json", "--bench-seconds", "0.02", "--device", "cpu", "--config"]);
    let output = command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../pipelines/smoke.json")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let outcome: Outcome = serde_json::from_slice(&output.stdout).unwrap();
    let measured = &outcome.measurements[0];
    let times = measured.times;
    assert!(times.n > 0 && times.p5_ms > 0.0 && times.p5_ms <= times.median_ms && times.median_ms <= times.p95_ms);
    assert!(outcome.rates.flop_per_s > 0.0 && outcome.rates.bytes_per_s > 0.0 && outcome.peak_bytes.unwrap() > 0);
    assert!(measured.items_per_s > 0.0 && measured.share.unwrap() > 0.0, "{measured:?}");
    assert_eq!(
        (outcome.stage.as_str(), measured.items, measured.item.as_str()),
        ("probe", 6.0 * 1000.0 * 15.0, "features")
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn features_that_no_probe_can_be_trained_on_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |describe: fn(&mut Meta), part: &str| {
        let artifact = described(dir.path(), &[0, 20], |_| {}, describe);
        let output = probe(dir.path(), artifact.dir(), &[]);
        fails(&output, 1, part);
        assert!(String::from_utf8_lossy(&output.stderr).contains("hint: rm -r "));
    };
    refused(|meta| meta.timesteps = vec![20, 0], "features.json: timesteps: the first has to be 0");
    refused(|meta| meta.timesteps = vec![0, 0], "features.json: timesteps: 0 after 0");
    refused(|meta| meta.classes.clear(), "features.json: classes: none");
    refused(|meta| meta.classes.push("e".into()), "train-labels.npy: no image of class 4 (e)");
    refused(|meta| drop(meta.classes.pop()), "train-labels.npy: label 3 of image");
    let huge = features(dir.path(), &[0, 20], |values| values.iter_mut().for_each(|value| *value *= 1e30));
    let part = "train-T0020.npy: the probe of the features at T=20, as they are, is not finite";
    fails(&probe(dir.path(), huge.dir(), &[]), 1, part);
}

#[test]
fn numbers_that_mislead_have_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let other = |meta: &mut Meta| meta.trained_on = Some("22".into());
    let artifact = described(dir.path(), &[0, 20], |values| values.fill(0.5), other);
    for state in ["", " (up to date)"] {
        let output = probe(dir.path(), artifact.dir(), &[]);
        let table = ok(&output);
        for part in
            ["the model was trained on another dataset", "have the same feature at T=20: its probe can only guess"]
        {
            assert!(table.lines().any(|line| line.starts_with("warning: ") && line.contains(part)), "{table}");
            assert!(String::from_utf8_lossy(&output.stderr).contains(part));
        }
        assert!(table.trim_end().ends_with(state), "{table}");
    }
}
