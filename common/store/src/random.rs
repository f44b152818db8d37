//! The hash that every random number is made of: SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom
//! number generators", Figure 16, with the constants of Vigna's splitmix64.c). Its n-th number from state s, counted
//! from 1, is `mix(s + n * GAMMA)`, all modulo 2^64.

/// What the state grows by: 2^64 divided by the golden ratio, odd.
pub const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
/// First multiplier of [`mix`].
pub const MIX1: u64 = 0xbf58_476d_1ce4_e5b9;
/// Second multiplier of [`mix`].
pub const MIX2: u64 = 0x94d0_49bb_1331_11eb;

/// The finaliser, a bijection: neighbouring states give unrelated numbers.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(MIX1);
    z = (z ^ (z >> 27)).wrapping_mul(MIX2);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of seed 1234567, as the reference implementation prints them.
    #[test]
    fn is_splitmix64() {
        let next = |n: u64| mix(1_234_567u64.wrapping_add(GAMMA.wrapping_mul(n)));
        assert_eq!(
            [1, 2, 3].map(next),
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }
}
