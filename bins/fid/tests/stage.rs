//! The stage from artifacts to artifact, with the real network on a handful of images.

use crate::fixtures::{bytes, dataset, fid, outcome, provide, samples, samples_of, weights};
use lcf_store::{Artifact, bench::Outcome};
use serde_json::{Value, json};
use std::{fs, path::Path};

fn run(dir: &Path, extra: &[&str]) -> (Value, String) {
    let stage = ["--config", "run.json", "--store", "store", "--link", "runs/x/fid"];
    let inputs =
        ["--samples", "runs/x/sample", "--data", "runs/x/prepare", "--device", "cpu", "--batch", "3", "--json"];
    let (code, stdout, stderr) = outcome(&fid(dir, &[&stage[..], &inputs, extra].concat()));
    assert_eq!(code, 0, "{stderr}");
    (serde_json::from_str(&stdout).unwrap(), stderr)
}

/// A directory with weights, a dataset of 6 training and 4 test images, 4 samples, and a config.
fn place(weights: &Path) -> (tempfile::TempDir, Artifact, Artifact) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    provide(dir, weights);
    let store = dir.join("store");
    let data = dataset(&store, 6, 4);
    let sampled = samples(&store, 4, 4, data.digest());
    fs::create_dir_all(dir.join("runs/x")).unwrap();
    std::os::unix::fs::symlink(data.dir(), dir.join("runs/x/prepare")).unwrap();
    std::os::unix::fs::symlink(sampled.dir(), dir.join("runs/x/sample")).unwrap();
    fs::write(dir.join("run.json"), r#"{"fid": {"resize": "tf1"}}"#).unwrap();
    (temp, data, sampled)
}

#[test]
fn the_stage_reuses_the_references_and_skips_itself() {
    let Some(weights) = weights("stage") else { return };
    let (temp, _data, sampled) = place(&weights);
    let dir = temp.path();

    let (result, stderr) = run(dir, &[]);
    for line in ["demo train: features of 6 images", "demo test: features of 4 images", "samples: features of 4 images"]
    {
        assert!(stderr.contains(line), "{stderr}");
    }
    assert_eq!(result["built"], true);
    assert!(stderr.contains("warning: 4 images give a rank-deficient covariance"), "{stderr}");
    assert!(result["fid"].as_f64().unwrap() > 0.0 && result["floor"]["fid"].as_f64().unwrap() > 0.0);
    assert_eq!((&result["n"], &result["n_reference"], &result["rank_deficient"]), (&json!(4), &json!(6), &json!(true)));
    assert!(!stderr.contains("not trained on this dataset"), "{stderr}");
    assert_eq!(result["sample"]["sampler"], "euler");
    assert_eq!(result["digests"]["samples"], sampled.digest());
    let artifact = Artifact::open(dir.join("runs/x/fid"), "fid").unwrap();
    assert_eq!(artifact.digest(), result["digest"]);
    assert_eq!(artifact.manifest().provenance.device, "cpu");
    let reference = |name| Artifact::open(dir.join("runs/x").join(name), "reference").unwrap();
    let linked = || reference("reference");
    assert_eq!(linked().digest(), result["digests"]["reference"]);
    assert_eq!(linked().digest(), result["against"]["train"]["reference"]);
    assert_eq!(reference("reference-test").digest(), result["against"]["test"]["reference"]);

    // The same again computes nothing and needs no weights.
    let up_to_date = {
        let mut expected = result.clone();
        expected["built"] = false.into();
        expected
    };
    let (again, stderr) = run(dir, &["--downloads", "none", "--sources", "none"]);
    assert_eq!(again, up_to_date);
    assert!(!stderr.contains("features of"), "{stderr}");

    // But it links the reference again, without which `lcf-artifact gc` would remove it.
    fs::remove_file(dir.join("runs/x/reference")).unwrap();
    fs::remove_file(dir.join("runs/x/reference-test")).unwrap();
    run(dir, &[]);
    assert_eq!(linked().digest(), result["digests"]["reference"]);
    assert_eq!(reference("reference-test").digest(), result["against"]["test"]["reference"]);

    // A floor needs fewer samples than references.
    let (small, stderr) = run(dir, &["--set", "fid.reference=4"]);
    assert!(stderr.contains("features of 4 images") && small["floor"]["fid"].is_null(), "{stderr}");
    assert_eq!(small["floor"]["reason"], "4 samples are not fewer than the 4 reference images");

    // Another precision is another reference, and marked; on the CPU the numbers are near those of fp32.
    let (half, stderr) = run(dir, &["--set", "fid.precision=fp16"]);
    assert!(stderr.contains("demo train: features of 6 images"), "{stderr}");
    assert_eq!((&half["feature_precision"], &result["feature_precision"]), (&json!("fp16"), &Value::Null));
    let shift = half["fid"].as_f64().unwrap() / result["fid"].as_f64().unwrap() - 1.0;
    assert!(shift != 0.0 && shift.abs() < 0.01, "{shift}");

    // Back to all of them: the link follows.
    assert_ne!(linked().digest(), result["digests"]["reference"]);
    run(dir, &[]);
    assert_eq!(linked().digest(), result["digests"]["reference"]);

    // Gone results are rebuilt from the reference that is there.
    fs::remove_dir_all(artifact.dir()).unwrap();
    let (rebuilt, stderr) = run(dir, &[]);
    assert_eq!(rebuilt, result);
    assert!(!stderr.contains("demo train: features"), "{stderr}");
}

