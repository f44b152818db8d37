//! How much work a DiT is: operations of its matrix products and bytes through memory, by formulas.
//!
//! With L blocks, N tokens of width D, and an MLP of width M:
//!
//! - A matrix product of n rows from a to b numbers is 2 n a b operations, two for a multiplication and addition. A block
//!   has 2 N D (3 D + D + 2 M) for its tokens (q, k and v; output; MLP) and 12 D D for its modulation; attention has
//!   4 N N D (scores, and the mean of values). Patches, time embedding and output layer are counted too; norms, activations
//!   and sums are not.
//! - A backward pass makes two products for each of the forward pass. That of attention makes five for two, since the
//!   scores are computed once more.
//! - Bytes are those of activations in the fused design with a residual stream in the type of the matrices, where each
//!   kernel reads its inputs and writes its outputs once ([`FORWARD`], [`FORWARD_KEPT`], [`BACKWARD`]), in units of one
//!   activation of N x D numbers. Weights, and what there is once an image, are left out. They go through memory as long
//!   as they exceed the caches: not with a small model, or a small batch.

use crate::config::{Input, ModelConfig, Precision};
use crate::embed::FREQUENCIES;
use lcf_store::bench::Work;
use tch::Device;

/// Activations that a block of M = 4 D reads and writes in a forward pass, in units of N x D numbers: residual update with
/// norm and modulation 4, twice; products 4, 2, 5 and 5; attention 4.
pub const FORWARD: f64 = 28.0;
/// The same when a backward pass follows: the MLP's activations before GELU are written too.
pub const FORWARD_KEPT: f64 = 32.0;
/// In a backward pass: norms 6, twice; GELU 4; attention 8; the gradients of inputs and of weights of the four products 4
/// and 4, 2 and 2, 5 and 5, 5 and 5.
pub const BACKWARD: f64 = 56.0;

/// Operations of a forward pass of one image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flops {
    /// Of the layers' matrix products.
    pub linear: f64,
    /// Of attention.
    pub attention: f64,
}

impl Flops {
    /// Patches, time embedding and the first `layers` blocks: features.
    pub fn features(model: &ModelConfig, input: &Input, layers: i64) -> Self {
        let [n, d, m] = [input.tokens(model), model.width, model.mlp].map(|size| size as f64);
        let embedding = 2.0 * n * d * input.patch_len(model) as f64 + 2.0 * d * (FREQUENCIES as f64 + d);
        let block = 2.0 * n * d * (4.0 * d + 2.0 * m) + 12.0 * d * d;
        let layers = layers as f64;
        Self { linear: embedding + layers * block, attention: layers * 4.0 * n * n * d }
    }

    /// All of it: the velocity.
    pub fn velocity(model: &ModelConfig, input: &Input) -> Self {
        let [n, d] = [input.tokens(model), model.width].map(|size| size as f64);
        let Self { linear, attention } = Self::features(model, input, model.depth);
        Self { linear: linear + 2.0 * n * d * input.patch_len(model) as f64 + 4.0 * d * d, attention }
    }

    /// Of a forward pass.
    pub fn forward(&self) -> f64 {
        self.linear + self.attention
    }

    /// Of a forward and a backward pass.
    pub fn both_passes(&self) -> f64 {
        3.0 * self.linear + 3.5 * self.attention
    }
}

/// Bytes of one activation of an image: N x D numbers as the matrix products take them.
pub fn activation(model: &ModelConfig, input: &Input, precision: Precision) -> f64 {
    (input.tokens(model) * model.width) as f64 * precision.kind().elt_size_in_bytes() as f64
}

/// What an image takes at least: `flop`, and `bytes` on a CUDA device. On the CPU bytes bound nothing: caches hold much of
/// what would be counted.
pub fn work(flop: f64, bytes: f64, device: Device) -> Work {
    Work { flop_per_item: Some(flop), bytes_per_item: (device != Device::Cpu).then_some(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CIFAR: ModelConfig = ModelConfig { depth: 12, width: 384, heads: 6, mlp: 1536, patch: 2 };
    const INPUT: Input = Input { channels: 3, side: 32 };

    /// By hand, for CIFAR-10's 12 x 384 with patch 2: N = 256, D = 384, M = 1536, patches of 12 numbers.
    #[test]
    fn a_forward_pass_of_cifar_is_12_gflop() {
        let velocity = Flops::velocity(&CIFAR, &INPUT);
        let tokens = 12 * 2 * 256 * (384 * 1152 + 384 * 384 + 2 * 384 * 1536);
        let modulation = 12 * 2 * 384 * 2304;
        let embedding = 2 * 256 * 12 * 384 + 2 * (256 * 384 + 384 * 384);
        let output = 2 * 256 * 384 * 12 + 2 * 384 * 768;
        assert_eq!(tokens, 10_871_635_968i64);
        assert_eq!(velocity.linear, (tokens + modulation + embedding + output) as f64);
        assert_eq!(velocity.attention, 1_207_959_552.0);
        assert_eq!(velocity.forward(), 12_106_629_120.0);
        // 36.9 GFLOP for both passes: 9.45 TFLOP for a batch of 256.
        assert_eq!(256.0 * velocity.both_passes(), 9_452_509_986_816.0);
    }

    #[test]
    fn features_stop_at_their_layer() {
        let [none, one, two] = [0, 1, 2].map(|layers| Flops::features(&CIFAR, &INPUT, layers));
        assert_eq!((none.attention, one.attention), (0.0, 1_207_959_552.0 / 12.0));
        assert_eq!(two.linear - one.linear, one.linear - none.linear);
        assert_eq!(none.linear, (2 * 256 * 12 * 384 + 2 * (256 * 384 + 384 * 384)) as f64);
    }

    /// 54.4 GB for 262 images through 12 blocks in bf16, forward and backward.
    #[test]
    fn bytes_are_those_of_the_fused_design() {
        let unit = activation(&CIFAR, &INPUT, Precision::Bf16);
        assert_eq!(unit, 196_608.0);
        let all = 262.0 * 12.0 * (FORWARD_KEPT + BACKWARD) * unit;
        assert!((all / 1e9 - 54.4).abs() < 0.05, "{all}");
        assert_eq!(activation(&CIFAR, &INPUT, Precision::Fp32), 2.0 * unit);
        assert_eq!(work(1.0, 2.0, Device::Cpu).bytes_per_item, None);
        assert_eq!(work(1.0, 2.0, Device::Cuda(0)).bytes_per_item, Some(2.0));
    }
}
