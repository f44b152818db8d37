//! What the `--bench` of a stage prints and `lcf-report bench` reads: times, amounts of work, and how much of what the
//! machine can do they are.

use crate::{cli, machine::Machine, text};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Times of equal pieces of work, in milliseconds.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Times {
    /// How many were taken.
    pub n: usize,
    /// Pieces of work between two looks at the clock; a time is their mean.
    pub pieces: u64,
    /// Half of the times are below it.
    pub median_ms: f64,
    /// One in twenty is below it.
    pub p5_ms: f64,
    /// One in twenty is above it.
    pub p95_ms: f64,
}

impl Times {
    /// Quantiles of `ms`, interpolated between neighbours as NumPy does by default.
    ///
    /// # Panics
    /// When there are no times.
    pub fn of(ms: &[f64], pieces: u64) -> Self {
        let mut sorted = ms.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * (sorted.len() - 1) as f64;
            let (low, high) = (sorted[place as usize], sorted[place.ceil() as usize]);
            low + (high - low) * place.fract()
        };
        Self { n: ms.len(), pieces, median_ms: at(0.5), p5_ms: at(0.05), p95_ms: at(0.95) }
    }
}

/// What limits a computation that wastes nothing.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// The rate of matrix products.
    Arithmetic,
    /// The rate of memory.
    Memory,
}

impl Bound {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Arithmetic => "arithmetic",
            Self::Memory => "memory",
        }
    }
}

/// The most that the device was seen to do in the same run; of several devices, all of them together.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// Number type of the matrix products: `fp32` or `bf16`.
    pub precision: String,
    /// Operations of large matrix products in a second, two for a multiplication and addition.
    pub flop_per_s: f64,
    /// Bytes read and written in a second by a copy within the device's memory.
    pub bytes_per_s: f64,
}

/// Work that an item takes at least, as far as a formula counts it.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Work {
    /// Operations of matrix products, two for a multiplication and addition.
    pub flop_per_item: Option<f64>,
    /// Bytes read and written.
    pub bytes_per_item: Option<f64>,
}

impl Work {
    /// The least seconds that an item takes at these rates, and why; none where nothing was counted.
    pub fn floor(&self, rates: &Rates) -> Option<(f64, Bound)> {
        let arithmetic = self.flop_per_item.map(|flop| (flop / rates.flop_per_s, Bound::Arithmetic));
        let memory = self.bytes_per_item.map(|bytes| (bytes / rates.bytes_per_s, Bound::Memory));
        [arithmetic, memory].into_iter().flatten().max_by(|a, b| a.0.total_cmp(&b.0))
    }
}

/// One piece of work, made again and again.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Measurement {
    /// What it is.
    pub what: String,
    /// How long it took.
    #[serde(flatten)]
    pub times: Times,
    /// What is counted: `images`, `features`, ...
    pub item: String,
    /// How many of them a piece of work is.
    pub items: f64,
    /// Of them in a second, by the median.
    pub items_per_s: f64,
    /// What one of them takes at least.
    #[serde(flatten)]
    pub work: Work,
    /// Share of the floor that is reached: the least time at the machine's rates over the median; none where no work was
    /// counted.
    pub share: Option<f64>,
    /// Which rate the floor is of.
    pub bound: Option<Bound>,
}

impl Measurement {
    /// `items` of `item` in `times`, each of which takes `work`, on a machine of these rates.
    pub fn new(what: &str, times: Times, (items, item): (f64, &str), work: Work, rates: &Rates) -> Self {
        let seconds = times.median_ms / 1e3;
        let floor = work.floor(rates);
        Self {
            what: what.to_owned(),
            times,
            item: item.to_owned(),
            items,
            items_per_s: items / seconds,
            work,
            share: floor.map(|(floor, _)| floor * items / seconds),
            bound: floor.map(|(_, bound)| bound),
        }
    }

    /// Of the floor that is reached, as people read it: `42 % (memory)`.
    pub fn share_text(&self) -> Option<String> {
        let (share, bound) = (self.share?, self.bound?);
        let percent = 100.0 * share;
        let decimals = if percent < 10.0 { 1 } else { 0 };
        Some(format!("{percent:.decimals$} % ({})", bound.name()))
    }
}

/// The bench of a stage.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The stage.
    pub stage: String,
    /// What was measured.
    pub measurements: Vec<Measurement>,
    /// The settings that they depend on.
    pub settings: Value,
    /// What the machine can do.
    pub rates: Rates,
    /// Most memory in use before the rates were taken: by tensors on a CUDA device, or by the whole process on the CPU.
    pub peak_bytes: Option<u64>,
    /// Threads of the CPU's computations.
    pub threads: usize,
    /// The machine.
    pub machine: Machine,
    /// Revision of the repository.
    pub revision: String,
    /// The command.
    pub argv: Vec<String>,
    /// When it was started, seconds since 1970 (UTC).
    pub started: u64,
}

