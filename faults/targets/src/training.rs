//! Readers of weights and of checkpoints.

use crate::{SCRATCH, parts};
use lcf_model::{ModelConfig, config::Input, weights};
use lcf_store::digest;
use lcf_train::{TrainConfig, checkpoint, step::Trainer};
use std::{cell::RefCell, fs};
use tch::{Device, Kind, Tensor};

const MODEL: ModelConfig = ModelConfig { depth: 1, width: 8, heads: 2, mlp: 12, patch: 2 };
const INPUT: Input = Input { channels: 3, side: 4 };
const CONFIG: &str = r#"{
    "model": {"depth": 1, "width": 8, "heads": 2, "mlp": 12, "patch": 2},
    "objective": "fm", "reduction": "mean", "precision": "fp32", "seed": 0, "batch": 2, "epochs": 1, "flip": false,
    "optim": {"lr": 1e-3, "warmup_epochs": 0, "weight_decay": 0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "clip": 1},
    "ema": {"decay": 0.99, "ramp": true}
}"#;

/// A safetensors file, as any tensors and as the weights of a model.
pub fn weights(data: &[u8]) {
    SCRATCH.with(|scratch| {
        let path = scratch.write("w.safetensors", data);
        let _ = weights::read(&path);
        if let Ok(params) = weights::load(&path, &MODEL, &INPUT, Device::Cpu) {
            assert!(params.layout.first_not_finite(&params.flat).is_none());
        }
    });
}

thread_local! {
    static TRAINER: RefCell<Option<Trainer>> = const { RefCell::new(None) };
}

/// A checkpoint: the first part as its pointer, and the rest as its tensors, of which a second pointer has the hash.
pub fn checkpoint(data: &[u8]) {
    let [pointer, tensors] = parts(data);
    TRAINER.with_borrow_mut(|trainer| {
        let trainer = trainer.get_or_insert_with(|| {
            let config: TrainConfig = serde_json::from_str(CONFIG).expect("a config");
            Trainer::new(&config, INPUT, Tensor::zeros([4, 3, 4, 4], (Kind::Uint8, Device::Cpu)))
        });
        SCRATCH.with(|scratch| {
            let dir = scratch.path(".work-0");
            scratch.write(".work-0/.checkpoint-1.safetensors", tensors);
            scratch.write(".work-0/.checkpoint.json", pointer);
            let _ = checkpoint::restore(&dir, trainer);
            let (bytes, sha256) = (tensors.len(), digest::of_bytes(tensors));
            let inner = format!(
                r#"{{"work":".work-0","tensors":{{"file":".checkpoint-1.safetensors","bytes":{bytes},"sha256":"{sha256}"}},"snapshots":[],"progress":{{"step":1,"skipped":0,"epoch_flow":[0.0,0.0],"last_epoch_flow":null}},"updates":1}}"#
            );
            let whole = format!(r#"{{"sha256":"{}","pointer":{inner}}}"#, digest::of_bytes(inner.as_bytes()));
            scratch.write(".work-0/.checkpoint.json", whole.as_bytes());
            if let Err(error) = checkpoint::restore(&dir, trainer) {
                assert!(!error.to_string().contains("checkpoint.json"), "the pointer is right: {error}");
            }
            let _ = fs::remove_dir_all(dir);
        });
    });
}
