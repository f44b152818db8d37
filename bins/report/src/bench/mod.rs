//! `lcf-report bench`: what the benches of the stages have measured, as one table for a terminal and one page of
//! `docs/bench`, with the times of PyTorch's step beside ours.

mod page;
mod table;

use anyhow::{Context, Result};
use lcf_store::{
    Error,
    bench::{Measurement, Outcome, Rates, Times},
    stage::{pretty, write_atomic},
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What `lcf-report bench` is given.
#[derive(clap::Args, Clone, Debug)]
pub struct BenchArgs {
    /// What the stages printed with --bench --json
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// What pipelines/bench/torch_step.py printed
    #[arg(long, value_name = "FILE")]
    pub torch: Option<PathBuf>,
    /// The command that measured all of it, as the page names it
    #[arg(long, default_value = "make bench")]
    pub command: String,
    /// Write NAME.md and NAME.json there, called by the device
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A line of `torch_step.py`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Torch {
    /// Which of PyTorch's ways.
    pub what: String,
    /// How long a step took.
    #[serde(flatten)]
    pub times: Times,
    /// Images of a step.
    pub batch: f64,
    /// Most memory in use, counted as [`Outcome::peak_bytes`] is.
    pub peak_bytes: Option<u64>,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Bench {
    /// The command that measured it.
    pub command: String,
    /// What the stages said; all against the same rates, the largest that were seen.
    pub stages: Vec<Outcome>,
    /// What PyTorch took for the step of the training.
    pub torch: Vec<Torch>,
}

impl Bench {
    /// Reads the files.
    ///
    /// # Errors
    /// [`Error::Bad`] naming a file that is not what it has to be.
    pub fn read(args: &BenchArgs) -> Result<Self> {
        let mut stages: Vec<Outcome> =
            args.files.iter().map(|path| parse(path, &read(path)?)).collect::<Result<_>>()?;
        agree(&mut stages);
        let torch = match &args.torch {
            Some(path) => read(path)?.lines().map(|line| parse(path, line)).collect::<Result<_>>()?,
            None => Vec::new(),
        };
        Ok(Self { command: args.command.clone(), stages, torch })
    }

    /// PyTorch's steps as if they were ours: they do the same work on the same machine.
    fn torch_measurements(&self) -> Vec<Measurement> {
        let Some(train) = self.stages.iter().find(|outcome| outcome.stage == "train") else { return Vec::new() };
        let work = train.measurements.first().map(|step| step.work).unwrap_or_default();
        let of =
            |torch: &Torch| Measurement::new(&torch.what, torch.times, (torch.batch, "images"), work, &train.rates);
        self.torch.iter().map(of).collect()
    }

    /// Writes the page and the numbers into `dir`, and returns their paths.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn write(&self, dir: &Path) -> Result<[PathBuf; 2]> {
        fs::create_dir_all(dir).map_err(Error::io(dir, "create"))?;
        let name = self.stages[0].machine.file_name();
        let [page, numbers] = ["md", "json"].map(|kind| dir.join(format!("{name}.{kind}")));
        write_atomic(&page, page::page(self).as_bytes())?;
        write_atomic(&numbers, &pretty(self))?;
        Ok([page, numbers])
    }

    /// The table as a terminal shows it.
    pub fn text(&self) -> String {
        table::text(self)
    }
}

fn read(path: &Path) -> Result<String> {
    Ok(fs::read_to_string(path).map_err(Error::io(path, "read"))?)
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    let hint = "make bench measures anew";
    serde_json::from_str(text)
        .map_err(|error| Error::bad(path, format!("not what --bench --json prints: {error}")).with_hint(hint))
        .context("cannot read the bench")
}

/// Holds all stages that computed on the same device, in the same precision, against the largest rates that one of them
/// has seen: a rate taken while the machine did something else makes no share larger.
fn agree(stages: &mut [Outcome]) {
    let seen: Vec<(String, Rates)> =
        stages.iter().map(|outcome| (outcome.machine.device.clone(), outcome.rates.clone())).collect();
    for outcome in stages {
        let of_device = || seen.iter().filter(|(device, _)| *device == outcome.machine.device).map(|(_, rates)| rates);
        let precision = outcome.rates.precision.clone();
        let most =
            |rate: fn(&Rates) -> f64, rates: &mut dyn Iterator<Item = &Rates>| rates.map(rate).fold(0.0, f64::max);
        let rates = Rates {
            flop_per_s: most(|r| r.flop_per_s, &mut of_device().filter(|rates| rates.precision == precision)),
            bytes_per_s: most(|r| r.bytes_per_s, &mut of_device()),
            precision,
        };
        for one in &mut outcome.measurements {
            *one = Measurement::new(&one.what, one.times, (one.items, &one.item), one.work, &rates);
        }
        outcome.rates = rates;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcf_store::{bench::Work, machine::Machine};

    /// A stage on `device` that made 10 items of 1 GFLOP in 1 s, beside a rate of products.
    fn stage(name: &str, device: &str, precision: &str, flop_per_s: f64) -> Outcome {
        let rates = Rates { precision: precision.into(), flop_per_s, bytes_per_s: flop_per_s / 100.0 };
        let work = Work { flop_per_item: Some(1e9), bytes_per_item: None };
        let step = Measurement::new("step", Times::of(&[1000.0], 1), (10.0, "images"), work, &rates);
        Outcome {
            stage: name.into(),
            measurements: vec![step],
            settings: serde_json::Value::Null,
            rates,
            peak_bytes: Some(1 << 30),
            threads: 2,
            machine: Machine {
                device: device.into(),
                driver: Some("580.95.05".into()),
                cpu: Some("EPYC".into()),
                cores: 16,
                rustc: "rustc 1.95.0 (59807616e 2026-04-14)".into(),
                libtorch: "2.11.0".into(),
            },
            revision: "0123456789abcdef-dirty".into(),
            argv: vec!["target/release/lcf-train".into(), "--bench".into()],
            started: 1_795_395_723,
        }
    }

    const CARD: &str = "cuda:0 NVIDIA H100 80GB HBM3";

    pub(super) fn bench() -> Bench {
        let torch = Torch {
            what: "PyTorch eager".into(),
            times: Times::of(&[2000.0, 2000.0], 5),
            batch: 10.0,
            peak_bytes: Some(2 << 30),
        };
        let mut stages = vec![
            stage("train", CARD, "bf16", 1e11),
            stage("probe", CARD, "fp32", 4e10),
            stage("extract", CARD, "bf16", 2e11),
        ];
        stages[1].measurements[0].work = Work::default();
        agree(&mut stages);
        Bench { command: "make bench P=cifar10-lcf".into(), stages, torch: vec![torch] }
    }

    #[test]
    fn stages_are_held_against_the_largest_rates_of_their_precision() {
        let bench = bench();
        let shares: Vec<_> = bench.stages.iter().map(|outcome| outcome.measurements[0].share).collect();
        assert_eq!(shares, [Some(0.05), None, Some(0.05)]);
        let rates: Vec<_> = bench.stages.iter().map(|o| (o.rates.flop_per_s, o.rates.bytes_per_s)).collect();
        assert_eq!(rates, [(2e11, 2e9), (4e10, 2e9), (2e11, 2e9)]);
        let mut apart = vec![stage("train", CARD, "bf16", 2e11), stage("train", "cpu", "bf16", 1e11)];
        agree(&mut apart);
        assert_eq!(apart[1].rates.flop_per_s, 1e11);
    }

    #[test]
    fn pytorch_does_the_same_work() {
        let torch = &bench().torch_measurements()[0];
        assert_eq!((torch.items_per_s, torch.share), (5.0, Some(0.025)));
        let line = r#"{"what": "PyTorch eager", "n": 3, "pieces": 5, "median_ms": 2.0, "p5_ms": 1.0, "p95_ms": 3.0,
            "batch": 256, "peak_bytes": null, "anchors": 6}"#;
        let torch: Torch = parse(Path::new("torch.json"), line).unwrap();
        assert_eq!((torch.times.n, torch.batch, torch.peak_bytes), (3, 256.0, None));
    }
}