impl Outcome {
    /// Prints it to stdout: one JSON object, or a line for each measurement and one for the machine.
    pub fn print(&self, json: bool) {
        match json {
            true => cli::print_json(&serde_json::json!(self)),
            false => cli::tell(&self.text()),
        }
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for measured in &self.measurements {
            let Times { n, median_ms, p5_ms, p95_ms, .. } = measured.times;
            let [median, low, high] = [median_ms, p5_ms, p95_ms].map(text::milliseconds);
            let share = measured.share_text().map(|share| format!(", {share} of the floor")).unwrap_or_default();
            let rate = text::digits(measured.items_per_s);
            out += &format!(
                "{}: {}: {median} (5 to 95 %: {low} to {high}, n = {n}), {rate} {}/s{share}\n",
                self.stage, measured.what, measured.item
            );
        }
        let peak = self.peak_bytes.map(|bytes| format!(", peak {}", text::size(bytes))).unwrap_or_default();
        out + &format!(
            "{}: {}: {} products {}, copy {}{peak}\n",
            self.stage,
            self.machine.name(),
            self.rates.precision,
            text::si(self.rates.flop_per_s, "FLOP/s"),
            text::si(self.rates.bytes_per_s, "B/s"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provenance::Provenance;

    #[test]
    fn quantiles_are_numpys() {
        // numpy.quantile([4, 1, 3, 2, 10], [0.5, 0.05, 0.95])
        let times = Times::of(&[4.0, 1.0, 3.0, 2.0, 10.0], 7);
        assert_eq!((times.n, times.pieces, times.median_ms), (5, 7, 3.0));
        assert!((times.p5_ms - 1.2).abs() < 1e-12 && (times.p95_ms - 8.8).abs() < 1e-12, "{times:?}");
        let one = Times::of(&[2.0], 1);
        assert_eq!([one.median_ms, one.p5_ms, one.p95_ms], [2.0; 3]);
    }

    fn rates() -> Rates {
        Rates { precision: "bf16".into(), flop_per_s: 1e12, bytes_per_s: 1e9 }
    }

    #[test]
    fn the_floor_is_the_larger_of_both_times() {
        let floor = |flop, bytes| Work { flop_per_item: flop, bytes_per_item: bytes }.floor(&rates());
        assert_eq!(floor(Some(2e12), Some(1e9)), Some((2.0, Bound::Arithmetic)));
        assert_eq!(floor(Some(2e12), Some(3e9)), Some((3.0, Bound::Memory)));
        assert_eq!(floor(None, Some(5e8)), Some((0.5, Bound::Memory)));
        assert_eq!(floor(None, None), None);
    }

    fn outcome() -> Outcome {
        // 10 items in 2 s, each of which takes 0.05 s at least.
        let work = Work { flop_per_item: Some(5e10), bytes_per_item: None };
        let times = Times::of(&[2000.0], 1);
        let step = Measurement::new("step", times, (10.0, "images"), work, &rates());
        let other = Measurement::new("distance", times, (1.0, "distances"), Work::default(), &rates());
        let machine = Machine { device: "cpu".into(), cores: 2, ..Machine::of(&Provenance::default()) };
        Outcome {
            stage: "train".into(),
            measurements: vec![step, other],
            settings: serde_json::json!({"batch": 10}),
            rates: rates(),
            peak_bytes: Some(3 << 20),
            threads: 2,
            machine,
            revision: "abc".into(),
            argv: vec!["lcf-train".into()],
            started: 0,
        }
    }

    #[test]
    fn shares_and_rates_follow_from_the_median() {
        let outcome = outcome();
        let step = &outcome.measurements[0];
        assert_eq!((step.items_per_s, step.share, step.bound), (5.0, Some(0.25), Some(Bound::Arithmetic)));
        let text = outcome.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "train: step: 2.00 s (5 to 95 %: 2.00 s to 2.00 s, n = 1), 5.00 images/s, 25 % (arithmetic) of the floor",
                "train: distance: 2.00 s (5 to 95 %: 2.00 s to 2.00 s, n = 1), 0.500 distances/s",
                "train: CPU, 2 cores: bf16 products 1.00 TFLOP/s, copy 1.00 GB/s, peak 3.0 MiB",
            ]
        );
    }

    #[test]
    fn json_is_read_as_it_was_written() {
        let outcome = outcome();
        let json = serde_json::to_value(&outcome).unwrap();
        assert_eq!(
            (&json["measurements"][0]["median_ms"], &json["measurements"][0]["bound"]),
            (&2000.0.into(), &"arithmetic".into())
        );
        assert_eq!(serde_json::from_value::<Outcome>(json).unwrap(), outcome);
    }
}
