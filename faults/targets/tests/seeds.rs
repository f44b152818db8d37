//! Every seed, and every input that once broke a target, goes through its target again.

use std::{fs, path::Path};

#[test]
fn nothing_breaks_again() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for (name, _) in lcf_fuzz_targets::TARGETS {
        let entries = fs::read_dir(root.join(name)).unwrap_or_else(|error| panic!("seeds of {name}: {error}"));
        let paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        assert!(!paths.is_empty(), "{name} has no seeds");
        for path in paths {
            eprintln!("{}", path.display());
            lcf_fuzz_targets::run(name, &fs::read(&path).unwrap());
        }
    }
}
