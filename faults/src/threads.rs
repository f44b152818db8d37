//! The same config gives the same bytes on the CPU, whatever the number of threads and wherever it runs.

use crate::{
    Options,
    bench::{Bench, RUN, text},
    cases,
    place::Place,
};
use anyhow::{Result, ensure};
use lcf_store::Artifact;
use std::fs;

/// Variables that programs take their number of threads from.
const VARIABLES: [&str; 3] = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"];
/// The smoke run, whose matrices are large enough for several threads, cut short.
const SMOKE: [&str; 2] = ["CFG=pipelines/smoke.json", "SET=train.epochs=1"];
/// Its stages that compute. Distances are compared in the tiny run.
const STAGES: [&str; 5] = ["prepare", "train", "extract", "probe", "sample"];

/// Runs them.
///
/// # Errors
/// When a case cannot be set up.
pub fn run(bench: &Bench, options: &Options) -> Result<bool> {
    let smoke = smoke(bench, "threads-base", "1")?;
    let cases: Vec<(bool, &str)> = [(true, "2"), (true, "3"), (false, "2"), (false, "3")].to_vec();
    let describe = |(is_smoke, threads): &(bool, &str)| format!("smoke: {is_smoke}, threads: {threads}");
    let test = |case, (is_smoke, threads): &(bool, &str)| {
        let name = format!("threads-{case}/another/directory");
        match is_smoke {
            true => ensure!(self::smoke(bench, &name, threads)? == smoke, "smoke: other digests than on one thread"),
            false => tiny(bench, &name, threads)?,
        }
        fs::remove_dir_all(bench.path(&format!("threads-{case}")))?;
        Ok("same digests")
    };
    cases::run("threads", options, &cases, 2, describe, test)
}

/// Digests of the smoke run's stages, made in a directory of this name.
fn smoke(bench: &Bench, name: &str, threads: &str) -> Result<Vec<String>> {
    let place = Place { dir: bench.path(name) };
    let mut make = bench.make(&place, RUN, &["probe", "sample"]);
    make.envs(VARIABLES.map(|variable| (variable, threads)));
    let output = make.args(SMOKE).output()?;
    ensure!(output.status.success(), "{}", text(&output));
    STAGES.iter().map(|stage| Ok(Artifact::open_any(&place.link(stage))?.digest().to_owned())).collect()
}

/// The tiny run, which was made on one thread, in another directory.
fn tiny(bench: &Bench, name: &str, threads: &str) -> Result<()> {
    let place = Place { dir: bench.path(name) };
    let mut make = bench.make(&place, RUN, &["all"]);
    make.envs(VARIABLES.map(|variable| (variable, threads)));
    let output = make.output()?;
    ensure!(output.status.success(), "{}", text(&output));
    bench.is_undisturbed(&place)
}
