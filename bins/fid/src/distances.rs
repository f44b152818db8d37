//! Euclidean distances between all points of two sets, block by block: neither the n x m matrix nor an fp64 copy of a set
//! is ever whole in memory.

use crate::points::Points;
use anyhow::Result;
use lcf_store::{cli, progress, say};
use std::{
    ops::Range,
    time::{Duration, Instant},
};
use tch::{Device, Kind, TchError, Tensor};

/// Bytes of the fp64 rows of one block. The blocks of two sets and their distances, with what the formula needs on the
/// way, take about ten times this.
const BLOCK: usize = 64 << 20;
/// Most rows of a block, so that a block of distances is no larger.
const ROWS: usize = 2896;
/// How often a run without a terminal says where it is.
const QUIET: Duration = Duration::from_secs(10);

/// The nearest points of a base to each query, nearest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Nearest {
    /// Neighbours of each query; fewer than asked for where the base has fewer points.
    pub k: usize,
    /// `[n, k]`.
    pub distances: Vec<f64>,
    /// Their positions in the base, `[n, k]`.
    pub indices: Vec<usize>,
}

impl Nearest {
    /// The `rank`-th distance of each query, from 0.
    pub fn distances_at(&self, rank: usize) -> Vec<f64> {
        self.distances.iter().skip(rank).step_by(self.k).copied().collect()
    }

    /// The nearest point of each query.
    pub fn first(&self) -> Vec<usize> {
        self.indices.iter().step_by(self.k).copied().collect()
    }
}

/// The `k` points of `base` nearest to each of `queries`. Of a set with itself, the first is the point itself. `what`
/// names the work in progress.
///
/// # Errors
/// What cannot be read; libtorch's, like being out of memory.
pub fn nearest(queries: &dyn Points, base: &dyn Points, k: usize, device: Device, what: &str) -> Result<Nearest> {
    let mut best = Best::new(k.min(base.len()));
    walk(queries, base, device, what, |block| best.add(block))?;
    Ok(best.finish())
}

/// One block of distances.
#[derive(Debug)]
pub struct Block<'a> {
    /// fp64 `[queries, base]`.
    pub distances: &'a Tensor,
    /// The queries.
    pub queries: Range<usize>,
    /// The points of the base.
    pub base: Range<usize>,
    /// Whether it is the last block of these queries.
    pub last: bool,
}

