//! One program for all targets: `LCF_FUZZ` names the one, so that libtorch is linked once.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

static TARGET: OnceLock<lcf_fuzz_targets::Target> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("LCF_FUZZ").expect("LCF_FUZZ names the target");
        let found = lcf_fuzz_targets::TARGETS.iter().find(|(own, _)| *own == name);
        found.unwrap_or_else(|| panic!("LCF_FUZZ={name}: no such target")).1
    });
    target(data);
});
