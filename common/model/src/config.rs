//! Shape of a DiT.

use serde::{Deserialize, Serialize};
use tch::Kind;

/// Number types of the matrix products. Parameters, norms, the residual stream (less its last bits in fused passes) and
/// losses are fp32 in both.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// fp32 throughout: what the CPU is good at, and the reference everywhere.
    Fp32,
    /// bf16 inputs to matrix products and attention, by explicit casts.
    Bf16,
}

impl Precision {
    /// Its name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
        }
    }

    /// The type of matrix operands.
    pub fn kind(self) -> Kind {
        match self {
            Self::Fp32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

/// Table 1 of the paper: an unconditional DiT with adaLN-zero in every block.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Number of blocks.
    pub depth: i64,
    /// D, width of a token.
    pub width: i64,
    /// Attention heads.
    pub heads: i64,
    /// Width of the hidden layer of the MLP.
    pub mlp: i64,
    /// Side of a square patch in pixels.
    pub patch: i64,
}

/// Largest value of any of the sizes: far beyond use, small enough that no product overflows.
const MAX: i64 = 1 << 16;
/// Most blocks: each is many tensors, which take their time to make.
const MAX_DEPTH: i64 = 1 << 10;

impl ModelConfig {
    /// Checks every size and that they divide each other. Errors start with the field's name.
    ///
    /// # Errors
    /// The first value out of range.
    pub fn validate(&self) -> Result<(), String> {
        let sizes = [
            ("depth", self.depth, MAX_DEPTH),
            ("width", self.width, MAX),
            ("heads", self.heads, MAX),
            ("mlp", self.mlp, MAX),
            ("patch", self.patch, MAX),
        ];
        if let Some((name, value, most)) = sizes.iter().find(|(_, value, most)| !(1..=*most).contains(value)) {
            return Err(format!("{name}: {value} is not in 1..={most}"));
        }
        if self.width % self.heads != 0 {
            return Err(format!("width: {} is not a multiple of heads ({})", self.width, self.heads));
        }
        if self.width % 4 != 0 {
            // The position embedding is sine and cosine of two axes.
            return Err(format!("width: {} is not a multiple of 4", self.width));
        }
        Ok(())
    }

    /// Whether images of this shape can be cut into patches.
    ///
    /// # Errors
    /// What does not fit.
    pub fn fits(&self, channels: usize, height: usize, width: usize) -> Result<Input, String> {
        if height != width {
            return Err(format!("images of {height}x{width}, expected square ones"));
        }
        if height as i64 % self.patch != 0 || height == 0 {
            return Err(format!("patch: {} does not divide the image side {height}", self.patch));
        }
        Ok(Input { channels: channels as i64, side: height as i64 })
    }
}

/// Shape of the images a model takes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// C.
    pub channels: i64,
    /// H and W.
    pub side: i64,
}

impl Input {
    /// Checks both sizes. Errors start with the field's name.
    ///
    /// # Errors
    /// The first value out of range.
    pub fn validate(&self) -> Result<(), String> {
        match [("channels", self.channels), ("side", self.side)].iter().find(|(_, n)| !(1..=MAX).contains(n)) {
            Some((name, value)) => Err(format!("{name}: {value} is not in 1..={MAX}")),
            None => Ok(()),
        }
    }

    /// Patches along one side.
    pub fn grid(&self, model: &ModelConfig) -> i64 {
        self.side / model.patch
    }

    /// N, tokens of an image.
    pub fn tokens(&self, model: &ModelConfig) -> i64 {
        self.grid(model).pow(2)
    }

    /// Numbers in one patch, C p p.
    pub fn patch_len(&self, model: &ModelConfig) -> i64 {
        self.channels * model.patch.pow(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CIFAR: ModelConfig = ModelConfig { depth: 12, width: 384, heads: 6, mlp: 1536, patch: 2 };

    #[test]
    fn sizes_are_checked_by_name() {
        assert_eq!(CIFAR.validate(), Ok(()));
        let bad = |config: ModelConfig| config.validate().unwrap_err();
        assert_eq!(bad(ModelConfig { depth: 0, ..CIFAR }), "depth: 0 is not in 1..=1024");
        assert_eq!(bad(ModelConfig { heads: 7, ..CIFAR }), "width: 384 is not a multiple of heads (7)");
        assert_eq!(bad(ModelConfig { width: 6, ..CIFAR }), "width: 6 is not a multiple of 4");
    }

    #[test]
    fn images_must_fit_the_patches() {
        let input = CIFAR.fits(3, 32, 32).unwrap();
        assert_eq!((input.tokens(&CIFAR), input.patch_len(&CIFAR)), (256, 12));
        assert!(CIFAR.fits(3, 32, 30).unwrap_err().contains("square"));
        assert!(CIFAR.fits(3, 31, 31).unwrap_err().contains("does not divide"));
    }
}
