//! The one place for what is not Rust: opening libtorch's CUDA half at run time, settings of libtorch that tch does not
//! reach, the CUDA kernels and CUDA graphs, each with safe Rust on top.
//!
//! Binaries link libtorch_cpu alone, so that they start on any machine; [`open_cuda`] adds the CUDA half where there is
//! one.

#![allow(unsafe_code)]

pub mod condition;
pub mod contrast;
pub mod dist;
pub mod graph;
pub mod ops;
pub mod step;

use std::{
    ffi::{CStr, c_int},
    sync::OnceLock,
};

unsafe extern "C" {
    fn lcf_set_tf32(on: c_int);
}

static OPENED: OnceLock<Result<(), String>> = OnceLock::new();

/// Opens `libtorch_cuda.so`, found through the RUNPATH of this program or `LD_LIBRARY_PATH`. Must come before the first
/// question to libtorch about CUDA, since it caches the answer for good. Later calls return what the first found.
///
/// # Errors
/// The loader's reason: no such library, or one of its own dependencies is missing.
pub fn open_cuda() -> Result<(), String> {
    OPENED.get_or_init(|| open(c"libtorch_cuda.so").map(|_| ())).clone()
}

/// Opens a shared library for good, its symbols visible to those opened later.
fn open(name: &CStr) -> Result<*mut libc::c_void, String> {
    // SAFETY: the name is a C string; the library's initialisers are libtorch's or ours.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: dlerror returns a C string after a failed dlopen on this thread, or null.
    let reason = unsafe { libc::dlerror() };
    if reason.is_null() {
        return Err(format!("{}: unknown reason", name.to_string_lossy()));
    }
    // SAFETY: not null, and valid until the next dl call on this thread.
    Err(unsafe { CStr::from_ptr(reason) }.to_string_lossy().into_owned())
}

/// Whether this program was built with the CUDA kernels.
pub fn has_kernels() -> bool {
    cfg!(lcf_cuda)
}

/// Which implementation computes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Engine {
    /// Plain libtorch operations and its automatic differentiation.
    Reference,
    /// The kernels where they take the model (CUDA, bf16, heads of 64, at most 256 tokens except on Hopper, a width of 128
    /// times 1, 2, 3, 4, 6 or 8), else the reference.
    Fused,
}

/// Whether fp32 matrix products and convolutions on CUDA may round their inputs to TF32 (10 bits of mantissa).
/// libtorch lets convolutions do so by default; evaluation turns it off.
pub fn set_tf32(on: bool) {
    // SAFETY: sets two flags of libtorch's global context.
    unsafe { lcf_set_tf32(c_int::from(on)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_cuda_is_repeatable_and_says_why_it_failed() {
        let first = open_cuda();
        assert_eq!(first, open_cuda());
        if let Err(reason) = first {
            assert!(reason.contains(".so"), "{reason}");
        }
        set_tf32(false);
    }
}
