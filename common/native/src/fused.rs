//! Fused operations on the DiT's residual stream, with their gradients, and the plain ATen reference of each.

use std::{
    ffi::{CStr, c_char, c_int},
    ptr::null,
};
use tch::{TchError, Tensor};

/// `torch::Tensor` of C++, as tch's handles point to it.
type Handle = *const std::ffi::c_void;

unsafe extern "C" {
    fn lcf_last_error() -> *const c_char;
    fn lcf_has_kernels() -> c_int;
    fn lcf_residual_norm(
        x: Handle,
        gate: Handle,
        h: Handle,
        shift: Handle,
        scale: Handle,
        use_kernels: c_int,
        x_out: *mut Handle,
        y: *mut Handle,
    ) -> c_int;
}

/// Whether this program was built with the CUDA kernels.
pub fn has_kernels() -> bool {
    // SAFETY: returns a constant.
    unsafe { lcf_has_kernels() != 0 }
}

/// Which implementation computes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Engine {
    /// Plain ATen operations.
    Reference,
    /// The kernels where they take the tensors (CUDA, fp32 stream, bf16 branches, a width of 128 times 1, 2, 3, 4, 6 or
    /// 8), else the reference.
    Fused,
}

/// A residual update and the norm after it: x' = x + gate h (x itself without a branch), and
/// y = norm(x') (1 + scale) + shift, norm without weights and eps 1e-6. Returns (x', y).
///
/// x: fp32 `[B, N, D]`; branch: gate `[B, D]` and h `[B, N, D]`; shift, scale: `[B, D]`; y has the kind of shift.
///
/// # Errors
/// libtorch's, like being out of memory.
pub fn residual_norm(
    engine: Engine,
    x: &Tensor,
    branch: Option<(&Tensor, &Tensor)>,
    shift: &Tensor,
    scale: &Tensor,
) -> Result<(Tensor, Tensor), TchError> {
    let handle = |tensor: &Tensor| tensor.as_ptr() as Handle;
    let (gate, h) = branch.map_or((null(), null()), |(gate, h)| (handle(gate), handle(h)));
    let (mut x_out, mut y): (Handle, Handle) = (null(), null());
    let kernels = c_int::from(engine == Engine::Fused);
    // SAFETY: the handles outlive the call, which copies what it keeps; on success both outputs are new tensors, owned
    // by the caller.
    unsafe {
        match lcf_residual_norm(handle(x), gate, h, handle(shift), handle(scale), kernels, &mut x_out, &mut y) {
            0 => Ok((Tensor::from_ptr(x_out.cast_mut().cast()), Tensor::from_ptr(y.cast_mut().cast()))),
            _ => Err(TchError::Torch(CStr::from_ptr(lcf_last_error()).to_string_lossy().into_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn leaf(size: &[i64], kind: Kind, device: Device) -> Tensor {
        Tensor::randn(size, (Kind::Float, device)).to_kind(kind).set_requires_grad(true)
    }

    /// Values and gradients of both engines on the same inputs, as fp64: outputs x', y, then gradients of x, ada, h.
    fn both(b: i64, n: i64, d: i64, gated: bool, kind: Kind, device: Device) -> [Vec<Tensor>; 2] {
        let (x, h) = (leaf(&[b, n, d], Kind::Float, device), leaf(&[b, n, d], kind, device));
        let ada = leaf(&[b, 3 * d], kind, device);
        let weights = [leaf(&[b, n, d], Kind::Float, device), leaf(&[b, n, d], Kind::Float, device)];
        [Engine::Reference, Engine::Fused].map(|engine| {
            let parts = ada.chunk(3, 1);
            let branch = gated.then_some((&parts[2], &h));
            let (x_out, y) = residual_norm(engine, &x, branch, &parts[0], &parts[1]).unwrap();
            let loss =
                (&x_out * &weights[0]).sum(Kind::Float) + (y.to_kind(Kind::Float) * &weights[1]).sum(Kind::Float);
            let leaves = if gated { vec![&x, &ada, &h] } else { vec![&x, &ada] };
            let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
            let all = [x_out, y].into_iter().chain(gradients);
            all.map(|t| t.detach().to_kind(Kind::Double).to_device(Device::Cpu)).collect()
        })
    }

    #[test]
    fn without_cuda_both_engines_are_the_reference() {
        for gated in [false, true] {
            let [reference, fused] = both(2, 5, 12, gated, Kind::Float, Device::Cpu);
            assert_eq!(reference, fused);
        }
        let _ = has_kernels();
    }

    #[test]
    fn shapes_that_do_not_fit_are_an_error() {
        let make = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
        let (x, row, wrong) = (make(&[2, 3, 8]), make(&[2, 8]), make(&[2, 7]));
        assert!(residual_norm(Engine::Fused, &x, None, &row, &wrong).is_err());
    }

    #[cfg(feature = "cuda-tests")]
    fn difference(a: &Tensor, b: &Tensor) -> f64 {
        let norm = |t: Tensor| t.square().sum(Kind::Double).sqrt().double_value(&[]);
        norm(a - b) / norm(b.copy())
    }

    /// Run on a GPU machine with `--features cuda-tests`. Tolerance: the kernels sum in fp32 in another order than
    /// ATen, and both round y, dh and the sums over tokens to bf16 (2^-9 relative), where a value that lies between
    /// two bf16 numbers may fall to either side.
    #[cfg(feature = "cuda-tests")]
    #[test]
    fn the_kernels_agree_with_the_reference() {
        crate::open_cuda().unwrap();
        assert!(has_kernels());
        let device = Device::Cuda(0);
        let sizes =
            [(3, 256, 384), (2, 1024, 768), (5, 17, 128), (1, 1, 256), (2, 100, 512), (2, 33, 1024), (7, 64, 384)];
        for (b, n, d) in sizes {
            for gated in [false, true] {
                let [reference, fused] = both(b, n, d, gated, Kind::BFloat16, device);
                for (i, (a, r)) in fused.iter().zip(&reference).enumerate() {
                    let found = difference(a, r);
                    eprintln!("B {b} N {n} D {d} gated {gated} output {i}: {found:.2e}");
                    let tolerance = if i == 0 { 1e-6 } else { 4e-3 };
                    assert!(found <= tolerance, "B {b} N {n} D {d} gated {gated} output {i}: {found:e}");
                }
            }
        }
    }
}
