//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, Algorithm 2) over all parameters as one flat fp32 tensor.

use tch::Tensor;

/// Its constants, beside the learning rate.
#[derive(Clone, Copy, Debug)]
pub struct Hyper {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, on every parameter.
    pub weight_decay: f64,
}

/// The moments of one flat buffer, updated in the order of operations of `torch.optim.AdamW`.
#[derive(Debug)]
pub struct AdamW {
    hyper: Hyper,
    /// First moment, fp32 `[len]`.
    pub first: Tensor,
    /// Second moment, fp32 `[len]`.
    pub second: Tensor,
    /// Updates made.
    pub updates: u64,
}

impl AdamW {
    /// Moments of zero for a parameter vector like `flat`.
    pub fn new(hyper: Hyper, flat: &Tensor) -> Self {
        Self { hyper, first: flat.zeros_like(), second: flat.zeros_like(), updates: 0 }
    }

    /// One update of `flat` in place with `gradient`, both fp32 `[len]`: m and v move towards g and g^2, then
    /// p = (1 - lr wd) p - lr (m / (1 - b1^k)) / (sqrt(v / (1 - b2^k)) + eps).
    pub fn update(&mut self, flat: &mut Tensor, gradient: &Tensor, lr: f64) {
        let Hyper { beta1, beta2, eps, weight_decay } = self.hyper;
        self.updates += 1;
        let k = self.updates as i32;
        let (correction1, correction2) = (1.0 - beta1.powi(k), 1.0 - beta2.powi(k));
        let _ = flat.g_mul_scalar_(1.0 - lr * weight_decay);
        let _ = self.first.lerp_(gradient, 1.0 - beta1);
        let _ = self.second.g_mul_scalar_(beta2);
        let _ = self.second.g_add_(&(gradient.square() * (1.0 - beta2)));
        let mut update = self.second.sqrt();
        let _ = update.g_div_scalar_(correction2.sqrt()).g_add_scalar_(eps).reciprocal_().g_mul_(&self.first);
        let _ = flat.g_add_(&(update * (-lr / correction1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{
        Device, Kind,
        nn::{self, OptimizerConfig},
    };

    #[test]
    fn the_first_update_is_the_sign_of_the_gradient_plus_decay() {
        let mut flat = Tensor::from_slice(&[1.0f32, -2.0]);
        let mut adamw = AdamW::new(Hyper { beta1: 0.9, beta2: 0.99, eps: 0.0, weight_decay: 0.5 }, &flat);
        adamw.update(&mut flat, &Tensor::from_slice(&[3.0f32, -0.001]), 0.1);
        let expected = Tensor::from_slice(&[1.0f32 * 0.95 - 0.1, -2.0 * 0.95 + 0.1]);
        assert!((flat - expected).abs().max().double_value(&[]) < 1e-6);
    }

    /// libtorch's own AdamW on the same gradients, whose sizes span six orders of magnitude.
    #[test]
    fn agrees_with_libtorch() {
        tch::manual_seed(1);
        let store = nn::VarStore::new(Device::Cpu);
        let theirs = store.root().var("p", &[50], nn::Init::Randn { mean: 0.0, stdev: 1.0 });
        let mut ours = theirs.detach().copy();
        let (lr, wd) = (3e-2, 0.1);
        let mut optimiser = nn::AdamW { wd, ..nn::AdamW::default() }.build(&store, lr).unwrap();
        let mut adamw = AdamW::new(Hyper { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: wd }, &ours);
        let sizes = (Tensor::arange(50, (Kind::Float, Device::Cpu)) * 0.3 - 9.0).exp();
        for _ in 0..20 {
            let gradient = Tensor::randn([50], (Kind::Float, Device::Cpu)) * &sizes;
            optimiser.zero_grad();
            (&theirs * &gradient).sum(Kind::Float).backward();
            optimiser.step();
            adamw.update(&mut ours, &gradient, lr);
        }
        let difference = (&ours - theirs.detach()).abs().max().double_value(&[]);
        assert!(difference < 2e-6, "{difference}");
    }
}
