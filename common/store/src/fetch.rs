//! Downloads named in `data/SOURCES.json`: resumed when interrupted, verified by size and SHA-256 before anyone sees them.

use crate::{Error, Result, cli::is_terminal, digest, stage::sync_dir};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

/// How often `curl` is started for one file before its last error is reported.
const ATTEMPTS: u32 = 5;

/// Exit codes of `curl` that a later attempt may not see: no connection, a transfer that stopped half-way.
const TRANSIENT: [i32; 8] = [7, 18, 28, 35, 52, 55, 56, 92];

/// Exit code of `curl`: the server cannot continue a partial file.
const CANNOT_RESUME: i32 = 33;

/// Copies one member (`argv[2]`) of a wheel (`argv[1]`) to a file (`argv[3]`).
const EXTRACT: &str = "import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as member, open(sys.argv[3], 'wb') as out:
    shutil.copyfileobj(member, out)";

/// One file of `SOURCES.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    /// Its name in the downloads directory.
    file: String,
    bytes: u64,
    sha256: String,
    from: From,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
enum From {
    /// `https:`, or `file:` for tests.
    Url(String),
    /// A member of a package's wheel.
    Pip { package: String, version: String, member: String },
}

/// Returns the path of the download called `name` in the file `sources`, verified; fetches it to `downloads` when it is
/// not there. What an interrupted fetch left is continued.
///
/// # Errors
/// [`Error::Bad`] with what was found, what was expected, and how to go on; a wrong file is never returned.
pub fn fetch(sources: &Path, name: &str, downloads: &Path) -> Result<PathBuf> {
    let source = read(sources, name)?;
    let target = downloads.join(&source.file);
    if !target.exists() {
        fs::create_dir_all(downloads).map_err(Error::io(downloads, "create"))?;
        let path = downloads.join(format!(".{}.lock", source.file));
        let lock = File::create(&path).map_err(Error::io(&path, "create"))?;
        lock.lock().map_err(Error::io(&path, "lock"))?;
        // Another process may have fetched it while this one waited.
        if !target.exists() {
            return source.download(&target, &downloads.join(format!("{}.part", source.file)));
        }
    }
    source
        .verify(&target)
        .map_err(|e| e.with_hint(format!("rm {} and run again to fetch it anew", target.display())))?;
    Ok(target)
}

fn read(sources: &Path, name: &str) -> Result<Source> {
    let text = fs::read(sources).map_err(|error| {
        Error::bad(sources, format!("cannot read: {error}"))
            .with_hint("run it in the repository, or give --sources and --downloads")
    })?;
    let mut all: BTreeMap<String, Source> =
        serde_json::from_slice(&text).map_err(|e| Error::bad(sources, format!("not a list of sources: {e}")))?;
    for (name, source) in &all {
        source.validate().map_err(|message| Error::bad(sources, format!("{name}.{message}")))?;
    }
    let names: Vec<_> = all.keys().cloned().collect();
    all.remove(name)
        .ok_or_else(|| Error::bad(sources, format!("no source {name}, expected one of {}", names.join(", "))))
}

