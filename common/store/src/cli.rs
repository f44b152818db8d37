//! The command line's common part: the flags every stage has, exit codes, and how errors are printed.

use crate::{Artifact, Error, Result, artifact::MANIFEST, config, config::Section, text::visible};
use clap::{Args, Parser};
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::symlink,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Mutex,
};

/// Prints a line to stderr. `eprintln!` would panic where nobody reads it any more, as in `lcf-train 2>&1 | head -1`.
#[macro_export]
macro_rules! say {
    ($($part:tt)*) => { $crate::cli::say(&format!("{}\n", format_args!($($part)*))) };
}

/// Prints a line of the result to stdout, likewise.
#[macro_export]
macro_rules! tell {
    ($($part:tt)*) => { $crate::cli::tell(&format!("{}\n", format_args!($($part)*))) };
}

/// Prints to stderr. What nobody reads is lost, and nothing else.
pub fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Prints a part of the result to stdout. Nothing happens where its reader has seen enough, like `head`: the result is in
/// the store.
///
/// # Panics
/// With [`Failed`] for any other failure, like a full disk.
pub fn tell(text: &str) {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            panic::panic_any(Failed(format!("stdout: cannot write: {error}")))
        }
        _ => {}
    }
}

/// Flags of every stage.
#[derive(Args, Clone, Debug, Default)]
pub struct StageArgs {
    /// Config of the run, one JSON section a stage
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Override one value of the config, like train.epochs=20; may be repeated
    #[arg(long = "set", value_name = "A.B=C")]
    pub overrides: Vec<String>,
    /// Directory of all artifacts
    #[arg(long, value_name = "DIR", default_value = "data/artifacts")]
    pub store: PathBuf,
    /// Link to make to the artifact, like data/runs/RUN/STAGE
    #[arg(long, value_name = "PATH")]
    pub link: Option<PathBuf>,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

impl StageArgs {
    /// The stage's section of the config, with the overrides, validated.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the file and the JSON path.
    pub fn section<S: Section>(&self) -> Result<S> {
        config::load(&self.config, &self.overrides)
    }

    /// Whether `--link`, where given, can be made: known before hours of work rather than after them.
    ///
    /// # Errors
    /// [`Error::Usage`] for a path without a name, [`Error::Bad`] when something other than a link is in the way, or when
    /// it would lie in an artifact.
    pub fn check_link(&self) -> Result<()> {
        let Some(link) = &self.link else { return Ok(()) };
        let elsewhere = "remove it, or name another path, like data/runs/RUN/STAGE";
        if link.file_name().is_none() {
            let message = format!("--link {}: found no name in it, expected that of a link", link.display());
            return Err(Error::usage(message).with_hint("name a path like data/runs/RUN/STAGE"));
        }
        if link.symlink_metadata().is_ok_and(|meta| !meta.is_symlink()) {
            return Err(Error::bad(link, "found a file or directory, expected nothing or a link").with_hint(elsewhere));
        }
        if parent(link).join(MANIFEST).exists() {
            return Err(Error::bad(parent(link), "found an artifact, expected the directory of a run for --link")
                .with_hint("name a path like data/runs/RUN/STAGE"));
        }
        Ok(())
    }

