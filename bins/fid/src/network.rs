//! The network of [`crate::inception`] made anew from its weights, to run in fp16. What TorchScript runs as four operations
//! is one: batch norm is folded into the convolution before it, whose kernel adds the bias and cuts at 0. Numbers lie
//! channels last, as tensor cores want them.
//!
//! An average over 3x3 positions before a 1x1 convolution is taken after it, of a fifth of the channels: both are linear,
//! one over positions and one over channels, so their order changes rounding alone.

use crate::config::Precision;
use std::collections::HashMap;
use tch::{CModule, Device, Kind, TchError, Tensor};

/// What batch norms add to a variance.
const EPSILON: f64 = 1e-3;
/// Channels of the input: three, and zeros up to what tensor cores take at once.
const CHANNELS: i64 = 8;
/// Convolutions that halve the side.
const STRIDE_2: [&str; 5] =
    ["conv", "mixed_3.conv", "mixed_3.tower.conv_2", "mixed_8.tower.conv_1", "mixed_8.tower_1.conv_3"];
/// Convolutions beside them whose output is smaller by what their kernel is larger than 1.
const UNPADDED: [&str; 2] = ["conv_1", "conv_4"];

/// The network on a device, its 94 convolutions by the names that TorchScript has for them.
#[derive(Debug)]
pub struct Network {
    convolutions: HashMap<String, Convolution>,
    device: Device,
    /// What numbers are stored as. A CPU computes in fp32 what is rounded to fp16 wherever a GPU would store it, so that
    /// both compute the same, up to the order of sums.
    kind: Kind,
    rounded: bool,
}

/// A convolution with the batch norm after it.
#[derive(Debug)]
struct Convolution {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: [i64; 2],
}

impl Network {
    /// Takes the weights of `module`, which lie on the CPU.
    ///
    /// # Errors
    /// libtorch's, like being out of memory.
    ///
    /// # Panics
    /// When `module` is another network.
    pub fn of(module: &CModule, precision: Precision, device: Device) -> Result<Self, TchError> {
        let rounded = precision == Precision::Fp16 && device == Device::Cpu;
        let kind = if precision == Precision::Fp16 && !rounded { Kind::Half } else { Kind::Float };
        let mut network = Self { convolutions: HashMap::new(), device, kind, rounded };
        let all: HashMap<String, Tensor> = module.named_parameters()?.into_iter().collect();
        for full in all.keys().filter_map(|name| name.strip_suffix(".weight")) {
            let of = |what: &str| all[&format!("{full}.{what}")].f_detach()?.f_to_kind(Kind::Double);
            let (weight, scale) = (of("weight")?, (of("var")? + EPSILON).f_rsqrt()?);
            let (bias, weight) = (of("beta")? - of("mean")? * &scale, weight * scale.f_view([-1, 1, 1, 1])?);
            let name = full.strip_prefix("net.layers.").unwrap_or(full);
            network.convolutions.insert(name.to_owned(), network.convolution(name, &weight, &bias)?);
        }
        Ok(network)
    }

    fn convolution(&self, name: &str, weight: &Tensor, bias: &Tensor) -> Result<Convolution, TchError> {
        let (_, from, height, width) = weight.size4()?;
        let missing = if name == "conv" { CHANNELS - from } else { 0 };
        let weight = channels_last(&weight.f_constant_pad_nd([0, 0, 0, 0, 0, missing])?)?;
        let place = |x: Tensor| self.stored(x.f_to_kind(self.kind)?)?.f_to_device(self.device);
        let halves = STRIDE_2.contains(&name);
        let padding = if halves || UNPADDED.contains(&name) { [0, 0] } else { [height / 2, width / 2] };
        let stride = if halves { 2 } else { 1 };
        Ok(Convolution { weight: place(weight)?, bias: place(bias.shallow_clone())?, stride, padding })
    }

