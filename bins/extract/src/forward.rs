//! From uint8 images to features: noise, interpolation, the first blocks, the mean over tokens.

use lcf_model::{
    Dit,
    features::{Part, time},
    path, pixels,
    rng::{Purpose, Rng},
};
use tch::{Kind, Tensor};

/// The noise eps of images `index`, int64 `[B]`, at `timestep`, fp32 `[B, C, H, W]` of `shape`. It depends on the seed, the
/// part, the timestep and an image's own index alone, so no batch size changes it.
pub fn noise(seed: u64, part: Part, timestep: u32, index: &Tensor, shape: &[i64]) -> Tensor {
    let rng = Rng::new(seed, Purpose::Extract).fork(part as u64).fork(u64::from(timestep));
    rng.normal(index, shape[1..].iter().product()).view(shape)
}

/// A frozen model read at one layer.
#[derive(Clone, Copy, Debug)]
pub struct Extractor<'a> {
    /// The model. Its blocks beyond `layer` do not run.
    pub model: &'a Dit,
    /// Counted from 1.
    pub layer: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// Images at a time.
    pub batch: usize,
}

impl Extractor<'_> {
    /// Features of all images of a part, uint8 `[N, C, H, W]`, at one timestep, fp32 `[N, D]`. Calls `tick` with the
    /// number of images after each batch.
    pub fn extract(&self, images: &Tensor, part: Part, timestep: u32, mut tick: impl FnMut(usize)) -> Tensor {
        let count = images.size()[0];
        let width = self.model.config().width;
        let out = Tensor::empty([count, width], (Kind::Float, images.device()));
        for start in (0..count).step_by(self.batch) {
            let n = (count - start).min(self.batch as i64);
            let features = self.batch(&images.narrow(0, start, n), start, part, timestep);
            out.narrow(0, start, n).copy_(&features);
            tick(n as usize);
        }
        out
    }

    /// Equation 1, then h_l of Equation 13, then the mean over tokens: fp32 `[B, D]` of images `start..start + B`.
    fn batch(&self, images: &Tensor, start: i64, part: Part, timestep: u32) -> Tensor {
        let options = (Kind::Float, images.device());
        let shape = images.size();
        let index = Tensor::arange_start(start, start + shape[0], (Kind::Int64, images.device()));
        let eps = noise(self.seed, part, timestep, &index, &shape);
        let t = Tensor::full([shape[0]], time(timestep), options);
        let x = path::interpolate(&pixels::normalise(images), &eps, &t);
        self.model.features(&x, &t, self.layer).mean_dim(1, false, Kind::Float)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcf_model::{
        ModelConfig, Params, Precision,
        config::Input,
        rng::{Purpose, Rng},
    };
    use tch::Device;

    const MODEL: ModelConfig = ModelConfig { depth: 3, width: 16, heads: 2, mlp: 24, patch: 2 };
    const INPUT: Input = Input { channels: 3, side: 8 };

    /// Random everywhere: DiT starts its gates at zero, and a block that does nothing would show nothing.
    fn model() -> Dit {
        let mut params = Params::init(&MODEL, &INPUT, 1, Device::Cpu);
        let index = Tensor::arange(params.layout.len, (Kind::Int64, Device::Cpu));
        params.flat += Rng::new(1, Purpose::Init).normal(&index, 1).squeeze_dim(1) * 0.1;
        Dit::frozen(MODEL, INPUT, Precision::Fp32, &params)
    }

    fn images(n: i64) -> Tensor {
        let size = n * 3 * 8 * 8;
        Tensor::arange(size, (Kind::Int64, Device::Cpu)).remainder(251).to_kind(Kind::Uint8).view([n, 3, 8, 8])
    }

    fn features(model: &Dit, images: &Tensor, batch: usize, part: Part, timestep: u32) -> Tensor {
        let extractor = Extractor { model, layer: 2, seed: 5, batch };
        tch::no_grad(|| extractor.extract(images, part, timestep, |_| {}))
    }

    #[test]
    fn no_batch_size_changes_a_feature() {
        let (model, images) = (model(), images(7));
        let whole = features(&model, &images, 7, Part::Train, 300);
        for batch in [1, 2, 3, 100] {
            // Matrix products of another number of rows may sum in another order: a few units of fp32 rounding.
            let split = features(&model, &images, batch, Part::Train, 300);
            assert!(whole.allclose(&split, 1e-5, 1e-6, false), "batch {batch}");
        }
        let first = features(&model, &images.narrow(0, 0, 4), 4, Part::Train, 300);
        assert!(whole.narrow(0, 0, 4).allclose(&first, 1e-5, 1e-6, false));
    }

    #[test]
    fn noise_differs_by_part_timestep_seed_and_image_and_by_nothing_else() {
        let index = Tensor::from_slice(&[0i64, 1]);
        let draw = |seed, part, timestep| noise(seed, part, timestep, &index, &[2, 3, 8, 8]);
        let base = draw(0, Part::Train, 20);
        assert_eq!(base, draw(0, Part::Train, 20));
        assert_ne!(base, draw(1, Part::Train, 20));
        assert_ne!(base, draw(0, Part::Test, 20));
        assert_ne!(base, draw(0, Part::Train, 21));
        assert_ne!(base.get(0), base.get(1));
    }

    #[test]
    fn the_clean_image_takes_no_noise() {
        let (model, images) = (model(), images(3));
        let at = |seed, timestep| {
            let extractor = Extractor { model: &model, layer: 2, seed, batch: 3 };
            tch::no_grad(|| extractor.extract(&images, Part::Test, timestep, |_| {}))
        };
        assert_eq!(at(0, 0), at(1, 0));
        assert_ne!(at(0, 1), at(1, 1));
        let zero = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        let direct = model.features(&pixels::normalise(&images), &zero, 2).mean_dim(1, false, Kind::Float);
        assert_eq!(at(0, 0), direct);
    }
}
