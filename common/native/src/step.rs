//! What a training step does around the network, on the device: random draws, the flow-matching loss, bookkeeping and the
//! update of the weights.

use crate::ops::{check, data, stream};
use std::ffi::{c_float, c_int, c_long, c_void};
use tch::{Kind, Tensor};

/// Bins of t.
pub const BINS: usize = 10;
/// Numbers of a state.
pub const STATE: i64 = 15 + 2 * BINS as i64;
/// Width of the sinusoidal time embedding.
const FREQUENCIES: i64 = 256;

/// Places in a state, fp64 `[STATE]`. What follows [`state::STEPS`] is summed over the steps since it was set to zero.
pub mod state {
    /// The step to be made, counted from 0.
    pub const STEP: usize = 0;
    /// Updates made so far.
    pub const UPDATES: usize = 1;
    /// Steps left out since the last update.
    pub const IN_A_ROW: usize = 2;
    /// The last step left out, counted from 1.
    pub const LAST_BAD: usize = 3;
    /// Steps.
    pub const STEPS: usize = 4;
    /// Those left out.
    pub const SKIPPED: usize = 5;
    /// What was minimised, of steps that were not left out.
    pub const LOSS: usize = 6;
    /// Length of the gradient before clipping.
    pub const NORM: usize = 7;
    /// Learning rate of the last update.
    pub const RATE: usize = 8;
    /// Contrastive loss, then pull and push distance.
    pub const CONTRAST: usize = 9;
    /// Steps that had anchors.
    pub const CONTRASTED: usize = 12;
    /// Anchors.
    pub const ANCHORS: usize = 13;
    /// Low-noise samples for which there was no anchor slot.
    pub const OVERFLOW: usize = 14;
    /// Mean square errors by bin of t.
    pub const FLOW: usize = 15;
    /// Regressed samples by bin of t.
    pub const SAMPLES: usize = FLOW + super::BINS;
}

#[repr(C)]
struct RawDraw {
    time: u64,
    noise: u64,
    flip: u64,
    state: *const c_void,
    images: *const c_void,
    order: *const c_void,
    id: *mut c_void,
    image: *mut c_void,
    t: *mut c_void,
    low: *mut c_void,
    patches: *mut c_void,
    target: *mut c_void,
    frequencies: *mut c_void,
    ends: *mut c_void,
    threshold: c_float,
    logit_mean: c_float,
    logit_std: c_float,
    batch: c_int,
    samples: c_int,
    slots: c_int,
    rank: c_int,
    ranks: c_int,
    steps_per_epoch: c_int,
    channels: c_int,
    side: c_int,
    patch: c_int,
}

#[repr(C)]
struct RawLoss {
    out: *const c_void,
    target: *const c_void,
    t: *const c_void,
    low: *const c_void,
    error: *mut c_void,
    gradient: *mut c_void,
    threshold: c_float,
    mean: bool,
    batch: c_int,
    samples: c_int,
    len: c_int,
}

#[repr(C)]
struct RawFinish {
    state: *mut c_void,
    error: *const c_void,
    t: *const c_void,
    contrast: *const c_void,
    low: *const c_void,
    squares: *const c_void,
    update: *mut c_void,
    parts: c_int,
    batch: c_int,
    slots: c_int,
    threshold: c_float,
    dimensions: c_float,
    lambda: c_float,
    rate: f64,
    warmup: f64,
    beta1: f64,
    beta2: f64,
    decay: f64,
    clip: f64,
    ramp: bool,
}

#[repr(C)]
struct RawUpdate {
    by: *const c_void,
    gradient: *const c_void,
    parameters: *mut c_void,
    first: *mut c_void,
    second: *mut c_void,
    average: *mut c_void,
    compute: *mut c_void,
    quads: c_long,
    beta1: c_float,
    beta2: c_float,
    eps: c_float,
    weight_decay: c_float,
}

unsafe extern "C" {
    fn lcf_draw(d: *const RawDraw, stream: *mut c_void) -> c_int;
    fn lcf_flow_loss(l: *const RawLoss, stream: *mut c_void) -> c_int;
    fn lcf_update_parts() -> c_int;
    fn lcf_update(f: *const RawFinish, u: *const RawUpdate, parts: *mut c_void, stream: *mut c_void) -> c_int;
}

