//! Draws as NumPy's `RandomState` makes them, so that KID takes the very subsets that torch-fidelity takes and the two
//! numbers agree beyond the noise of the draw.

/// Words of the state.
const N: usize = 624;
/// Offset of the recurrence.
const M: usize = 397;

/// The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998), seeded as `numpy.random.RandomState(seed)` seeds it.
#[derive(Clone, Debug)]
pub struct RandomState {
    state: [u32; N],
    next: usize,
}

impl RandomState {
    /// `numpy.random.RandomState(seed)`.
    pub fn new(seed: u32) -> Self {
        let mut state = [seed; N];
        for i in 1..N {
            let last = state[i - 1];
            state[i] = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// 32 random bits.
    fn bits(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Uniform in `0..=most`, `most` at least 1: the low bits, drawn again while they are too large.
    fn up_to(&mut self, most: u32) -> usize {
        let mask = u32::MAX >> most.leading_zeros();
        loop {
            let value = self.bits() & mask;
            if value <= most {
                return value as usize;
            }
        }
    }

    /// `choice(count, n, replace=False)`: the first `n` of all indices below `count`, shuffled.
    ///
    /// # Panics
    /// When `n` exceeds `count`, or `count` does not fit 32 bits.
    pub fn choice(&mut self, count: usize, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for i in (1..count).rev() {
            let most = u32::try_from(i).expect("a set of images has less than 2^32");
            order.swap(i, self.up_to(most));
        }
        order.truncate(n);
        assert_eq!(order.len(), n, "a subset of {n} out of {count}");
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of the authors' own program, mt19937ar.c, from its default seed.
    #[test]
    fn is_the_mersenne_twister() {
        let mut random = RandomState::new(5489);
        assert_eq!([random.bits(), random.bits(), random.bits()], [3_499_211_612, 581_869_302, 3_890_346_734]);
        // And the 10,000th, which the C++ standard pins.
        assert_eq!((3..10_000).map(|_| random.bits()).last(), Some(4_123_659_995));
    }

    /// NumPy 2.4: `r = RandomState(2020); r.choice(10, 10, replace=False); r.choice(7, 3, replace=False); ...`.
    #[test]
    fn choices_are_numpys() {
        let mut random = RandomState::new(2020);
        assert_eq!(random.choice(10, 10), [2, 4, 9, 1, 5, 7, 6, 3, 8, 0]);
        assert_eq!(random.choice(7, 3), [4, 3, 1]);
        assert_eq!(random.choice(2000, 4), [1419, 723, 54, 809]);
        assert_eq!(RandomState::new(0).choice(1, 1), [0]);
    }
}
