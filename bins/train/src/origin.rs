//! What a training's manifest says about how it was computed, and whether that can be had again.

use crate::{TrainConfig, ranks::Ranks, step::is_captured};
use lcf_model::{Engine, config::Input, device};
use lcf_store::{
    digest,
    provenance::{Provenance, UP_TO_ROUNDING},
};
use tch::Device;

/// What makes the steps.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Where.
    pub device: Device,
    /// By which operations.
    pub engine: Engine,
    /// By how many processes.
    pub ranks: &'a Ranks,
    /// Threads of each on the CPU.
    pub threads: u16,
}

impl Origin<'_> {
    /// Records it. The sums of several processes have an order of their own.
    pub fn record(&self, config: &TrainConfig, input: Input, made: &mut Provenance) {
        device::record(made, self.device, is_captured(config, input, self.device, self.engine));
        if !self.ranks.are_one() {
            made.device = format!("{} x {}", self.ranks.size(), made.device);
            made.reproducible = UP_TO_ROUNDING.to_owned();
        }
    }

    /// A number for it that a checkpoint can hold: what rounds otherwise has another.
    pub fn number(&self) -> u64 {
        let Self { device, engine, ranks, threads } = self;
        let text = format!("{} {engine:?} {} {threads}", device::name(*device), ranks.size());
        let sixty_bits = &digest::of_bytes(text.as_bytes())[..15];
        u64::from_str_radix(sixty_bits, 16).expect("hexadecimal digits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rounds_otherwise_has_another_number() {
        let ranks = Ranks::alone();
        let number = |engine, threads| Origin { device: Device::Cpu, engine, ranks: &ranks, threads }.number();
        assert_eq!(number(Engine::Fused, 2), number(Engine::Fused, 2));
        assert_ne!(number(Engine::Fused, 2), number(Engine::Reference, 2));
        assert_ne!(number(Engine::Fused, 2), number(Engine::Fused, 3));
        assert_ne!(number(Engine::Fused, 2), 0);
    }
}