/// What a step draws from, fixed for a training.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    /// Bases of the streams of random numbers for times, noise and flips; no flips without the last.
    pub time: u64,
    /// Likewise.
    pub noise: u64,
    /// Likewise.
    pub flip: Option<u64>,
    /// Samples with t below it come first. It is the t of the positives.
    pub threshold: f32,
    /// Mean and standard deviation of logit(t), which is normal; without them t is uniform. `threshold` is 0 with them.
    pub logit_normal: Option<(f32, f32)>,
    /// Samples of a step, over all ranks.
    pub batch: i64,
    /// Anchor slots of a step, over all ranks: a copy of so many samples, the first ones, at the threshold follows them.
    pub slots: i64,
    /// R, between which samples and slots are dealt: place p is that of rank p mod R.
    pub ranks: i64,
    /// The one that draws.
    pub rank: i64,
    /// Steps of an epoch.
    pub steps_per_epoch: i64,
    /// Side of a patch in pixels.
    pub patch: i64,
}

impl Draws {
    /// How many of the first `count` places are this rank's.
    fn dealt(&self, count: i64) -> i64 {
        (count + self.ranks - 1 - self.rank) / self.ranks
    }

    /// B, the samples of this rank.
    pub fn own_batch(&self) -> i64 {
        self.dealt(self.batch)
    }

    /// K, the anchor slots of this rank.
    pub fn own_slots(&self) -> i64 {
        self.dealt(self.slots)
    }
}

/// What a step drew for a rank.
#[derive(Debug)]
pub struct Drawn {
    /// Times, fp32 `[B + K]`.
    pub t: Tensor,
    /// Number of samples with t below the threshold, over all ranks, int32 `[1]`.
    pub low: Tensor,
    /// x_t as patches in the order (c, y, x), bf16 `[B + K, N, C p p]`.
    pub patches: Tensor,
    /// eps - x_0 as patches in the order (y, x, c), fp32 `[B, N, p p C]`.
    pub target: Tensor,
    /// Sinusoidal embedding of 1000 t, bf16 `[B + K, 256]`.
    pub frequencies: Tensor,
    /// Whether the slots of this rank have an anchor, bool `[K]`.
    pub ends: Tensor,
}

/// The draws of the step that `state` is at. images: uint8 `[N, C, S, S]`; order: int64, of the epoch's images.
pub fn draw(with: &Draws, state: &Tensor, images: &Tensor, order: &Tensor) -> Drawn {
    let (count, channels, side, _) = images.size4().expect("images are [N, C, S, S]");
    let (b, slots) = (with.own_batch(), with.own_slots());
    let all = b + slots;
    let device = images.device();
    assert!(with.slots <= with.batch && side % with.patch == 0, "{} slots, patch {}", with.slots, with.patch);
    assert!((0..with.ranks).contains(&with.rank), "rank {} of {}", with.rank, with.ranks);
    let drawn_from = with.batch * with.steps_per_epoch;
    assert!(order.numel() as i64 >= drawn_from, "order of {} images", order.numel());
    let (tokens, patch_len) = ((side / with.patch).pow(2), channels * with.patch.pow(2));
    let ids = Tensor::empty([2, b], (Kind::Int64, device));
    let drawn = Drawn {
        t: Tensor::empty([all], (Kind::Float, device)),
        low: Tensor::empty([1], (Kind::Int, device)),
        patches: Tensor::empty([all, tokens, patch_len], (Kind::BFloat16, device)),
        target: Tensor::empty([b, tokens, patch_len], (Kind::Float, device)),
        frequencies: Tensor::empty([all, FREQUENCIES], (Kind::BFloat16, device)),
        ends: Tensor::empty([slots], (Kind::Bool, device)),
    };
    let raw = RawDraw {
        time: with.time,
        noise: with.noise,
        flip: with.flip.unwrap_or(0),
        state: data(state, Kind::Double, STATE),
        images: data(images, Kind::Uint8, count * channels * side * side),
        order: data(order, Kind::Int64, drawn_from),
        id: ids.data_ptr(),
        image: ids.select(0, 1).data_ptr(),
        t: drawn.t.data_ptr(),
        low: drawn.low.data_ptr(),
        patches: drawn.patches.data_ptr(),
        target: drawn.target.data_ptr(),
        frequencies: drawn.frequencies.data_ptr(),
        ends: drawn.ends.data_ptr(),
        threshold: with.threshold,
        logit_mean: with.logit_normal.map_or(0.0, |(mean, _)| mean),
        logit_std: with.logit_normal.map_or(0.0, |(_, std)| std),
        batch: with.batch as c_int,
        samples: b as c_int,
        slots: slots as c_int,
        rank: with.rank as c_int,
        ranks: with.ranks as c_int,
        steps_per_epoch: with.steps_per_epoch as c_int,
        channels: channels as c_int,
        side: side as c_int,
        patch: with.patch as c_int,
    };
    // SAFETY: every tensor has the size that the kernels write or read. The order's indices are a permutation of the
    // images, which its maker answers for.
    check("draw", unsafe { lcf_draw(&raw, stream(images)) });
    drawn
}

