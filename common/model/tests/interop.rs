//! A model saved here loads into a PyTorch DiT by state-dict names and gives the same velocity
//! (`golden/load_pytorch.py`). Needs a Python with torch: `$LCF_PYTHON`, else `.venv/bin/python3`, else `python3`.

use lcf_model::{
    Dit, ModelConfig, Params, Precision,
    config::Input,
    rng::{Purpose, Rng},
    trained::{META, Trained, weights_file},
    weights,
};
use serde_json::json;
use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tch::{Device, Kind, Tensor};

const MODEL: ModelConfig = ModelConfig { depth: 3, width: 24, heads: 4, mlp: 56, patch: 2 };
const INPUT: Input = Input { channels: 3, side: 8 };

/// The root of the workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates lie two folders deep")
}

/// The Python to ask, where it has torch.
fn python() -> Option<PathBuf> {
    let in_venv = root().join(".venv/bin/python3");
    let default = || if in_venv.exists() { in_venv.clone() } else { "python3".into() };
    let python = env::var_os("LCF_PYTHON").map_or_else(default, PathBuf::from);
    let found = Command::new(&python).args(["-c", "import torch"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    say(&format!("skipped: PyTorch is not importable by {}", python.display()));
    None
}

/// Says it on the terminal: the test harness keeps back what `println!` prints.
fn say(message: &str) {
    let _ = writeln!(std::io::stderr(), "{message}");
}

/// `n` images and times: pure data, pure noise, and between.
fn inputs(input: Input, n: i64) -> (Tensor, Tensor) {
    let index = Tensor::arange(n, (Kind::Int64, Device::Cpu));
    let pixels = input.channels * input.side.pow(2);
    let x = Rng::new(1, Purpose::Sample).normal(&index, pixels).view([n, input.channels, input.side, input.side]);
    (x, Tensor::linspace(0.0, 1.0, n, (Kind::Float, Device::Cpu)))
}

/// Writes what the script compares with.
fn write_io(path: &Path, x: &Tensor, t: &Tensor, velocity: &Tensor) {
    let tensors = [("x", x), ("t", t), ("velocity", velocity)];
    weights::write(path, tensors.into_iter().map(|(name, tensor)| (name, tensor.shallow_clone()))).unwrap();
}

fn run_script(python: &Path, artifact: &Path, io: &Path) -> Output {
    let script = root().join("common/model/tests/golden/load_pytorch.py");
    // -B: leave no compiled files beside the sources.
    Command::new(python).arg("-B").arg(script).arg(artifact).arg(io).output().unwrap()
}

fn assert_agrees(output: &Output) {
    assert!(output.status.success(), "{output:?}");
    say(&format!("interop: {}", String::from_utf8_lossy(&output.stdout).trim_end()));
}

/// A folder like a train artifact, with a model no layer of which is zero, and the velocity that it gives.
struct Saved {
    dir: tempfile::TempDir,
    x: Tensor,
    t: Tensor,
    velocity: Tensor,
}

impl Saved {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = Params::init(&MODEL, &INPUT, 3, Device::Cpu);
        let index = Tensor::arange(params.layout.len, (Kind::Int64, Device::Cpu));
        params.flat += Rng::new(2, Purpose::Init).normal(&index, 1).squeeze_dim(1) * 0.1;
        let meta = json!({ "model": MODEL, "input": INPUT });
        fs::write(dir.path().join(META), meta.to_string()).unwrap();
        let file = dir.path().join(weights_file("ema"));
        fs::create_dir(file.parent().unwrap()).unwrap();
        weights::save(&file, &MODEL, &INPUT, &params.layout, &params.flat).unwrap();
        let (x, t) = inputs(INPUT, 5);
        let velocity = Dit::frozen(MODEL, INPUT, Precision::Fp32, &params).velocity(&x, &t);
        Self { dir, x, t, velocity }
    }

    /// Runs the script on this model, claiming that it gave `velocity`.
    fn compare(&self, python: &Path, velocity: &Tensor) -> Output {
        let io = self.dir.path().join("io.safetensors");
        write_io(&io, &self.x, &self.t, velocity);
        run_script(python, self.dir.path(), &io)
    }
}

#[test]
fn a_saved_model_loads_into_a_pytorch_dit_and_gives_the_same_velocity() {
    let Some(python) = python() else { return };
    let saved = Saved::new();
    assert_agrees(&saved.compare(&python, &saved.velocity));
}

#[test]
fn twin_another_velocity_is_told_apart() {
    let Some(python) = python() else { return };
    let saved = Saved::new();
    let nudge = Tensor::zeros_like(&saved.velocity);
    let _ = nudge.get(4).get(2).get(7).get(7).fill_(5e-5);
    assert_eq!(saved.compare(&python, &(&saved.velocity + nudge)).status.code(), Some(1));
    assert_eq!(saved.compare(&python, &(&saved.velocity * f64::NAN)).status.code(), Some(1));
}

#[test]
fn twin_another_name_is_refused() {
    let Some(python) = python() else { return };
    let saved = Saved::new();
    let file = saved.dir.path().join(weights_file("ema"));
    let tensors = weights::read(&file).unwrap();
    let renamed = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shallow_clone()));
    let renamed = renamed.map(|(name, tensor)| (if name == "pos_embed" { "positions" } else { name }, tensor));
    weights::write(&file, renamed).unwrap();
    let output = saved.compare(&python, &saved.velocity);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("pos_embed") && message.contains("positions"), "{message}");
}

/// The same with a real training: `LCF_TRAIN=data/runs/RUN/train`.
#[test]
fn the_training_at_lcf_train_gives_the_same_velocity() {
    let Some(path) = env::var_os("LCF_TRAIN") else { return say("skipped: LCF_TRAIN names no train artifact") };
    let Some(python) = python() else { return };
    let path = root().join(path);
    let trained = Trained::open(&path).unwrap();
    let (x, t) = inputs(trained.meta.input, 8);
    let velocity = trained.load("ema", Precision::Fp32, Device::Cpu).unwrap().velocity(&x, &t);
    let dir = tempfile::tempdir().unwrap();
    let io = dir.path().join("io.safetensors");
    write_io(&io, &x, &t, &velocity);
    assert_agrees(&run_script(&python, &path, &io));
}
