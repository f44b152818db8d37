//! The program on tiny models, errors included.

use lcf_model::{
    ModelConfig, Params,
    config::Input,
    rng::{Purpose, Rng},
    trained, weights,
};
use lcf_sample::output::{Ending, GRID, IMAGES, SUMMARY, Summary};
use lcf_store::{
    Artifact,
    bench::Outcome,
    cli::StageArgs,
    npy::Npy,
    stage::{self, Begin, Plan},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};
use tch::{Device, Kind, Tensor};

const MODEL: ModelConfig = ModelConfig { depth: 2, width: 16, heads: 2, mlp: 24, patch: 2 };
const INPUT: Input = Input { channels: 3, side: 8 };

/// A model with random weights everywhere, times `scale`: DiT's own start predicts a velocity of zero.
fn train(root: &Path, velocity_from: f64, scale: f64) -> Artifact {
    let mut params = Params::init(&MODEL, &INPUT, 1, Device::Cpu);
    let index = Tensor::arange(params.layout.len, (Kind::Int64, Device::Cpu));
    params.flat += Rng::new(1, Purpose::Init).normal(&index, 1).squeeze_dim(1) * 0.1;
    params.flat *= scale;
    let args = StageArgs { store: root.join("store"), ..StageArgs::default() };
    let Begin::Build(work) = Plan::new(trained::STAGE, 1, &json!([velocity_from, scale])).begin(&args).unwrap() else {
        panic!("made twice")
    };
    fs::create_dir(work.path("weights")).unwrap();
    for (name, scale) in [("ema", 1.0), ("raw", 1.1)] {
        let flat = &params.flat * scale;
        weights::save(&work.path(&trained::weights_file(name)), &MODEL, &INPUT, &params.layout, &flat).unwrap();
    }
    let meta = trained::Meta {
        model: MODEL,
        input: INPUT,
        objective: if velocity_from > 0.0 { "lcf" } else { "fm" }.into(),
        parameters: params.layout.parameters(),
        velocity_from,
        epochs: 3,
        steps: 30,
        skipped: 0,
        final_loss: Some(1.0),
        dataset: "tiny".into(),
        data: "11".into(),
    };
    fs::write(work.path(trained::META), stage::pretty(&meta)).unwrap();
    work.publish().unwrap()
}

fn sample(root: &Path, model: &Path, more: &[&str]) -> Output {
    let config = json!({"sample": {
        "weights": "ema", "num": 7, "sampler": "euler", "steps": 5, "seed": 0, "precision": "fp32", "through_t0": false
    }});
    fs::write(root.join("run.json"), config.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lcf-sample"));
    command.arg("--config").arg(root.join("run.json")).arg("--model").arg(model).args(["--device", "cpu"]);
    if !more.contains(&"--store") {
        command.arg("--store").arg(root.join("store"));
    }
    command.args(more).output().unwrap()
}

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The artifact and its summary of a run that has to work.
fn made(root: &Path, model: &Artifact, more: &[&str]) -> (Artifact, Summary) {
    let value: Value = serde_json::from_str(&ok(&sample(root, model.dir(), &[&["--json"], more].concat()))).unwrap();
    let artifact = Artifact::open(value["artifact"].as_str().unwrap(), "sample").unwrap();
    let summary = artifact.json(SUMMARY).unwrap();
    assert_eq!(value["sample"], serde_json::to_value(&summary).unwrap());
    (artifact, summary)
}

fn images(artifact: &Artifact) -> Npy<u8> {
    Npy::open(&artifact.file(IMAGES).unwrap()).unwrap()
}

/// stderr of a run that has to fail with `code`, naming `part`.
fn fails(output: &Output, code: i32, part: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains("sample: error: ") && stderr.contains(part), "{stderr}");
    assert!(output.stdout.is_empty());
}

#[test]
fn images_are_made_once_and_a_second_run_is_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let model = train(dir.path(), 0.0, 1.0);
    let link = dir.path().join("runs/tiny/sample");
    let (artifact, summary) = made(dir.path(), &model, &["--link", link.to_str().unwrap()]);
    assert_eq!(fs::canonicalize(&link).unwrap(), artifact.dir());
    assert_eq!(images(&artifact).shape(), [7, 8, 8, 3]);
    let sheet = fs::read(artifact.file(GRID).unwrap()).unwrap();
    assert!(sheet.starts_with(b"\x89PNG"));
    assert_eq!((summary.nfe, summary.t_stop, summary.ending), (5, 0.0, Ending::Ode));
    assert_eq!(summary.model, model.digest());
    let again = ok(&sample(dir.path(), model.dir(), &[]));
    assert!(again.contains("Euler, 5 steps, NFE 5, ODE from t=1 to 0, seed 0"), "{again}");
    assert!(again.trim_end().ends_with("(up to date)"), "{again}");
    let heun = made(dir.path(), &model, &["--set", "sample.sampler=heun"]);
    assert_eq!(heun.1.nfe, 10);
    assert_ne!(heun.0.digest(), artifact.digest());
}

