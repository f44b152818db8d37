//! Arguments and inputs that are wrong: the exit code, and what is said.

use crate::fixtures::{bytes, dataset, fid, other, outcome, samples, samples_of};
use lcf_store::npy;
use serde_json::json;
use std::{fs, path::Path};

/// Expects exit code `code` and `parts` in stderr, which holds one error and no panic.
fn fails(dir: &Path, args: &[&str], code: i32, parts: &[&str]) {
    let (found, stdout, stderr) = outcome(&fid(dir, args));
    assert_eq!(found, code, "{args:?}: {stderr}");
    assert!(stdout.is_empty() && !stderr.contains("panicked"), "{args:?}: {stdout}{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{args:?}: {part:?} is not in {stderr}");
    }
}

fn compare(dir: &Path, real: &str, code: i32, parts: &[&str]) {
    let all = [&["fid: error: "], parts].concat();
    fails(dir, &["compare", "--real", real, "--fake", "good.npy"], code, &all);
}

#[test]
fn usage() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fails(dir, &[], 2, &["--samples <PATH>", "--data <PATH>", "--config <FILE>"]);
    fails(dir, &["--samples", "a"], 2, &["--config <FILE>"]);
    fails(dir, &["compare", "--real", "a"], 2, &["--fake <PATH>"]);
    fails(dir, &["--config", "x", "compare", "--real", "a", "--fake", "b"], 2, &["cannot be used with"]);
    fails(dir, &["compare", "--real", "a", "--fake", "b", "--batch", "0"], 2, &["--batch"]);
    fails(dir, &["compare", "--real", "a", "--fake", "b", "--resize", "cubic"], 2, &["tf1", "half-pixel"]);
    fails(dir, &["--bench"], 2, &["--config <FILE>"]);
    fails(dir, &["--bench", "--config", "x", "--data", "a"], 2, &["cannot be used with"]);
    fails(dir, &["--bench", "compare", "--real", "a", "--fake", "b"], 2, &["cannot be used with"]);
    let stage = ["--config", "run.json", "--samples", "a", "--data", "b"];
    fails(dir, &stage, 2, &["fid: error: run.json: cannot read the config"]);
    fs::write(dir.join("run.json"), r#"{"fid": {"reference": 1}}"#).unwrap();
    fails(dir, &stage, 2, &["run.json: fid.reference: 1 images have no covariance"]);
    assert_eq!(outcome(&fid(dir, &["--help"])).0, 0);
}

#[test]
fn images_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let write = |name: &str, shape: &[usize]| {
        npy::write(&dir.join(name), shape, &bytes(shape.iter().product(), 0)).unwrap();
    };
    write("good.npy", &[3, 4, 4, 3]);
    compare(dir, "missing", 1, &["missing: nothing here, expected an artifact"]);
    write("nchw.npy", &[3, 3, 4, 4]);
    compare(dir, "nchw.npy", 1, &["found uint8 of shape [3, 3, 4, 4], expected [N, H, W, 3]"]);
    write("one.npy", &[1, 4, 4, 3]);
    compare(dir, "one.npy", 1, &["one.npy: found 1 image(s), expected at least 2"]);
    npy::write(&dir.join("float.npy"), &[3, 4, 4, 3], &vec![0f32; 144]).unwrap();
    compare(dir, "float.npy", 1, &["float.npy: found numbers of type <f4, expected |u1"]);
    let cut = fs::read(dir.join("good.npy")).unwrap();
    fs::write(dir.join("cut.npy"), &cut[..cut.len() - 1]).unwrap();
    compare(dir, "cut.npy", 1, &["found 143 bytes of numbers"]);
    fs::write(dir.join("bad.npz"), "text").unwrap();
    compare(dir, "bad.npz", 1, &["bad.npz: not a .npz file"]);
    fs::create_dir(dir.join("empty")).unwrap();
    compare(dir, "empty", 1, &["empty: found no image"]);
    let hint = "hint: run it in the repository, or give --sources and --downloads";
    compare(dir, "good.npy", 1, &["data/SOURCES.json: cannot read: No such file", hint]);
    let many = ["compare", "--real", "good.npy", "--fake", "good.npy", "--num", "4"];
    fails(dir, &many, 1, &["good.npy: found 3 images, expected at least the 4 of --num"]);
    let split = ["compare", "--real", "good.npy", "--fake", "good.npy", "--real-split", "test"];
    fails(dir, &split, 2, &["a test split was asked for, but good.npy is a npy, not a dataset"]);
    let out = ["compare", "--real", "good.npy", "--fake", "good.npy", "--features-out", "no/x.safetensors"];
    fails(dir, &out, 2, &["--features-out no/x.safetensors: no such directory"]);
}

#[test]
fn artifacts_of_the_wrong_kind() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let (data, sampled, other) = (dataset(&store, 4, 2), samples(&store, 3, 4, "another"), other(&store));
    let at = |artifact: &lcf_store::Artifact| artifact.dir().to_str().unwrap().to_owned();
    npy::write(&dir.path().join("good.npy"), &[3, 4, 4, 3], &bytes(144, 0)).unwrap();
    compare(dir.path(), &at(&other), 1, &["found an artifact of stage train, expected prepare or sample"]);
    fs::write(dir.path().join("run.json"), r#"{"fid": {}}"#).unwrap();
    let stage = |samples: &str, data: &str, parts: &[&str]| {
        let args = ["--config", "run.json", "--store", "store", "--samples", samples, "--data", data];
        fails(dir.path(), &args, 1, parts);
    };
    stage(&at(&other), &at(&data), &["found an artifact of stage train, expected sample"]);
    stage(&at(&sampled), &at(&other), &["found an artifact of stage train, expected prepare"]);
    stage(&at(&sampled), "missing", &["missing: no artifact here"]);
    stage(&at(&sampled), &at(&data), &["sample.json: found num 4, expected the 3 of the images"]);
    let large = samples_of(&store, 3, &json!({ "num": 3, "seed": 9, "height": 8, "side": 8 }));
    stage(&at(&large), &at(&data), &["found samples of 3x8x8, but the images of demo are 3x4x4", "lcf-fid compare"]);
    let lying = samples_of(&store, 3, &json!({ "num": 3, "seed": 9, "height": 16 }));
    stage(&at(&lying), &at(&data), &["sample.json: found height 16, expected the 4 of the images", "hint: rm -r "]);
    fs::write(sampled.dir().join("images.npy"), "x").unwrap();
    stage(&at(&sampled), &at(&data), &["images.npy: found 1 bytes", "hint: rm -r "]);
    compare(dir.path(), &at(&sampled), 1, &["images.npy: found 1 bytes"]);
    assert!(
        !store.join("fid").read_dir().is_ok_and(|mut all| all.any(|e| e.unwrap().path().join("fid.json").exists()))
    );
}
