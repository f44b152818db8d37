//! Seeded subsets. Whether an image is in depends on (seed, purpose, index) and the number of images alone.

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
    assert!(n <= labels.len(), "a subset of {n} out of {}", labels.len());
    let mut order: Vec<(u64, usize)> = (0..labels.len()).map(|i| (draw(seed, purpose, i as u64), i)).collect();
    order.sort_unstable();
    // The k-th image of its class is taken in round k; within a round the draw decides.
    let mut seen = std::collections::HashMap::new();
    let mut rounds: Vec<(usize, u64, usize)> = order
        .into_iter()
        .map(|(key, i)| {
            let round = seen.entry(labels[i]).or_insert(0);
            *round += 1;
            (*round, key, i)
        })
        .collect();
    rounds.sort_unstable();
    let mut chosen: Vec<usize> = rounds[..n].iter().map(|&(_, _, i)| i).collect();
    chosen.sort_unstable();
    chosen
}

fn draw(seed: u64, purpose: Purpose, index: u64) -> u64 {
    mix(mix(mix(seed) ^ purpose as u64) ^ index)
}

/// One step of SplitMix64 (Steele, Lea and Flood 2014, Figure 16).
fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_is_seeded_sorted_and_without_repeats() {
        let a = uniform(1000, 100, 0, Purpose::Floor);
        assert!(a.len() == 100 && a.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(a, uniform(1000, 100, 0, Purpose::Floor));
        assert_ne!(a, uniform(1000, 100, 1, Purpose::Floor));
        assert_ne!(a, uniform(1000, 100, 0, Purpose::Compare));
        assert_eq!(uniform(5, 5, 0, Purpose::Floor), [0, 1, 2, 3, 4]);
        // Not the first ones, and spread: the mean of a uniform draw of 100 out of 0..1000 has deviation 27.
        let mean = a.iter().sum::<usize>() as f64 / 100.0;
        assert!((mean - 499.5).abs() < 110.0, "{mean}");
    }

    #[test]
    fn balanced_takes_equal_shares_and_fills_up() {
        let labels: Vec<i64> = (0..100).map(|i| if i < 2 { 0 } else { 1 + i % 2 }).collect();
        let count = |chosen: &[usize], class| chosen.iter().filter(|&&i| labels[i] == class).count();
        let chosen = balanced(&labels, 6, 0, Purpose::Reference);
        assert_eq!([0, 1, 2].map(|class| count(&chosen, class)), [2, 2, 2]);
        let chosen = balanced(&labels, 20, 0, Purpose::Reference);
        assert_eq!([0, 1, 2].map(|class| count(&chosen, class)), [2, 9, 9]);
    }
}
