//! P linear classifiers on P sets of features, as one batched computation. They share labels, order and start, and
//! nothing else: the gradient of each depends on its own features alone.

use tch::{Device, Kind, Tensor};

/// Weights and biases of all probes and their gradients, one flat buffer each, so that the optimiser is a handful of
/// operations over all of them.
///
/// They start at zero. The loss is convex, so the start does not decide where it leads; zero favours no class, needs no
/// seed, and is the same for every timestep.
#[derive(Debug)]
pub struct Probes {
    /// All parameters, fp32.
    pub params: Tensor,
    /// Their gradients, laid out alike.
    pub gradient: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight_gradient: Tensor,
    bias_gradient: Tensor,
}

impl Probes {
    /// `probes` classifiers from `width` numbers to `classes`.
    pub fn new(probes: i64, width: i64, classes: i64, device: Device) -> Self {
        let numbers = probes * (width + 1) * classes;
        let flat = || Tensor::zeros([numbers], (Kind::Float, device));
        let (params, gradient) = (flat(), flat());
        let shape = [probes, width, classes];
        let [weight, bias] = split(&params, shape);
        let [weight_gradient, bias_gradient] = split(&gradient, shape);
        Self { weight, bias, weight_gradient, bias_gradient, params, gradient }
    }

    /// Weights `[P, D, C]` and biases `[P, 1, C]` of a buffer laid out as `params` is.
    pub fn parts(&self, flat: &Tensor) -> [Tensor; 2] {
        let (probes, width, classes) = self.weight.size3().expect("weights are [P, D, C]");
        split(flat, [probes, width, classes])
    }

    /// Fp32 `[P, D, C]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Fp32 `[P, 1, C]`.
    pub fn bias(&self) -> &Tensor {
        &self.bias
    }

    /// Logits `[P, B, C]` of `x`, fp32 `[P, B, D]`.
    pub fn logits(&self, x: &Tensor) -> Tensor {
        self.bias.baddbmm(x, &self.weight, 1, 1)
    }

    /// Fills the gradient of each probe's mean cross-entropy on `x`, fp32 `[P, B, D]`, with labels `one_hot`, fp32
    /// `[B, C]`. In closed form: with G = (softmax(x W + b) - Y) / B, the gradient of W is x' G and that of b is the sum
    /// of G's rows.
    pub fn fill_gradient(&mut self, x: &Tensor, one_hot: &Tensor) {
        let mut g = self.logits(x).softmax(2, Kind::Float);
        g -= one_hot;
        g /= one_hot.size()[0] as f64;
        let _ = x.transpose(1, 2).bmm_out(&self.weight_gradient, &g);
        let _ = g.sum_intlist_out(&self.bias_gradient, 1, true, Kind::Float);
    }
}

/// How many of `labels`, int64 `[B]`, each probe gets right by its `logits`, `[P, B, C]`: int64 `[P]`.
pub fn correct(logits: &Tensor, labels: &Tensor) -> Tensor {
    logits.argmax(2, false).eq_tensor(labels).sum_dim_intlist(1, false, Kind::Int64)
}

fn split(flat: &Tensor, [probes, width, classes]: [i64; 3]) -> [Tensor; 2] {
    let (weights, biases) = (probes * width * classes, probes * classes);
    let weight = flat.narrow(0, 0, weights).view([probes, width, classes]);
    [weight, flat.narrow(0, weights, biases).view([probes, 1, classes])]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    #[test]
    fn the_gradient_is_autograds() {
        tch::manual_seed(3);
        let (p, b, d, c) = (3, 17, 5, 4);
        let mut probes = Probes::new(p, d, c, Device::Cpu);
        probes.params.copy_(&Tensor::randn_like(&probes.params));
        let x = Tensor::randn([p, b, d], CPU);
        let labels = Tensor::randint(c, [b], (Kind::Int64, Device::Cpu));
        let weight = probes.weight().copy().set_requires_grad(true);
        let bias = probes.bias().copy().set_requires_grad(true);
        let logits = x.bmm(&weight) + &bias;
        let loss = (0..p).map(|i| logits.get(i).cross_entropy_for_logits(&labels)).reduce(|a, b| a + b).unwrap();
        loss.backward();
        probes.fill_gradient(&x, &labels.one_hot(c).to_kind(Kind::Float));
        let expected = Tensor::cat(&[weight.grad().flatten(0, -1), bias.grad().flatten(0, -1)], 0);
        assert!((probes.gradient - expected).abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn right_answers_are_counted_for_each_probe() {
        let probes = Probes::new(2, 2, 2, Device::Cpu);
        // The first probe takes the larger number, the second the smaller one.
        let both = Tensor::from_slice(&[1f32, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0]);
        probes.params.narrow(0, 0, 8).copy_(&both);
        let x = Tensor::from_slice(&[3f32, 1.0, 0.0, 2.0, 5.0, 4.0]).view([1, 3, 2]).repeat([2, 1, 1]);
        let correct = correct(&probes.logits(&x), &Tensor::from_slice(&[0i64, 1, 1]));
        assert_eq!(Vec::<i64>::try_from(correct).unwrap(), [2, 1]);
    }
}