/// The flow-matching loss over the samples with t >= threshold (all for 0): (mean square error per dimension of each
/// sample, fp32 `[B]`, 0 where not regressed; gradient of the mean over the regressed ones of the `batch` samples of all
/// ranks, like `out`). `mean`: over dimensions, else their sum. out: bf16 `[B, N, p p C]`.
pub fn flow_loss(out: &Tensor, drawn: &Drawn, batch: i64, threshold: f32, mean: bool) -> (Tensor, Tensor) {
    let samples = out.size()[0];
    let len = out.numel() as i64 / samples;
    let error = Tensor::empty([samples], (Kind::Float, out.device()));
    let gradient = out.empty_like();
    let raw = RawLoss {
        out: data(out, Kind::BFloat16, samples * len),
        target: data(&drawn.target, Kind::Float, samples * len),
        t: data(&drawn.t, Kind::Float, samples),
        low: data(&drawn.low, Kind::Int, 1),
        error: error.data_ptr(),
        gradient: gradient.data_ptr(),
        threshold,
        mean,
        batch: batch as c_int,
        samples: samples as c_int,
        len: len as c_int,
    };
    // SAFETY: sizes are checked.
    check("flow loss", unsafe { lcf_flow_loss(&raw, stream(out)) });
    (error, gradient)
}

/// How a step's numbers become an update.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Anchor slots, over all ranks.
    pub slots: i64,
    /// Samples with t below it are not regressed.
    pub threshold: f32,
    /// What a mean square error per dimension counts for in the loss.
    pub dimensions: f32,
    /// Weight of the contrastive loss.
    pub lambda: f32,
    /// Learning rate after warm-up.
    pub rate: f64,
    /// Steps of warm-up.
    pub warmup: f64,
    /// AdamW's constants.
    pub beta1: f64,
    /// Likewise.
    pub beta2: f64,
    /// Likewise.
    pub eps: f64,
    /// Likewise.
    pub weight_decay: f64,
    /// Largest length of the gradient.
    pub clip: f64,
    /// Decay of the moving average.
    pub decay: f64,
    /// Whether the decay ramps up.
    pub ramp: bool,
}

/// The tensors that an update changes: fp32 of one length, and their bf16 copy.
#[derive(Debug)]
pub struct Weights<'a> {
    /// Master weights.
    pub parameters: &'a Tensor,
    /// First moment.
    pub first: &'a Tensor,
    /// Second moment.
    pub second: &'a Tensor,
    /// Moving average.
    pub average: &'a Tensor,
    /// bf16 copy of the parameters.
    pub compute: &'a Tensor,
}

/// What a step came to, over all ranks.
#[derive(Debug)]
pub struct Outcome {
    /// Number of samples with t below the threshold, int32 `[1]`.
    pub low: Tensor,
    /// Times of the samples, fp32 `[B]` or longer.
    pub t: Tensor,
    /// Their mean square errors per dimension, fp32 `[B]`.
    pub error: Tensor,
    /// Contrastive loss, pull and push, fp32 `[3]`.
    pub contrast: Option<Tensor>,
}