    /// Points `--link`, where given, at the artifact; an older link is replaced in one step.
    ///
    /// # Errors
    /// Those of [`StageArgs::check_link`]; [`Error::Io`].
    pub fn link(&self, artifact: &Artifact) -> Result<()> {
        let Some(link) = &self.link else { return Ok(()) };
        let parent = parent(link);
        fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
        self.check_link()?;
        let parent = fs::canonicalize(parent).map_err(Error::io(parent, "open"))?;
        let name = link.file_name().unwrap_or_default();
        let target = relative(&parent, artifact.dir());
        let prefix = format!(".{}-", name.to_string_lossy());
        remove_stale(&parent, &prefix);
        // What is right is left alone, which also works where nothing can be written.
        if fs::read_link(link).is_ok_and(|old| old == target) {
            return Ok(());
        }
        let part = parent.join(format!("{prefix}{}", std::process::id()));
        symlink(target, &part).map_err(Error::io(&part, "link"))?;
        fs::rename(&part, parent.join(name)).map_err(Error::io(link, "link"))
    }
}

/// The directory that a link lies in.
fn parent(link: &Path) -> &Path {
    link.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes half-made links, whose names end in the number of the process that made them, of processes that are gone.
fn remove_stale(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u32>().ok());
        if process.is_some_and(|id| !Path::new("/proc").join(id.to_string()).exists()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The way from the directory `from` to `to`, both absolute, so that a store can be moved together with its runs.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(common).map(|_| Path::new(".."));
    up.chain(to.components().skip(common).map(|part| Path::new(part.as_os_str()))).collect()
}

/// The payload of a panic (`std::panic::panic_any`) that is an error all the same: it was raised where none can be returned.
#[derive(Debug)]
pub struct Failed(pub String);

/// Runs a program: parses `A`, calls `run`, prints an error as `NAME: error: ...`, its causes and a hint, and returns
/// 0 when done, 1 when it failed, 2 for wrong usage or configuration, 75 when a signal ended it and the same command
/// goes on. A panic is reported the same way.
pub fn main<A: Parser>(name: &str, run: impl FnOnce(A) -> anyhow::Result<()>) -> ExitCode {
    let args = A::parse();
    // Where the last panic was, of whatever thread.
    static PLACE: Mutex<String> = Mutex::new(String::new());
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(|at| format!("{}:{}", at.file(), at.line()));
        *PLACE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = place.unwrap_or_default();
    }));
    let result = panic::catch_unwind(AssertUnwindSafe(|| run(args)));
    let _ = panic::take_hook();
    match result {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            say(&report(name, &error));
            let known = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
            ExitCode::from(known.map_or(1, Error::exit_code))
        }
        Err(payload) if payload.is::<Failed>() => {
            let Failed(text) = payload.downcast_ref::<Failed>().expect("asked above");
            say!("{name}: error: {}", visible(first_line(text)));
            ExitCode::from(1)
        }
        Err(payload) => {
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("unknown panic");
            let place = PLACE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            say(&format!("{name}: error: {}", panicked(text, &place)));
            ExitCode::from(1)
        }
    }
}

/// The error as people read it: one line, then its causes, then the command that helps.
fn report(name: &str, error: &anyhow::Error) -> String {
    let mut text = format!("{name}: error: {}\n", visible(first_line(&error.to_string())));
    for cause in error.chain().skip(1) {
        text += &format!("  because: {}\n", visible(first_line(&cause.to_string())));
    }
    if let Some(hint) = error.chain().find_map(|cause| cause.downcast_ref::<Error>()?.hint()) {
        text += &format!("hint: {hint}\n");
    }
    text
}

/// A panic as people read it. Most are libtorch's errors, debug-printed by `unwrap`; running out of memory or of threads
/// is the one that users can do something about. Any other is most likely a mistake of ours, so its `place` is said.
fn panicked(text: &str, place: &str) -> String {
    let text = text.strip_prefix("called `Result::unwrap()` on an `Err` value: ").unwrap_or(text);
    let line = first_line(text).split("\\n").next().unwrap_or(text);
    let tried = line.split_once("you tried to allocate ").and_then(|(_, rest)| rest.split_once(" bytes"));
    let line = tried.map_or(line.to_owned(), |(bytes, _)| format!("out of memory: cannot allocate {bytes} bytes"));
    let line = if line.contains("std::bad_alloc") { "out of memory".to_owned() } else { line };
    let starved = ["out of memory", "allocate memory", "temporarily unavailable"].iter().any(|why| line.contains(why));
    match starved {
        true => line + "\nhint: lower the batch size, free memory, or raise its limit (ulimit -v)\n",
        false => {
            let line = line.strip_prefix("Torch(\"").map_or(line.clone(), |torch| format!("libtorch: {torch}"));
            let hint = "this was not foreseen: if the machine is in order, report it with the command";
            format!("{} (at {place})\nhint: {hint}\n", visible(&line))
        }
    }
}

