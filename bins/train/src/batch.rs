//! What a training step draws, all of it a function of (seed, step): which images, mirrored or not, their noise, their
//! times.

use crate::{config::TrainConfig, ranks::Ranks, times::Times};
use lcf_model::{
    pixels,
    rng::{Purpose, Rng},
};
use tch::{Kind, Tensor};

/// The inputs of one step. Samples with t < T_min come first; a loss does not depend on the order of its samples.
#[derive(Debug)]
pub struct Batch {
    /// Images, fp32 `[B, C, H, W]` in [-1, 1].
    pub x0: Tensor,
    /// Noise, likewise.
    pub eps: Tensor,
    /// Times, fp32 `[B]` in [0, 1).
    pub t: Tensor,
    /// Number of samples with t < T_min.
    pub low: i64,
}

/// How many samples there are in the batch of a step, over all ranks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Whole {
    /// All of them.
    pub samples: i64,
    /// Those with t < T_min.
    pub low: i64,
}

/// Draws batches from the images of a training set that lie on the device.
#[derive(Debug)]
pub struct Sampler {
    images: Tensor,
    batch: i64,
    threshold: f32,
    times: Times,
    flip: bool,
    seed: u64,
    /// The epoch whose order is at hand, and that order.
    order: Option<(u64, Tensor)>,
}

impl Sampler {
    /// A sampler over `images`, uint8 `[N, C, H, W]`.
    pub fn new(config: &TrainConfig, images: Tensor) -> Self {
        Self {
            images,
            batch: config.batch as i64,
            threshold: config.threshold() as f32,
            times: config.times,
            flip: config.flip,
            seed: config.seed,
            order: None,
        }
    }

    /// The images it draws from.
    pub fn images(&self) -> &Tensor {
        &self.images
    }

    /// Steps of an epoch: whole batches of a fresh order. The few images of the incomplete last batch are left out of
    /// this epoch; another order decides which they are in the next.
    pub fn steps_per_epoch(&self) -> u64 {
        (self.images.size()[0] / self.batch) as u64
    }

    /// The batch of step `step`, counted from 0.
    pub fn draw(&mut self, step: u64) -> Batch {
        self.deal(step, &Ranks::alone()).0
    }

    /// The samples of one of the `ranks` in step `step`, and how many all have.
    pub fn deal(&mut self, step: u64, ranks: &Ranks) -> (Batch, Whole) {
        let device = self.images.device();
        let (slots, low) = self.slots(step);
        let whole = Whole { samples: self.batch, low };
        let slots: Vec<i64> = slots.into_iter().skip(ranks.rank()).step_by(ranks.size()).collect();
        let low = ranks.dealt(low);
        // Samples are numbered over the whole training: their draws do not depend on the batch they are in.
        let ids = Tensor::from_slice(&slots).to_device(device) + step as i64 * self.batch;
        let x0 = self.images_of(step, &slots, &ids);
        let (c, h, w) = (x0.size()[1], x0.size()[2], x0.size()[3]);
        let eps = self.rng(Purpose::Noise).normal(&ids, c * h * w).view([-1, c, h, w]);
        let t = self.times.of(self.rng(Purpose::Time).uniform(&ids));
        (Batch { x0, eps, t, low }, whole)
    }

    fn rng(&self, purpose: Purpose) -> Rng {
        Rng::new(self.seed, purpose)
    }

    /// The positions of the batch with those of t < T_min first, and their number; where there is a T_min, t is uniform. The host draws the same times as the
    /// device, so that it knows without waiting for it.
    fn slots(&self, step: u64) -> (Vec<i64>, i64) {
        let first = step * self.batch as u64;
        let time = self.rng(Purpose::Time);
        let is_low = |&slot: &i64| time.uniform_at(first + slot as u64) < self.threshold;
        let (mut low, high): (Vec<i64>, Vec<i64>) = (0..self.batch).partition(is_low);
        let count = low.len() as i64;
        low.extend(high);
        (low, count)
    }