impl Source {
    fn validate(&self) -> Result<(), String> {
        if self.file.is_empty() || self.file.starts_with('.') || self.file.contains('/') {
            return Err(format!("file: {:?} is not a plain file name", self.file));
        }
        if self.sha256.len() != 64 || !self.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(format!("sha256: {:?} is not 64 lowercase hexadecimal digits", self.sha256));
        }
        match &self.from {
            From::Url(url) if !url.starts_with("https://") && !url.starts_with("file://") => {
                Err(format!("from.url: {url} does not start with https://"))
            }
            // Anything else could be an address or an option to pip.
            From::Pip { package, version, .. } if !is_name(package) || !is_name(version) => {
                Err(format!("from.pip: {package:?} == {version:?} is not a package and a version"))
            }
            _ => Ok(()),
        }
    }

    /// Size first: it is free, and says more than a hash when a file is cut off.
    fn verify(&self, path: &Path) -> Result<()> {
        let bytes = fs::metadata(path).map_err(Error::io(path, "stat"))?.len();
        if bytes != self.bytes {
            return Err(Error::bad(path, format!("found {bytes} bytes, expected {}", self.bytes)));
        }
        let (_, sha256) = digest::of_file(path)?;
        if sha256 != self.sha256 {
            return Err(Error::bad(path, format!("found sha256 {sha256}, expected {}", self.sha256)));
        }
        Ok(())
    }

    fn download(&self, target: &Path, part: &Path) -> Result<PathBuf> {
        // A complete part is what a process that died before the rename leaves.
        if size(part) < self.bytes {
            let megabytes = self.bytes as f64 / 1e6;
            crate::say!("fetching {} ({megabytes:.1} MB) from {}", target.display(), self.origin());
            match &self.from {
                From::Url(url) => curl(url, part),
                From::Pip { package, version, member } => pip(&format!("{package}=={version}"), member, part),
            }
            .map_err(|error| self.by_hand(error, target))?;
        }
        self.verify(part).map_err(|error| self.settle(error, part))?;
        File::open(part).and_then(|file| file.sync_all()).map_err(Error::io(part, "sync"))?;
        fs::rename(part, target).map_err(Error::io(target, "rename into place"))?;
        sync_dir(target.parent().unwrap_or(Path::new(".")))?;
        Ok(target.to_owned())
    }

    fn origin(&self) -> String {
        match &self.from {
            From::Url(url) => url.clone(),
            From::Pip { package, version, .. } => format!("the Python package {package}=={version}"),
        }
    }

    /// A part that is too short is kept for the next run; one that can never become right is removed.
    fn settle(&self, error: Error, part: &Path) -> Error {
        if size(part) < self.bytes && matches!(self.from, From::Url(_)) {
            return error.with_hint("run the same command again to resume the download");
        }
        let _ = fs::remove_file(part);
        let origin = self.origin();
        error.with_hint(format!("it has been removed: run again; if it stays wrong, {origin} is not what it was"))
    }

    fn by_hand(&self, error: Error, target: &Path) -> Error {
        let (origin, target) = (self.origin(), target.display());
        match error.hint() {
            Some(_) => error,
            None => {
                error.with_hint(format!("run again to resume, or put the file at {target} by hand (from {origin})"))
            }
        }
    }
}

/// Whether it is letters, digits, `.`, `_` and `-`, the first of them a letter or digit.
fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(plain)
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

fn curl(url: &str, part: &Path) -> Result<()> {
    let mut attempt = 1;
    loop {
        let mut command = Command::new("curl");
        command.args(["--fail", "--location", "--proto", "=https,file", "--proto-redir", "=https"]);
        command.args(["--connect-timeout", "30", "--speed-limit", "1000", "--speed-time", "60"]);
        command.args(["--continue-at", "-", "--show-error", if is_terminal() { "--progress-bar" } else { "--silent" }]);
        command.arg("--output").arg(part).args(["--url", url]);
        let (code, message) = run(command, part, "apt install curl")?;
        match code {
            0 => return Ok(()),
            CANNOT_RESUME if attempt < ATTEMPTS && part.exists() => {
                fs::remove_file(part).map_err(Error::io(part, "remove"))?;
            }
            code if attempt < ATTEMPTS && TRANSIENT.contains(&code) => {
                let wait = 1 << attempt;
                crate::say!("{message}; resuming in {wait} s");
                thread::sleep(Duration::from_secs(wait));
            }
            code => return Err(Error::bad(part, format!("curl ended with code {code}: {message}"))),
        }
        attempt += 1;
    }
}

fn pip(requirement: &str, member: &str, part: &Path) -> Result<()> {
    let dir = part.with_extension("pip");
    let result = wheel(requirement, &dir).and_then(|wheel| {
        let mut command = python();
        command.args(["-c", EXTRACT]).arg(&wheel).arg(member).arg(part);
        expect_zero(run(command, part, PYTHON)?, &wheel)
    });
    let _ = fs::remove_dir_all(&dir);
    result
}

