//! The DiT (Peebles and Xie 2023, arXiv 2212.09748) without a class label: patches, per-block adaLN-zero, an output
//! layer that predicts the velocity. Parameters are named as facebookresearch/DiT names them.
//!
//! The residual stream, norms and modulation are fp32; matrix products and attention run in [`Precision`]. This is the
//! reference, in plain libtorch operations that differentiate themselves; where [`Fused`] takes the model, a frozen one is
//! computed by that.

use crate::{
    config::{Input, ModelConfig, Precision},
    embed,
    fused::Fused,
    params::Params,
};
use std::{collections::HashMap, ops::Range};
use tch::{Device, Kind, Tensor};

#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// `[.., in]` to `[.., out]`.
    fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }
}

#[derive(Debug)]
struct Block {
    qkv: Linear,
    proj: Linear,
    fc1: Linear,
    fc2: Linear,
    ada: Linear,
}

/// A model ready to run on given parameter tensors.
#[derive(Debug)]
pub struct Dit {
    config: ModelConfig,
    input: Input,
    precision: Precision,
    fused: Option<Fused>,
    patches: Linear,
    positions: Tensor,
    time: [Linear; 2],
    blocks: Vec<Block>,
    output: Linear,
    output_ada: Linear,
}

/// Tokens on their way through the blocks.
#[derive(Debug)]
pub struct Stream {
    /// The residual stream, fp32 `[B, N, D]`.
    pub tokens: Tensor,
    /// SiLU of the time embedding, `[B, D]`: what every adaLN layer takes.
    condition: Tensor,
}

impl Stream {
    /// The samples `start..start + n` alone.
    #[must_use]
    pub fn narrow(&self, start: i64, n: i64) -> Self {
        Self { tokens: self.tokens.narrow(0, start, n), condition: self.condition.narrow(0, start, n) }
    }
}

impl Dit {
    /// A model over `tensors`, one for each spec of the layout in its order. They may be leaves of a gradient; their
    /// kind must be that of `precision`.
    ///
    /// # Panics
    /// When `tensors` does not match the layout of `config` and `input`.
    pub fn new(config: ModelConfig, input: Input, precision: Precision, names: &[&str], tensors: Vec<Tensor>) -> Self {
        let device = tensors[0].device();
        let mut by_name: HashMap<&str, Tensor> = names.iter().copied().zip(tensors).collect();
        let mut take = |name: &str| by_name.remove(name).unwrap_or_else(|| panic!("no parameter {name}"));
        let mut linear =
            |name: &str| Linear { weight: take(&format!("{name}.weight")), bias: take(&format!("{name}.bias")) };
        let conv = linear("x_embedder.proj");
        // The patch convolution has stride = kernel, so it is a matrix product over flattened patches.
        let patches = Linear { weight: conv.weight.view([config.width, -1]), bias: conv.bias };
        let time = [linear("t_embedder.mlp.0"), linear("t_embedder.mlp.2")];
        let blocks = (0..config.depth)
            .map(|i| Block {
                qkv: linear(&format!("blocks.{i}.attn.qkv")),
                proj: linear(&format!("blocks.{i}.attn.proj")),
                fc1: linear(&format!("blocks.{i}.mlp.fc1")),
                fc2: linear(&format!("blocks.{i}.mlp.fc2")),
                ada: linear(&format!("blocks.{i}.adaLN_modulation.1")),
            })
            .collect();
        let output = linear("final_layer.linear");
        let output_ada = linear("final_layer.adaLN_modulation.1");
        assert!(by_name.is_empty(), "parameters no layer takes: {:?}", by_name.keys());
        let positions = embed::positions(input.grid(&config), config.width).to_device(device);
        Self { config, input, precision, fused: None, patches, positions, time, blocks, output, output_ada }
    }

    /// A model for inference on a copy of `params` in the kind of `precision`; computed by [`Fused`] where that
    /// takes it.
    pub fn frozen(config: ModelConfig, input: Input, precision: Precision, params: &Params) -> Self {
        let flat = params.flat.to_kind(precision.kind());
        let names: Vec<&str> = params.layout.specs.iter().map(|spec| spec.name.as_str()).collect();
        let fits = Fused::takes(&config, &input, precision, flat.device());
        let fused = fits.then(|| Fused::new(config, input, &params.layout, &flat));
        Self { fused, ..Self::new(config, input, precision, &names, params.layout.views(&flat)) }
    }

    /// The shape of its images.
    pub fn input(&self) -> Input {
        self.input
    }

    /// Its own shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Velocity v(x_t, t), fp32 `[B, C, H, W]`, of x_t fp32 `[B, C, H, W]` and t fp32 `[B]`.
    pub fn velocity(&self, x: &Tensor, t: &Tensor) -> Tensor {
        match &self.fused {
            Some(fused) => fused.velocity(x, t),
            None => self.head(&self.run(self.embed(x, t), 0..self.blocks.len())),
        }
    }

    /// Residual stream after the first `layer` blocks, fp32 `[B, N, D]`: h_l(x_t) of Equation 13, l counted from 1.
    pub fn features(&self, x: &Tensor, t: &Tensor, layer: usize) -> Tensor {
        match &self.fused {
            Some(fused) => fused.features(x, t, layer),
            None => self.run(self.embed(x, t), 0..layer).tokens,
        }
    }

