//! Tiny artifacts to run the program on.

use lcf_model::{
    ModelConfig, Params,
    config::Input,
    rng::{Purpose, Rng},
    trained, weights,
};
use lcf_store::{
    Artifact,
    cli::StageArgs,
    dataset, npy,
    stage::{self, Begin, Plan, Work},
};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tch::{Device, Kind, Tensor};

pub const MODEL: ModelConfig = ModelConfig { depth: 3, width: 16, heads: 2, mlp: 24, patch: 2 };
pub const SIDE: usize = 8;
pub const COUNTS: [usize; 2] = [11, 5];

/// A store with one dataset, one model, and a config.
pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub model: PathBuf,
    pub data: PathBuf,
}

impl Fixture {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dataset(dir.path(), SIDE);
        let model = train(dir.path(), data.digest(), |_| {});
        let config = json!({"extract": {
            "weights": "ema", "layer": 2, "timesteps": [0, 20, 400], "seed": 0, "precision": "fp32"
        }});
        fs::write(dir.path().join("run.json"), config.to_string()).unwrap();
        Self { model: model.dir().to_owned(), data: data.dir().to_owned(), dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the program with the usual flags and `more`.
    pub fn run(&self, model: &Path, data: &Path, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lcf-extract"));
        command.arg("--config").arg(self.path("run.json")).arg("--store").arg(self.path("store"));
        command.arg("--model").arg(model).arg("--data").arg(data).args(more);
        if !more.contains(&"--device") {
            command.args(["--device", "cpu"]);
        }
        command.output().unwrap()
    }
}

fn begin(root: &Path, name: &str, salt: &serde_json::Value) -> Work {
    let args = StageArgs { store: root.join("store"), ..StageArgs::default() };
    match Plan::new(name, 1, salt).begin(&args).unwrap() {
        Begin::Build(work) => work,
        Begin::UpToDate(_) => panic!("made twice"),
    }
}

/// Images of `side` x `side` whose bytes follow from their index.
pub fn dataset(root: &Path, side: usize) -> Artifact {
    let work = begin(root, dataset::STAGE, &json!({ "side": side }));
    let split = |name: &str, count: usize| {
        let (shard, labels) = (format!("{name}-0.npy"), format!("{name}-labels.npy"));
        let bytes: Vec<u8> = (0..count * 3 * side * side).map(|i| (i * 31 % 251) as u8).collect();
        npy::write(&work.path(&shard), &[count, 3, side, side], &bytes).unwrap();
        let classes: Vec<i64> = (0..count as i64).map(|i| i % 2).collect();
        npy::write(&work.path(&labels), &[count], &classes).unwrap();
        dataset::SplitMeta { count, shards: vec![shard], labels }
    };
    let meta = dataset::Meta {
        name: "tiny".into(),
        channels: 3,
        height: side,
        width: side,
        classes: vec!["a".into(), "b".into()],
        mean: vec![0.0; 3],
        std: vec![1.0; 3],
        train: split("train", COUNTS[0]),
        test: split("test", COUNTS[1]),
    };
    fs::write(work.path(dataset::META), stage::pretty(&meta)).unwrap();
    work.publish().unwrap()
}

/// A model with random weights everywhere: DiT's own start has zero gates, which hide mistakes. `edit` may break them.
pub fn train(root: &Path, data: &str, edit: impl Fn(&mut Tensor)) -> Artifact {
    let input = Input { channels: 3, side: SIDE as i64 };
    let mut params = Params::init(&MODEL, &input, 1, Device::Cpu);
    let index = Tensor::arange(params.layout.len, (Kind::Int64, Device::Cpu));
    params.flat += Rng::new(1, Purpose::Init).normal(&index, 1).squeeze_dim(1) * 0.1;
    edit(&mut params.flat);
    let sum = f64::try_from(params.flat.nan_to_num(0.0, 0.0, 0.0).sum(Kind::Double)).unwrap();
    let work = begin(root, trained::STAGE, &json!({ "sum": sum }));
    fs::create_dir(work.path("weights")).unwrap();
    for (name, scale) in [("ema", 1.0), ("raw", 1.1), ("epoch-10", 0.9)] {
        let flat = &params.flat * scale;
        weights::save(&work.path(&trained::weights_file(name)), &MODEL, &input, &params.layout, &flat).unwrap();
    }
    let meta = trained::Meta {
        model: MODEL,
        input,
        objective: "fm".into(),
        parameters: params.layout.parameters(),
        velocity_from: 0.0,
        epochs: 1,
        steps: 1,
        skipped: 0,
        final_loss: Some(1.0),
        dataset: "tiny".into(),
        data: data.to_owned(),
    };
    fs::write(work.path(trained::META), stage::pretty(&meta)).unwrap();
    work.publish().unwrap()
}
