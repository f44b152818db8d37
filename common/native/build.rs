//! Compiles the C++ shim against the libtorch named by LIBTORCH.

use std::{env, path::Path};

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=src/shim.cpp");
    let root = env::var("LIBTORCH").expect("LIBTORCH is not set: run `make deps` once, or export LIBTORCH");
    let include = Path::new(&root).join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .flag_if_supported("-Wno-unused-parameter")
        .include(&include)
        .file("src/shim.cpp")
        .compile("lcf_shim");
    println!("cargo:rustc-link-search=native={}", Path::new(&root).join("lib").display());
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    // For this crate's own tests; crates above use rpath.rs.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", Path::new(&root).join("lib").display());
}
