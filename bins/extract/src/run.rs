//! The loop over parts and timesteps, and the files it fills.

use crate::{Config, forward::Extractor};
use lcf_model::{
    Dit,
    features::{META, Meta, Part, first_bad},
    pixels,
    trained::Trained,
};
use lcf_store::{
    Error, Result,
    dataset::Dataset,
    npy, progress,
    stage::{self, Work},
};
use std::{path::PathBuf, sync::mpsc, thread};
use tch::{Device, Tensor};

/// One array on its way to disk.
struct Array {
    path: PathBuf,
    shape: [usize; 2],
    values: Vec<f32>,
}

/// Writes features, labels and [`META`] into `work`.
///
/// # Errors
/// Unknown weights, a feature that is not finite, a file that cannot be written.
pub fn run(
    config: &Config,
    trained: &Trained,
    data: &Dataset,
    device: Device,
    batch: usize,
    work: &Work,
) -> Result<()> {
    work.clear()?;
    let model = trained.load(&config.weights, config.precision, device)?;
    let _no_grad = tch::no_grad_guard();
    let extractor = Extractor { model: &model, layer: config.layer, seed: config.seed, batch };
    thread::scope(|scope| {
        // One array waits while one is written: the disk works while the device does, and memory stays bounded.
        let (queue, arrays) = mpsc::sync_channel::<Array>(1);
        let writer = scope.spawn(move || arrays.iter().try_for_each(|a| npy::write(&a.path, &a.shape, &a.values)));
        let computed = compute(config, trained, data, device, &extractor, work, &queue);
        drop(queue);
        // The writer's error comes first: it is why the loop ended early.
        writer.join().expect("the writer does not panic")?;
        computed
    })?;
    for (part, split) in [(Part::Train, &data.train), (Part::Test, &data.test)] {
        npy::write(&work.path(&part.labels_file()), &[split.count], split.labels())?;
    }
    stage::write_atomic(&work.path(META), &stage::pretty(&meta(config, trained, data, &model)))
}

fn compute(
    config: &Config,
    trained: &Trained,
    data: &Dataset,
    device: Device,
    extractor: &Extractor,
    work: &Work,
    queue: &mpsc::SyncSender<Array>,
) -> Result<()> {
    let total = (data.train.count + data.test.count) * config.timesteps.len();
    let bar = progress::bar(total as u64, "extract", "features");
    for (part, split) in [(Part::Train, &data.train), (Part::Test, &data.test)] {
        let images = pixels::load(split, device);
        for &timestep in &config.timesteps {
            bar.set_message(format!("extract: {} T={timestep}", part.name()));
            let features = extractor.extract(&images, part, timestep, |n| bar.inc(n as u64));
            if let Some(image) = first_bad(&features) {
                let message = format!(
                    "weights {}: the feature of {} image {image} at T={timestep}, layer {} is not finite",
                    config.weights,
                    part.name(),
                    config.layer
                );
                return Err(Error::bad(trained.artifact.dir(), message)
                    .with_hint("take other weights (--set extract.weights=raw), or --set extract.precision=fp32"));
            }
            let shape = [split.count, extractor.model.config().width as usize];
            let array = Array { path: work.path(&part.file(timestep)), shape, values: values(&features) };
            if queue.send(array).is_err() {
                return Ok(());
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// One copy from the device.
pub(crate) fn values(features: &Tensor) -> Vec<f32> {
    Vec::try_from(features.to_device(Device::Cpu).view([-1])).expect("fp32 on the CPU")
}

fn meta(config: &Config, trained: &Trained, data: &Dataset, model: &Dit) -> Meta {
    Meta {
        dataset: data.meta.name.clone(),
        classes: data.meta.classes.clone(),
        train: data.train.count,
        test: data.test.count,
        width: model.config().width as usize,
        layer: config.layer,
        timesteps: config.timesteps.clone(),
        weights: config.weights.clone(),
        precision: config.precision,
        seed: config.seed,
        model: trained.artifact.digest().to_owned(),
        data: data.artifact.digest().to_owned(),
        trained_on: (trained.meta.data != data.artifact.digest()).then(|| trained.meta.data.clone()),
    }
}
