//! The parts of a DiT without weights: patches, the position embedding, the frequencies of the time embedding.

use tch::{Device, Kind, Tensor};

/// Width of the sinusoidal time embedding.
pub const FREQUENCIES: i64 = 256;
/// The network is fed t * 1000: DiT's time embedding was made for steps 0..999, and the paper counts T so.
pub const TIME_SCALE: f64 = 1000.0;

/// Images `[B, C, H, W]` as patches `[B, N, C p p]`, tokens row by row, numbers of a patch in the order (c, y, x) of a
/// convolution's weight.
pub fn patchify(x: &Tensor, patch: i64) -> Tensor {
    let (b, c, h, w) = x.size4().expect("images are [B, C, H, W]");
    let (rows, columns) = (h / patch, w / patch);
    x.view([b, c, rows, patch, columns, patch]).permute([0, 2, 4, 1, 3, 5]).reshape([
        b,
        rows * columns,
        c * patch * patch,
    ])
}

/// Outputs `[B, N, p p C]` as images `[B, C, H, W]`; numbers of a patch in the order (y, x, c), as in DiT.
pub fn unpatchify(x: &Tensor, patch: i64, channels: i64) -> Tensor {
    let (b, n, _) = x.size3().expect("tokens are [B, N, ppC]");
    let grid = (n as f64).sqrt() as i64;
    let x = x.view([b, grid, grid, patch, patch, channels]).permute([0, 5, 1, 3, 2, 4]);
    x.reshape([b, channels, grid * patch, grid * patch])
}

/// DiT's fixed position embedding, fp32 `[1, N, D]`: for each token the sines then cosines of its column, then of its
/// row, at frequencies 10000^(-k / (D/4)).
pub fn positions(grid: i64, width: i64) -> Tensor {
    let options = (Kind::Double, Device::Cpu);
    let quarter = width / 4;
    let omega = (Tensor::arange(quarter, options) * (-(10000f64.ln()) / quarter as f64)).exp();
    let angles = Tensor::arange(grid, options).outer(&omega);
    let axis = Tensor::cat(&[angles.sin(), angles.cos()], 1);
    let columns = axis.unsqueeze(0).expand([grid, grid, width / 2], false);
    let rows = axis.unsqueeze(1).expand([grid, grid, width / 2], false);
    Tensor::cat(&[columns, rows], 2).reshape([1, grid * grid, width]).to_kind(Kind::Float)
}

/// DiT's sinusoidal embedding of t, fp32 `[B, 256]` from fp32 `[B]`: cosines then sines of 1000 t at frequencies
/// 10000^(-k / 128).
pub fn timestep(t: &Tensor) -> Tensor {
    let half = FREQUENCIES / 2;
    let k = Tensor::arange(half, (Kind::Float, t.device()));
    let omega = (k * (-(10000f64.ln()) / half as f64)).exp();
    let angles = (t * TIME_SCALE).unsqueeze(1) * omega;
    Tensor::cat(&[angles.cos(), angles.sin()], 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_hold_the_right_pixels() {
        let x = Tensor::arange(2 * 3 * 4 * 4, (Kind::Float, Device::Cpu)).view([2, 3, 4, 4]);
        let patches = patchify(&x, 2);
        assert_eq!(patches.size(), [2, 4, 12]);
        // Token 1 is the upper right patch; its entry (c=2, y=1, x=0) is pixel (1, 2) of channel 2.
        assert_eq!(patches.double_value(&[1, 1, 10]), x.double_value(&[1, 2, 1, 2]));
    }

    #[test]
    fn unpatchify_puts_channels_last_within_a_patch() {
        let tokens = Tensor::arange(4 * 12, (Kind::Float, Device::Cpu)).view([1, 4, 12]);
        let x = unpatchify(&tokens, 2, 3);
        assert_eq!(x.size(), [1, 3, 4, 4]);
        // Token 2 (lower left), y=1, x=0, c=2 is number (1*2+0)*3+2 = 8 of that token.
        assert_eq!(x.double_value(&[0, 2, 3, 0]), tokens.double_value(&[0, 2, 8]));
    }

    #[test]
    fn embeddings_start_where_the_formula_says() {
        let p = positions(4, 8);
        assert_eq!(p.size(), [1, 16, 8]);
        // Token 6 is row 1, column 2: sin(2), sin(2/100), cos(2), cos(2/100), then the same of 1.
        let expected = [2f64.sin(), 0.02f64.sin(), 2f64.cos(), 0.02f64.cos(), 1f64.sin(), 0.01f64.sin()];
        for (i, value) in expected.iter().enumerate() {
            assert!((p.double_value(&[0, 6, i as i64]) - value).abs() < 1e-6);
        }
        let t = timestep(&Tensor::from_slice(&[0.0f32, 0.02]));
        assert_eq!((t.double_value(&[0, 0]), t.double_value(&[0, 128])), (1.0, 0.0));
        assert!((t.double_value(&[1, 0]) - 20f64.cos()).abs() < 1e-5);
    }
}
