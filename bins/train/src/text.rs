//! What lcf-train says: to stderr what it is about to do, to stdout what came out.

use crate::{TrainConfig, checkpoint::CALMER, ranks::Ranks};
use anyhow::Result;
use lcf_model::{
    Engine, Precision,
    config::Input,
    device,
    params::Layout,
    trained::{META, Meta},
};
use lcf_store::{
    Artifact,
    cli::{self, StageArgs},
    dataset::Dataset,
    say, tell,
};
use tch::Device;

/// Says what is about to be trained.
pub fn announce(config: &TrainConfig, dataset: &Dataset, input: Input, device: Device, engine: Engine, ranks: &Ranks) {
    let layout = Layout::new(&config.model, &input);
    let model = &config.model;
    let steps = config.epochs * (dataset.train.count / config.batch) as u64;
    say!(
        "train: DiT {}x{} patch {}, {} parameters ({} in the blocks without adaLN, which is what the paper counts)",
        model.depth,
        model.width,
        model.patch,
        layout.parameters(),
        layout.block_parameters(),
    );
    say!(
        "train: {} on {} ({} images), {} epochs = {steps} steps of {}, {} on {}",
        config.objective.name(),
        dataset.meta.name,
        dataset.train.count,
        config.epochs,
        config.batch,
        if config.precision == Precision::Bf16 { "bf16" } else { "fp32" },
        device::name(device),
    );
    if !ranks.are_one() {
        say!("train: {} ranks, each with its share of every batch", ranks.size());
    }
    if config.precision == Precision::Bf16 && device == Device::Cpu {
        say!("train: bf16 is slow on a CPU; --set train.precision=fp32 is much faster there");
    }
    if engine == Engine::Fused && device != Device::Cpu && !lcf_model::has_kernels() {
        say!("train: built without the CUDA kernels, which is slower: `make deps CUDA=1`, then build again");
    }
}

/// Prints the result.
///
/// # Errors
/// An artifact that is not that of a training.
pub fn print(args: &StageArgs, artifact: &Artifact, built: bool) -> Result<()> {
    let meta: Meta = artifact.json(META)?;
    let dir = artifact.dir().display();
    if args.json {
        let digest = artifact.digest();
        cli::print_json(
            &serde_json::json!({"artifact": dir.to_string(), "digest": digest, "built": built, "train": meta}),
        );
        return Ok(());
    }
    let state = if built { "trained" } else { "up to date" };
    let skipped = if meta.skipped > 0 { format!(", {} steps skipped", meta.skipped) } else { String::new() };
    if 2 * meta.skipped > meta.steps {
        let Meta { skipped, steps, .. } = meta;
        say!("train: warning: {skipped} of {steps} updates were left out; {CALMER}");
    }
    let loss = meta.final_loss.map(|loss| format!(", flow loss {loss:.4}")).unwrap_or_default();
    tell!(
        "train: {state}: {} on {}, {} parameters, {} epochs{loss}{skipped}",
        meta.objective,
        meta.dataset,
        meta.parameters,
        meta.epochs
    );
    tell!("train: {dir}");
    Ok(())
}