    /// Features `[n, 2048]` fp32 of `images`, fp32 `[n, 3, 299, 299]`.
    ///
    /// # Errors
    /// libtorch's, like being out of memory.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor, TchError> {
        let x = self.input(images)?;
        let x = self.conv("conv_2", &self.conv("conv_1", &self.conv("conv", &x)?)?)?;
        let x = self.conv("conv_4", &self.conv("conv_3", &max_pool(&x)?)?)?;
        let mut x = max_pool(&x)?;
        for name in ["mixed", "mixed_1", "mixed_2"] {
            let (first, second) = (self.tower(name, "tower", 2, &x)?, self.tower(name, "tower_1", 3, &x)?);
            x = Tensor::f_cat(&[self.alone(name, &x)?, first, second, self.average(name, "tower_2.conv", &x)?], 1)?;
        }
        x = Tensor::f_cat(&[self.alone("mixed_3", &x)?, self.tower("mixed_3", "tower", 3, &x)?, max_pool(&x)?], 1)?;
        for name in ["mixed_4", "mixed_5", "mixed_6", "mixed_7"] {
            let (first, second) = (self.tower(name, "tower", 3, &x)?, self.tower(name, "tower_1", 5, &x)?);
            x = Tensor::f_cat(&[self.alone(name, &x)?, first, second, self.average(name, "tower_2.conv", &x)?], 1)?;
        }
        let (first, second) = (self.tower("mixed_8", "tower", 2, &x)?, self.tower("mixed_8", "tower_1", 4, &x)?);
        x = Tensor::f_cat(&[first, second, max_pool(&x)?], 1)?;
        x = self.last("mixed_9", &x, self.average("mixed_9", "tower_2_conv", &x)?)?;
        // FID's network takes the largest here, where the published one takes the average.
        let largest = x.f_max_pool2d([3, 3], [1, 1], [1, 1], [1, 1], false)?;
        x = self.last("mixed_10", &x, self.conv("mixed_10.tower_2_conv", &largest)?)?;
        x.f_mean_dim([2i64, 3].as_slice(), false, Kind::Float)
    }

    /// `images` channels last, with channels of zeros.
    fn input(&self, images: &Tensor) -> Result<Tensor, TchError> {
        let (n, channels, height, width) = images.size4()?;
        let all = Tensor::f_zeros([n, height, width, CHANNELS], (self.kind, self.device))?;
        all.f_narrow(3, 0, channels)?.f_copy_(&images.f_permute([0, 2, 3, 1])?)?;
        self.stored(all.f_permute([0, 3, 1, 2])?)
    }

    /// A convolution with its bias and ReLU.
    fn conv(&self, name: &str, x: &Tensor) -> Result<Tensor, TchError> {
        let Convolution { weight, bias, stride, padding } = &self.convolutions[name];
        let (bias, stride) = (Some(bias), [*stride; 2]);
        match self.device {
            Device::Cuda(_) => x.f_cudnn_convolution_relu(weight, bias, stride, padding, [1, 1], 1),
            _ => self.stored(x.f_conv2d(weight, bias, stride, padding, [1, 1], 1)?.f_relu_()?),
        }
    }

    /// The average over 3x3 positions, those outside left out, and a 1x1 convolution of it with its bias and ReLU.
    fn average(&self, module: &str, name: &str, x: &Tensor) -> Result<Tensor, TchError> {
        let Convolution { weight, bias, .. } = &self.convolutions[&format!("{module}.{name}")];
        let x = self.stored(x.f_conv2d(weight, None::<&Tensor>, [1, 1], [0, 0], [1, 1], 1)?)?;
        let x = self.stored(x.f_avg_pool2d([3, 3], [1, 1], [1, 1], false, false, None)?)?;
        self.stored(x.f_add(&bias.f_view([1, -1, 1, 1])?)?.f_relu_()?)
    }

    /// The convolution of `module` that stands alone.
    fn alone(&self, module: &str, x: &Tensor) -> Result<Tensor, TchError> {
        self.conv(&format!("{module}.conv"), x)
    }

    /// `conv`, `conv_1`, ...: `n` convolutions one after the other.
    fn tower(&self, module: &str, tower: &str, n: usize, x: &Tensor) -> Result<Tensor, TchError> {
        let first = self.conv(&format!("{module}.{tower}.conv"), x);
        (1..n).fold(first, |x, i| self.conv(&format!("{module}.{tower}.conv_{i}"), &x?))
    }

    /// One of the last two modules, whose towers end in two convolutions of one input; `pooled` is its last tower.
    fn last(&self, module: &str, x: &Tensor, pooled: Tensor) -> Result<Tensor, TchError> {
        let conv = |name: &str, x: &Tensor| self.conv(&format!("{module}.{name}"), x);
        let first = conv("tower_conv", x)?;
        let second = conv("tower_1_conv_1", &conv("tower_1_conv", x)?)?;
        let parts = [
            conv("conv", x)?,
            conv("tower_mixed_conv", &first)?,
            conv("tower_mixed_conv_1", &first)?,
            conv("tower_1_mixed_conv", &second)?,
            conv("tower_1_mixed_conv_1", &second)?,
            pooled,
        ];
        Tensor::f_cat(&parts, 1)
    }

    /// `x` as it is after it was stored.
    fn stored(&self, x: Tensor) -> Result<Tensor, TchError> {
        if self.rounded { x.f_to_kind(Kind::Half)?.f_to_kind(self.kind) } else { Ok(x) }
    }
}

/// The largest of 3x3 positions, at every second one.
fn max_pool(x: &Tensor) -> Result<Tensor, TchError> {
    x.f_max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], false)
}

/// `[a, b, c, d]` with the numbers of b side by side in memory.
pub fn channels_last(x: &Tensor) -> Result<Tensor, TchError> {
    x.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])
}
