//! The Inception network that FID is defined by, as TorchScript (weights of Heusel et al. 2017's `inception-2015-12-05`).

use crate::{
    config::{Precision, Resize},
    images::{Images, Pixels},
    network::{Network, channels_last},
    resize::{bilinear, upload},
};
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use lcf_model::device::{self, DeviceArgs};
use lcf_store::{Error, digest, fetch, progress, provenance::Provenance, say};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::mpsc::{self, SyncSender},
    thread,
    time::Instant,
};
use tch::{CModule, Cuda, Device, Kind, TchError, Tensor, jit, no_grad};

/// D: the width of the last pooling layer.
pub const DIM: usize = 2048;
/// SHA-256 of the network. Another file is another metric, so none is accepted.
pub const SHA256: &str = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34";
/// Height and width of its input.
const SIDE: i64 = 299;
/// Batches that a GPU is given before its features are waited for: each wait leaves it idle for a moment.
const AHEAD: usize = 8;

/// Flags of everything that computes features.
#[derive(Args, Clone, Debug)]
pub struct ComputeArgs {
    /// Where to compute
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Images at once [default: on CUDA 512 in fp16 and 128 in fp32, 8 on the CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub batch: Option<u16>,
    /// List of downloads with their hashes
    #[arg(long, value_name = "FILE", default_value = "data/SOURCES.json")]
    pub sources: PathBuf,
    /// Where downloads are kept
    #[arg(long, value_name = "DIR", default_value = "data/downloads")]
    pub downloads: PathBuf,
}

impl ComputeArgs {
    /// Fetches the weights where they are missing, and loads the network.
    ///
    /// # Errors
    /// As [`fetch::fetch`] and [`Inception::load`].
    pub fn open(&self, resize: Resize, precision: Precision) -> Result<Inception> {
        let device = self.device.open()?;
        let weights = fetch::fetch(&self.sources, "inception", &self.downloads)?;
        Inception::load(&weights, device, resize, precision, self.batch.map(usize::from))
    }
}

/// The network on a device.
#[derive(Debug)]
pub struct Inception {
    module: Module,
    device: Device,
    resize: Resize,
    batch: usize,
}

/// What computes.
#[derive(Debug)]
enum Module {
    /// As published, in fp32.
    Script(CModule),
    /// In fp16.
    Rebuilt(Network),
}

impl Inception {
    /// Loads the network at `path` once its hash is that of [`SHA256`].
    ///
    /// # Errors
    /// [`Error::Bad`] with both hashes for any other file; libtorch's.
    pub fn load(
        path: &Path,
        device: Device,
        resize: Resize,
        precision: Precision,
        batch: Option<usize>,
    ) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
        let found = digest::of_bytes(&bytes);
        if found != SHA256 {
            return Err(Error::bad(path, format!("found sha256 {found}, expected {SHA256}"))
                .with_hint(format!("rm {} and run again to fetch the network anew", path.display()))
                .into());
        }
        // From the bytes that were hashed, so that nobody can exchange the file in between.
        let on = |device| CModule::load_data_on_device(&mut &bytes[..], device);
        let load = || match precision {
            Precision::Fp32 => {
                let mut module = on(device)?;
                module.f_set_eval()?;
                store_channels_last(&module)?;
                Ok(Module::Script(module))
            }
            Precision::Fp16 => Ok(Module::Rebuilt(Network::of(&on(Device::Cpu)?, precision, device)?)),
        };
        let module = load().map_err(|error| torch(device, &error))?;
        // Time goes to finding the fastest algorithm of every layer once, since all batches have one shape. In fp16 the one
        // that is proposed is as fast.
        Cuda::cudnn_set_benchmark(precision == Precision::Fp32);
        let batch = batch.unwrap_or(match (device, precision) {
            (Device::Cpu, _) => 8,
            (_, Precision::Fp32) => 128,
            (_, Precision::Fp16) => 512,
        });
        Ok(Self { module, device, resize, batch })
    }

    /// Images at once.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Records where and how features are computed. In fp32 on CUDA cuDNN looks for the fastest algorithm, which may be
    /// another one the next time; in fp16 it takes the one it proposes, and whether that adds in a fixed order is not known.
    pub fn record(&self, provenance: &mut Provenance) {
        device::record(provenance, self.device, false);
    }

    /// How it scales images.
    pub fn resize(&self) -> Resize {
        self.resize
    }

    /// Features of `images`, `[N, 2048]` in C order. `what` is the progress bar's label.
    ///
    /// # Errors
    /// An image that cannot be read; libtorch's, like being out of memory.
    pub fn features(&self, images: &Images, what: &str) -> Result<Vec<f32>> {
        let n = images.len();
        let bar = progress::bar(n as u64, what, "images");
        let start = Instant::now();
        let out = self.compute(images, |n| bar.inc(n as u64))?;
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        say!("{what}: features of {n} images in {seconds:.1} s ({:.1} a second)", n as f64 / seconds);
        Ok(out)
    }

