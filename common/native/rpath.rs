//! Build script of every crate that links libtorch: puts the directory of the libtorch it was built with into the
//! RUNPATH of its binaries and tests, so that they start as they are. LD_LIBRARY_PATH still overrides it.

// Cargo reads it.
#![allow(clippy::print_stdout)]

use std::{env, path::Path};

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let root = env::var("LIBTORCH").expect("LIBTORCH is not set: run `make deps` once, or export LIBTORCH");
    let lib = Path::new(&root).join("lib");
    let lib = lib.canonicalize().unwrap_or_else(|e| panic!("{}: {e}: run `make deps` once", lib.display()));
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
