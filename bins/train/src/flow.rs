//! The flow-matching loss, Equation 12 of the paper.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// What the norm of Equation 12 does over the C H W dimensions of an image.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// Mean square, as in all public flow-matching code.
    Mean,
    /// Squared 2-norm, as Equation 12 prints it: C H W times larger.
    Sum,
}

/// Equation 12 for each sample: || v_theta(x_t, t) - v*(x_t, t) ||^2, fp32 `[B]`, reduced over C, H and W.
///
/// v, target: `[B, C, H, W]`.
pub fn flow_loss(v: &Tensor, target: &Tensor, reduction: Reduction) -> Tensor {
    let square = (v - target).square().flatten(1, -1);
    match reduction {
        Reduction::Mean => square.mean_dim(1, false, Kind::Float),
        Reduction::Sum => square.sum_dim_intlist(1, false, Kind::Float),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_made_batch() {
        let v = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]).view([2, 1, 2, 2]);
        let target = Tensor::from_slice(&[0.0f32, 2.0, 5.0, 4.0, 1.0, 1.0, 1.0, 1.0]).view([2, 1, 2, 2]);
        assert_eq!(flow_loss(&v, &target, Reduction::Sum), Tensor::from_slice(&[5.0f32, 4.0]));
        assert_eq!(flow_loss(&v, &target, Reduction::Mean), Tensor::from_slice(&[1.25f32, 1.0]));
    }
}
