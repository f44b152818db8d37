//! Notes which compiler makes the program: benches say so, also on machines that have none.

use std::{env, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let rustc = env::var("RUSTC").expect("cargo sets it");
    let output = Command::new(&rustc).arg("--version").output().unwrap_or_else(|error| panic!("{rustc}: {error}"));
    println!("cargo:rustc-env=LCF_RUSTC={}", String::from_utf8_lossy(&output.stdout).trim());
}
