//! What a bench works on instead of artifacts: the shapes that a config asks for, and random numbers in them. Never zeros,
//! on which a card runs faster than it ever computes.

use crate::{
    Dit, Params,
    config::{Input, ModelConfig, Precision},
};
use lcf_store::{
    Error, Result,
    cli::StageArgs,
    config::Section,
    prepare::{Config, Shape},
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Standard deviation of what is added to DiT's start, in which all gates and the output are zero.
const SPREAD: f64 = 0.02;

/// Model and images as a config has them.
#[derive(Clone, Copy, Debug)]
pub struct Shapes {
    /// The model that it trains.
    pub model: ModelConfig,
    /// What the model takes.
    pub input: Input,
    /// The images that it prepares.
    pub images: Shape,
}

/// What later stages take from the artifact of a training: of its section only the model.
#[derive(Deserialize, Serialize)]
struct Train {
    model: ModelConfig,
}

impl Section for Train {
    const NAME: &'static str = "train";

    fn validate(&self) -> Result<(), String> {
        self.model.validate().map_err(|message| format!("model.{message}"))
    }
}

impl Shapes {
    /// Those of the sections `prepare` and `train`.
    ///
    /// # Errors
    /// [`Error::Usage`] for values that are wrong or do not fit together.
    pub fn of(args: &StageArgs) -> Result<Self> {
        let images = args.section::<Config>()?.shape()?;
        let Train { model } = args.section()?;
        let fits = model.fits(images.channels, images.side, images.side);
        let input = fits.map_err(|message| Error::usage(format!("train.model.{message}")))?;
        Ok(Self { model, input, images })
    }

    /// A model of random weights, ready to run.
    pub fn dit(&self, precision: Precision, device: Device) -> Dit {
        let mut params = Params::init(&self.model, &self.input, 0, device);
        stir(&mut params.flat);
        Dit::frozen(self.model, self.input, precision, &params)
    }

    /// Random images, uint8 `[n, C, H, W]`.
    pub fn pixels(&self, n: usize, device: Device) -> Tensor {
        let Input { channels, side } = self.input;
        Tensor::randint(256, [n as i64, channels, side, side], (Kind::Uint8, device))
    }
}

/// Adds a random number to each weight of `flat`, in place; the same in every process.
pub fn stir(flat: &mut Tensor) {
    tch::manual_seed(0);
    *flat += flat.randn_like() * SPREAD;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(overrides: &[&str]) -> Result<Shapes> {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("run.json");
        let text = r#"{"prepare": {"dataset": "synthetic", "synthetic": {"side": 8}},
            "train": {"model": {"depth": 2, "width": 16, "heads": 2, "mlp": 24, "patch": 2}, "objective": "lcf"}}"#;
        std::fs::write(&config, text).unwrap();
        let overrides = overrides.iter().map(|&text| text.to_owned()).collect();
        Shapes::of(&StageArgs { config, overrides, ..StageArgs::default() })
    }

    #[test]
    fn models_and_images_of_a_config_are_random_everywhere() {
        let shapes = shapes(&[]).unwrap();
        let images = shapes.pixels(3, Device::Cpu);
        assert_eq!((images.size(), images.kind()), (vec![3, 3, 8, 8], Kind::Uint8));
        let x = crate::pixels::normalise(&images);
        let dit = shapes.dit(Precision::Fp32, Device::Cpu);
        let v = dit.velocity(&x, &Tensor::from_slice(&[0.1f32, 0.5, 0.9]));
        assert!(v.std(true).double_value(&[]) > 1e-4 && x.std(true).double_value(&[]) > 0.3);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let message = |set: &str| shapes(&[set]).unwrap_err().to_string();
        assert!(message("train.model.patch=3").contains("train.model.patch: 3 does not divide the image side 8"));
        assert!(message("train.model.heads=3").contains("train.model.width: 16 is not a multiple of heads"));
        assert!(message("prepare.limit=0").contains("prepare.limit: 0 is not in"));
    }
}
