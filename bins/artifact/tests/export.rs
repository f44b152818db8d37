//! `lcf-artifact export`: bytes of what it writes, and what it refuses.

use crate::Place;
use lcf_store::{
    Artifact,
    npy::{self, Npy},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::{f64::consts::LN_10, fs, io::Read, path::Path};

/// The bytes of a `.npy` file.
fn npy_bytes<T: npy::Element>(place: &Place, shape: &[usize], values: &[T]) -> Vec<u8> {
    let path = place.path("some.npy");
    npy::write(&path, shape, values).unwrap();
    fs::read(path).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn images(place: &Place) -> (Vec<u8>, Vec<u8>) {
    let pixels: Vec<u8> = (0..3 * 2 * 4 * 3).map(|i| i * 3).collect();
    let file = npy_bytes(place, &[3, 2, 4, 3], &pixels);
    place.build_bytes("sample", &[], &[("images.npy", &file)], Some("one/sample"));
    (pixels, file)
}

#[test]
fn samples_become_pngs() {
    let place = Place::new();
    let (pixels, _) = images(&place);
    let ran = place.run(&["export", "runs/one/sample", "out"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "out: sample, 3 files\n"), "{}", ran.err);
    assert_eq!(names(&place.path("out")), ["000000.png", "000001.png", "000002.png"]);
    for (i, expected) in pixels.chunks(24).enumerate() {
        let image = image::open(place.path("out").join(format!("00000{i}.png"))).unwrap().into_rgb8();
        assert_eq!((image.dimensions(), image.as_raw().as_slice()), ((4, 2), expected));
    }
    assert_eq!(names(place.path("").as_path()), ["out", "runs", "some.npy", "store"], "nothing half-done stays");
}

#[test]
fn samples_become_the_npz_of_numpy() {
    let place = Place::new();
    let (_, file) = images(&place);
    fs::create_dir(place.path("out")).unwrap();
    assert_eq!(place.run(&["export", "runs/one/sample", "out", "--format", "npz"]).code, 0);
    let mut zip = zip::ZipArchive::new(fs::File::open(place.path("out/samples.npz")).unwrap()).unwrap();
    assert_eq!(zip.file_names().collect::<Vec<_>>(), ["arr_0.npy"]);
    let mut member = zip.by_index(0).unwrap();
    let mut bytes = Vec::new();
    member.read_to_end(&mut bytes).unwrap();
    assert!(bytes == file && member.compression() == zip::CompressionMethod::Stored);
}

#[test]
fn probes_become_arrays() {
    let place = Place::new();
    let values: Vec<u8> = [1f32, 2.0, 3.0, -0.5].iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = |dtype, shape: &[usize]| TensorView::new(dtype, shape.to_vec(), &values).unwrap();
    let of = |dtype, shape| safetensors::serialize([("T0020.raw.weight", view(dtype, shape))], None).unwrap();
    let weights = of(Dtype::F32, &[2, 2]);
    place.build_bytes("probe", &[], &[("weights.safetensors", &weights), ("probe.csv", b"t\n")], Some("one/probe"));
    assert_eq!(place.run(&["export", "runs/one/probe", "out"]).code, 0);
    assert_eq!(names(&place.path("out")), ["README.md", "T0020.raw.weight.npy", "probe.csv"]);
    let array = Npy::<f32>::open(&place.path("out/T0020.raw.weight.npy")).unwrap();
    assert_eq!((array.shape(), array.values()), (&[2, 2][..], &[1.0, 2.0, 3.0, -0.5][..]));
    // Features are arrays already.
    let features = npy_bytes(&place, &[2], &[0.5f32, 1.0]);
    place.build_bytes("extract", &[], &[("train-T0000.npy", &features)], Some("one/extract"));
    assert_eq!(place.run(&["export", "runs/one/extract", "features"]).code, 0);
    assert!(fs::read(place.path("features/train-T0000.npy")).unwrap() == features);
    // Another type of number is not silently another number.
    place.build_bytes("probe", &[], &[("weights.safetensors", &of(Dtype::I32, &[4]))], Some("two/probe"));
    let ran = place.run(&["export", "runs/two/probe", "wrong"]);
    assert!(ran.code == 1 && ran.err.contains("T0020.raw.weight: found I32, expected F32"), "{}", ran.err);
    assert!(!place.path("wrong").exists());
    let nan: Vec<u8> = [1f32, f32::NAN].iter().flat_map(|v| v.to_le_bytes()).collect();
    let nan = TensorView::new(Dtype::F32, vec![2], &nan).unwrap();
    let nan = safetensors::serialize([("T0020.raw.bias", nan)], None).unwrap();
    place.build_bytes("probe", &[], &[("weights.safetensors", &nan)], Some("three/probe"));
    let ran = place.run(&["export", "runs/three/probe", "wrong"]);
    assert!(ran.code == 1 && ran.err.contains("number 1 of tensor T0020.raw.bias is not finite"), "{}", ran.err);
}

#[test]
fn what_cannot_be_exported_is_refused() {
    let place = Place::new();
    images(&place);
    let grey = npy_bytes(&place, &[1, 2, 2, 1], &[0u8; 4]);
    place.build_bytes("sample", &[], &[("images.npy", &grey)], Some("grey/sample"));
    place.build("prepare", &[], &[("a.txt", "alpha")], Some("one/prepare"));
    fs::create_dir(place.path("full")).unwrap();
    fs::write(place.path("full/x"), "x").unwrap();
    let refuse = |args: &[&str], code, expected: &str| {
        let ran = place.run(&[&["export"], args].concat());
        assert!(ran.code == code && ran.err.contains(expected) && ran.out.is_empty(), "{args:?}: {}", ran.err);
    };
    refuse(
        &["runs/one/sample", "full"],
        1,
        "full: found a folder that is not empty, expected none or an empty one\nhint: ",
    );
    refuse(&["runs/one/sample", "full/x"], 1, "full/x: found a file, expected nothing or an empty folder");
    refuse(&["runs/one/prepare", "out"], 1, "found an artifact of stage prepare, expected train, sample, extract,");
    refuse(
        &["runs/one/sample", "out", "--weights", "ema"],
        2,
        "--weights is for artifacts of stage train, this one is",
    );
    refuse(
        &["runs/one/prepare", "out", "--format", "npz"],
        2,
        "--format is for artifacts of stage sample, this one is",
    );
    refuse(&["runs/grey/sample", "out"], 1, "images.npy: found shape [1, 2, 2, 1], expected [N, H, W, 3]");
    refuse(&["nowhere", "out"], 1, "nowhere: no artifact here");
    refuse(&["runs/one/sample"], 2, "<OUT>");
    fs::write(place.path("runs/one/sample/images.npy"), "x").unwrap();
    refuse(&["runs/one/sample", "out"], 1, "images.npy: found 1 bytes");
    assert_eq!(fs::read(place.path("full/x")).unwrap(), b"x");
    assert!(!place.path("out").exists());
}

/// The model of the golden files, whose velocity a PyTorch of another make has computed.
pub struct Golden(Vec<u8>);

impl Golden {
    /// The file.
    pub fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../common/model/tests/golden/dit-plain.safetensors");
        Self(fs::read(path).unwrap())
    }

    /// A train artifact with its weights, but for tensors called `without`.
    pub fn build(&self, place: &Place, without: &str) -> Artifact {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let positions: Vec<u8> = positions(4, 16).iter().flat_map(|v| v.to_le_bytes()).collect();
        let positions = TensorView::new(Dtype::F32, vec![1, 16, 16], &positions).unwrap();
        let params = tensors.iter().filter_map(|(name, view)| Some((name.strip_prefix("param.")?, view)));
        let all = params.chain([("pos_embed", positions)]).filter(|(name, _)| *name != without);
        let weights = safetensors::serialize(all, None).unwrap();
        let train = json!({
            "model": { "depth": 3, "width": 16, "heads": 2, "mlp": 40, "patch": 2 },
            "input": { "channels": 3, "side": 8 },
            "objective": "fm", "parameters": 9000, "velocity_from": 0.0, "epochs": 2, "steps": 20, "skipped": 0,
            "final_loss": 0.123_456_78, "dataset": "golden", "data": "00ff",
        });
        let files = [("train.json", train.to_string().into_bytes()), ("weights/ema.safetensors", weights)];
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, content)| (*name, content.as_slice())).collect();
        place.build_bytes("train", &[], &files, Some("one/train"))
    }
}

