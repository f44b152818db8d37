//! Random numbers as a function of (seed, purpose, index): no state, so a resume, another batch size, another order or
//! another number of processes draws the same numbers for the same sample.
//!
//! The generator is SplitMix64 ([`lcf_store::random`]): the stream of row i starts at a hash of (seed, purpose, i), and
//! its element e is the hash of that start plus e times the golden gamma. It is written twice: on one `u64` on the host,
//! and here as integer tensor operations, which run on whatever device the index tensor lies on. Integers agree exactly everywhere; normal numbers agree to the rounding of
//! the device's logarithm and cosine.

use lcf_store::random::{GAMMA, MIX1, MIX2, mix};
use tch::{Device, Kind, Tensor};

/// What a draw is for. Streams of different purposes are independent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// Initial weights.
    Init = 1,
    /// Order of the training images in an epoch.
    Shuffle = 2,
    /// t of a training sample.
    Time = 3,
    /// Gaussian noise of a training sample.
    Noise = 4,
    /// Horizontal flip of a training sample.
    Flip = 5,
    /// Gaussian noise of an image whose features are extracted.
    Extract = 6,
    /// Order of features in an epoch of the probe.
    Probe = 7,
    /// Initial noise of a generated sample.
    Sample = 8,
}

/// A family of streams, one for each index.
#[derive(Clone, Copy, Debug)]
pub struct Rng {
    base: u64,
}

impl Rng {
    /// The streams of `purpose` under `seed`.
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        Self { base: mix(mix(seed.wrapping_add(GAMMA)).wrapping_add((purpose as u64).wrapping_mul(GAMMA))) }
    }

    /// The family of streams within stream `index`, for draws that need two indices.
    #[must_use]
    pub fn fork(self, index: u64) -> Self {
        Self { base: mix(self.row(index).wrapping_add(GAMMA)) }
    }

    /// What the streams start from: for whoever draws them elsewhere.
    pub fn base(self) -> u64 {
        self.base
    }

    fn row(self, index: u64) -> u64 {
        mix(self.base.wrapping_add(index.wrapping_mul(GAMMA)))
    }

    /// 64 random bits: the first element of stream `index`.
    pub fn bits(self, index: u64) -> u64 {
        mix(self.row(index))
    }

    /// Uniform in [0, 1), a multiple of 2^-24: the same number as [`Rng::uniform`] gives for this index.
    pub fn uniform_at(self, index: u64) -> f32 {
        (self.bits(index) >> 40) as f32 * TWO_POW_MINUS_24
    }

    /// 64 random bits as int64 `[B, n]`: elements `0..n` of the streams `index`, int64 `[B]`.
    pub fn bits_of(self, index: &Tensor, n: i64) -> Tensor {
        let rows = mix_tensor(&(index * GAMMA as i64 + self.base as i64));
        let elements = Tensor::arange(n, (Kind::Int64, index.device())) * GAMMA as i64;
        mix_tensor(&(rows.unsqueeze(1) + elements))
    }

    /// Uniform in [0, 1), fp32 `[B]`: one number for each index, int64 `[B]`.
    pub fn uniform(self, index: &Tensor) -> Tensor {
        shift(&self.bits_of(index, 1).squeeze_dim(1), 40).to_kind(Kind::Float) * f64::from(TWO_POW_MINUS_24)
    }

    /// Standard normal, fp32 `[B, n]`: `n` numbers for each index, int64 `[B]`. By Box and Muller, two numbers from 64
    /// bits.
    pub fn normal(self, index: &Tensor, n: i64) -> Tensor {
        let bits = self.bits_of(index, (n + 1) / 2);
        let high = shift(&bits, 32).to_kind(Kind::Float);
        let low = bits.bitwise_and(0xffff_ffff_i64).to_kind(Kind::Float);
        // Plus one: the logarithm's argument is in (0, 1], so that the radius is finite.
        let radius = (((high + 1.0) * TWO_POW_MINUS_32).log() * -2.0).sqrt();
        let angle = low * (TWO_POW_MINUS_32 * std::f64::consts::TAU);
        Tensor::cat(&[&radius * angle.cos(), radius * angle.sin()], 1).narrow(1, 0, n)
    }

    /// A random order of `0..n`, int64 `[n]`, for stream `index`.
    pub fn permutation(self, index: u64, n: i64, device: Device) -> Tensor {
        let items = Tensor::arange(n, (Kind::Int64, device));
        let keys = self.fork(index).bits_of(&items, 1).squeeze_dim(1);
        // Stable, so that the order is defined even where two of 2^64 keys are equal.
        keys.argsort_stable(true, 0, false)
    }
}

