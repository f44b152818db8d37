//! Where a step stops being finite: computed again by the reference, piece by piece.

use super::Trainer;
use crate::{
    batch::{Batch, Whole},
    objective::losses_among,
    optim::norm,
    ranks::Ranks,
};
use lcf_model::path;
use tch::Tensor;

impl Trainer {
    /// The first number of step `step` that is not finite with the weights as they are, in the order of the computation:
    /// which tensor, and where in it. Of several ranks, among this one's samples. `None` when all are finite: the weights
    /// have changed since, or another engine rounds otherwise.
    pub fn diagnose(&mut self, step: u64) -> Option<String> {
        let layout = &self.params.layout;
        if let Some((name, index)) = layout.first_not_finite(&self.params.flat) {
            return Some(format!("weight {index} of {name}"));
        }
        let (batch, _) = self.sampler.deal(step, &self.ranks);
        tch::no_grad(|| self.bad_activation(&batch)).or_else(|| self.bad_loss(&batch))
    }

    /// Samples that the objective takes out of the network early are looked at up to where they leave it.
    fn bad_activation(&self, batch: &Batch) -> Option<String> {
        let Batch { x0, eps, t, low } = batch;
        let at = |what: &str, x: &Tensor, first: i64| {
            let row = first + first_bad_row(x)?;
            Some(format!("{what} of sample {row} of the batch, t = {:.6}", t.double_value(&[row])))
        };
        let xt = path::interpolate(x0, eps, t);
        let mut stream = self.dit.embed(&xt, t);
        if let Some(found) = at("the embedding", &stream.tokens, 0) {
            return Some(found);
        }
        let depth = self.dit.config().depth as usize;
        let leaves = self.config.contrast().map_or(0, |options| options.layer);
        let mut first = 0;
        for block in 0..depth {
            if block == leaves && self.config.objective.cuts() {
                stream = stream.narrow(*low, t.size()[0] - low);
                first = *low;
            }
            if stream.tokens.size()[0] == 0 {
                return None;
            }
            stream = self.dit.run(stream, block..block + 1);
            let found = at(&format!("the output of block {block}"), &stream.tokens, first);
            if found.is_some() {
                return found;
            }
        }
        at("the velocity", &self.dit.head(&stream), first)
    }

    /// In parts, so that it needs a part of a step's memory; the contrast of each has the negatives of that part alone.
    fn bad_loss(&self, batch: &Batch) -> Option<String> {
        let all = batch.t.size()[0];
        (0..all).step_by(PART as usize).find_map(|first| {
            let n = PART.min(all - first);
            let part = |x: &Tensor| x.narrow(0, first, n);
            let low = (batch.low - first).clamp(0, n);
            let own = Batch { x0: part(&batch.x0), eps: part(&batch.eps), t: part(&batch.t), low };
            let losses = losses_among(&Ranks::alone(), &self.dit, &own, Whole { samples: n, low }, &self.config);
            if let Some(row) = first_bad_row(&losses.flow.view([-1, 1])) {
                let row = row + first + if self.config.objective.cuts() { low } else { 0 };
                let t = batch.t.double_value(&[row]);
                return Some(format!("the flow loss of sample {row} of the batch, t = {t:.6}"));
            }
            let is_finite = |x: &Tensor| x.double_value(&[]).is_finite();
            if losses.contrast.as_ref().is_some_and(|contrast| !is_finite(&contrast.loss)) {
                return Some("the contrastive loss".into());
            }
            let gradient = self.gradient(&losses.total);
            if let Some((name, index)) = self.params.layout.first_not_finite(&gradient) {
                return Some(format!("number {index} of the gradient of {name}"));
            }
            // Numbers beyond 1e19 are finite, and their squares are not.
            (!is_finite(&norm(&gradient))).then(|| {
                let largest = gradient.abs().max().double_value(&[]);
                format!("the norm of the gradient, whose largest number is {largest:.1e}")
            })
        })
    }
}

/// Samples that are differentiated at a time.
const PART: i64 = 32;

/// The first row of `x` that holds a number that is not finite.
fn first_bad_row(x: &Tensor) -> Option<i64> {
    let bad = x.isfinite().logical_not().flatten(1, -1).any_dim(1, false);
    (bad.any().int64_value(&[]) != 0).then(|| bad.nonzero().int64_value(&[0, 0]))
}

#[cfg(test)]
mod tests {
    use super::super::tests::trainer;
    use crate::flow::Reduction;

    /// What is found at step 3 after every number of the parameter `name` was set to `value`.
    fn place(objective: &str, name: &str, value: f64) -> Option<String> {
        let mut trainer = trainer(objective, |c| c.reduction = Reduction::Sum);
        (0..3).for_each(|step| assert!(trainer.step(step).is_finite()));
        let spec = trainer.params.layout.specs.iter().find(|spec| spec.name == name).unwrap();
        let _ = trainer.params.flat.narrow(0, spec.offset, spec.len()).fill_(value);
        trainer.refresh();
        let found = trainer.diagnose(3);
        assert_eq!(trainer.step(3).is_finite(), found.is_none());
        found
    }

    #[test]
    fn the_first_place_in_the_order_of_the_computation_is_named() {
        for objective in ["fm", "fm_truncated", "lcf", "fm_contrastive"] {
            let at = |name, value| place(objective, name, value).unwrap_or_default();
            assert_eq!(at("blocks.1.mlp.fc2.bias", f64::NAN), "weight 0 of blocks.1.mlp.fc2.bias");
            assert!(at("final_layer.linear.bias", 3e38).starts_with("the flow loss of sample "), "{objective}");
            let found = at("blocks.1.adaLN_modulation.1.bias", 3e38);
            assert!(found.starts_with("the output of block 1 of sample "), "{objective}: {found}");
            let found = at("final_layer.linear.bias", 1e18);
            assert!(found.starts_with("the norm of the gradient, whose largest number is "), "{objective}: {found}");
            assert_eq!(place(objective, "final_layer.linear.bias", 0.0), None);
        }
    }

    /// Its t says so: below T_min they never reach block 1.
    #[test]
    fn samples_that_leave_early_are_not_blamed_for_what_comes_later() {
        let found = place("lcf", "blocks.1.adaLN_modulation.1.bias", 3e38).unwrap();
        let t: f64 = found.rsplit(' ').next().unwrap().parse().unwrap();
        assert!(t >= 0.3, "{found}");
    }
}
