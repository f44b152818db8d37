//! The contrastive loss and its gradient on CUDA, in every reading.

use crate::ops::{check, data, fp32, stream};
use std::{
    ffi::{c_float, c_int, c_long, c_void},
    ptr::{null, null_mut},
};
use tch::{Kind, Tensor};

#[repr(C)]
struct RawContrast {
    z: *const c_void,
    low: *const c_void,
    distance: *mut c_void,
    lse: *mut c_void,
    numbers: *mut c_void,
    gradient: *mut c_void,
    len: c_long,
    scale: c_float,
    tau: c_float,
    by: c_float,
    batch: c_int,
    slots: c_int,
    rows: c_int,
    with_self: bool,
    with_positive: bool,
    pull: bool,
    push: bool,
}

unsafe extern "C" {
    fn lcf_contrast(c: *const RawContrast, features: *const c_void, length: *mut c_void, stream: *mut c_void) -> c_int;
}

/// A reading of the loss: see `lcf_train::contrast`.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Temperature.
    pub tau: f64,
    /// Whether features are scaled to unit length.
    pub unit: bool,
    /// What squared distances are multiplied by.
    pub scale: f64,
    /// Whether all but anchors are constants.
    pub detach: bool,
    /// Whether an anchor itself is in the sum under the logarithm.
    pub with_self: bool,
    /// Whether its positive is.
    pub with_positive: bool,
    /// Whether there is the distance to the positive.
    pub pull: bool,
    /// Whether there is the logarithm.
    pub push: bool,
}

/// (loss, pull and push, fp32 `[3]`; gradient of `by` times the loss, of the first B rows where the others are constants,
/// else of all). features: fp32 `[B + slots, F]`, the batch, whose first rows are the anchors, then positives; `low`, int32
/// `[1]`: how many anchors there would be if there were a slot for each. F is a multiple of 128.
pub fn contrast(features: &Tensor, slots: i64, low: &Tensor, reading: &Reading, by: f64) -> (Tensor, Tensor) {
    let (all, len) = features.size2().expect("features are [B + K, F]");
    let batch = all - slots;
    assert!(len % 128 == 0 && (0..=batch).contains(&slots) && slots <= 65_535, "{slots} of {all} rows of {len}");
    let empty = |size: &[i64]| Tensor::empty(size, (Kind::Float, features.device()));
    let rows = if reading.detach { batch } else { all };
    let (distance, lse, numbers) = (empty(&[slots, batch + 1]), empty(&[slots]), empty(&[3]));
    let gradient = empty(&[rows, len]);
    let scaled = reading.unit.then(|| (features.empty_like(), empty(&[all])));
    let raw = RawContrast {
        z: scaled.as_ref().map_or(fp32(features, all * len), |(z, _)| z.data_ptr()),
        low: data(low, Kind::Int, 1),
        distance: distance.data_ptr(),
        lse: lse.data_ptr(),
        numbers: numbers.data_ptr(),
        gradient: gradient.data_ptr(),
        len,
        scale: reading.scale as c_float,
        tau: reading.tau as c_float,
        by: by as c_float,
        batch: batch as c_int,
        slots: slots as c_int,
        rows: rows as c_int,
        with_self: reading.with_self,
        with_positive: reading.with_positive,
        pull: reading.pull,
        push: reading.push,
    };
    let (from, length) = scaled
        .as_ref()
        .map_or((null(), null_mut()), |(_, length)| (fp32(features, all * len).cast_const(), length.data_ptr()));
    // SAFETY: sizes are checked; the new tensors have the sizes that the kernels write.
    check("contrast", unsafe { lcf_contrast(&raw, from, length, stream(features)) });
    (numbers, gradient)
}