    /// Patches and time, ready for the first block.
    pub fn embed(&self, x: &Tensor, t: &Tensor) -> Stream {
        let kind = self.precision.kind();
        let patches = embed::patchify(x, self.config.patch).to_kind(kind);
        let tokens = self.patches.forward(&patches).to_kind(Kind::Float) + &self.positions;
        let t = embed::timestep(t).to_kind(kind);
        let condition = self.time[1].forward(&self.time[0].forward(&t).silu()).silu();
        Stream { tokens, condition }
    }

    /// The blocks `range`, counted from 0: x + gate_1 attention(norm(x)), then x + gate_2 mlp(norm(x)), each norm
    /// modulated by (shift, scale) from t.
    #[must_use]
    pub fn run(&self, stream: Stream, range: Range<usize>) -> Stream {
        let Stream { mut tokens, condition } = stream;
        for block in &self.blocks[range] {
            // Shift, scale and gate of the attention, then of the MLP, `[B, D]` each.
            let ada = block.ada.forward(&condition).chunk(6, 1);
            let attended = self.attention(block, &norm(&tokens, &ada[0], &ada[1]));
            tokens = add(&tokens, &ada[2], &attended);
            let hidden = block.fc1.forward(&norm(&tokens, &ada[3], &ada[4])).gelu("tanh");
            tokens = add(&tokens, &ada[5], &block.fc2.forward(&hidden));
        }
        Stream { tokens, condition }
    }

    fn attention(&self, block: &Block, x: &Tensor) -> Tensor {
        let (b, n, d) = x.size3().expect("tokens are [B, N, D]");
        let heads = self.config.heads;
        let qkv = block.qkv.forward(x).view([b, n, 3, heads, d / heads]).permute([2, 0, 3, 1, 4]);
        // unbind rather than three selects: its gradient is one stack, not three zero-filled tensors and their sum.
        let qkv = qkv.unbind(0);
        let [q, k, v] = [0, 1, 2].map(|i: usize| &qkv[i]);
        let out = match q.device() == Device::Cpu && may_overflow(q, k) {
            true => plain_attention(q, k, v),
            false => Tensor::scaled_dot_product_attention(q, k, v, None::<&Tensor>, 0.0, false, None, false),
        };
        block.proj.forward(&out.transpose(1, 2).reshape([b, n, d]))
    }

    /// The output layer: velocity, fp32 `[B, C, H, W]`.
    pub fn head(&self, stream: &Stream) -> Tensor {
        let ada = self.output_ada.forward(&stream.condition).chunk(2, 1);
        let out = self.output.forward(&norm(&stream.tokens, &ada[0], &ada[1]));
        embed::unpatchify(&out.to_kind(Kind::Float), self.config.patch, self.input.channels)
    }
}

/// Whether a score of `q` and `k`, `[B, H, N, d]` each, may be beyond fp32. On the CPU libtorch takes scores that are not
/// numbers for masked ones, and gives zeros where all are: an overflow would pass for an attention that sees nothing.
fn may_overflow(q: &Tensor, k: &Tensor) -> bool {
    let width = *q.size().last().expect("queries are [B, H, N, d]") as f64;
    let largest = |x: &Tensor| tch::no_grad(|| x.abs().max().double_value(&[]));
    // Written so that NaN overflows.
    let fits = largest(q) * largest(k) * width < f64::from(f32::MAX);
    !fits
}

/// The same attention operation by operation, each of which hands on what is not a number.
fn plain_attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let width = *q.size().last().expect("queries are [B, H, N, d]") as f64;
    (q.matmul(&k.transpose(-2, -1)) / width.sqrt()).softmax(-1, Kind::Float).to_kind(v.kind()).matmul(v)
}

/// norm(x) (1 + scale) + shift in the kind of shift: x fp32 `[B, N, D]`, norm without weights, shift and scale `[B, D]`.
fn norm(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Tensor {
    let width = *x.size().last().expect("tokens are [B, N, D]");
    let normal = x.layer_norm([width], None::<&Tensor>, None::<&Tensor>, 1e-6, false);
    (normal * (wide(scale) + 1.0) + wide(shift)).to_kind(shift.kind())
}

/// The residual update x + gate h: x fp32, h `[B, N, D]`, gate `[B, D]`.
fn add(x: &Tensor, gate: &Tensor, h: &Tensor) -> Tensor {
    x + wide(gate) * h.to_kind(Kind::Float)
}

/// A row for every token, fp32.
fn wide(rows: &Tensor) -> Tensor {
    rows.to_kind(Kind::Float).unsqueeze(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Queries, keys and values, `[1, 2, 4, 8]` each.
    fn qkv(scale: f64) -> [Tensor; 3] {
        tch::manual_seed(0);
        let normal = || Tensor::randn([1, 2, 4, 8], (Kind::Float, Device::Cpu));
        [normal() * scale, normal() * scale, normal()]
    }

    #[test]
    fn the_plain_attention_is_libtorchs() {
        let [q, k, v] = qkv(1.0);
        assert!(!may_overflow(&q, &k));
        let fast = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None, false);
        assert!(plain_attention(&q, &k, &v).allclose(&fast, 1e-5, 1e-6, false));
    }

    /// libtorch's own gives zeros here.
    #[test]
    fn an_overflow_in_the_scores_does_not_pass_for_an_attention() {
        let [q, k, v] = qkv(1e25);
        assert!(may_overflow(&q, &k));
        assert_eq!(plain_attention(&q, &k, &v).isfinite().any().int64_value(&[]), 0);
        let nan = q * f64::NAN;
        assert!(may_overflow(&nan, &k) && may_overflow(&k, &nan));
    }
}