#[test]
fn neither_the_batch_nor_the_number_of_images_changes_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let model = train(dir.path(), 0.0, 1.0);
    let (seven, _) = made(dir.path(), &model, &[]);
    let other = dir.path().join("other");
    let args = ["--store", other.to_str().unwrap(), "--batch", "3", "--set", "sample.num=5"];
    let (five, _) = made(dir.path(), &model, &args);
    let (seven, five) = (images(&seven), images(&five));
    // Rounding of another batch's matrix products may move a value across a byte's edge.
    let pairs = seven.rows(0, 5).iter().zip(five.values());
    assert!(pairs.clone().all(|(a, b)| a.abs_diff(*b) <= 1));
    assert!(pairs.filter(|(a, b)| a != b).count() < 10);
    assert_ne!(seven.rows(0, 1), seven.rows(1, 1));
}

#[test]
fn a_model_untrained_below_t_min_stops_there_and_the_manifest_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let model = train(dir.path(), 0.02, 1.0);
    let (stopped, summary) = made(dir.path(), &model, &[]);
    assert_eq!((summary.t_stop, summary.ending, summary.nfe, summary.steps), (0.02, Ending::DataStep, 5, 5));
    let config = &stopped.manifest().config;
    assert_eq!((&config["t_stop"], &config["through_t0"]), (&json!(0.02), &json!(false)));
    let (through, summary) = made(dir.path(), &model, &["--through-t0"]);
    assert_eq!((summary.t_stop, summary.ending, summary.through_t0), (0.0, Ending::Ode, true));
    let config = &through.manifest().config;
    assert_eq!((&config["t_stop"], &config["through_t0"]), (&json!(0.0), &json!(true)));
    assert_ne!(images(&stopped).values(), images(&through).values());
    let text = ok(&sample(dir.path(), model.dir(), &[]));
    assert!(text.contains("ODE from t=1 to 0.02, then x0 = x - t v"), "{text}");
    let by_config = made(dir.path(), &model, &["--set", "sample.through_t0=true"]).0;
    assert_eq!(by_config.manifest().key, through.manifest().key);
    let one = sample(dir.path(), model.dir(), &["--set", "sample.steps=1"]);
    fails(&one, 2, "sample.steps: 1, but a model trained for t >= 0.02 needs 2");
}

#[test]
fn wrong_settings_exit_2_and_wrong_inputs_exit_1() {
    let dir = tempfile::tempdir().unwrap();
    let model = train(dir.path(), 0.0, 1.0);
    for (set, part) in [
        ("sample.num=0", "sample.num: 0 is not in"),
        ("sample.steps=0", "sample.steps: 0 is not in"),
        ("sample.sampler=rk4", "sample.sampler: unknown variant `rk4`"),
        ("sample.weights=epoch-10", "no weights called \"epoch-10\", expected one of ema, raw"),
        ("sample.precision=fp16", "sample.precision: unknown variant `fp16`"),
    ] {
        fails(&sample(dir.path(), model.dir(), &["--set", set]), 2, part);
    }
    let (artifact, _) = made(dir.path(), &model, &[]);
    fails(&sample(dir.path(), artifact.dir(), &[]), 1, "found an artifact of stage sample, expected train");
    fails(&sample(dir.path(), &dir.path().join("none"), &[]), 1, "no artifact here");
    // Large enough that the output overflows fp32.
    let broken = train(dir.path(), 0.0, 1e20);
    fails(&sample(dir.path(), broken.dir(), &[]), 1, "weights ema: sample 0 is not finite after step 1 of 5");
}

/// No time is asserted: only that something was measured, and against what.
#[test]
fn the_bench_needs_no_artifacts_and_makes_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lcf-sample"));
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
    assert_eq!((outcome.stage.as_str(), measured.items, measured.item.as_str()), ("sample", 64.0, "images"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
