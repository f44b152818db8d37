//! A few samples of the weights of the moment, for a person who watches a training.

use crate::TrainConfig;
use image::RgbImage;
use lcf_model::{
    Dit, Params,
    config::Input,
    ode::{self, Sampler, Schedule},
    params::Layout,
    pixels,
};
use lcf_store::grid;
use tch::{Kind, Tensor};

/// Number of samples: the first that lcf-sample makes from the same seed.
const SAMPLES: usize = 36;
/// Steps of the sampler: enough to see what there is.
const STEPS: usize = 20;
/// Seed of their noise, whatever the training's: pictures of several trainings are then comparable.
const SEED: u64 = 0;

/// Samples of the weights `flat` on one sheet; `None` when one is not finite.
pub fn sheet(config: &TrainConfig, input: Input, layout: &Layout, flat: &Tensor) -> Option<RgbImage> {
    let _no_grad = tch::no_grad_guard();
    let params = Params { layout: layout.clone(), flat: flat.shallow_clone() };
    let model = Dit::frozen(config.model, input, config.precision, &params);
    let noise = ode::noise(SEED, 0, SAMPLES, [input.channels, input.side, input.side], flat.device());
    let velocity =
        |x: &Tensor, t: f64| model.velocity(x, &Tensor::full([SAMPLES as i64], t, (Kind::Float, x.device())));
    let schedule = Schedule::new(STEPS, config.velocity_from());
    let images = ode::integrate(Sampler::Euler, &schedule, noise, velocity, |_| {});
    let finite = images.isfinite().all().int64_value(&[]) != 0;
    let [side, channels] = [input.side, input.channels].map(|size| size as usize);
    finite.then(|| grid::sheet(&pixels::bytes(&images), [side, side, channels]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::small;
    use tch::Device;

    const INPUT: Input = Input { channels: 3, side: 4 };

    #[test]
    fn a_sheet_shows_the_samples_and_broken_weights_show_nothing() {
        let config = small("lcf");
        let mut params = Params::init(&config.model, &INPUT, 0, Device::Cpu);
        let of = |params: &Params| sheet(&config, INPUT, &params.layout, &params.flat);
        // The untrained model moves nothing: what is shown is the noise.
        let noise = ode::noise(0, 0, SAMPLES, [3, 4, 4], Device::Cpu);
        assert_eq!(of(&params).unwrap(), grid::sheet(&pixels::bytes(&noise), [4, 4, 3]));
        let _ = params.flat.fill_(f64::NAN);
        assert!(of(&params).is_none());
    }
}