/// Shows `visit` every block of distances, all of the base before the next queries.
///
/// # Errors
/// What cannot be read; libtorch's; those of `visit`.
///
/// # Panics
/// When the points have different dimensions.
pub fn walk(
    queries: &dyn Points,
    base: &dyn Points,
    device: Device,
    what: &str,
    mut visit: impl FnMut(Block) -> Result<(), TchError>,
) -> Result<()> {
    assert_eq!(queries.dim(), base.dim(), "{what}: points of different dimensions");
    let total = queries.len() as u64 * base.len() as u64;
    let bar = progress::bar(total, what, "distances");
    let mut said = Instant::now();
    for rows in blocks(queries) {
        let x = Squared::of(queries.block(rows.clone(), device)?)?;
        for columns in blocks(base) {
            let y = Squared::of(base.block(columns.clone(), device)?)?;
            let distances = x.distances(&y)?;
            let (n, last) = (rows.len() * columns.len(), columns.end == base.len());
            visit(Block { distances: &distances, queries: rows.clone(), base: columns, last })?;
            bar.inc(n as u64);
            if !cli::is_terminal() && said.elapsed() > QUIET {
                say!("{what}: {} % of {total} distances", 100 * bar.position() / total);
                said = Instant::now();
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}

fn blocks(points: &dyn Points) -> impl Iterator<Item = Range<usize>> {
    let rows = (BLOCK / (8 * points.dim().max(1))).clamp(1, ROWS);
    let n = points.len();
    (0..n).step_by(rows).map(move |start| start..(start + rows).min(n))
}

/// Points and their squared norms.
struct Squared {
    points: Tensor,
    norms: Tensor,
}

impl Squared {
    fn of(points: Tensor) -> Result<Self, TchError> {
        let norms = points.f_square()?.f_sum_dim_intlist(1, false, Kind::Double)?;
        Ok(Self { points, norms })
    }

    /// `sqrt(|x|^2 + |y|^2 - 2 x.y)`, `[n, m]`. In fp64 what cancels leaves 1e-16 of the squared norms.
    fn distances(&self, other: &Self) -> Result<Tensor, TchError> {
        let mut squares = self.points.f_matmul(&other.points.f_transpose(0, 1)?)?.f_mul_scalar(-2.0)?;
        let _ = squares.f_add_(&self.norms.f_unsqueeze(1)?)?.f_add_(&other.norms)?;
        squares.f_clamp_min_(0.0)?.f_sqrt_()
    }
}

/// The smallest distances so far.
#[derive(Debug)]
pub struct Best {
    found: Nearest,
    open: Option<(Tensor, Tensor)>,
}

impl Best {
    /// Keeps `k` a query, no more than the base has points.
    pub fn new(k: usize) -> Self {
        Self { found: Nearest { k, distances: Vec::new(), indices: Vec::new() }, open: None }
    }

    /// Takes a block of [`walk`].
    ///
    /// # Errors
    /// libtorch's.
    pub fn add(&mut self, block: Block) -> Result<(), TchError> {
        let k = self.found.k as i64;
        let here = k.min(block.base.len() as i64);
        let (distances, columns) = block.distances.f_topk(here, 1, false, true)?;
        let mut best = (distances, columns.f_add_scalar(block.base.start as i64)?);
        if let Some((distances, indices)) = self.open.take() {
            let all = Tensor::f_cat(&[distances, best.0], 1)?;
            let (distances, places) = all.f_topk(k.min(all.size()[1]), 1, false, true)?;
            best = (distances, Tensor::f_cat(&[indices, best.1], 1)?.f_gather(1, &places, false)?);
        }
        if block.last {
            let on_cpu = |x: &Tensor| x.f_to_device(Device::Cpu)?.f_contiguous()?.f_view([-1]);
            self.found.distances.extend(Vec::<f64>::try_from(on_cpu(&best.0)?)?);
            self.found.indices.extend(Vec::<i64>::try_from(on_cpu(&best.1)?)?.into_iter().map(|i| i as usize));
        } else {
            self.open = Some(best);
        }
        Ok(())
    }

    /// What was found once all blocks were seen.
    pub fn finish(self) -> Nearest {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::points::Features;

    /// `n` points without order or symmetry.
    fn points(n: usize, dim: usize, seed: usize) -> Vec<f32> {
        (0..n * dim).map(|i| ((i * i * 7 + i * 13 + seed * 977) % 1009) as f32 / 100.0).collect()
    }

    fn by_hand(queries: &[f32], base: &[f32], dim: usize, k: usize) -> Vec<Vec<(f64, usize)>> {
        let distance = |x: &[f32], y: &[f32]| {
            x.iter().zip(y).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
        };
        let of = |x: &[f32]| {
            let mut all: Vec<(f64, usize)> = base.chunks(dim).enumerate().map(|(i, y)| (distance(x, y), i)).collect();
            all.sort_by(|a, b| a.0.total_cmp(&b.0));
            all.truncate(k);
            all
        };
        queries.chunks(dim).map(of).collect()
    }

    /// Sizes beyond one block on both sides.
    #[test]
    fn the_nearest_agree_with_the_definition_across_blocks() {
        let (n, m, dim, k) = (ROWS + 30, 2 * ROWS + 7, 3, 4);
        let (queries, base) = (points(n, dim, 1), points(m, dim, 2));
        let of = |values| Features { values, dim };
        let found = nearest(&of(&queries), &of(&base), k, Device::Cpu, "test").unwrap();
        let expected = by_hand(&queries, &base, dim, k);
        assert_eq!((found.k, found.distances.len()), (k, n * k));
        for (row, expected) in expected.iter().enumerate() {
            for (rank, (distance, _)) in expected.iter().enumerate() {
                assert!((found.distances[row * k + rank] - distance).abs() < 1e-6, "{row} {rank}");
            }
        }
        // Equal distances may come in any order, so indices are checked by the distances they lead to.
        let at = |row: usize, i: usize| by_hand(&queries[row * dim..][..dim], &base[i * dim..][..dim], dim, 1)[0][0].0;
        assert!((0..n).all(|row| (at(row, found.first()[row]) - expected[row][0].0).abs() < 1e-6));
        assert_eq!(found.distances_at(2)[5], found.distances[5 * k + 2]);
    }

    #[test]
    fn a_small_base_gives_fewer_neighbours() {
        let values = points(3, 2, 0);
        let all = Features { values: &values, dim: 2 };
        let found = nearest(&all, &all, 9, Device::Cpu, "test").unwrap();
        assert_eq!((found.k, found.first()), (3, vec![0, 1, 2]));
        assert!(found.distances_at(0).iter().all(|&d| d < 1e-6));
    }
}