/// libtorch appends its C++ stack to its messages; the first line says what happened.
fn first_line(text: &str) -> &str {
    text.lines().find(|line| !line.trim().is_empty()).unwrap_or(text)
}

/// Prints one JSON object to stdout.
pub fn print_json(value: &serde_json::Value) {
    tell(&format!("{value}\n"));
}

/// Whether stderr is a terminal: progress bars are drawn there only.
pub fn is_terminal() -> bool {
    io::IsTerminal::is_terminal(&io::stderr())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn relative_paths_climb_to_the_common_ancestor() {
        assert_eq!(relative(Path::new("/a/runs/x"), Path::new("/a/store/t/k")), Path::new("../../store/t/k"));
        assert_eq!(relative(Path::new("/a"), Path::new("/a/b")), Path::new("b"));
    }

    #[test]
    fn links_that_a_crash_left_half_made_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        // No process has this number: it is beyond the largest.
        for name in [".train-4194305", ".train-1", ".train-x", ".probe-4194305"] {
            symlink("nowhere", dir.path().join(name)).unwrap();
        }
        remove_stale(dir.path(), ".train-");
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".probe-4194305", ".train-1", ".train-x"]);
    }

    #[test]
    fn links_that_cannot_be_made_are_refused_before_the_work() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str| {
            let link = Some(dir.path().join(name));
            StageArgs { link, ..StageArgs::default() }.check_link().map_err(|error| {
                assert!(error.hint().is_some_and(|hint| hint.contains("data/runs/RUN/STAGE")), "{error}");
                error.to_string()
            })
        };
        assert_eq!(check("runs/r/train"), Ok(()));
        fs::create_dir(dir.path().join("key")).unwrap();
        symlink("key", dir.path().join("link")).unwrap();
        assert_eq!(check("link"), Ok(()));
        assert!(check("key").unwrap_err().ends_with("key: found a file or directory, expected nothing or a link"));
        assert!(check("..").unwrap_err().contains("found no name in it"));
        assert_eq!(check("link/train"), Ok(()));
        fs::write(dir.path().join("key").join(MANIFEST), "{}").unwrap();
        assert!(check("link/train").unwrap_err().contains("link: found an artifact, expected the directory of a run"));
    }

    #[test]
    fn panics_of_libtorch_are_one_line() {
        let torch = r#"called `Result::unwrap()` on an `Err` value: Torch("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 49152000 bytes. Error code 12 (Cannot allocate memory)\nframe #0: c10::")"#;
        let text = panicked(torch, "a.rs:1");
        assert!(
            text.starts_with("out of memory: cannot allocate 49152000 bytes\nhint: lower the batch size"),
            "{text}"
        );
        assert_eq!(
            panicked("called `Result::unwrap()` on an `Err` value: Torch(\"shape\\nframe #0\")", "a.rs:1"),
            "libtorch: shape (at a.rs:1)\nhint: this was not foreseen: if the machine is in order, report it with the command\n"
        );
        let torch = "called `Result::unwrap()` on an `Err` value: Torch(\"std::bad_alloc\")";
        assert!(panicked(torch, "a.rs:1").starts_with("out of memory\nhint: "));
        assert!(panicked("plain\nmore", "b.rs:2").starts_with("plain (at b.rs:2)\nhint: "));
    }

    #[test]
    fn errors_print_cause_and_hint() {
        let inner = Error::bad("x.bin", "found 3 bytes, expected 4").with_hint("make again");
        let outer = Err::<(), _>(inner).context("cannot read the images").unwrap_err();
        let text = report("prepare", &outer);
        assert_eq!(
            text,
            "prepare: error: cannot read the images\n  because: x.bin: found 3 bytes, expected 4\nhint: make again\n"
        );
    }
}
