//! The pipeline under test: a tiny run, made once undisturbed, and copies of it to break.

use crate::{
    Options,
    place::{Place, copy, list, name},
    shim::Shim,
};
use anyhow::{Context, Result, ensure};
use lcf_store::Artifact;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

const CONFIG: &str = include_str!("../tiny.json");
/// Name of the run.
pub const RUN: &str = "tiny";
/// Name of a run of the same dataset with another training.
pub const OTHER: &str = "other";
/// Steps between the checkpoints of the training, which has 12.
const CHECKPOINT_STEPS: &str = "4";

/// One stage as make starts it: its command line, with `{}` for the place.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Like `train`.
    pub name: String,
    words: Vec<String>,
}

impl Stage {
    /// Whether the artifact of `stage` is one of its inputs.
    pub fn reads(&self, stage: &str) -> bool {
        let link = format!("/runs/{RUN}/{stage}");
        self.words.windows(2).any(|pair| pair[0] != "--link" && pair[1].ends_with(&link))
    }
}

/// What is tested, and with what.
#[derive(Debug)]
pub struct Bench {
    dir: TempDir,
    repository: PathBuf,
    programs: PathBuf,
    /// Faults inside of a program.
    pub shim: Shim,
    /// In the order of the pipeline.
    pub stages: Vec<Stage>,
    /// The undisturbed run.
    pub base: Place,
    /// Digest of each stage's artifact there.
    pub digests: BTreeMap<String, String>,
}

impl Bench {
    /// Makes the undisturbed run, to which all others are compared.
    ///
    /// # Errors
    /// When programs are missing or fail without being disturbed.
    pub fn new(options: &Options) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("lcf-faults-").tempdir()?;
        // Others, who have no permissions, must come as far as the store.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let compiled = || Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let repository = options.repository.clone().unwrap_or_else(compiled);
        let repository = fs::canonicalize(&repository).with_context(|| format!("{}", repository.display()))?;
        let own = std::env::current_exe()?;
        let release = options.programs.clone().or_else(|| own.parent().map(Path::to_owned)).context("no programs")?;
        let programs = install(&fs::canonicalize(release)?, dir.path())?;
        fs::write(dir.path().join("tiny.json"), CONFIG)?;
        fs::write(dir.path().join("other.json"), other_config()?)?;
        let base = Place { dir: dir.path().join("base") };
        let shim = Shim::compile(dir.path())?;
        let mut bench = Self { dir, repository, programs, shim, stages: Vec::new(), base, digests: BTreeMap::new() };
        bench.stages = bench.plan()?;
        let output = bench.make(&bench.base, RUN, &["all"]).output()?;
        ensure!(output.status.success(), "the undisturbed run failed: {}", text(&output));
        bench.digests = bench.digests_in(&bench.base)?;
        ensure!(bench.digests.len() >= bench.stages.len(), "the undisturbed run lacks stages");
        Ok(bench)
    }

    /// A directory that is removed with the bench.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Keeps the directory, and says where it is.
    pub fn keep(self) -> PathBuf {
        self.dir.keep()
    }

    /// Make for `targets` of a run in a place, without building programs. `RUN` or `other`, whose training differs.
    pub fn make(&self, place: &Place, run: &str, targets: &[&str]) -> Command {
        let mut command = Command::new("make");
        for name in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS", "CARGO_TARGET_DIR"] {
            command.env_remove(name);
        }
        command.current_dir(&self.repository).args(["--no-print-directory", "FORCED=", "SET=", "RAW=", "DEVICE=cpu"]);
        command.arg(format!("P={run}")).arg(format!("CFG={}", self.path(&format!("{run}.json")).display()));
        command.arg(format!("TARGET={}", self.programs.display())).arg(format!("DATA={}", place.dir.display()));
        quiet(command.args(targets));
        command
    }

    /// The stages, as make says it would start them.
    fn plan(&self) -> Result<Vec<Stage>> {
        let place = Place { dir: self.path("{}") };
        let output = self.make(&place, RUN, &["-n", "all"]).output()?;
        ensure!(output.status.success(), "make -n: {}", text(&output));
        let program = format!("{}/release/lcf-", self.programs.display());
        let stdout = String::from_utf8(output.stdout)?;
        let stages = stdout.lines().filter_map(|line| line.strip_prefix(&program)).map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            let name = words.next().unwrap_or_default();
            Stage { name, words: words.collect() }
        });
        Ok(stages.collect())
    }

    /// One of the stages.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn stage(&self, name: &str) -> &Stage {
        self.stages.iter().find(|stage| stage.name == name).expect("a stage of the pipeline")
    }

    /// The command of a stage in a place.
    pub fn command(&self, stage: &Stage, place: &Place) -> Command {
        let mut command = Command::new(self.programs.join("release").join(format!("lcf-{}", stage.name)));
        let from = self.path("{}").display().to_string();
        let to = place.dir.display().to_string();
        command.current_dir(&self.repository).args(stage.words.iter().map(|word| word.replace(&from, &to)));
        quiet(&mut command);
        command
    }

    /// `lcf-artifact` with these arguments.
    pub fn artifact(&self, arguments: &[&Path]) -> Command {
        let mut command = Command::new(self.programs.join("release/lcf-artifact"));
        command.args(arguments);
        command
    }

    /// A copy of the undisturbed run. Its published files are links to the same content: whoever changes one has to
    /// replace it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn copy(&self, name: &str) -> Result<Place> {
        self.copy_of(&self.base, name)
    }

    /// A copy of any place, likewise.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn copy_of(&self, from: &Place, name: &str) -> Result<Place> {
        let place = Place { dir: self.path(name) };
        let _ = fs::remove_dir_all(&place.dir);
        copy(&from.dir, &place.dir)?;
        Ok(place)
    }

    /// Digest by stage of what the links of the run lead to, everything verified.
    ///
    /// # Errors
    /// The first artifact that does not verify.
    pub fn digests_in(&self, place: &Place) -> Result<BTreeMap<String, String>> {
        let mut digests = BTreeMap::new();
        for stage in &self.stages {
            let artifact = Artifact::open_any(&place.link(&stage.name))?;
            digests.insert(stage.name.clone(), artifact.digest().to_owned());
        }
        Ok(digests)
    }

    /// What has to hold after any disturbance: all that is published verifies, make finishes, and the result is that of
    /// the undisturbed run with nothing left over.
    ///
    /// # Errors
    /// What does not hold.
    pub fn recovers(&self, place: &Place) -> Result<()> {
        place.verify()?;
        let output = self.make(place, RUN, &["all"]).output()?;
        ensure!(output.status.success(), "make does not finish: {}", text(&output));
        self.is_undisturbed(place)
    }

    /// That the run in a place has the results of the undisturbed one, and nothing is left over.
    ///
    /// # Errors
    /// What differs.
    pub fn is_undisturbed(&self, place: &Place) -> Result<()> {
        let found = self.digests_in(place)?;
        ensure!(found == self.digests, "other results: {found:?}, undisturbed {:?}", self.digests);
        place.clean()
    }
}

