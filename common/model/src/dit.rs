//! The DiT (Peebles and Xie 2023, arXiv 2212.09748) without a class label: patches, per-block adaLN-zero, an output
//! layer that predicts the velocity. Parameters are named as facebookresearch/DiT names them.
//!
//! The residual stream, norms and modulation are fp32; matrix products and attention run in [`Precision`].

use crate::{
    config::{Input, ModelConfig, Precision},
    embed,
    params::Params,
};
use lcf_native::fused::{self, Engine};
use std::{collections::HashMap, ops::Range};
use tch::{Kind, Tensor};

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
    engine: Engine,
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
        Self { config, input, precision, engine: Engine::Fused, patches, positions, time, blocks, output, output_ada }
    }

    /// A model for inference on a copy of `params` in the kind of `precision`.
    pub fn frozen(config: ModelConfig, input: Input, precision: Precision, params: &Params) -> Self {
        let flat = params.flat.to_kind(precision.kind());
        let names: Vec<&str> = params.layout.specs.iter().map(|spec| spec.name.as_str()).collect();
        Self::new(config, input, precision, &names, params.layout.views(&flat))
    }

    /// The same model computed by `engine`; a new one is computed by [`Engine::Fused`].
    #[must_use]
    pub fn with_engine(self, engine: Engine) -> Self {
        Self { engine, ..self }
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
        self.head(&self.run(self.embed(x, t), 0..self.blocks.len()))
    }

    /// Residual stream after the first `layer` blocks, fp32 `[B, N, D]`: h_l(x_t) of Equation 13, l counted from 1.
    pub fn features(&self, x: &Tensor, t: &Tensor, layer: usize) -> Tensor {
        self.run(self.embed(x, t), 0..layer).tokens
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
    /// modulated by (shift, scale) from t. Every residual update is computed together with the norm that follows it.
    #[must_use]
    pub fn run(&self, stream: Stream, range: Range<usize>) -> Stream {
        let Stream { mut tokens, condition } = stream;
        // Shift, scale and gate of the attention, then of the MLP, `[B, D]` each.
        let ada: Vec<Vec<Tensor>> =
            self.blocks[range.clone()].iter().map(|block| block.ada.forward(&condition).chunk(6, 1)).collect();
        let Some(first) = ada.first() else { return Stream { tokens, condition } };
        let (_, mut normal) = self.residual_norm(&tokens, None, &first[0], &first[1]);
        for (i, block) in self.blocks[range].iter().enumerate() {
            let own = &ada[i];
            let attended = self.attention(block, &normal);
            (tokens, normal) = self.residual_norm(&tokens, Some((&own[2], &attended)), &own[3], &own[4]);
            let hidden = block.fc2.forward(&block.fc1.forward(&normal).gelu("tanh"));
            (tokens, normal) = match ada.get(i + 1) {
                Some(next) => self.residual_norm(&tokens, Some((&own[5], &hidden)), &next[0], &next[1]),
                None => (tokens + own[5].to_kind(Kind::Float).unsqueeze(1) * hidden.to_kind(Kind::Float), normal),
            };
        }
        Stream { tokens, condition }
    }

    /// A residual update and the modulated norm after it, by the engine.
    fn residual_norm(
        &self,
        x: &Tensor,
        branch: Option<(&Tensor, &Tensor)>,
        shift: &Tensor,
        scale: &Tensor,
    ) -> (Tensor, Tensor) {
        fused::residual_norm(self.engine, x, branch, shift, scale).unwrap_or_else(|error| panic!("{error}"))
    }

    fn attention(&self, block: &Block, x: &Tensor) -> Tensor {
        let (b, n, d) = x.size3().expect("tokens are [B, N, D]");
        let heads = self.config.heads;
        let qkv = block.qkv.forward(x).view([b, n, 3, heads, d / heads]).permute([2, 0, 3, 1, 4]);
        // unbind rather than three selects: its gradient is one stack, not three zero-filled tensors and their sum.
        let qkv = qkv.unbind(0);
        let [q, k, v] = [0, 1, 2].map(|i: usize| &qkv[i]);
        let out = Tensor::scaled_dot_product_attention(q, k, v, None::<&Tensor>, 0.0, false, None, false);
        block.proj.forward(&out.transpose(1, 2).reshape([b, n, d]))
    }

    /// The output layer: velocity, fp32 `[B, C, H, W]`.
    pub fn head(&self, stream: &Stream) -> Tensor {
        let ada = self.output_ada.forward(&stream.condition).chunk(2, 1);
        let (_, normal) = self.residual_norm(&stream.tokens, None, &ada[0], &ada[1]);
        let out = self.output.forward(&normal);
        embed::unpatchify(&out.to_kind(Kind::Float), self.config.patch, self.input.channels)
    }
}
