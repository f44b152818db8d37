//! Integration of dx/dt = v(x, t) from t = 1, noise, towards t = 0, data.
//!
//! A model trained by an objective that cuts the regression below T_min has no velocity there. Its ODE is integrated to
//! T_min, and one step x_0 = x - t v(x, t) at t = T_min ends the image. That step counts as one of the steps.

use crate::{
    path,
    rng::{Purpose, Rng},
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// How a step is taken.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampler {
    /// x + h v(x, t): first order, one evaluation.
    Euler,
    /// The mean of the velocities at both ends, the far one at an Euler step's end: second order, two evaluations.
    ///
    /// The last step to t = 0 is a full Heun step too. Samplers of other parametrisations (EDM) must end in an Euler
    /// step since their slope divides by t; a velocity does not, and a model that is integrated to 0 was trained there.
    Heun,
}

/// The times at which steps begin and end.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    times: Vec<f64>,
}

impl Schedule {
    /// `steps` steps: uniform ones from 1 to 0, or, for `t_stop` above 0, `steps - 1` uniform ones from 1 to `t_stop` and a
    /// final one to the image.
    ///
    /// # Panics
    /// When no uniform step is left.
    pub fn new(steps: usize, t_stop: f64) -> Self {
        let uniform = steps - usize::from(t_stop > 0.0);
        assert!(uniform > 0, "no step from 1 to {t_stop}");
        let time = |i: usize| {
            let share = i as f64 / uniform as f64;
            (1.0 - share) + share * t_stop
        };
        Self { times: (0..=uniform).map(time).collect() }
    }

    /// Where the uniform steps end.
    pub fn t_stop(&self) -> f64 {
        self.times[self.times.len() - 1]
    }

    /// Whether a step x_0 = x - t v follows.
    pub fn has_data_step(&self) -> bool {
        self.t_stop() > 0.0
    }

    /// Number of steps, the final one included.
    pub fn steps(&self) -> usize {
        self.times.len() - 1 + usize::from(self.has_data_step())
    }

    /// NFE: evaluations of the velocity that an image takes.
    pub fn nfe(&self, sampler: Sampler) -> usize {
        let each = match sampler {
            Sampler::Euler => 1,
            Sampler::Heun => 2,
        };
        each * (self.times.len() - 1) + usize::from(self.has_data_step())
    }
}

/// Where samples `start..start + n` start: x_1, fp32 `[n, C, H, W]`, from the seed and a sample's own index alone.
pub fn noise(seed: u64, start: usize, n: usize, image: [i64; 3], device: Device) -> Tensor {
    let index = Tensor::arange_start(start as i64, (start + n) as i64, (Kind::Int64, device));
    let [c, h, w] = image;
    Rng::new(seed, Purpose::Sample).normal(&index, c * h * w).view([n as i64, c, h, w])
}

