//! Features of all timesteps of a split as one tensor, and their standardisation.

use lcf_model::features::{Features, Part, first_bad};
use lcf_store::{Error, Result};
use tch::{Device, Kind, Tensor};

/// Added to a standard deviation: far below that of any feature in use, and what a constant feature is divided by.
const EPS: f64 = 1e-6;

/// Features and labels of one split.
#[derive(Debug)]
pub struct Data {
    /// fp32 `[T, N, D]`, on the device where it fits, else on the CPU.
    pub x: Tensor,
    /// int64 `[N]` beside `x`.
    pub labels: Tensor,
}

impl Data {
    /// Reads all timesteps of `part` to `device`.
    ///
    /// # Errors
    /// [`Error::Bad`] naming the file that is not what it has to be, or the row that is not finite.
    pub fn load(features: &Features, part: Part, device: Device) -> Result<Self> {
        let meta = &features.meta;
        let labels = features.labels(part)?;
        if labels.is_empty() {
            return Err(Error::bad(labels.path(), "no images, expected at least one"));
        }
        let (count, width) = (labels.len() as i64, meta.width as i64);
        let shape = [meta.timesteps.len() as i64, count, width];
        // Too large for the device: it stays in memory and each batch is copied.
        let x = Tensor::f_empty(shape, (Kind::Float, device))
            .unwrap_or_else(|_| Tensor::empty(shape, (Kind::Float, Device::Cpu)));
        for (i, &timestep) in meta.timesteps.iter().enumerate() {
            let values = features.values(part, timestep)?;
            let mut own = x.get(i as i64);
            own.copy_(&Tensor::from_slice(values.values()).view([count, width]));
            if let Some(row) = first_bad(&own) {
                let message = format!("the feature of image {row} is not finite (T={timestep}, {})", part.name());
                return Err(
                    Error::bad(values.path(), message).with_hint("run lcf-extract again on a model that is finite")
                );
            }
        }
        let labels = Tensor::from_slice(labels.values()).to_device(x.device());
        Ok(Self { x, labels })
    }

    /// Which of the T timesteps have the same feature for all images, up to rounding.
    pub fn constant(&self) -> Vec<usize> {
        let spread = |x: &Tensor| (x.amax([0], false) - x.amin([0], false)).max().double_value(&[]);
        let is_constant = |i: &i64| {
            let x = self.x.get(*i);
            spread(&x) <= 1e-5 * x.abs().max().double_value(&[])
        };
        (0..self.x.size()[0]).filter(is_constant).map(|i| i as usize).collect()
    }

    /// N.
    pub fn count(&self) -> i64 {
        self.x.size()[1]
    }
}

/// Mean and reciprocal standard deviation of each training feature at each timestep.
#[derive(Debug)]
pub struct Standardise {
    /// fp32 `[T, 1, D]`.
    pub mean: Tensor,
    /// 1 / (standard deviation + 1e-6), fp32 `[T, 1, D]`.
    pub scale: Tensor,
}

impl Standardise {
    /// Statistics of `x`, fp32 `[T, N, D]`, summed in fp64, on `device`.
    pub fn of(x: &Tensor, device: Device) -> Self {
        let (mut mean, mut scale) = (Vec::new(), Vec::new());
        for i in 0..x.size()[0] {
            // One timestep at a time: fp64 copies of all of them would not always fit.
            let own = x.get(i).to_kind(Kind::Double);
            mean.push(own.mean_dim(0, true, Kind::Double).to_kind(Kind::Float));
            scale.push((own.std_dim(0, false, true) + EPS).reciprocal().to_kind(Kind::Float));
        }
        Self { mean: Tensor::stack(&mean, 0).to_device(device), scale: Tensor::stack(&scale, 0).to_device(device) }
    }

    /// What the probes take, fp32 `[2T, B, D]` from `[T, B, D]`: the features as they are, then the standardised ones.
    pub fn both(&self, x: &Tensor) -> Tensor {
        Tensor::cat(&[x, &((x - &self.mean) * &self.scale)], 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_do_not_differ_are_found() {
        tch::manual_seed(0);
        let x = Tensor::randn([3, 20, 4], (Kind::Float, Device::Cpu));
        let _ = x.get(0).fill_(0.0);
        x.get(2).copy_(&(x.get(2) * 1e-7 + 3.0));
        let labels = Tensor::zeros([20], (Kind::Int64, Device::Cpu));
        assert_eq!(Data { x, labels }.constant(), [0, 2]);
    }

    #[test]
    fn standardised_features_have_mean_0_and_deviation_1_and_constants_stay_finite() {
        tch::manual_seed(0);
        let x = Tensor::randn([3, 500, 4], (Kind::Float, Device::Cpu)) * 7.0 + 100.0;
        let _ = x.narrow(2, 3, 1).fill_(5.0);
        let both = Standardise::of(&x, Device::Cpu).both(&x);
        assert_eq!(both.narrow(0, 0, 3), x);
        let std = both.narrow(0, 3, 3);
        let spread = std.narrow(2, 0, 3);
        assert!(spread.mean_dim(1, false, Kind::Float).abs().max().double_value(&[]) < 1e-4);
        assert!((spread.std_dim(1, false, false) - 1.0).abs().max().double_value(&[]) < 1e-4);
        assert_eq!(std.narrow(2, 3, 1).abs().max().double_value(&[]), 0.0);
    }
}
