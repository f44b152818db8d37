//! The parameters of a DiT: their names, shapes and initial values, all in one flat buffer.
//!
//! One buffer makes the optimiser a handful of operations over the whole model, and a copy of the model (EMA, moments,
//! bf16) one tensor.

use crate::{
    config::{Input, ModelConfig},
    embed::FREQUENCIES,
    rng::{Purpose, Rng},
};
use tch::{Device, Kind, Tensor};

/// Every parameter starts at a multiple of this many numbers, which keeps matrices aligned for the fastest kernels.
const ALIGN: i64 = 64;

/// How a parameter starts (facebookresearch/DiT, `initialize_weights`).
#[derive(Clone, Copy, Debug, PartialEq)]
enum Init {
    Zero,
    /// Uniform within sqrt(6 / (fan_in + fan_out)) of zero.
    Xavier,
    /// Normal with standard deviation 0.02.
    Normal,
}

/// One parameter's place.
#[derive(Clone, Debug)]
pub struct Spec {
    /// DiT's name, like `blocks.3.attn.qkv.weight`.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Where it starts in the flat buffer.
    pub offset: i64,
    init: Init,
}

impl Spec {
    /// Numbers in it.
    pub fn len(&self) -> i64 {
        self.shape.iter().product()
    }

    /// Whether it holds nothing: never, and clippy asks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Names, shapes and offsets of a model's parameters.
#[derive(Clone, Debug)]
pub struct Layout {
    /// In the order of DiT's state dict.
    pub specs: Vec<Spec>,
    /// Length of the flat buffer, padding included.
    pub len: i64,
}

impl Layout {
    /// The first number of `flat` that is not finite: the name of the parameter it belongs to, and its index there.
    pub fn first_not_finite(&self, flat: &Tensor) -> Option<(&str, i64)> {
        let good = flat.isfinite();
        if good.all().int64_value(&[]) != 0 {
            return None;
        }
        let index = good.logical_not().nonzero().int64_value(&[0, 0]);
        let spec = self.specs.iter().rev().find(|spec| spec.offset <= index)?;
        Some((&spec.name, index - spec.offset))
    }

    /// The parameters of `model` on images of shape `input`.
    pub fn new(model: &ModelConfig, input: &Input) -> Self {
        let mut layout = Self { specs: Vec::new(), len: 0 };
        let (d, p) = (model.width, model.patch);
        layout.add("x_embedder.proj.weight", &[d, input.channels, p, p], Init::Xavier);
        layout.add("x_embedder.proj.bias", &[d], Init::Zero);
        layout.linear("t_embedder.mlp.0", FREQUENCIES, d, Init::Normal);
        layout.linear("t_embedder.mlp.2", d, d, Init::Normal);
        for i in 0..model.depth {
            let block = |part: &str| format!("blocks.{i}.{part}");
            layout.linear(&block("attn.qkv"), d, 3 * d, Init::Xavier);
            layout.linear(&block("attn.proj"), d, d, Init::Xavier);
            layout.linear(&block("mlp.fc1"), d, model.mlp, Init::Xavier);
            layout.linear(&block("mlp.fc2"), model.mlp, d, Init::Xavier);
            layout.linear(&block("adaLN_modulation.1"), d, 6 * d, Init::Zero);
        }
        layout.linear("final_layer.linear", d, input.patch_len(model), Init::Zero);
        layout.linear("final_layer.adaLN_modulation.1", d, 2 * d, Init::Zero);
        layout
    }

    fn linear(&mut self, name: &str, from: i64, to: i64, init: Init) {
        self.add(&format!("{name}.weight"), &[to, from], init);
        self.add(&format!("{name}.bias"), &[to], Init::Zero);
    }

    fn add(&mut self, name: &str, shape: &[i64], init: Init) {
        let spec = Spec { name: name.to_owned(), shape: shape.to_vec(), offset: self.len, init };
        self.len = (self.len + spec.len() + ALIGN - 1) / ALIGN * ALIGN;
        self.specs.push(spec);
    }

    /// Number of trained parameters, padding not counted.
    pub fn parameters(&self) -> i64 {
        self.specs.iter().map(Spec::len).sum()
    }

    /// Those of them in attention and MLPs: what the paper's "21.3M" and "85M" count.
    pub fn block_parameters(&self) -> i64 {
        let counted = |spec: &&Spec| spec.name.starts_with("blocks.") && !spec.name.contains("adaLN");
        self.specs.iter().filter(counted).map(Spec::len).sum()
    }

    /// Views of a flat buffer, one a parameter, in order.
    pub fn views(&self, flat: &Tensor) -> Vec<Tensor> {
        self.specs.iter().map(|spec| flat.narrow(0, spec.offset, spec.len()).view(spec.shape.as_slice())).collect()
    }

