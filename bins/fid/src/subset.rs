//! Seeded subsets. Whether an image is in depends on (seed, purpose, index) and the number of images alone.

use lcf_store::{
    random::{GAMMA, mix},
    subset,
};

/// What a subset is drawn for. Equal seeds of different purposes are unrelated.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// The reference images of a run at CPU scale.
    Reference = 1,
    /// The real images that stand in for samples when the bias floor is measured.
    Floor = 2,
    /// `compare --num`.
    Compare = 3,
}

/// `n` of the indices below `count`, ascending: a draw without replacement.
///
/// # Panics
/// When `n` exceeds `count`.
pub fn uniform(count: usize, n: usize, seed: u64, purpose: Purpose) -> Vec<usize> {
    balanced(&vec![0; count], n, seed, purpose)
}

/// `n` of the indices of `labels`, ascending, the same number of each class give or take one; when a class runs out the
/// others fill up.
///
/// # Panics
/// When `n` exceeds the number of labels.
pub fn balanced(labels: &[i64], n: usize, seed: u64, purpose: Purpose) -> Vec<usize> {
    subset::balanced(labels, n, |index| draw(seed, purpose, index))
}

fn draw(seed: u64, purpose: Purpose, index: u64) -> u64 {
    step(step(step(seed) ^ purpose as u64) ^ index)
}

/// One step of SplitMix64.
fn step(state: u64) -> u64 {
    mix(state.wrapping_add(GAMMA))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_and_purpose_decide() {
        let a = uniform(1000, 100, 0, Purpose::Floor);
        assert_eq!(a, uniform(1000, 100, 0, Purpose::Floor));
        assert_ne!(a, uniform(1000, 100, 1, Purpose::Floor));
        assert_ne!(a, uniform(1000, 100, 0, Purpose::Compare));
        assert_eq!(uniform(5, 5, 0, Purpose::Floor), [0, 1, 2, 3, 4]);
    }

    /// Pinned: other images would change published distances without a change of any key.
    #[test]
    fn the_chosen_images_stay_the_same() {
        let labels: Vec<i64> = (0..100).map(|i| if i < 2 { 0 } else { 1 + i % 2 }).collect();
        assert_eq!(balanced(&labels, 9, 5, Purpose::Reference), [0, 1, 4, 14, 28, 29, 55, 79, 87]);
        assert_eq!(uniform(100, 9, 5, Purpose::Floor), [1, 11, 20, 42, 49, 54, 67, 75, 95]);
    }
}
