//! What a program runs on, as a bench notes it.

use crate::provenance::Provenance;
use serde::{Deserialize, Serialize};
use std::{fs, thread};

/// A machine and the software that computes on it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// `cpu`, or `cuda:N` and the card's name.
    pub device: String,
    /// Version of NVIDIA's driver, where there is one.
    pub driver: Option<String>,
    /// Model of the processor, where the system says it.
    pub cpu: Option<String>,
    /// Processors that this program may use.
    pub cores: usize,
    /// Version of libtorch.
    pub libtorch: String,
    /// The compiler that made the program.
    pub rustc: String,
}

impl Machine {
    /// This one. The device and libtorch are those of `provenance`.
    pub fn of(provenance: &Provenance) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            device: provenance.device.clone(),
            driver: driver(&read("/proc/driver/nvidia/version")),
            cpu: value(&read("/proc/cpuinfo"), "model name"),
            cores: thread::available_parallelism().map_or(1, usize::from),
            libtorch: provenance.libtorch.clone(),
            rustc: env!("LCF_RUSTC").to_owned(),
        }
    }

    /// The device without its number: `NVIDIA H100 80GB HBM3`, `4 x NVIDIA H100 80GB HBM3`, `CPU, 2 cores`.
    pub fn name(&self) -> String {
        if let Some(several) = self.device.strip_suffix("cpu") {
            return format!("{several}CPU, {} core{}", self.cores, if self.cores == 1 { "" } else { "s" });
        }
        let words: Vec<&str> = self.device.split(' ').collect();
        let kept: Vec<&str> =
            words.iter().copied().filter(|word| words.len() == 1 || !word.starts_with("cuda:")).collect();
        kept.join(" ")
    }

    /// [`Machine::name`] as the name of a file: `nvidia-h100-80gb-hbm3`, `cpu-2-cores`.
    pub fn file_name(&self) -> String {
        let name = self.name().to_lowercase();
        let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        words.collect::<Vec<_>>().join("-")
    }
}

/// Most memory that this process has had, as the kernel counts it (`VmHWM`).
pub fn peak_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let kib: u64 = value(&text, "VmHWM")?.strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The first value of `key` in lines of `key : value`.
fn value(text: &str, key: &str) -> Option<String> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.into_iter().find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned())
}

/// The version in `/proc/driver/nvidia/version`: the first word that is made of digits and dots.
fn driver(text: &str) -> Option<String> {
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_called_by_the_device() {
        let name = |device: &str, cores| {
            let machine = Machine { device: device.into(), cores, ..Machine::of(&Provenance::default()) };
            (machine.name(), machine.file_name())
        };
        assert_eq!(name("cpu", 2), ("CPU, 2 cores".into(), "cpu-2-cores".into()));
        assert_eq!([name("cpu", 1).1, name("2 x cpu", 8).1], ["cpu-1-core", "2-x-cpu-8-cores"]);
        let card = name("cuda:0 NVIDIA H100 80GB HBM3", 16);
        assert_eq!(card, ("NVIDIA H100 80GB HBM3".into(), "nvidia-h100-80gb-hbm3".into()));
        assert_eq!(name("4 x cuda:0 NVIDIA H100", 16).1, "4-x-nvidia-h100");
        assert_eq!(name("cuda:1", 16).1, "cuda-1");
    }

    #[test]
    fn versions_and_values_are_found() {
        let text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC 12.2.0\n";
        assert_eq!(driver(text).as_deref(), Some("580.95.05"));
        assert_eq!(driver(""), None);
        assert_eq!(value("a: b\nVmHWM:\t  12 kB\n", "VmHWM").as_deref(), Some("12 kB"));
        assert!(peak_bytes().unwrap() > 1 << 20);
        assert!(Machine::of(&Provenance::default()).rustc.starts_with("rustc "));
    }
}
