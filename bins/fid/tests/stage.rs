//! The stage from artifacts to artifact, with the real network on a handful of images.

use crate::fixtures::{dataset, fid, outcome, provide, samples, weights};
use lcf_store::Artifact;
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

#[test]
fn the_stage_reuses_the_reference_and_skips_itself() {
    let Some(weights) = weights("stage") else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    provide(dir, &weights);
    let store = dir.join("store");
    let data = dataset(&store, 6, 4);
    let sampled = samples(&store, 4, 4, data.digest());
    fs::create_dir_all(dir.join("runs/x")).unwrap();
    std::os::unix::fs::symlink(data.dir(), dir.join("runs/x/prepare")).unwrap();
    std::os::unix::fs::symlink(sampled.dir(), dir.join("runs/x/sample")).unwrap();
    fs::write(dir.join("run.json"), r#"{"fid": {"resize": "tf1"}}"#).unwrap();

    let (result, stderr) = run(dir, &[]);
    assert!(
        stderr.contains("demo train: features of 6 images") && stderr.contains("samples: features of 4"),
        "{stderr}"
    );
    assert!(stderr.contains("warning: 4 images give a rank-deficient covariance"), "{stderr}");
    assert!(result["fid"].as_f64().unwrap() > 0.0 && result["floor"]["fid"].as_f64().unwrap() > 0.0);
    assert_eq!((&result["n"], &result["n_reference"], &result["rank_deficient"]), (&json!(4), &json!(6), &json!(true)));
    assert!(!stderr.contains("note:"), "{stderr}");
    assert_eq!(result["sample"]["sampler"], "euler");
    assert_eq!(result["digests"]["samples"], sampled.digest());
    let artifact = Artifact::open(dir.join("runs/x/fid"), "fid").unwrap();
    assert_eq!(artifact.digest(), result["digest"]);
    assert_eq!(artifact.manifest().provenance.device, "cpu");
    let linked = || Artifact::open(dir.join("runs/x/reference"), "reference").unwrap();
    assert_eq!(linked().digest(), result["digests"]["reference"]);

    // The same again computes nothing and needs no weights.
    let (again, stderr) = run(dir, &["--downloads", "none", "--sources", "none"]);
    assert_eq!(again, result);
    assert!(!stderr.contains("features of"), "{stderr}");

    // But it links the reference again, without which `lcf-artifact gc` would remove it.
    fs::remove_file(dir.join("runs/x/reference")).unwrap();
    run(dir, &[]);
    assert_eq!(linked().digest(), result["digests"]["reference"]);

    // A floor needs fewer samples than references.
    let (small, stderr) = run(dir, &["--set", "fid.reference=4"]);
    assert!(stderr.contains("features of 4 images") && small["floor"]["fid"].is_null(), "{stderr}");
    assert_eq!(small["floor"]["reason"], "4 samples are not fewer than the 4 reference images");

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
