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
    tau: c_float,
    by: c_float,
    batch: c_int,
    slots: c_int,
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
    /// Whether the positive of an anchor is in the sum under the logarithm, else the anchor itself is.
    pub with_positive: bool,
    /// Whether there is the distance to the positive.
    pub pull: bool,
    /// Whether there is the logarithm.
    pub push: bool,
}

/// (loss, pull and push, fp32 `[3]`; gradient of `by` times the loss by the anchors, fp32 `[B, D]`, 0 for the rest of the
/// batch). features: fp32 `[B + slots, D]`, the batch, whose first rows are the anchors, then positives; `low`, int32 `[1]`:
/// how many anchors there would be if there were a slot for each. D is a multiple of 128.
pub fn contrast(features: &Tensor, slots: i64, low: &Tensor, reading: &Reading, by: f64) -> (Tensor, Tensor) {
    let (all, len) = features.size2().expect("features are [B + K, D]");
    let batch = all - slots;
    assert!(len % 128 == 0 && (0..=batch).contains(&slots) && slots <= 65_535, "{slots} of {all} rows of {len}");
    let empty = |size: &[i64]| Tensor::empty(size, (Kind::Float, features.device()));
    let (distance, lse, numbers) = (empty(&[slots, batch + 1]), empty(&[slots]), empty(&[3]));
    let gradient = empty(&[batch, len]);
    let scaled = reading.unit.then(|| (features.empty_like(), empty(&[all])));
    let raw = RawContrast {
        z: scaled.as_ref().map_or(fp32(features, all * len), |(z, _)| z.data_ptr()),
        low: data(low, Kind::Int, 1),
        distance: distance.data_ptr(),
        lse: lse.data_ptr(),
        numbers: numbers.data_ptr(),
        gradient: gradient.data_ptr(),
        len,
        tau: reading.tau as c_float,
        by: by as c_float,
        batch: batch as c_int,
        slots: slots as c_int,
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
