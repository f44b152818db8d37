//! How much of the gradient each term of Equation 15 is: with lambda = 1 either may be next to nothing beside the other.

use super::Trainer;
use crate::{objective::losses_among, optim::norm};

impl Trainer {
    /// Norms of the gradients of L_FM and of lambda L_cons, by the reference, on the batch of step `step` and the weights as
    /// they are; `None` where there are not two terms. All ranks call it together.
    pub fn term_norms(&mut self, step: u64) -> Option<[f64; 2]> {
        self.config.contrast()?;
        let (batch, whole) = self.sampler.deal(step, &self.ranks);
        let losses = losses_among(&self.ranks, &self.dit, &batch, whole, &self.config);
        let (flow, contrast) = (losses.terms.0, losses.terms.1?);
        Some([(flow, true), (contrast, false)].map(|(loss, graph)| {
            let mut gradient = self.gradient_keeping(&loss, graph);
            self.ranks.sum(&mut gradient);
            norm(&gradient).double_value(&[])
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::trainer;

    #[test]
    fn the_norm_of_the_contrast_alone_grows_with_lambda() {
        let mut trainer = trainer("lcf", |_| {});
        // Past the start, where the zero layers let nothing through.
        (0..5).for_each(|step| assert!(trainer.step(step).is_finite()));
        let step = (5..).find(|&step| trainer.sampler.draw(step).low > 0).unwrap();
        let before = trainer.params.flat.copy();
        let [flow, contrast] = trainer.term_norms(step).unwrap();
        trainer.config.contrast.as_mut().unwrap().lambda *= 3.0;
        let [same, tripled] = trainer.term_norms(step).unwrap();
        assert!(flow > 0.0 && (same - flow).abs() < 1e-6 * flow && (tripled / contrast - 3.0).abs() < 1e-4);
        assert_eq!(trainer.params.flat, before);
    }

    #[test]
    fn one_term_is_not_compared() {
        assert_eq!(trainer("fm_truncated", |_| {}).term_norms(0), None);
    }
}
