//! Whether PyTorch runs what `lcf-artifact export` writes of a training. Needs a Python with torch, safetensors and
//! pillow: `$LCF_PYTHON`, else `.venv/bin/python3`, else `python3`.

use crate::{Place, export::Golden};
use lcf_store::{Artifact, npy::Npy};
use serde_json::{Value, json};
use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Says it on the terminal: the test harness keeps back what `println!` prints.
fn say(message: &str) {
    let _ = writeln!(std::io::stderr(), "{message}");
}

/// The Python to ask, where it has what the example needs.
fn python() -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/python3");
    let default = if venv.exists() { venv } else { "python3".into() };
    let python = env::var_os("LCF_PYTHON").map_or(default, PathBuf::from);
    let found = Command::new(&python).args(["-c", "import torch, safetensors.torch, PIL"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    say(&format!("skipped: export: {} has no torch, safetensors and pillow (LCF_PYTHON=...)", python.display()));
    None
}

/// Whether the exported network gives the golden velocity.
const CHECK: &str = r#"
import sys, torch
from safetensors.torch import load_file
sys.path.insert(0, sys.argv[1])
from dit import DiT
golden = load_file(sys.argv[2])
with torch.no_grad():
    off = (DiT.from_pretrained(sys.argv[1])(golden["in.x"], golden["in.t"]) - golden["out.velocity"]).abs().max().item()
print(off)
sys.exit(0 if off < 1e-5 else 3)
"#;

fn check(python: &Path, folder: &Path) -> Output {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../common/model/tests/golden/dit-plain.safetensors");
    Command::new(python).args(["-B", "-c", CHECK]).arg(folder).arg(golden).output().unwrap()
}

#[test]
fn the_exported_network_runs_and_is_the_model() {
    let Some(python) = python() else { return };
    let place = Place::new();
    Golden::read().build(&place, "");
    assert_eq!(place.run(&["export", "runs/one/train", "out"]).code, 0);
    let output = check(&python, &place.path("out"));
    assert!(output.status.success(), "{output:?}");
    let example = [place.path("out/sample.py"), place.path("grid.png")];
    let output = Command::new(&python).arg("-B").args(&example).args(["9", "4", "1"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let grid = image::open(&example[1]).unwrap();
    assert_eq!((grid.width(), grid.height()), (24, 24));
    // The test has power: one number of one layer less, and it tells.
    let path = place.path("out/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() - 1;
    bytes[at] ^= 0x40;
    fs::write(&path, bytes).unwrap();
    assert_eq!(check(&python, &place.path("out")).status.code(), Some(3));
}

#[test]
fn twin_a_missing_tensor_is_refused() {
    let Some(python) = python() else { return };
    let place = Place::new();
    Golden::read().build(&place, "blocks.1.mlp.fc1.bias");
    assert_eq!(place.run(&["export", "runs/one/train", "out"]).code, 0);
    let output = check(&python, &place.path("out"));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && message.contains("blocks.1.mlp.fc1.bias"), "{message}");
}

/// With a real run, `LCF_RUN=data/runs/RUN`: the example draws what lcf-sample drew, by Euler in fp32.
#[test]
fn the_example_draws_the_samples_of_the_run_at_lcf_run() {
    let Some(run) = env::var_os("LCF_RUN") else { return say("skipped: LCF_RUN names no run") };
    let Some(python) = python() else { return };
    let run = fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(run)).unwrap();
    let sample = Artifact::open(run.join("sample"), "sample").unwrap();
    let meta: Value = sample.json("sample.json").unwrap();
    if (&meta["sampler"], &meta["precision"], &meta["through_t0"]) != (&json!("euler"), &json!("fp32"), &json!(false)) {
        return say("skipped: the samples at LCF_RUN are not by Euler in fp32");
    }
    let place = Place::new();
    let (train, weights) = (run.join("train"), meta["weights"].as_str().unwrap());
    let ran = place.run(&["export", train.to_str().unwrap(), "out", "--weights", weights]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let (n, steps, seed) = (meta["num"].to_string(), meta["steps"].to_string(), meta["seed"].to_string());
    let file = place.path("grid.png");
    let output =
        Command::new(python).arg("-B").arg(place.path("out/sample.py")).arg(&file).args([&n, &steps, &seed]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    let grid = image::open(&file).unwrap().into_rgb8();
    let images = Npy::<u8>::open(&sample.file("images.npy").unwrap()).unwrap();
    let &[count, height, width, 3] = images.shape() else { panic!("RGB images") };
    let columns = grid.width() as usize / width;
    let shown = columns * (grid.height() as usize / height);
    assert!(shown > 0 && shown <= count);
    let off = |i: usize| {
        let pixel = |at: usize| {
            let (x, y) = (i % columns * width + at / 3 % width, i / columns * height + at / 3 / width);
            grid.get_pixel(x as u32, y as u32).0[at % 3]
        };
        images.rows(i, 1).iter().enumerate().map(|(at, &byte)| byte.abs_diff(pixel(at))).max().unwrap()
    };
    // Rounding to grey levels turns a difference of 1e-6 into one of 1 where it lies between two of them.
    let worst = (0..shown).map(off).max().unwrap();
    assert!(worst <= 1, "{worst} grey levels apart");
    say(&format!("export: {shown} images of PyTorch and of lcf-sample, at most {worst} grey levels apart"));
}
