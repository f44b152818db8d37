//! What the sources promise: where `unsafe` may be, where dependencies come from and under what licences, what is
//! downloaded and how it is pinned.

use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Licences that go with MIT OR Apache-2.0; the same as in deny.toml.
const LICENCES: [&str; 7] = ["MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "Zlib", "CC0-1.0", "Unicode-3.0"];
/// Where a file is mapped.
const MAP: &str = "common/store/src/npy.rs";
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Files below a directory whose name ends so, relative to the repository.
fn files(dir: &str, end: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(dir)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{dir}/{}", entry.file_name().to_str().unwrap());
        match entry.file_type().unwrap().is_dir() {
            true if !path.ends_with("/target") => found.extend(files(&path, end)),
            false if path.ends_with(end) => found.push(path),
            _ => {}
        }
    }
    found
}

/// The compiler refuses `unsafe` where nothing allows it, and clippy refuses one without its reason: what is left to check
/// is that every crate takes these lints, and who opts out.
#[test]
fn unsafe_code_is_in_the_native_crate_and_at_the_memory_map() {
    assert!(read("Cargo.toml").contains("unsafe_code = \"deny\""));
    assert!(read("Cargo.toml").contains("undocumented_unsafe_blocks = \"warn\""));
    for dir in ["bins", "common", "faults"] {
        for manifest in files(dir, "/Cargo.toml").iter().filter(|path| !path.starts_with("faults/fuzz/")) {
            let takes = read(manifest).contains("[lints]\nworkspace = true");
            assert!(takes || manifest.starts_with("common/native/"), "{manifest} does not take the workspace's lints");
        }
        for source in files(dir, ".rs").iter().filter(|path| **path != "faults/tests/security.rs") {
            // Whatever attribute it is in, and beside whatever other lints.
            let allowed = source.starts_with("common/native/") || source == MAP;
            assert!(allowed || !read(source).contains("unsafe_code"), "{source} speaks of the lint unsafe_code");
        }
    }
    let count = |text: &str| read(MAP).matches(text).count();
    assert_eq!((count("unsafe_code"), count("unsafe {")), (1, 1), "{MAP} has more unsafe code than the memory map");
    // Flags of the compiler could allow it as well.
    assert!(!read(".cargo/config.toml").contains("rustflags"));
}

#[test]
fn dependencies_come_from_the_registry_with_their_hashes() {
    let lock = read("Cargo.lock");
    let members = lock.split("[[package]]").skip(1).filter(|package| {
        let field = |name: &str| package.lines().find_map(|line| line.strip_prefix(name)).map(|v| v.trim_matches('"'));
        match field("source = ") {
            None => true,
            Some(source) => {
                assert!(source == REGISTRY && field("checksum = ").is_some_and(|sum| sum.len() == 64), "{package}");
                false
            }
        }
    });
    for package in members {
        assert!(package.contains("name = \"lcf-"), "neither ours nor from the registry: {package}");
    }
}

#[test]
fn licences_of_dependencies_go_with_ours() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"]);
    let output = cargo.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let used: Vec<&Value> = metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|node| &node["id"]).collect();
    let packages = metadata["packages"].as_array().unwrap().iter().filter(|package| used.contains(&&package["id"]));
    for package in packages {
        let licence = package["license"].as_str().unwrap_or_default();
        assert!(is_allowed(licence), "{}: licence {licence:?}", package["name"]);
    }
    let deny = read("deny.toml");
    assert!(LICENCES.iter().all(|licence| deny.contains(&format!("\"{licence}\""))), "deny.toml has another list");
}

/// An SPDX expression: one of the alternatives, all parts of which are allowed. Parentheses enclose alternatives.
fn is_allowed(expression: &str) -> bool {
    let text = expression.replace('/', " OR ");
    if let Some((before, rest)) = text.split_once('(') {
        let (inner, after) = rest.split_once(')').unwrap_or((rest, ""));
        let inner = if is_allowed(inner) { "MIT" } else { "none" };
        return is_allowed(&format!("{before}{inner}{after}"));
    }
    let known = |part: &str| LICENCES.contains(&part.split(" WITH ").next().unwrap_or(part).trim());
    text.split(" OR ").any(|alternative| alternative.split(" AND ").all(known))
}

#[test]
fn licence_expressions_are_understood() {
    for good in
        ["MIT", "MIT/GPL-3.0", "GPL-2.0 OR Zlib", "(GPL-2.0 OR MIT) AND Unicode-3.0", "Apache-2.0 WITH LLVM-exception"]
    {
        assert!(is_allowed(good), "{good}");
    }
    for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "(GPL-2.0 OR AGPL-3.0) AND MIT", "MITX"] {
        assert!(!is_allowed(bad), "{bad}");
    }
}

#[test]
fn downloads_are_pinned() {
    let sources: Value = serde_json::from_str(&read("data/SOURCES.json")).unwrap();
    for (name, source) in sources.as_object().unwrap() {
        assert_eq!(source["sha256"].as_str().unwrap().len(), 64, "{name}");
        match (source["from"]["url"].as_str(), &source["from"]["pip"]) {
            (Some(url), _) => assert!(url.starts_with("https://"), "{name}: {url}"),
            (None, pip) => assert!(pip["version"].is_string(), "{name}: neither an address nor a pinned package"),
        }
    }
    let script = read("pipelines/deps.sh");
    let installs: Vec<&str> = script.lines().filter(|line| line.contains("pip install")).collect();
    assert!(matches!(installs[..], [line] if line.contains("--require-hashes")), "{installs:?}");
    for set in ["cpu", "cuda"] {
        let list = read(format!("pipelines/libtorch-{set}.txt")).replace("\\\n", " ");
        for line in list.lines().filter(|line| !line.starts_with('#')) {
            let (package, hashes) = line.split_once(' ').unwrap_or((line, ""));
            let hashes: Vec<&str> = hashes.split_whitespace().collect();
            let whole = |hash: &&str| hash.strip_prefix("--hash=sha256:").is_some_and(|hex| hex.len() == 64);
            assert!(package.contains("=="), "{set}: {package} in any version");
            assert!(!hashes.is_empty() && hashes.iter().all(whole), "{set}: {package}: {hashes:?}");
        }
    }
}

/// Whatever is fetched by a program of ours or by make.
#[test]
fn nothing_is_fetched_over_http() {
    let scripts = ["Makefile", "pipelines/stages.mk", "pipelines/deps.sh", ".ci/run", "data/SOURCES.json"];
    for path in scripts.map(str::to_owned).into_iter().chain(files("bins", ".rs")).chain(files("common", ".rs")) {
        let text = read(&path);
        let tests = text.find("#[cfg(test)]").unwrap_or(text.len());
        let fetches = text[..tests].lines().filter(|line| line.contains("http://"));
        // A namespace is a name and no address.
        let fetches: Vec<&str> = fetches.filter(|line| !line.contains("www.w3.org")).collect();
        assert!(fetches.is_empty(), "{path}: {fetches:?}");
    }
}