const TWO_POW_MINUS_24: f32 = 1.0 / (1u32 << 24) as f32;
const TWO_POW_MINUS_32: f64 = 1.0 / (1u64 << 32) as f64;

/// Logical right shift: int64 shifts right with its sign, so the sign's copies are masked away.
fn shift(z: &Tensor, bits: u32) -> Tensor {
    z.bitwise_right_shift_tensor_scalar(i64::from(bits)).bitwise_and((u64::MAX >> bits) as i64)
}

fn mix_tensor(z: &Tensor) -> Tensor {
    let z = z.bitwise_xor_tensor(&shift(z, 30)) * MIX1 as i64;
    let z = z.bitwise_xor_tensor(&shift(&z, 27)) * MIX2 as i64;
    z.bitwise_xor_tensor(&shift(&z, 31))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indices(values: &[i64]) -> Tensor {
        Tensor::from_slice(values)
    }

    #[test]
    fn tensors_draw_the_hosts_bits() {
        let rng = Rng::new(7, Purpose::Noise);
        let index = [0, 1, 5, 123_456_789_012];
        let bits = Vec::<i64>::try_from(rng.bits_of(&indices(&index), 1).flatten(0, -1)).unwrap();
        let host: Vec<i64> = index.iter().map(|&i| rng.bits(i as u64) as i64).collect();
        assert_eq!(bits, host);
        let uniform = Vec::<f32>::try_from(rng.uniform(&indices(&index))).unwrap();
        let host: Vec<f32> = index.iter().map(|&i| rng.uniform_at(i as u64)).collect();
        assert_eq!(uniform, host);
    }

    #[test]
    fn a_row_depends_on_its_index_alone() {
        let rng = Rng::new(3, Purpose::Sample);
        let all = rng.normal(&indices(&[0, 1, 2, 3]), 11);
        let part = rng.normal(&indices(&[2]), 11);
        assert_eq!(all.narrow(0, 2, 1), part);
        assert_ne!(Rng::new(4, Purpose::Sample).normal(&indices(&[2]), 11), part);
        assert_ne!(Rng::new(3, Purpose::Noise).normal(&indices(&[2]), 11), part);
        assert_ne!(rng.fork(2).normal(&indices(&[2]), 11), part);
    }

    /// Moments of 2^20 draws within five standard errors, and no correlation between neighbours of either direction.
    #[test]
    fn normal_numbers_are_normal() {
        let x = Rng::new(0, Purpose::Noise).normal(&Tensor::arange(1024, (Kind::Int64, Device::Cpu)), 1024);
        let x = x.to_kind(Kind::Double);
        let mean = |t: Tensor| f64::try_from(t.mean(Kind::Double)).unwrap();
        let bound = |variance: f64| 5.0 * (variance / (1024.0 * 1024.0)).sqrt();
        assert!(mean(x.copy()).abs() < bound(1.0));
        assert!((mean(x.square()) - 1.0).abs() < bound(2.0));
        assert!(mean(x.pow_tensor_scalar(3)).abs() < bound(15.0));
        assert!((mean(x.pow_tensor_scalar(4)) - 3.0).abs() < bound(96.0));
        assert!(mean(x.narrow(0, 0, 1023) * x.narrow(0, 1, 1023)).abs() < bound(1.0));
        assert!(mean(x.narrow(1, 0, 1023) * x.narrow(1, 1, 1023)).abs() < bound(1.0));
        assert!(mean(x.narrow(1, 0, 512) * x.narrow(1, 512, 512)).abs() < bound(2.0));
    }

    #[test]
    fn permutations_hold_every_item_once_and_differ() {
        let rng = Rng::new(0, Purpose::Shuffle);
        let order = rng.permutation(0, 1000, Device::Cpu);
        assert_eq!(order.sort(0, false).0, Tensor::arange(1000, (Kind::Int64, Device::Cpu)));
        assert_ne!(order, rng.permutation(1, 1000, Device::Cpu));
        assert_eq!(order, rng.permutation(0, 1000, Device::Cpu));
    }
}
