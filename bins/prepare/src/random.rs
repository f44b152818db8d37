//! Random numbers that depend on (seed, purpose, index, draw) alone: no state, so no order of threads can change them.

use lcf_store::random::{GAMMA, mix};

/// What numbers are drawn for. Equal seeds of different purposes are unrelated.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// Pixels of synthetic training images.
    TrainPixels = 1,
    /// Pixels of synthetic test images.
    TestPixels = 2,
    /// Which training images a subset takes.
    TrainSubset = 3,
    /// Which test images a subset takes.
    TestSubset = 4,
}

/// The numbers of one (seed, purpose, index).
#[derive(Clone, Copy, Debug)]
pub struct Stream(u64);

impl Stream {
    /// The stream of `index`.
    pub fn new(seed: u64, purpose: Purpose, index: u64) -> Self {
        let purposed = Self(seed).draw(purpose as u64);
        Self(Self(purposed).draw(index))
    }

    /// Number `n`: 64 random bits, by SplitMix64 started at the stream's own state.
    pub fn draw(self, n: u64) -> u64 {
        mix(self.0.wrapping_add(GAMMA.wrapping_mul(n.wrapping_add(1))))
    }

    /// Number `n`, uniform in `[0, 1)`.
    pub fn unit(self, n: u64) -> f32 {
        (self.draw(n) >> 40) as f32 / (1 << 24) as f32
    }

    /// Number `n`, uniform in `[-1, 1)`.
    pub fn signed(self, n: u64) -> f32 {
        2.0 * self.unit(n) - 1.0
    }

    /// Number `n`, nearly normal: the sum of four uniform 16-bit numbers, scaled to mean 0 and variance 1.
    pub fn normal(self, n: u64) -> f32 {
        let bits = self.draw(n);
        let sum: u64 = (0..4).map(|part| (bits >> (16 * part)) & 0xffff).sum();
        // Each term has variance (2^32 - 1) / 12, so four have standard deviation 2^16 / sqrt(3).
        (sum as f32 - 131_070.0) / 37_837.227
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of SplitMix64 with seed 1234567, as its reference implementation prints them.
    #[test]
    fn is_splitmix64() {
        let stream = Stream(1_234_567);
        assert_eq!(
            [0, 1, 2].map(|n| stream.draw(n)),
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn moments_and_ranges() {
        let stream = Stream::new(0, Purpose::TrainPixels, 0);
        let n = 20_000;
        let mean = |f: &dyn Fn(u64) -> f32| (0..n).map(|i| f64::from(f(i))).sum::<f64>() / n as f64;
        assert!((mean(&|i| stream.unit(i)) - 0.5).abs() < 0.01);
        assert!(mean(&|i| stream.normal(i)).abs() < 0.03);
        assert!((mean(&|i| stream.normal(i).powi(2)) - 1.0).abs() < 0.03);
        assert!((0..n).all(|i| (0.0..1.0).contains(&stream.unit(i)) && (-1.0..1.0).contains(&stream.signed(i))));
    }

    #[test]
    fn every_part_of_the_address_counts() {
        let first = |seed, purpose, index| Stream::new(seed, purpose, index).draw(0);
        let one = first(0, Purpose::TrainPixels, 0);
        assert_ne!(one, first(1, Purpose::TrainPixels, 0));
        assert_ne!(one, first(0, Purpose::TestPixels, 0));
        assert_ne!(one, first(0, Purpose::TrainPixels, 1));
    }
}
