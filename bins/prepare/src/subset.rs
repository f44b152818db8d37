//! Class-balanced, seeded subsets.

use crate::random::{Purpose, Stream};

/// Indices, ascending, of `limit` of the images whose classes are `labels` (all below `classes`).
///
/// Classes get equal shares, give or take one image; when one runs out, the others fill up. A smaller limit takes a
/// subset of what a larger one takes.
///
/// # Panics
/// When `limit` exceeds the number of images.
pub fn balanced(labels: &[i64], classes: usize, limit: usize, seed: u64, purpose: Purpose) -> Vec<usize> {
    assert!(limit <= labels.len(), "a subset of {limit} out of {}", labels.len());
    // An image's own draw orders it within its class; its place there is its round, and each round takes every class.
    let mut by_class: Vec<Vec<(u64, usize)>> = vec![Vec::new(); classes];
    for (index, &label) in labels.iter().enumerate() {
        let draw = Stream::new(seed, purpose, index as u64).draw(0);
        by_class[usize::try_from(label).expect("labels are class indices")].push((draw, index));
    }
    let mut rounds = Vec::with_capacity(labels.len());
    for images in &mut by_class {
        images.sort_unstable();
        // The draw of the class in a round decides who gets the last, incomplete one.
        rounds.extend(images.iter().enumerate().map(|(round, &(draw, index))| (round, draw, index)));
    }
    rounds.sort_unstable();
    let mut chosen: Vec<usize> = rounds[..limit].iter().map(|&(_, _, index)| index).collect();
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(labels: &[i64], chosen: &[usize], classes: usize) -> Vec<usize> {
        let mut counts = vec![0; classes];
        chosen.iter().for_each(|&i| counts[labels[i] as usize] += 1);
        counts
    }

    fn take(labels: &[i64], limit: usize, seed: u64) -> Vec<usize> {
        balanced(labels, 3, limit, seed, Purpose::TrainSubset)
    }

    #[test]
    fn classes_get_equal_shares() {
        let labels: Vec<i64> = (0..300).map(|i| i % 3).collect();
        let chosen = take(&labels, 100, 0);
        assert!(chosen.is_sorted() && chosen.len() == 100);
        let mut shares = counts(&labels, &chosen, 3);
        shares.sort_unstable();
        assert_eq!(shares, [33, 33, 34]);
        assert_eq!(take(&labels, 300, 0), (0..300).collect::<Vec<_>>());
    }

    #[test]
    fn the_seed_alone_decides_and_smaller_limits_nest() {
        let labels: Vec<i64> = (0..300).map(|i| i % 3).collect();
        assert_eq!(take(&labels, 50, 1), take(&labels, 50, 1));
        assert_ne!(take(&labels, 50, 1), take(&labels, 50, 2));
        let large = take(&labels, 50, 1);
        assert!(take(&labels, 20, 1).iter().all(|index| large.contains(index)));
    }

    #[test]
    fn others_fill_up_for_a_class_that_runs_out() {
        let labels: Vec<i64> = (0..100).map(|i| if i < 2 { 0 } else { 1 + i % 2 }).collect();
        assert_eq!(counts(&labels, &take(&labels, 20, 0), 3), [2, 9, 9]);
    }
}
