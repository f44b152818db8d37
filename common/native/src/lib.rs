//! The one place for what is not Rust: opening libtorch's CUDA half at run time and settings of libtorch that tch does
//! not reach.
//!
//! Binaries link libtorch_cpu alone, so that they start on any machine; [`open_cuda`] adds the CUDA half where there is
//! one.

#![allow(unsafe_code)]

pub mod dist;
pub mod fused;

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
    OPENED
        .get_or_init(|| {
            // SAFETY: the name is a C string; the library's initialisers are libtorch's own.
            let handle = unsafe { libc::dlopen(c"libtorch_cuda.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
            if !handle.is_null() {
                return Ok(());
            }
            // SAFETY: dlerror returns a C string after a failed dlopen on this thread, or null.
            let reason = unsafe { libc::dlerror() };
            if reason.is_null() {
                return Err("libtorch_cuda.so: unknown reason".to_owned());
            }
            // SAFETY: not null, and valid until the next dl call on this thread.
            Err(unsafe { CStr::from_ptr(reason) }.to_string_lossy().into_owned())
        })
        .clone()
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