/// Ends a step: adds its numbers to `state` and, when loss and gradient are finite, clips, updates by AdamW and moves the
/// average.
pub fn update(rule: &Rule, state: &Tensor, outcome: &Outcome, gradient: &Tensor, weights: &Weights) {
    let len = gradient.numel() as i64;
    assert!(len % 4 == 0, "{len} parameters with padding");
    let batch = outcome.error.numel() as i64;
    let device = gradient.device();
    // SAFETY: no pointers.
    let count = unsafe { lcf_update_parts() };
    let parts = Tensor::empty([i64::from(count)], (Kind::Float, device));
    let by = Tensor::empty([6], (Kind::Float, device));
    let finish = RawFinish {
        state: data(state, Kind::Double, STATE),
        error: data(&outcome.error, Kind::Float, batch),
        t: data(&outcome.t, Kind::Float, batch),
        contrast: outcome.contrast.as_ref().map_or(std::ptr::null_mut(), |t| data(t, Kind::Float, 3)),
        low: data(&outcome.low, Kind::Int, 1),
        squares: parts.data_ptr(),
        update: by.data_ptr(),
        parts: count,
        batch: batch as c_int,
        slots: rule.slots as c_int,
        threshold: rule.threshold,
        dimensions: rule.dimensions,
        lambda: rule.lambda,
        rate: rule.rate,
        warmup: rule.warmup,
        beta1: rule.beta1,
        beta2: rule.beta2,
        decay: rule.decay,
        clip: rule.clip,
        ramp: rule.ramp,
    };
    let update = RawUpdate {
        by: by.data_ptr(),
        gradient: data(gradient, Kind::Float, len),
        parameters: data(weights.parameters, Kind::Float, len),
        first: data(weights.first, Kind::Float, len),
        second: data(weights.second, Kind::Float, len),
        average: data(weights.average, Kind::Float, len),
        compute: data(weights.compute, Kind::BFloat16, len),
        quads: len / 4,
        beta1: rule.beta1 as c_float,
        beta2: rule.beta2 as c_float,
        eps: rule.eps as c_float,
        weight_decay: rule.weight_decay as c_float,
    };
    // SAFETY: sizes are checked.
    check("update", unsafe { lcf_update(&finish, &update, parts.data_ptr(), stream(gradient)) });
}

#[cfg(all(test, feature = "cuda-tests"))]
mod tests {
    //! Run on a GPU machine with `--features cuda-tests`.

    use super::*;
    use tch::Device;

    const DEVICE: Device = Device::Cuda(0);

    /// Ranks have the rows of one process that they are dealt, to the bit, whether they divide the batch or not.
    #[test]
    fn what_ranks_draw_is_what_one_process_draws() {
        crate::open_cuda().unwrap();
        let images = (Tensor::arange(40 * 48, (Kind::Int64, DEVICE)) * 7)
            .remainder(251)
            .to_kind(Kind::Uint8)
            .view([40, 3, 4, 4]);
        let order = (Tensor::arange(40, (Kind::Int64, DEVICE)) * 7).remainder(40);
        let draws = Draws {
            time: 1,
            noise: 2,
            flip: Some(3),
            threshold: 0.3,
            logit_normal: None,
            batch: 10,
            slots: 5,
            ranks: 1,
            rank: 0,
            steps_per_epoch: 4,
            patch: 2,
        };
        for step in 0..8 {
            let state = Tensor::zeros([STATE], (Kind::Double, DEVICE));
            let _ = state.get(state::STEP as i64).fill_(step);
            let whole = draw(&draws, &state, &images, &order);
            let present = Tensor::arange(draws.slots, (Kind::Int, DEVICE)).lt_tensor(&whole.low);
            assert_eq!(whole.ends, present);
            for (ranks, rank) in [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (4, 3)] {
                let own = Draws { ranks, rank, ..draws };
                let found = draw(&own, &state, &images, &order);
                assert_eq!(found.low, whole.low);
                assert_eq!(found.ends, present.slice(0, rank, None, ranks), "{rank} of {ranks}");
                // The places of the samples, then those of the slots.
                let rows = |x: &Tensor| {
                    let dealt = |first: i64, n: i64| x.narrow(0, first, n).slice(0, rank, None, ranks);
                    Tensor::cat(&[dealt(0, draws.batch), dealt(draws.batch, draws.slots)], 0)
                };
                assert_eq!(found.t, rows(&whole.t), "{rank} of {ranks}");
                assert_eq!(found.patches, rows(&whole.patches), "{rank} of {ranks}");
                assert_eq!(found.frequencies, rows(&whole.frequencies), "{rank} of {ranks}");
                assert_eq!(found.target, whole.target.slice(0, rank, None, ranks), "{rank} of {ranks}");
            }
        }
    }
}
