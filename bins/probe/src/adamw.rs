//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, Algorithm 2) on one flat buffer, in PyTorch's order.

use tch::Tensor;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;

/// Moments of one flat fp32 buffer.
#[derive(Debug)]
pub struct AdamW {
    lr: f64,
    weight_decay: f64,
    step: i32,
    first: Tensor,
    second: Tensor,
}

impl AdamW {
    /// Moments of zero for a buffer like `params`.
    pub fn new(params: &Tensor, lr: f64, weight_decay: f64) -> Self {
        Self { lr, weight_decay, step: 0, first: params.zeros_like(), second: params.zeros_like() }
    }

    /// One update: m and v move towards g and g^2, then
    /// p = (1 - lr wd) p - lr (m / (1 - b1^k)) / (sqrt(v / (1 - b2^k)) + eps).
    pub fn step(&mut self, params: &mut Tensor, gradient: &Tensor) {
        self.step += 1;
        let correction1 = 1.0 - BETA1.powi(self.step);
        let correction2 = 1.0 - BETA2.powi(self.step);
        let _ = self.first.lerp_(gradient, 1.0 - BETA1);
        let _ = self.second.lerp_(&gradient.square(), 1.0 - BETA2);
        // The step's size is folded into the denominator: eight kernels instead of ten.
        let scale = -correction1 / self.lr;
        let mut denominator = self.second.sqrt();
        denominator *= scale / correction2.sqrt();
        denominator += scale * EPS;
        *params *= 1.0 - self.lr * self.weight_decay;
        let _ = params.addcdiv_(&self.first, &denominator);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{
        Device, Kind,
        nn::{self, OptimizerConfig},
    };

    /// libtorch's own AdamW on the same gradients, whose sizes span six orders of magnitude.
    #[test]
    fn agrees_with_libtorch() {
        tch::manual_seed(1);
        let store = nn::VarStore::new(Device::Cpu);
        let theirs = store.root().var("p", &[50], nn::Init::Randn { mean: 0.0, stdev: 1.0 });
        let mut ours = theirs.detach().copy();
        let (lr, wd) = (3e-2, 0.1);
        let mut optimiser = nn::AdamW { wd, ..nn::AdamW::default() }.build(&store, lr).unwrap();
        let mut adamw = AdamW::new(&ours, lr, wd);
        let sizes = (Tensor::arange(50, (Kind::Float, Device::Cpu)) * 0.3 - 9.0).exp();
        for _ in 0..20 {
            let gradient = Tensor::randn([50], (Kind::Float, Device::Cpu)) * &sizes;
            optimiser.zero_grad();
            (&theirs * &gradient).sum(Kind::Float).backward();
            optimiser.step();
            adamw.step(&mut ours, &gradient);
        }
        let difference = (&ours - theirs.detach()).abs().max().double_value(&[]);
        assert!(difference < 2e-6, "{difference}");
    }
}
