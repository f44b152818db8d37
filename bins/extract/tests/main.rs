//! The program on tiny artifacts, errors included.

mod fixture;

use fixture::{COUNTS, Fixture, MODEL, dataset, train};
use lcf_model::{
    Dit, Precision,
    config::Input,
    features::{Features, META, Part},
    pixels, weights,
};
use lcf_store::{bench::Outcome, dataset::Dataset};
use serde_json::Value;
use std::{
    fs,
    process::{Command, Output},
};
use tch::{Device, Kind, Tensor};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// stderr of a run that has to fail with `code`, naming `part`.
fn fails(output: &Output, code: i32, part: &str) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains("extract: error: ") && stderr.contains(part), "{stderr}");
    assert!(output.stdout.is_empty());
}

#[test]
fn features_are_those_of_the_model_and_a_second_run_is_up_to_date() {
    let fixture = Fixture::new();
    let link = fixture.path("runs/tiny/extract");
    let args = ["--json", "--link", link.to_str().unwrap(), "--batch", "4"];
    let first: Value = serde_json::from_str(&ok(&fixture.run(&fixture.model, &fixture.data, &args))).unwrap();
    assert_eq!((&first["built"], &first["features"]["width"]), (&true.into(), &16.into()));

    let features = Features::open(&link).unwrap();
    let meta = &features.meta;
    assert_eq!((meta.timesteps.as_slice(), meta.layer, meta.weights.as_str()), (&[0, 20, 400][..], 2, "ema"));
    assert_eq!([meta.train, meta.test], COUNTS);
    assert_eq!(features.artifact.manifest().inputs["data"], meta.data);
    let names: Vec<_> = features.artifact.manifest().outputs.iter().map(|o| o.path.as_str()).collect();
    let expected = [META, "test-T0000.npy", "test-T0020.npy", "test-T0400.npy", "test-labels.npy"];
    assert_eq!(names[..5], expected);
    assert_eq!(features.labels(Part::Test).unwrap().values(), [0, 1, 0, 1, 0]);

    // At T = 0 no noise enters, so the reference is the plain model on the plain image.
    let input = Input { channels: 3, side: 8 };
    let params = weights::load(&fixture.model.join("weights/ema.safetensors"), &MODEL, &input, Device::Cpu).unwrap();
    let model = Dit::frozen(MODEL, input, Precision::Fp32, &params);
    let data = Dataset::open(&fixture.data).unwrap();
    let x = pixels::normalise(&pixels::load(&data.test, Device::Cpu));
    let tokens = model.features(&x, &Tensor::zeros([5], (Kind::Float, Device::Cpu)), 2);
    let clean = features.values(Part::Test, 0).unwrap();
    let found = Tensor::from_slice(clean.values()).view([5, 16]);
    assert!(found.allclose(&tokens.mean_dim(1, false, Kind::Float), 1e-5, 1e-6, false));
    assert_ne!(features.values(Part::Test, 20).unwrap().values(), clean.values());

    fs::remove_file(&link).unwrap();
    let again: Value = serde_json::from_str(&ok(&fixture.run(&fixture.model, &fixture.data, &args))).unwrap();
    assert_eq!((&again["built"], &again["digest"]), (&false.into(), &first["digest"]));
    assert!(Features::open(&link).is_ok());
    let plain = ok(&fixture.run(&fixture.model, &fixture.data, &[]));
    assert!(plain.contains("layer 2 of weights ema") && plain.trim_end().ends_with("(up to date)"), "{plain}");
}

#[test]
fn other_weights_and_other_layers_are_other_artifacts() {
    let fixture = Fixture::new();
    let digest = |more: &[&str]| {
        let args = [&["--json"], more].concat();
        let json: Value = serde_json::from_str(&ok(&fixture.run(&fixture.model, &fixture.data, &args))).unwrap();
        json["digest"].as_str().unwrap().to_owned()
    };
    let base = digest(&[]);
    for set in ["extract.weights=epoch-10", "extract.layer=3", "extract.seed=1", "extract.precision=bf16"] {
        assert_ne!(digest(&["--set", set]), base, "{set}");
    }
}

#[test]
fn wrong_settings_exit_2_and_name_the_value() {
    let fixture = Fixture::new();
    for (set, part) in [
        ("extract.layer=4", "extract.layer: 4 is not in 1..=3"),
        ("extract.layer=0", "extract.layer: 0, but"),
        ("extract.weights=best", "no weights called \"best\", expected one of ema, epoch-10, raw"),
        ("extract.timesteps=[0,20,10]", "extract.timesteps: 10 after 20"),
        ("extract.timesteps=[5,20]", "extract.timesteps: the first has to be 0"),
        ("extract.timesteps=[0,0.5]", "extract.timesteps[1]: invalid type"),
        ("extract.precision=fp16", "extract.precision: unknown variant `fp16`"),
    ] {
        fails(&fixture.run(&fixture.model, &fixture.data, &["--set", set]), 2, part);
    }
    fails(&fixture.run(&fixture.model, &fixture.data, &["--device", "tpu"]), 2, "--device");
}

#[test]
fn wrong_inputs_exit_1_and_are_named() {
    let fixture = Fixture::new();
    let swapped = fixture.run(&fixture.data, &fixture.model, &[]);
    fails(&swapped, 1, "found an artifact of stage prepare, expected train");
    let other = dataset(fixture.dir.path(), 10);
    let output = fixture.run(&fixture.model, other.dir(), &[]);
    fails(&output, 1, "found images of 3x10x10, but the model takes 3x8x8");
    fails(&fixture.run(&fixture.path("nothing"), &fixture.data, &[]), 1, "no artifact here");
}

#[test]
fn a_feature_that_is_not_finite_is_named_and_nothing_is_published() {
    let fixture = Fixture::new();
    // Large enough that the second block overflows fp32.
    let broken = train(fixture.dir.path(), "", |flat| *flat *= 1e20);
    let output = fixture.run(broken.dir(), &fixture.data, &[]);
    fails(&output, 1, "the feature of train image 0 at T=0, layer 2 is not finite");
    assert!(text(&output.stderr).contains("hint: "));
    let published = fs::read_dir(fixture.path("store/extract")).unwrap().map(|e| e.unwrap().file_name());
    assert!(published.into_iter().all(|name| name.to_string_lossy().starts_with('.')));
}

/// No time is asserted: only that something was measured, and against what.
#[test]
fn the_bench_needs_no_artifacts_and_makes_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lcf-extract"));
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
    assert_eq!((outcome.stage.as_str(), measured.items, measured.item.as_str()), ("extract", 64.0, "features"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
