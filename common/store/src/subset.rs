//! Class-balanced subsets. Whether an image is in depends on its own draw and the labels, not on any order.

use std::collections::HashMap;

/// Indices, ascending, of `n` of the images whose classes are `labels`. `draw` gives each index its random number.
///
/// Classes get equal shares, give or take one image; when one runs out, the others fill up. A smaller `n` takes a subset
/// of what a larger one takes. With one class for all it is a draw without replacement.
///
/// # Panics
/// When `n` exceeds the number of images.
pub fn balanced(labels: &[i64], n: usize, draw: impl Fn(u64) -> u64) -> Vec<usize> {
    assert!(n <= labels.len(), "a subset of {n} out of {}", labels.len());
    let mut order: Vec<(u64, usize)> = (0..labels.len()).map(|index| (draw(index as u64), index)).collect();
    order.sort_unstable();
    // An image's draw orders it within its class; its place there is its round, and each round takes every class. The
    // draw also decides who is in the last, incomplete round.
    let mut sizes = HashMap::new();
    let mut rounds: Vec<(usize, u64, usize)> = order
        .into_iter()
        .map(|(key, index)| {
            let round = sizes.entry(labels[index]).or_insert(0);
            *round += 1;
            (*round, key, index)
        })
        .collect();
    rounds.sort_unstable();
    let mut chosen: Vec<usize> = rounds[..n].iter().map(|&(_, _, index)| index).collect();
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::mix;

    fn take(labels: &[i64], n: usize, seed: u64) -> Vec<usize> {
        balanced(labels, n, |index| mix(mix(seed + 1) ^ index))
    }

    fn counts(labels: &[i64], chosen: &[usize]) -> [usize; 3] {
        [0, 1, 2].map(|class| chosen.iter().filter(|&&index| labels[index] == class).count())
    }

    #[test]
    fn classes_get_equal_shares() {
        let labels: Vec<i64> = (0..300).map(|i| i % 3).collect();
        let chosen = take(&labels, 100, 0);
        assert!(chosen.len() == 100 && chosen.windows(2).all(|pair| pair[0] < pair[1]));
        let mut shares = counts(&labels, &chosen);
        shares.sort_unstable();
        assert_eq!(shares, [33, 33, 34]);
        assert_eq!(take(&labels, 300, 0), (0..300).collect::<Vec<_>>());
    }

    #[test]
    fn the_draw_alone_decides_and_smaller_subsets_nest() {
        let labels: Vec<i64> = (0..300).map(|i| i % 3).collect();
        assert_eq!(take(&labels, 50, 1), take(&labels, 50, 1));
        assert_ne!(take(&labels, 50, 1), take(&labels, 50, 2));
        let large = take(&labels, 50, 1);
        assert!(take(&labels, 20, 1).iter().all(|index| large.contains(index)));
    }

    #[test]
    fn others_fill_up_for_a_class_that_runs_out() {
        let labels: Vec<i64> = (0..100).map(|i| if i < 2 { 0 } else { 1 + i % 2 }).collect();
        assert_eq!(counts(&labels, &take(&labels, 6, 0)), [2, 2, 2]);
        assert_eq!(counts(&labels, &take(&labels, 20, 0)), [2, 9, 9]);
    }

    #[test]
    fn one_class_is_a_draw_without_replacement() {
        let chosen = take(&[0; 1000], 100, 0);
        // Not the first ones, and spread: the mean of a uniform draw of 100 out of 0..1000 has deviation 27.
        let mean = chosen.iter().sum::<usize>() as f64 / 100.0;
        assert!((mean - 499.5).abs() < 110.0, "{mean}");
    }
}