/// Downloads the one wheel of `requirement` to `dir`.
fn wheel(requirement: &str, dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(dir).map_err(Error::io(dir, "create"))?;
    let mut command = python();
    command.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]);
    command.args(["--no-input", "--progress-bar", if is_terminal() { "on" } else { "off" }]);
    command.arg("--dest").arg(dir).arg(requirement);
    expect_zero(run(command, dir, PYTHON)?, dir)?;
    let entries = fs::read_dir(dir).map_err(Error::io(dir, "list"))?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| Error::bad(dir, format!("pip left no wheel of {requirement} here")))
}

/// What provides `python3` with `pip`.
const PYTHON: &str = "apt install python3-venv python3-pip";

fn python() -> Command {
    let own = Path::new(".venv/bin/python3");
    Command::new(if own.exists() { own } else { Path::new("python3") })
}

fn expect_zero((code, message): (i32, String), path: &Path) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(Error::bad(path, format!("python3 ended with code {code}: {message}"))),
    }
}

/// Runs a command to its end: its exit code (-1 for a signal) and the last line it wrote. On a terminal it draws its
/// progress there; stdout stays free for results.
fn run(mut command: Command, path: &Path, install: &str) -> Result<(i32, String)> {
    command.stdin(Stdio::null());
    if is_terminal() {
        command.stdout(io::stderr()).stderr(Stdio::inherit());
    }
    let output = command.output().map_err(|error| {
        let program = command.get_program().to_string_lossy();
        Error::bad(path, format!("cannot be fetched without {program}: {error}")).with_hint(install)
    })?;
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("see above");
    Ok((output.status.code().unwrap_or(-1), last.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with an upstream file, a SOURCES.json that names it, and a place for downloads.
    struct Site {
        dir: tempfile::TempDir,
    }

    const CONTENT: &[u8] = b"sixteen bytes...";

    impl Site {
        fn new() -> Self {
            let site = Self { dir: tempfile::tempdir().unwrap() };
            fs::write(site.upstream(), CONTENT).unwrap();
            site.describe(CONTENT.len(), &digest::of_bytes(CONTENT));
            fs::create_dir(site.downloads()).unwrap();
            site
        }
        fn describe(&self, bytes: usize, sha256: &str) {
            let url = format!("file://{}", self.upstream().display());
            let text = serde_json::json!({
                "x": {"file": "x.bin", "bytes": bytes, "sha256": sha256, "from": {"url": url}}
            });
            fs::write(self.sources(), text.to_string()).unwrap();
        }
        fn upstream(&self) -> PathBuf {
            self.dir.path().join("upstream")
        }
        fn sources(&self) -> PathBuf {
            self.dir.path().join("SOURCES.json")
        }
        fn downloads(&self) -> PathBuf {
            self.dir.path().join("downloads")
        }
        fn part(&self) -> PathBuf {
            self.downloads().join("x.bin.part")
        }
        fn fetch(&self) -> Result<PathBuf> {
            fetch(&self.sources(), "x", &self.downloads())
        }
        fn fails(&self) -> (String, String) {
            let error = self.fetch().unwrap_err();
            assert!(!self.downloads().join("x.bin").exists() || !self.part().exists());
            (error.to_string(), error.hint().unwrap())
        }
    }

    #[test]
    fn fetches_once_and_verifies_every_time() {
        let site = Site::new();
        let path = site.fetch().unwrap();
        assert_eq!(fs::read(&path).unwrap(), CONTENT);
        assert!(!site.part().exists());
        fs::remove_file(site.upstream()).unwrap();
        assert_eq!(site.fetch().unwrap(), path);
        fs::write(&path, b"sixteen BYTES...").unwrap();
        let (message, hint) = site.fails();
        assert!(message.contains("x.bin: found sha256") && message.contains("expected"), "{message}");
        assert!(hint.starts_with("rm "), "{hint}");
    }

    #[test]
    fn continues_what_an_interrupted_fetch_left() {
        let site = Site::new();
        fs::write(site.part(), &CONTENT[..7]).unwrap();
        assert_eq!(fs::read(site.fetch().unwrap()).unwrap(), CONTENT);
        // The first bytes are taken as they are, which shows that the fetch above did not start again.
        let site = Site::new();
        fs::write(site.part(), b"SIXTEEN").unwrap();
        let (message, hint) = site.fails();
        assert!(message.contains("x.bin.part: found sha256"), "{message}");
        assert!(hint.contains("run again") && !site.part().exists(), "{hint}");
        assert_eq!(fs::read(site.fetch().unwrap()).unwrap(), CONTENT);
    }

    #[test]
    fn a_part_that_is_complete_needs_no_download() {
        let site = Site::new();
        fs::remove_file(site.upstream()).unwrap();
        fs::write(site.part(), CONTENT).unwrap();
        assert_eq!(fs::read(site.fetch().unwrap()).unwrap(), CONTENT);
    }

    #[test]
    fn a_short_file_is_kept_and_a_long_one_removed() {
        let site = Site::new();
        fs::write(site.upstream(), &CONTENT[..9]).unwrap();
        let (message, hint) = site.fails();
        assert!(message.ends_with("x.bin.part: found 9 bytes, expected 16"), "{message}");
        assert!(hint.contains("resume") && site.part().exists(), "{hint}");
        fs::write(site.upstream(), [CONTENT, b"!"].concat()).unwrap();
        let (message, _) = site.fails();
        assert!(message.ends_with("found 17 bytes, expected 16"), "{message}");
        assert!(!site.part().exists());
    }

    #[test]
    fn a_failing_download_says_why_and_how_to_go_on() {
        let site = Site::new();
        fs::remove_file(site.upstream()).unwrap();
        let (message, hint) = site.fails();
        assert!(message.contains("curl ended with code 37"), "{message}");
        assert!(hint.contains("by hand"), "{hint}");
        let missing = Command::new("/no/such/program");
        let error = run(missing, Path::new("x"), "apt install it").unwrap_err();
        assert!(error.to_string().starts_with("x: cannot be fetched without /no/such/program"), "{error}");
        assert_eq!(error.hint().unwrap(), "apt install it");
    }

    #[test]
    fn sources_that_are_not_well_formed_are_named() {
        let site = Site::new();
        let error = fetch(&site.sources(), "y", &site.downloads()).unwrap_err().to_string();
        assert!(error.ends_with("no source y, expected one of x"), "{error}");
        let good = fs::read_to_string(site.sources()).unwrap();
        for (from, to, message) in [
            ("x.bin", "../x.bin", "x.file: \"../x.bin\" is not a plain file name"),
            ("file://", "http://", "does not start with https://"),
            ("\"sha256\":\"", "\"sha256\":\"z", "x.sha256"),
            ("\"bytes\"", "\"size\"", "unknown field `size`"),
        ] {
            fs::write(site.sources(), good.replace(from, to)).unwrap();
            let error = site.fetch().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn packages_are_named_and_nothing_else() {
        let site = Site::new();
        for (package, version) in
            [("--index-url=x", "1"), ("a @ http://b/c.whl", "1"), ("http://b/c.whl", "1"), ("a", ""), ("a", "1 --pre")]
        {
            let pip = serde_json::json!({"package": package, "version": version, "member": "m"});
            let text =
                serde_json::json!({"x": {"file": "x", "bytes": 1, "sha256": "0".repeat(64), "from": {"pip": pip}}});
            fs::write(site.sources(), text.to_string()).unwrap();
            let error = site.fetch().unwrap_err().to_string();
            assert!(error.contains("x.from.pip: ") && error.contains("is not a package and a version"), "{error}");
        }
    }

    #[test]
    fn missing_sources_come_with_a_hint() {
        let site = Site::new();
        fs::remove_file(site.sources()).unwrap();
        let (message, hint) = site.fails();
        assert!(message.contains("SOURCES.json: cannot read: No such file"), "{message}");
        assert_eq!(hint, "run it in the repository, or give --sources and --downloads");
    }

    #[test]
    fn our_own_sources_are_well_formed() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/SOURCES.json");
        for name in ["cifar10", "tiny-imagenet", "inception"] {
            assert!(read(&path, name).unwrap().bytes > 80_000_000);
        }
    }
}