/// `pos_embed`: sines then cosines of a token's column, then of its row.
fn positions(grid: usize, width: usize) -> Vec<f32> {
    let quarter = width / 4;
    let axis = |place: usize| {
        let angle = move |k: usize| place as f64 * (-4.0 * LN_10 * k as f64 / quarter as f64).exp();
        (0..quarter).map(move |k| angle(k).sin()).chain((0..quarter).map(move |k| angle(k).cos()))
    };
    let tokens = (0..grid * grid).flat_map(|token| axis(token % grid).chain(axis(token / grid)));
    tokens.map(|value| value as f32).collect()
}

#[test]
fn a_training_becomes_a_model_with_its_card() {
    let place = Place::new();
    let model = Golden::read().build(&place, "");
    let about = |weights: &str, digest: &str| json!({ "model": digest, "weights": weights, "sampler": "heun", "steps": 7, "seed": 5 });
    let fid = |sample: Value, fid: f64| {
        let half = json!({ "n_reference": 128, "fid": fid, "rank_deficient": true, "kid": { "mean": 0.5 }, "precision": 0.25, "recall": null });
        json!({ "n": 64, "resize": "tf1", "against": { "train": half, "test": null }, "sample": sample }).to_string()
    };
    let mine = place.build("fid", &[], &[("fid.json", &fid(about("ema", model.digest()), 12.5))], None);
    place.build("fid", &[], &[("fid.json", &fid(about("raw", model.digest()), 13.5))], None);
    place.build("fid", &[], &[("fid.json", &fid(about("ema", "another"), 14.5))], None);
    let spoilt = place.build("fid", &[], &[("fid.json", &fid(about("ema", model.digest()), 15.5))], None);
    fs::write(spoilt.dir().join("fid.json"), fid(about("ema", model.digest()), 16.5)).unwrap();
    let probe = json!({ "model": model.digest(), "weights": "ema", "layer": 2, "raw": { "t0": 0.5, "peak": 0.75, "peak_timestep": 20 },
        "std": { "t0": 0.625, "peak": 0.875, "peak_timestep": 50 } });
    place.build("probe", &[], &[("probe.json", &probe.to_string())], None);
    let ran = place.run(&["export", "runs/one/train", "out"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "out: train, 5 files\n"), "{}", ran.err);
    assert!(ran.err.contains("left out of the card") && ran.err.contains("fid.json: found sha256"), "{}", ran.err);
    let out = |name: &str| fs::read(place.path("out").join(name)).unwrap();
    assert_eq!(names(&place.path("out")), ["README.md", "config.json", "dit.py", "model.safetensors", "sample.py"]);
    assert!(out("model.safetensors") == fs::read(model.dir().join("weights/ema.safetensors")).unwrap());
    let config: Value = serde_json::from_slice(&out("config.json")).unwrap();
    assert_eq!((&config["model"]["mlp"], &config["model"]["side"]), (&json!(40), &json!(8)));
    assert_eq!((&config["digest"], &config["weights"]), (&json!(model.digest()), &json!("ema")));
    let card = String::from_utf8(out("README.md")).unwrap();
    let row = format!(
        "| 64, heun 7 steps, seed 5 | 128 train | 12.500 (too few images) | 0.50000 | 0.250 | - | {} |",
        &mine.digest()[..12]
    );
    for expected in [
        &row,
        "| block 2, as they are | 50.00 | 75.00 | 20 |",
        "| block 2, standardised | 62.50 | 87.50 | 50 |",
        "| flow loss of the last epoch, per dimension | 0.1235 |",
        model.digest(),
    ] {
        assert!(card.contains(expected), "no {expected} in\n{card}");
    }
    for other in ["13.5", "14.5", "15.5", "16.5"] {
        assert!(!card.contains(other), "{other} in\n{card}");
    }
    // The same measured again beside another seed: its row stands once.
    let mut seeds: Value = serde_json::from_str(&fid(about("ema", model.digest()), 12.5)).unwrap();
    seeds["n_reference"] = json!(128);
    seeds["split"] = json!("train");
    seeds["spread"] = json!({ "seeds": 2, "fid": { "mean": 13.25, "std": 0.75 }, "kid": { "mean": 0.25, "std": 0.125 }, "precision": null });
    let again = place.build("fid", &[], &[("fid.json", &seeds.to_string())], None);
    assert_eq!(place.run(&["export", "runs/one/train", "again"]).code, 0);
    let card = fs::read_to_string(place.path("again/README.md")).unwrap();
    let row = format!(
        "| 64, mean ± std of 2 seeds | 128 train | 13.250 ± 0.750 | 0.25000 ± 0.12500 | - | - | {} |",
        &again.digest()[..12]
    );
    assert!(card.contains(&row) && card.matches("| 64, heun 7 steps, seed 5 |").count() == 1, "{card}");
    let ran = place.run(&["export", "runs/one/train", "raw", "--weights", "raw"]);
    assert!(ran.code == 2 && ran.err.contains("--weights raw: ") && ran.err.contains(" has ema"), "{}", ran.err);
}
