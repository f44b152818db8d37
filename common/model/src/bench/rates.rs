//! The most that a device does: what a computation that wastes nothing is measured against.

use super::synchronise;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// Time after which more repeats find nothing faster.
pub const ENOUGH: Duration = Duration::from_secs(1);
/// A product that takes longer is the largest that is tried.
const LONG: Duration = Duration::from_millis(250);

/// Side of the matrices.
fn sides(device: Device) -> &'static [i64] {
    if device == Device::Cpu { &[1024, 2048] } else { &[4096, 8192, 16384] }
}

/// Bytes of what is copied: much more than caches hold.
fn copied(device: Device) -> i64 {
    if device == Device::Cpu { 256 << 20 } else { 1 << 30 }
}

/// Operations in a second of the fastest of large square matrix products, two for a multiplication and addition. The
/// numbers are random: zeros draw less power, and a card then runs faster than it ever computes.
pub fn products(kind: Kind, device: Device, time: Duration) -> f64 {
    let mut most = 0.0f64;
    for &side in sides(device) {
        let random = || Tensor::randn([side, side], (Kind::Float, device)).to_kind(kind);
        let (a, b, out) = (random(), random(), random());
        let fastest = fastest(device, time, || drop(a.mm_out(&out, &b)));
        most = most.max(2.0 * (side as f64).powi(3) / fastest.as_secs_f64());
        if fastest > LONG {
            break;
        }
    }
    most
}

/// Bytes read and written in a second by the fastest of large copies within the device's memory.
pub fn copies(device: Device, time: Duration) -> f64 {
    let bytes = copied(device);
    let from = Tensor::randint(256, [bytes], (Kind::Uint8, device));
    let mut to = from.empty_like();
    2.0 * bytes as f64 / fastest(device, time, || to.copy_(&from)).as_secs_f64()
}

/// The shortest of repeats, the first left out.
fn fastest(device: Device, time: Duration, mut work: impl FnMut()) -> Duration {
    let mut once = || {
        let start = Instant::now();
        work();
        synchronise(device);
        start.elapsed()
    };
    once();
    let (mut best, mut total) = (Duration::MAX, Duration::ZERO);
    while total < time || best == Duration::MAX {
        let last = once();
        best = best.min(last);
        total += last;
    }
    best
}