/// Lines of `neighbours.csv` whose first two fields are these.
fn row(artifact: &Artifact, set: &str, index: usize) -> Vec<String> {
    let table = fs::read_to_string(artifact.file("neighbours.csv").unwrap()).unwrap();
    let start = format!("{set},{index},");
    let line = table.lines().find(|line| line.starts_with(&start)).unwrap();
    line.split(',').map(str::to_owned).collect()
}

#[test]
fn every_metric_lands_in_the_result() {
    let Some(weights) = weights("every metric") else { return };
    let (temp, ..) = place(&weights);
    let dir = temp.path();
    let (result, stderr) = run(dir, &["--set", "fid.kid.subsets=7", "--set", "fid.k=1"]);
    for half in ["train", "test"] {
        let found = &result["against"][half];
        assert!(found["fid"].as_f64().unwrap() > 0.0 && found["kid"]["mean"].is_f64(), "{found}");
        assert!(found["precision"].is_f64() && found["recall"].is_f64(), "{found}");
        assert_eq!(
            (&found["k"], &found["kid"]["subsets"], &found["kid"]["subset_size"]),
            (&json!(1), &json!(7), &json!(4))
        );
    }
    assert_eq!(result["against"]["train"]["fid"], result["fid"]);
    assert_eq!((&result["seeds"], &result["spread"]), (&json!([]), &Value::Null));
    for warning in ["rank-deficient", "KID on subsets of 4 images instead of 1000"] {
        assert!(result["warnings"].to_string().contains(warning) && stderr.contains(warning), "{stderr}");
    }
    // Distances in the table, against the images themselves: RMS of the bytes of sample 2 and its training image.
    let artifact = Artifact::open(dir.join("runs/x/fid"), "fid").unwrap();
    let row_2 = row(&artifact, "sample", 2);
    let (place, rms) = (&row_2[4], &row_2[5]);
    let train = bytes(6 * 48, 1);
    let sample: Vec<u8> = bytes(4 * 48, 3)[2 * 48..3 * 48].to_vec();
    let to = |image: &[u8]| {
        // Training images are planes, samples are pixels.
        let square = |(i, &byte): (usize, &u8)| (f64::from(sample[i % 16 * 3 + i / 16]) - f64::from(byte)).powi(2);
        (image.iter().enumerate().map(square).sum::<f64>() / 48.0).sqrt()
    };
    let all: Vec<f64> = train.chunks(48).map(to).collect();
    let least = all.iter().copied().fold(f64::INFINITY, f64::min);
    assert!((rms.parse::<f64>().unwrap() - least).abs() < 1e-5, "{rms}, expected {least}");
    assert!((all[place.parse::<usize>().unwrap()] - least).abs() < 1e-9);
    assert_eq!(row(&artifact, "test", 3).len(), 6);
    // All four samples, each beside 5 of 6 training images twice, in tiles of 64.
    let picture = image::open(artifact.file("neighbours.png").unwrap()).unwrap();
    assert_eq!((picture.width(), picture.height()), (11 * 66 + 2 * 12 + 2, 4 * 66 + 2));
    assert!(fs::read_to_string(artifact.file("distances.svg").unwrap()).unwrap().starts_with("<svg "));

    // The same images, of a model that was trained on others: the numbers are the same, and marked.
    let stranger = samples_of(&dir.join("store"), 4, &json!({ "num": 4, "data": "another", "seed": 7, "steps": 50 }));
    fs::remove_file(dir.join("runs/x/sample")).unwrap();
    std::os::unix::fs::symlink(stranger.dir(), dir.join("runs/x/sample")).unwrap();
    let (marked, stderr) = run(dir, &["--set", "fid.kid.subsets=7", "--set", "fid.k=1"]);
    assert_eq!(marked["fid"], result["fid"]);
    let warning = "these samples are of a model that was not trained on this dataset artifact";
    assert!(marked["warnings"].to_string().contains(warning) && stderr.contains(warning), "{stderr}");
    let compare = ["compare", "--real", "runs/x/prepare", "--fake", "runs/x/sample", "--device", "cpu", "--json"];
    let (code, stdout, stderr) = outcome(&fid(dir, &compare));
    let warning = "real and fake images are of different dataset artifacts: ";
    assert!(
        code == 0 && stdout.contains(warning) && stderr.contains(&format!("warning: {warning}")),
        "{stdout}{stderr}"
    );
    let compared: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((compared["precision"].is_f64(), &compared["feature_precision"]), (true, &json!("fp32")));
}