    fn images_of(&mut self, step: u64, slots: &[i64], ids: &Tensor) -> Tensor {
        let epoch = step / self.steps_per_epoch();
        let first = (step % self.steps_per_epoch()) as i64 * self.batch;
        let n = self.images.size()[0];
        let device = self.images.device();
        if self.order.as_ref().is_none_or(|(of, _)| *of != epoch) {
            self.order = Some((epoch, self.rng(Purpose::Shuffle).permutation(epoch, n, device)));
        }
        let (_, order) = self.order.as_ref().expect("set above");
        let slots = Tensor::from_slice(slots).to_device(device) + first;
        let x0 = pixels::normalise(&self.images.index_select(0, &order.index_select(0, &slots)));
        if !self.flip {
            return x0;
        }
        let mirrored = self.rng(Purpose::Flip).uniform(ids).lt(0.5).view([-1, 1, 1, 1]);
        x0.flip([3]).where_self(&mirrored, &x0)
    }
}

/// Bin of each time among `bins` equal parts of [0, 1], int64 `[B]`.
pub fn time_bin(t: &Tensor, bins: i64) -> Tensor {
    (t * bins as f64).floor().clamp(0.0, (bins - 1) as f64).to_kind(Kind::Int64)
}

/// Images to test with: pixel values tell which image it is.
#[cfg(test)]
pub(crate) fn numbered(n: i64, channels: i64, side: i64) -> Tensor {
    use tch::{Device, IndexOp};
    let numbers = Tensor::arange(n, (Kind::Uint8, Device::Cpu)).view([n, 1, 1, 1]);
    let images = numbers.expand([n, channels, side, side], false).contiguous();
    // The left edge is marked, so that a mirrored image shows.
    images.i((.., .., .., 0..1)).copy_(&Tensor::full([n, channels, side, 1], 255, (Kind::Uint8, Device::Cpu)));
    images
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::small;
    use tch::IndexOp;

    fn sampler(edit: impl Fn(&mut TrainConfig)) -> Sampler {
        let mut config = small("lcf");
        edit(&mut config);
        Sampler::new(&config, numbered(50, 3, 4))
    }

    fn ids(batch: &Batch) -> Vec<i64> {
        let pixel = pixels::quantise(&batch.x0).i((.., 0, 1, 1..3)).amax([1], false);
        Vec::<i64>::try_from(pixel.to_kind(Kind::Int64)).unwrap()
    }

    #[test]
    fn an_epoch_visits_images_once_and_the_next_in_another_order() {
        let mut sampler = sampler(|c| c.flip = false);
        assert_eq!(sampler.steps_per_epoch(), 6);
        let mut epoch = |from: u64| -> Vec<i64> { (from..from + 6).flat_map(|s| ids(&sampler.draw(s))).collect() };
        let (first, second) = (epoch(0), epoch(6));
        let mut sorted = first.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 48);
        assert_ne!(first, second);
    }

    #[test]
    fn low_noise_samples_come_first_and_are_counted() {
        let mut sampler = sampler(|_| {});
        for step in 0..6 {
            let Batch { t, low, .. } = sampler.draw(step);
            let t = Vec::<f32>::try_from(t).unwrap();
            assert!(t[..low as usize].iter().all(|&t| t < 0.3) && t[low as usize..].iter().all(|&t| t >= 0.3));
        }
    }

    #[test]
    fn a_step_draws_the_same_whatever_came_before() {
        let (mut a, mut b) = (sampler(|_| {}), sampler(|_| {}));
        a.draw(0);
        let (one, two) = (a.draw(7), b.draw(7));
        assert!(one.x0 == two.x0 && one.eps == two.eps && one.t == two.t);
        let other = sampler(|c| c.seed = 1).draw(7);
        assert!(one.eps != other.eps && one.t != other.t);
    }

    #[test]
    fn about_half_of_the_images_are_mirrored() {
        let mut sampler = sampler(|c| c.batch = 50);
        let right = sampler.draw(0).x0.i((.., 0, 0, 3));
        let mirrored = i64::try_from(right.ge(1.0).sum(Kind::Int64)).unwrap();
        assert!((10..40).contains(&mirrored), "{mirrored} of 50");
    }

    #[test]
    fn bins_cover_zero_to_one() {
        let bins = time_bin(&Tensor::from_slice(&[0.0f32, 0.099, 0.1, 0.95, 1.0]), 10);
        assert_eq!(bins, Tensor::from_slice(&[0i64, 0, 1, 9, 9]));
    }
}