/// From x at t = 1 to x_0. `velocity` takes the state and t; `after` sees the state after each step.
pub fn integrate(
    sampler: Sampler,
    schedule: &Schedule,
    noise: Tensor,
    mut velocity: impl FnMut(&Tensor, f64) -> Tensor,
    mut after: impl FnMut(&Tensor),
) -> Tensor {
    let mut x = noise;
    for pair in schedule.times.windows(2) {
        let (t, next) = (pair[0], pair[1]);
        let h = next - t;
        let slope = velocity(&x, t);
        x = match sampler {
            Sampler::Euler => x + slope * h,
            Sampler::Heun => {
                let ahead = velocity(&(&x + &slope * h), next);
                x + (slope + ahead) * (0.5 * h)
            }
        };
        after(&x);
    }
    if schedule.has_data_step() {
        let t = schedule.t_stop();
        let slope = velocity(&x, t);
        x = path::data_from_velocity(&x, &slope, t);
        after(&x);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Sampler; 2] = [Sampler::Euler, Sampler::Heun];

    fn start() -> Tensor {
        Tensor::from_slice(&[1.0f64, -2.0, 0.5])
    }

    fn error_on(field: impl Fn(&Tensor, f64) -> Tensor, exact: Tensor, sampler: Sampler, steps: usize) -> f64 {
        let x = integrate(sampler, &Schedule::new(steps, 0.0), start(), field, |_| {});
        (x - exact).abs().max().double_value(&[])
    }

    #[test]
    fn a_sample_depends_on_seed_and_index_alone() {
        let image = [3, 8, 8];
        let all = noise(0, 0, 5, image, Device::Cpu);
        assert_eq!(all.narrow(0, 3, 2), noise(0, 3, 2, image, Device::Cpu));
        assert_ne!(all.get(0), all.get(1));
        assert_ne!(all, noise(1, 0, 5, image, Device::Cpu));
    }

    #[test]
    fn constant_fields_are_integrated_exactly_to_both_endings() {
        let constant = Tensor::from_slice(&[3.0f64, 0.25, -1.0]);
        let exact = start() - &constant;
        for sampler in BOTH {
            for t_stop in [0.0, 0.02, 0.25] {
                let schedule = Schedule::new(7, t_stop);
                let x = integrate(sampler, &schedule, start(), |_, _| constant.copy(), |_| {});
                assert!((x - &exact).abs().max().double_value(&[]) < 1e-14);
            }
        }
    }

    /// dx/dt = x has x(0) = x(1) / e: Euler's error halves and Heun's falls fourfold when steps double.
    #[test]
    fn orders_of_convergence() {
        let exact = || start() / std::f64::consts::E;
        let ratio = |sampler, steps| {
            let error = |steps| error_on(|x, _| x.copy(), exact(), sampler, steps);
            error(steps) / error(2 * steps)
        };
        for (sampler, expected) in [(Sampler::Euler, 2.0), (Sampler::Heun, 4.0)] {
            let found = ratio(sampler, 128);
            assert!((found / expected - 1.0f64).abs() < 0.02, "{sampler:?} {found}");
        }
    }

    /// A velocity linear in t alone: Heun is the trapezoidal rule and exact, Euler is not.
    #[test]
    fn heun_takes_time_at_both_ends() {
        let field = |x: &Tensor, t: f64| x.ones_like() * (2.0 * t);
        let exact = || start() - 1.0;
        assert!(error_on(field, exact(), Sampler::Heun, 3) < 1e-14);
        assert!((error_on(field, exact(), Sampler::Euler, 4) - 0.25).abs() < 1e-14);
    }

    #[test]
    fn evaluations_are_as_stated_and_never_below_t_stop() {
        for sampler in BOTH {
            for (steps, t_stop) in [(1, 0.0), (50, 0.0), (2, 0.02), (50, 0.02)] {
                let schedule = Schedule::new(steps, t_stop);
                let mut asked = Vec::new();
                let mut after = 0;
                let velocity = |x: &Tensor, t: f64| {
                    asked.push(t);
                    x.zeros_like()
                };
                let _ = integrate(sampler, &schedule, start(), velocity, |_| after += 1);
                assert_eq!((asked.len(), after), (schedule.nfe(sampler), steps));
                assert_eq!((asked[0], schedule.steps()), (1.0, steps));
                assert!(asked.iter().all(|&t| t >= t_stop));
                assert_eq!(asked.last() == Some(&t_stop), t_stop > 0.0 || sampler == Sampler::Heun);
            }
        }
        assert_eq!(Schedule::new(50, 0.0).nfe(Sampler::Heun), 100);
        assert_eq!(Schedule::new(50, 0.02).nfe(Sampler::Heun), 99);
        assert_eq!(Schedule::new(50, 0.02).nfe(Sampler::Euler), 50);
    }

    /// A field that is right above T_min and wrong below it: stopping there gives the image, going through does not.
    #[test]
    fn the_data_step_avoids_what_was_not_trained() {
        let (image, noise) = (Tensor::from_slice(&[0.3f64, 0.1, -0.7]), start());
        let line = &noise - &image;
        let field = |_: &Tensor, t: f64| if t < 0.1 - 1e-12 { &line * 100.0 } else { line.copy() };
        let error = |t_stop| {
            let x = integrate(Sampler::Euler, &Schedule::new(21, t_stop), noise.copy(), field, |_| {});
            (x - &image).abs().max().double_value(&[])
        };
        assert!(error(0.1) < 1e-14);
        assert!(error(0.0) > 1.0);
    }

    #[test]
    fn times_are_uniform_and_end_exactly() {
        assert_eq!(Schedule::new(4, 0.0).times, [1.0, 0.75, 0.5, 0.25, 0.0]);
        let stopped = Schedule::new(50, 0.02);
        assert_eq!((stopped.times.len(), stopped.t_stop()), (50, 0.02));
        let x = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        let kind = integrate(Sampler::Heun, &stopped, x, |x, _| x.ones_like(), |_| {}).kind();
        assert_eq!(kind, Kind::Float);
    }
}
