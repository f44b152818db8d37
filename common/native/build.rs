//! Compiles the C++ against the libtorch named by LIBTORCH, and the CUDA kernels where there is a compiler for them:
//! the one named by NVCC, or the one that `make deps CUDA=1` installs beside libtorch.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    for name in ["LIBTORCH", "NVCC"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    for file in ["shim.cpp", "ops.cpp", "kernels.cu"] {
        println!("cargo:rerun-if-changed=src/{file}");
    }
    let root = env::var("LIBTORCH").expect("LIBTORCH is not set: run `make deps` once, or export LIBTORCH");
    let root = PathBuf::from(&root).canonicalize().unwrap_or_else(|e| panic!("{root}: {e}: run `make deps` once"));
    // What `make deps` touches when it adds nvcc beside it.
    println!("cargo:rerun-if-changed={}", root.join("lib/libtorch_cpu.so").display());
    let cuda = nvcc(&root);
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").flag_if_supported("-Wno-unused-parameter").flag_if_supported("-Wno-attributes");
    build.include(root.join("include")).include(root.join("include/torch/csrc/api/include"));
    build.file("src/shim.cpp").file("src/ops.cpp");
    dist(&mut build);
    if let Some(nvcc) = cuda {
        build.define("LCF_KERNELS", None).object(kernels(&nvcc));
    }
    build.compile("lcf_shim");
    let lib = root.join("lib").display().to_string();
    println!("cargo:rustc-link-search=native={lib}");
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    // For this crate's own tests; crates above use rpath.rs.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
}

/// c10d's process groups. The wheel lacks Gloo's headers: `src/gloo_stub` has what libtorch's own name of them.
fn dist(build: &mut cc::Build) {
    for path in ["dist.cpp", "nccl.hpp", "gloo_stub"] {
        println!("cargo:rerun-if-changed=src/{path}");
    }
    build.file("src/dist.cpp").include("src/gloo_stub").define("USE_C10D_GLOO", None);
}

fn nvcc(libtorch: &Path) -> Option<PathBuf> {
    let beside = libtorch.parent().map(|site| site.join("nvidia/cu13/bin/nvcc"));
    env::var_os("NVCC").map(PathBuf::from).or(beside).filter(|path| path.exists())
}

/// Machine code for Ampere data-centre cards and Hopper, and PTX that drivers compile for every later card.
const TARGETS: [&str; 3] =
    ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_80,code=compute_80"];

/// Compiles the kernels and returns the object file.
fn kernels(nvcc: &Path) -> PathBuf {
    let object = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it")).join("kernels.o");
    let root = nvcc.parent().and_then(Path::parent).expect("nvcc lies in ROOT/bin");
    let mut command = Command::new(nvcc);
    command.args(["-O3", "-std=c++17", "-Xcompiler", "-fPIC"]).arg("-I").arg(root.join("include"));
    command.args(TARGETS.iter().flat_map(|target| ["-gencode", target]));
    command.args(["-c", "src/kernels.cu", "-o"]).arg(&object);
    let status = command.status().unwrap_or_else(|error| panic!("{}: {error}", nvcc.display()));
    assert!(status.success(), "{} could not compile src/kernels.cu; NVCC= builds without kernels", nvcc.display());
    // Statically, so that a machine without CUDA can start the program.
    for lib in ["lib", "lib64"] {
        println!("cargo:rustc-link-search=native={}", root.join(lib).display());
    }
    println!("cargo:rustc-link-lib=static=cudart_static");
    for lib in ["rt", "pthread", "dl"] {
        println!("cargo:rustc-link-lib={lib}");
    }
    object
}
