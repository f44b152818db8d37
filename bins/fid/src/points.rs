//! Sets of points that are read block by block: features, and images as they are.

use crate::images::{Images, Pixels};
use anyhow::Result;
use std::ops::Range;
use tch::{Device, Kind, TchError, Tensor};

/// Points that are read block by block.
pub trait Points {
    /// How many.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// D, numbers in a point.
    fn dim(&self) -> usize;

    /// The points of `range`, fp64 `[b, D]` on `device`.
    ///
    /// # Errors
    /// What cannot be read; libtorch's.
    fn block(&self, range: Range<usize>, device: Device) -> Result<Tensor>;
}

/// Features, the rows of a matrix in C order.
#[derive(Clone, Copy, Debug)]
pub struct Features<'a> {
    /// `[n, dim]`.
    pub values: &'a [f32],
    /// D.
    pub dim: usize,
}

impl Points for Features<'_> {
    fn len(&self) -> usize {
        self.values.len() / self.dim
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn block(&self, range: Range<usize>, device: Device) -> Result<Tensor> {
        let rows = &self.values[range.start * self.dim..range.end * self.dim];
        let rows = Tensor::f_from_slice(rows)?.f_view([-1, self.dim as i64])?;
        Ok(rows.f_to_device(device)?.f_to_kind(Kind::Double)?)
    }
}

/// Images of one size as points of C x H x W grey levels, 0 to 255. Sums of their squares are exact in fp64.
impl Points for Images {
    fn len(&self) -> usize {
        self.len()
    }

    fn dim(&self) -> usize {
        self.shape().map_or(0, |shape| shape.iter().product())
    }

    fn block(&self, range: Range<usize>, device: Device) -> Result<Tensor> {
        let flat = |pixels: &Pixels| {
            let [n, c, h, w] = [pixels.count, pixels.channels, pixels.height, pixels.width].map(|size| size as i64);
            let bytes = Tensor::f_from_slice(&pixels.data)?.f_to_device(device)?;
            let planes = match pixels.planes {
                true => bytes,
                false => bytes.f_view([n, h, w, c])?.f_permute([0, 3, 1, 2])?.f_contiguous()?,
            };
            planes.f_view([n, c * h * w])?.f_to_kind(Kind::Double)
        };
        let blocks: Result<Vec<Tensor>, TchError> = self.read(range)?.iter().map(flat).collect();
        Ok(Tensor::f_cat(&blocks?, 0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distances::nearest;
    use lcf_store::npy;

    #[test]
    fn images_are_points_of_grey_levels() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, values: &[u8]| {
            npy::write(&dir.path().join(name), &[2, 1, 2, 3], values).unwrap();
            Images::open(&dir.path().join(name), None).unwrap()
        };
        let x = write("x.npy", &[0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255]);
        let y = write("y.npy", &[0, 3, 0, 0, 0, 4, 255, 255, 255, 255, 255, 255]);
        let found = nearest(&x, &y, 1, Device::Cpu, "test").unwrap();
        assert_eq!((found.distances, found.indices), (vec![5.0, 0.0], vec![0, 1]));
    }
}
