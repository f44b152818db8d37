//! Compiles the C++ against the libtorch named by LIBTORCH, and the CUDA part where there is a compiler for it: the one
//! named by NVCC, or the one that `make deps CUDA=1` installs beside libtorch.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The kernels: no libtorch in them.
const KERNELS: [&str; 10] =
    ["attention", "attention90", "choose", "condition", "contrast", "mlp90", "norm", "pointwise", "step", "weights90"];

/// The one that calls what the toolkit keeps in a library of device code.
const LINKED: &str = "choose";

/// What needs libtorch's CUDA classes.
const SHARED: &str = "liblcf_cuda.so";

/// Machine code for Ampere data-centre cards and Hopper with its own instructions, and PTX that drivers compile for every later card.
const TARGETS: [&str; 3] =
    ["arch=compute_80,code=sm_80", "arch=compute_90a,code=sm_90a", "arch=compute_80,code=compute_80"];

fn main() {
    for name in ["LIBTORCH", "NVCC"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rustc-check-cfg=cfg(lcf_cuda)");
    let root = env::var("LIBTORCH").expect("LIBTORCH is not set: run `make deps` once, or export LIBTORCH");
    let root = PathBuf::from(&root).canonicalize().unwrap_or_else(|e| panic!("{root}: {e}: run `make deps` once"));
    // What `make deps` touches when it adds nvcc beside it.
    println!("cargo:rerun-if-changed={}", root.join("lib/libtorch_cpu.so").display());
    let mut build = cpp(&root);
    build.file("src/shim.cpp");
    dist(&mut build);
    if let Some(nvcc) = nvcc(&root) {
        let toolkit = nvcc.parent().and_then(Path::parent).expect("nvcc lies in ROOT/bin").to_owned();
        build.include(toolkit.join("include")).file("src/cuda/blas.cpp");
        for object in kernels(&nvcc, &toolkit) {
            build.object(object);
        }
        build.object(linked(&nvcc, &toolkit));
        shared(&root, &toolkit);
        // Statically, so that a machine without CUDA can start the program.
        for lib in ["lib", "lib64"] {
            println!("cargo:rustc-link-search=native={}", toolkit.join(lib).display());
        }
        println!("cargo:rustc-link-lib=static=cudart_static");
        for lib in ["rt", "pthread", "dl"] {
            println!("cargo:rustc-link-lib={lib}");
        }
        println!("cargo:rustc-cfg=lcf_cuda");
    } else {
        build.file("src/cuda/absent.cpp");
        std::fs::write(out(SHARED), []).expect("OUT_DIR can be written");
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
    build.file("src/dist.cpp").include("src/gloo_stub").define("USE_C10D_GLOO", None);
}

fn cpp(libtorch: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").flag_if_supported("-Wno-unused-parameter").flag_if_supported("-Wno-attributes");
    build.include(libtorch.join("include")).include(libtorch.join("include/torch/csrc/api/include"));
    build
}

fn nvcc(libtorch: &Path) -> Option<PathBuf> {
    let beside = libtorch.parent().map(|site| site.join("nvidia/cu13/bin/nvcc"));
    env::var_os("NVCC").map(PathBuf::from).or(beside).filter(|path| path.exists())
}

fn out(name: &str) -> PathBuf {
    PathBuf::from(env::var("OUT_DIR").expect("cargo sets it")).join(name)
}

/// Compiles the kernels, all at once, and returns the object files.
fn kernels(nvcc: &Path, toolkit: &Path) -> Vec<PathBuf> {
    let objects: Vec<PathBuf> = KERNELS.iter().map(|name| out(&format!("{name}.o"))).collect();
    let start = |(name, object): (&&str, &PathBuf)| {
        let mut command = Command::new(nvcc);
        command.args(["-O3", "-std=c++17", "-Xcompiler", "-fPIC"]).arg("-I").arg(toolkit.join("include"));
        command.args(TARGETS.iter().flat_map(|target| ["-gencode", target]));
        command.args((**name == *LINKED).then_some("-rdc=true"));
        command.arg("-c").arg(format!("src/cuda/{name}.cu")).arg("-o").arg(object);
        command.spawn().unwrap_or_else(|error| panic!("{}: {error}", nvcc.display()))
    };
    let running: Vec<_> = KERNELS.iter().zip(&objects).map(start).collect();
    for mut child in running {
        let status = child.wait().expect("the compiler ends");
        assert!(status.success(), "{} could not compile the kernels; NVCC= builds without them", nvcc.display());
    }
    objects
}

/// Links the device code of [`LINKED`], and returns the object file of that.
fn linked(nvcc: &Path, toolkit: &Path) -> PathBuf {
    let object = out(&format!("{LINKED}.linked.o"));
    let mut command = Command::new(nvcc);
    command.args(["-dlink", "-Xcompiler", "-fPIC"]).args(TARGETS.iter().flat_map(|target| ["-gencode", target]));
    command.args(["lib", "lib64"].map(|lib| format!("-L{}", toolkit.join(lib).display())));
    command.arg(out(&format!("{LINKED}.o"))).arg("-lcudadevrt").arg("-o").arg(&object);
    let status = command.status().unwrap_or_else(|error| panic!("{}: {error}", nvcc.display()));
    assert!(status.success(), "{} could not link the kernels; NVCC= builds without them", nvcc.display());
    object
}

/// Compiles what needs libtorch's CUDA classes into a shared object, which the library carries. Its symbols are found in
/// libtorch_cuda.so once that is open, so nothing is linked here.
fn shared(libtorch: &Path, toolkit: &Path) {
    let compiler = cpp(libtorch).include(toolkit.join("include")).get_compiler();
    let mut command = compiler.to_command();
    command.args(["-shared", "-fPIC", "src/cuda/graph.cpp", "-o"]).arg(out(SHARED));
    let status = command.status().unwrap_or_else(|error| panic!("{}: {error}", compiler.path().display()));
    assert!(status.success(), "could not compile src/cuda/graph.cpp; NVCC= builds without CUDA kernels");
}