    /// [`Inception::features`] without a word; calls `tick` with the number of images whenever some are done.
    ///
    /// # Errors
    /// As there.
    pub fn compute(&self, images: &Images, mut tick: impl FnMut(usize)) -> Result<Vec<f32>> {
        let mut out = vec![0.0; images.len() * DIM];
        // The executor's own optimisation compiles anew for every batch size and, on CUDA, calls a run-time compiler
        // that need not be installed; what it fuses is a few per cent. The switch is this thread's.
        jit::f_set_graph_executor_optimize(false)?;
        thread::scope(|scope| {
            // One batch is decoded while another is computed.
            let ((send, batches), batch) = (mpsc::sync_channel(1), self.batch);
            scope.spawn(move || read_batches(images, batch, &send));
            let ahead = if self.device == Device::Cpu { 1 } else { AHEAD };
            for chunk in out.chunks_mut(ahead * batch * DIM) {
                let mut queued = Vec::new();
                for _ in 0..chunk.len().div_ceil(batch * DIM) {
                    let pixels = batches.recv().context("the thread that reads images stopped")??;
                    queued.push(no_grad(|| self.forward(&pixels)).map_err(|error| torch(self.device, &error))?);
                }
                fetch_all(&queued, chunk).map_err(|error| torch(self.device, &error))?;
                tick(chunk.len() / DIM);
            }
            anyhow::Ok(())
        })?;
        check_finite(&out, |i| images.name(i))?;
        Ok(out)
    }

    /// Features of one batch, at most `self.batch` images, on the device.
    fn forward(&self, pixels: &[Pixels]) -> Result<Tensor, TchError> {
        let parts: Result<Vec<Tensor>, TchError> = pixels.iter().map(|part| self.input(part)).collect();
        let mut input = Tensor::f_cat(&parts?, 0)?;
        let (n, missing) = (input.size()[0], self.batch as i64 - input.size()[0]);
        // A batch of another size would make cuDNN look for the fastest algorithms again, or propose another.
        if missing > 0 && self.device != Device::Cpu {
            input = input.f_constant_pad_nd([0, 0, 0, 0, 0, 0, 0, missing])?;
        }
        let features = match &self.module {
            Module::Script(module) => module.forward_ts(&[input])?,
            Module::Rebuilt(network) => network.forward(&input)?,
        };
        features.f_narrow(0, 0, n)?.f_to_kind(Kind::Float)
    }

    /// The network's input, `[n, 3, 299, 299]` fp32: `(x - 128) / 128` of the scaled images.
    fn input(&self, pixels: &Pixels) -> Result<Tensor, TchError> {
        // Bytes travel to the device as bytes: a quarter of what floats would take, and before being enlarged.
        let bytes = upload(&Tensor::f_from_slice(&pixels.data)?, self.device)?;
        let [n, c, h, w] = [pixels.count, pixels.channels, pixels.height, pixels.width].map(|size| size as i64);
        let images = match pixels.planes {
            true => bytes.f_view([n, c, h, w])?,
            false => bytes.f_view([n, h, w, c])?.f_permute([0, 3, 1, 2])?,
        };
        let images = images.f_to_kind(Kind::Float)?.f_expand([n, 3, h, w], false)?;
        bilinear(&images, SIDE, self.resize)?.f_sub_scalar(128.0)?.f_div_scalar(128.0)
    }
}

/// Writes the features of several batches to `out`, whose size theirs has to be.
fn fetch_all(batches: &[Tensor], out: &mut [f32]) -> Result<(), TchError> {
    let features = Tensor::f_cat(batches, 0)?.f_to_device(Device::Cpu)?.f_contiguous()?;
    let n = out.len() / DIM;
    if features.size() != [n as i64, DIM as i64] {
        return Err(TchError::Shape(format!("features of shape {:?}, expected [{n}, {DIM}]", features.size())));
    }
    features.f_copy_data(out, out.len())
}

/// Refuses features, `[n, 2048]`, one of which is not finite, and says whose.
fn check_finite(features: &[f32], name: impl Fn(usize) -> String) -> Result<()> {
    match features.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let (image, feature) = (name(at / DIM), at % DIM);
            bail!("{image}: feature {feature} of {DIM} is {}, expected finite numbers", features[at])
        }
    }
}

/// Stores the weights of convolutions channels last, which makes every convolution run so.
fn store_channels_last(module: &CModule) -> Result<(), TchError> {
    for (_, mut weight) in module.named_parameters()? {
        if weight.dim() == 4 {
            let data = channels_last(&weight.f_detach()?)?;
            weight.f_set_data(&data)?;
        }
    }
    Ok(())
}

fn read_batches(images: &Images, batch: usize, send: &SyncSender<lcf_store::Result<Vec<Pixels>>>) {
    for start in (0..images.len()).step_by(batch) {
        let pixels = images.read(start..(start + batch).min(images.len()));
        let failed = pixels.is_err();
        if send.send(pixels).is_err() || failed {
            return;
        }
    }
}

/// libtorch's error with the device, without its C++ stack, and with a way out where there is one.
fn torch(on: Device, error: &TchError) -> anyhow::Error {
    let text = error.to_string();
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("unknown error");
    match text.contains("out of memory") || text.contains("allocate memory") {
        true => Error::bad(device::name(on), line).with_hint("give a smaller --batch, or free memory").into(),
        false => anyhow!("{}: {line}", device::name(on)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_that_is_not_finite_is_named() {
        let mut features = vec![0.5; 3 * DIM];
        let check = |features: &[f32]| check_finite(features, |i| format!("image {i}")).map_err(|e| e.to_string());
        assert_eq!(check(&features), Ok(()));
        features[2 * DIM + 7] = f32::INFINITY;
        features[DIM + 5] = f32::NAN;
        assert_eq!(check(&features).unwrap_err(), "image 1: feature 5 of 2048 is NaN, expected finite numbers");
    }
}
