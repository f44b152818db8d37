//! Scaling images to the network's input. Bilinear in fp32, without antialiasing, in the two readings in use.

use crate::config::Resize;
use tch::{Device, TchError, Tensor};

/// Scales `images`, float `[B, C, H, W]`, to `[B, C, side, side]`.
///
/// # Errors
/// libtorch's, like being out of memory.
pub fn bilinear(images: &Tensor, side: i64, resize: Resize) -> Result<Tensor, TchError> {
    match resize {
        Resize::Tf1 => {
            let (_, _, height, width) = images.size4()?;
            let across = lerp(images, 3, &Taps::tf1(width, side))?;
            lerp(&across, 2, &Taps::tf1(height, side))
        }
        Resize::HalfPixel => images.f_upsample_bilinear2d([side, side], false, None, None),
    }
}

/// For each output position its two input positions and how far it lies towards the second.
#[derive(Debug, PartialEq)]
struct Taps {
    low: Vec<i64>,
    high: Vec<i64>,
    fraction: Vec<f32>,
}

impl Taps {
    /// TensorFlow 1's `resize_bilinear` with `align_corners=False`: source = i * (in / out) in fp32, with the positions
    /// past the last input clamped to it (tensorflow/core/kernels/image/resize_bilinear_op.cc, legacy scaler).
    fn tf1(input: i64, output: i64) -> Self {
        let scale = input as f32 / output as f32;
        let source: Vec<f32> = (0..output).map(|i| i as f32 * scale).collect();
        let low: Vec<i64> = source.iter().map(|&s| (s as i64).min(input - 1)).collect();
        let high = low.iter().map(|&l| (l + 1).min(input - 1)).collect();
        let fraction = source.iter().zip(&low).map(|(&s, &l)| s - l as f32).collect();
        Self { low, high, fraction }
    }
}

/// `x` on `device`, without waiting for what that device has been given before.
///
/// # Errors
/// libtorch's, like being out of memory.
pub fn upload(x: &Tensor, device: Device) -> Result<Tensor, TchError> {
    match device {
        Device::Cpu => Ok(x.shallow_clone()),
        // A copy from memory that the system may move would wait.
        _ => x.f_internal_pin_memory(device)?.f_to_device_(device, x.f_kind()?, true, false),
    }
}

/// `low + (high - low) * fraction` along `dim` of `[B, C, H, W]`, in TensorFlow's order of operations.
fn lerp(x: &Tensor, dim: i64, taps: &Taps) -> Result<Tensor, TchError> {
    let device = x.device();
    let index = |positions: &[i64]| upload(&Tensor::f_from_slice(positions)?, device);
    let low = x.f_index_select(dim, &index(&taps.low)?)?;
    let high = x.f_index_select(dim, &index(&taps.high)?)?;
    let mut shape = [1; 4];
    shape[dim as usize] = taps.fraction.len() as i64;
    let fraction = upload(&Tensor::f_from_slice(&taps.fraction)?, device)?.f_view(shape)?;
    high.f_sub(&low)?.f_mul(&fraction)?.f_add(&low)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image `[1, 1, h, w]` without symmetry.
    fn image(h: usize, w: usize) -> (Vec<f32>, Tensor) {
        let values: Vec<f32> = (0..h * w).map(|i| ((i * i * 7 + i * 13) % 256) as f32).collect();
        let tensor = Tensor::from_slice(&values).view([1, 1, h as i64, w as i64]);
        (values, tensor)
    }

    /// The scalar definition, in f64: `source` maps an output position to an input position.
    fn reference(x: &[f32], h: usize, w: usize, side: usize, source: fn(f64, f64) -> f64) -> Vec<f64> {
        let at = |i: usize, n: usize| {
            let s = source(i as f64, n as f64 / side as f64);
            let low = (s.floor() as usize).min(n - 1);
            (low, (low + 1).min(n - 1), s - low as f64)
        };
        let pixel = |i: usize, j: usize| f64::from(x[i * w + j]);
        let mut out = Vec::new();
        for i in 0..side {
            let (top, bottom, down) = at(i, h);
            for j in 0..side {
                let (left, right, across) = at(j, w);
                let upper = pixel(top, left) * (1.0 - across) + pixel(top, right) * across;
                let lower = pixel(bottom, left) * (1.0 - across) + pixel(bottom, right) * across;
                out.push(upper * (1.0 - down) + lower * down);
            }
        }
        out
    }

    fn worst(resize: Resize, h: usize, w: usize, side: usize, source: fn(f64, f64) -> f64) -> f64 {
        let (values, tensor) = image(h, w);
        let ours = bilinear(&tensor, side as i64, resize).unwrap();
        assert_eq!(ours.size(), [1, 1, side as i64, side as i64]);
        let ours = Vec::<f32>::try_from(ours.flatten(0, -1)).unwrap();
        let expected = reference(&values, h, w, side, source);
        ours.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
    }

    fn tf1(i: f64, scale: f64) -> f64 {
        i * scale
    }

    fn half_pixel(i: f64, scale: f64) -> f64 {
        ((i + 0.5) * scale - 0.5).max(0.0)
    }

    /// 1e-2 of 255: positions near 299 carry fp32 rounding of 2e-5 pixels, times steps of up to 255.
    #[test]
    fn both_agree_with_their_scalar_definition_and_not_with_each_other() {
        for (h, w) in [(32, 32), (5, 9), (299, 299), (400, 310), (1, 2)] {
            assert!(worst(Resize::Tf1, h, w, 299, tf1) < 1e-2, "tf1 {h}x{w}");
            assert!(worst(Resize::HalfPixel, h, w, 299, half_pixel) < 1e-2, "half-pixel {h}x{w}");
        }
        assert!(worst(Resize::Tf1, 32, 32, 299, half_pixel) > 1.0);
        assert!(worst(Resize::HalfPixel, 32, 32, 299, tf1) > 1.0);
    }

    /// By hand: 2 -> 4 is `a, (a+b)/2, b, b` in TensorFlow 1 and `a, (3a+b)/4, (a+3b)/4, b` with half-pixel centres.
    #[test]
    fn doubling_by_hand() {
        let x = Tensor::from_slice(&[0f32, 8.0, 0.0, 8.0]).view([1, 1, 2, 2]);
        let row = |resize| Vec::<f32>::try_from(bilinear(&x, 4, resize).unwrap().select(2, 0).flatten(0, -1)).unwrap();
        assert_eq!(row(Resize::Tf1), [0.0, 4.0, 8.0, 8.0]);
        assert_eq!(row(Resize::HalfPixel), [0.0, 2.0, 6.0, 8.0]);
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let (_, x) = image(7, 7);
        for resize in [Resize::Tf1, Resize::HalfPixel] {
            assert_eq!(bilinear(&x, 7, resize).unwrap(), x);
        }
    }
}