/// What a program wrote to stderr, or else to stdout.
pub fn text(output: &Output) -> String {
    let bytes = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// The same command, started by another one that is given in front of it.
pub fn through(front: &[&str], command: &Command) -> Command {
    let mut other = Command::new(front[0]);
    other.args(&front[1..]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => other.env(name, value),
            None => other.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        other.current_dir(dir);
    }
    other
}

/// Programs that do not disturb each other, and whose provenance asks no git.
fn quiet(command: &mut Command) {
    command.env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "passive").env("LCF_REVISION", "faults");
}

/// Makes `DIR/programs/release` with links to all programs, and checkpoints every few steps of a training.
fn install(release: &Path, dir: &Path) -> Result<PathBuf> {
    let programs = dir.join("programs");
    fs::create_dir_all(programs.join("release"))?;
    for path in list(release)?.iter().filter(|path| name(path).starts_with("lcf-") && path.extension().is_none()) {
        let own = programs.join("release").join(name(path));
        if name(path) != "lcf-train" {
            symlink(path, own)?;
            continue;
        }
        fs::write(&own, format!("#!/bin/sh\nexec {} --checkpoint-steps {CHECKPOINT_STEPS} \"$@\"\n", path.display()))?;
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755))?;
    }
    ensure!(programs.join("release/lcf-train").exists(), "{}: no lcf-train; run make build", release.display());
    Ok(programs)
}

/// The tiny run with another seed of training: it shares the dataset.
fn other_config() -> Result<String> {
    let mut config: serde_json::Value = serde_json::from_str(CONFIG)?;
    config["train"]["seed"] = 1.into();
    Ok(config.to_string())
}
