//! The interpolation path between data and noise, Equation 1 of the paper with alpha_t = 1 - t and beta_t = t.

use tch::Tensor;

/// Equation 1: x_t = (1 - t) x_0 + t eps.
///
/// x_0 and eps: `[B, C, H, W]`; t: `[B]`.
pub fn interpolate(x0: &Tensor, eps: &Tensor, t: &Tensor) -> Tensor {
    let t = t.view([-1, 1, 1, 1]);
    // Two products rather than a lerp: at t = 0 and t = 1 the result is x_0 and eps to the bit.
    x0 * (1.0 - &t) + eps * t
}

/// Below Equation 4: the velocity v* = alpha'_t x_0 + beta'_t eps = eps - x_0, the same for every t.
pub fn velocity(x0: &Tensor, eps: &Tensor) -> Tensor {
    eps - x0
}

/// x_0 as a velocity at (x_t, t) implies it: x_0 = x_t - t v.
pub fn data_from_velocity(xt: &Tensor, v: &Tensor, t: f64) -> Tensor {
    xt - v * t
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn ends_are_data_and_noise_and_the_derivative_is_the_velocity() {
        tch::manual_seed(0);
        let make = || Tensor::randn([3, 2, 4, 4], (Kind::Double, Device::Cpu));
        let (x0, eps) = (make(), make());
        let at = |t: f64| interpolate(&x0, &eps, &Tensor::full([3], t, (Kind::Double, Device::Cpu)));
        assert_eq!(at(0.0), x0);
        assert_eq!(at(1.0), eps);
        let slope = (at(0.3 + 1e-4) - at(0.3 - 1e-4)) / 2e-4;
        assert!((slope - velocity(&x0, &eps)).abs().max().double_value(&[]) < 1e-9);
        let back = data_from_velocity(&at(0.3), &velocity(&x0, &eps), 0.3);
        assert!((back - x0).abs().max().double_value(&[]) < 1e-12);
    }
}