#[test]
fn several_seeds_give_a_spread_and_nothing_else_may_differ() {
    let Some(weights) = weights("several seeds") else { return };
    let (temp, data, _) = place(&weights);
    let dir = temp.path();
    let more = |said: Value| {
        let artifact = samples_of(&dir.join("store"), 4, &said);
        artifact.dir().to_str().unwrap().to_owned()
    };
    let other = more(json!({ "num": 4, "data": data.digest(), "seed": 9, "steps": 50 }));
    let (both, stderr) = run(dir, &["--samples", &other]);
    assert!(stderr.contains("samples-1: features of 4 images"), "{stderr}");
    let of = |i: usize| both["seeds"][i]["fid"].as_f64().unwrap();
    assert_eq!((both["fid"].as_f64(), &both["seeds"][0]["seed"]), (Some(of(0)), &json!(7)));
    assert!(of(0) != of(1));
    let (mean, std) = (both["spread"]["fid"]["mean"].as_f64().unwrap(), both["spread"]["fid"]["std"].as_f64().unwrap());
    assert!((mean - (of(0) + of(1)) / 2.0).abs() < 1e-9);
    assert!((std - (of(0) - of(1)).abs() / 2f64.sqrt()).abs() < 1e-9);
    let refused = |samples: &str, expected: &str| {
        let stage = ["--config", "run.json", "--store", "store", "--samples", "runs/x/sample", "--samples", samples];
        let (code, _, stderr) = outcome(&fid(dir, &[&stage[..], &["--data", "runs/x/prepare"]].concat()));
        assert!(code == 1 && stderr.contains(expected), "{stderr}");
    };
    refused("runs/x/sample", "found seed 7 again, expected samples of another seed for each --samples");
    let steps = more(json!({ "num": 4, "data": data.digest(), "seed": 9, "steps": 25 }));
    refused(&steps, "found steps 25, expected 50: several --samples may differ in the seed alone");
}

#[test]
fn a_folder_with_half_a_jpeg_is_refused_by_name() {
    let Some(weights) = weights("half a jpeg") else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    provide(dir, &weights);
    let half = dir.join("half/sub/x.jpg");
    fs::create_dir_all(half.parent().unwrap()).unwrap();
    image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([(x * y) as u8, x as u8, y as u8])).save(&half).unwrap();
    fs::copy(&half, dir.join("half/whole.jpg")).unwrap();
    let whole = fs::read(&half).unwrap();
    fs::write(&half, &whole[..whole.len() / 2]).unwrap();
    let compare = ["compare", "--real", "half", "--fake", "half", "--device", "cpu", "--batch", "2"];
    let (code, stdout, stderr) = outcome(&fid(dir, &compare));
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    assert!(stderr.contains("half/sub/x.jpg: not a readable image: a JPEG that is cut off\nhint: "), "{stderr}");
}

/// No time is asserted: only that something was measured, and against what.
#[test]
fn the_bench_needs_the_network_alone() {
    let Some(weights) = weights("the_bench_needs_the_network_alone") else { return };
    let temp = tempfile::tempdir().unwrap();
    provide(temp.path(), &weights);
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../../pipelines/smoke.json");
    let args = ["--bench", "--json", "--bench-seconds", "0.02", "--device", "cpu", "--batch", "2", "--config", config];
    let (code, stdout, stderr) = outcome(&fid(temp.path(), &args));
    assert_eq!(code, 0, "{stderr}");
    let outcome: Outcome = serde_json::from_str(&stdout).unwrap();
    let [features, distance] = outcome.measurements.as_slice() else { panic!("{outcome:?}") };
    for one in [features, distance] {
        assert!(one.times.n > 0 && one.times.p5_ms > 0.0 && one.items_per_s > 0.0, "{one:?}");
    }
    assert_eq!((features.items, features.item.as_str(), distance.share), (2.0, "images", None));
    assert!(features.share.unwrap() > 0.0 && outcome.rates.flop_per_s > 0.0);
    // What `provide` has put there.
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
}