    /// Gathers one tensor a parameter, in order, into a flat buffer; the padding is zero.
    pub fn flatten(&self, tensors: &[Tensor]) -> Tensor {
        let mut parts: Vec<Tensor> = Vec::with_capacity(2 * tensors.len());
        let mut end = 0;
        for (spec, tensor) in self.specs.iter().zip(tensors) {
            if spec.offset > end {
                parts.push(tensor.new_zeros([spec.offset - end], (tensor.kind(), tensor.device())));
            }
            parts.push(tensor.reshape([-1]));
            end = spec.offset + spec.len();
        }
        if self.len > end {
            parts.push(tensors[0].new_zeros([self.len - end], (tensors[0].kind(), tensors[0].device())));
        }
        Tensor::cat(&parts, 0)
    }
}

/// A model's parameters: a layout and a flat fp32 buffer.
#[derive(Debug)]
pub struct Params {
    /// Where each one lies.
    pub layout: Layout,
    /// fp32 `[layout.len]`.
    pub flat: Tensor,
}

impl Params {
    /// DiT's initialisation: Xavier for matrices (the patch convolution as a matrix), 0.02 normal for the time
    /// embedding, zero for biases, adaLN and the output layer, so that every block starts as the identity.
    pub fn init(model: &ModelConfig, input: &Input, seed: u64, device: Device) -> Self {
        let layout = Layout::new(model, input);
        let flat = Tensor::zeros([layout.len], (Kind::Float, Device::Cpu));
        let rng = Rng::new(seed, Purpose::Init);
        for (i, (spec, mut view)) in layout.specs.iter().zip(layout.views(&flat)).enumerate() {
            let rows = Tensor::arange(spec.shape[0], (Kind::Int64, Device::Cpu));
            let row_len = spec.len() / spec.shape[0];
            let rng = rng.fork(i as u64);
            match spec.init {
                Init::Zero => {}
                Init::Normal => view.copy_(&(rng.normal(&rows, row_len) * 0.02).view_as(&view)),
                Init::Xavier => {
                    let bound = (6.0 / (spec.shape[0] + row_len) as f64).sqrt();
                    let flat_index = Tensor::arange(spec.len(), (Kind::Int64, Device::Cpu));
                    view.copy_(&((rng.uniform(&flat_index) * 2.0 - 1.0) * bound).view_as(&view));
                }
            }
        }
        Self { layout, flat: flat.to_device(device) }
    }

    /// Views of the buffer by name.
    pub fn named(&self) -> Vec<(&str, Tensor)> {
        self.layout.specs.iter().map(|spec| spec.name.as_str()).zip(self.layout.views(&self.flat)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CIFAR: ModelConfig = ModelConfig { depth: 12, width: 384, heads: 6, mlp: 1536, patch: 2 };

    /// notes on Table 1: "21.3M" and "85M" are the blocks without adaLN; the whole models are larger.
    #[test]
    fn parameter_counts_of_table_1() {
        let cifar = Layout::new(&CIFAR, &Input { channels: 3, side: 32 });
        assert_eq!(cifar.parameters(), 32_471_436);
        assert_eq!(cifar.block_parameters(), 21_275_136);
        let tiny = ModelConfig { width: 768, heads: 12, mlp: 3072, ..CIFAR };
        let tiny = Layout::new(&tiny, &Input { channels: 3, side: 64 });
        assert_eq!((tiny.parameters(), tiny.block_parameters()), (129_528_588, 85_017_600));
    }

    const SMALL: ModelConfig = ModelConfig { depth: 2, width: 12, heads: 3, mlp: 20, patch: 2 };
    const INPUT: Input = Input { channels: 3, side: 8 };

    #[test]
    fn flatten_undoes_views() {
        let params = Params::init(&SMALL, &INPUT, 1, Device::Cpu);
        let again = params.layout.flatten(&params.layout.views(&params.flat));
        assert_eq!(again, params.flat);
        assert!(params.layout.specs.iter().all(|spec| spec.offset % ALIGN == 0));
    }

    #[test]
    fn initial_values_follow_dit() {
        let params = Params::init(&CIFAR, &Input { channels: 3, side: 32 }, 0, Device::Cpu);
        let std = |name: &str| {
            let (_, tensor) = params.named().into_iter().find(|(n, _)| *n == name).unwrap();
            f64::try_from(tensor.std(false)).unwrap()
        };
        let xavier = |fan: f64| (2.0 / fan).sqrt();
        assert!((std("blocks.0.attn.qkv.weight") / xavier(384.0 + 1152.0) - 1.0).abs() < 0.01);
        assert!((std("x_embedder.proj.weight") / xavier(384.0 + 12.0) - 1.0).abs() < 0.05);
        assert!((std("t_embedder.mlp.0.weight") / 0.02 - 1.0).abs() < 0.02);
        for zero in ["blocks.3.adaLN_modulation.1.weight", "final_layer.linear.weight", "blocks.3.attn.qkv.bias"] {
            assert_eq!(std(zero), 0.0);
        }
        let other = Params::init(&SMALL, &INPUT, 1, Device::Cpu);
        assert_ne!(other.flat, Params::init(&SMALL, &INPUT, 2, Device::Cpu).flat);
    }
}
