//! What the benches of the stages share: their flags, the clock, the machine's own rates ([`rates`]), how much work a DiT is
//! ([`work`]), and models and images to work on ([`inputs`]).

pub mod inputs;
pub mod rates;
pub mod work;

use crate::{
    config::Precision,
    device::{self, DeviceArgs},
};
use lcf_store::{
    bench::{Measurement, Outcome, Rates, Times, Work},
    machine::{self, Machine},
    provenance::Provenance,
};
use serde_json::Value;
use std::time::{Duration, Instant};
use tch::{Cuda, Device};

/// Least time between two looks at the clock: a look waits for the device, which work that goes on does not.
const LOOK: Duration = Duration::from_millis(50);
/// Times that are taken however long they are.
const LEAST: usize = 3;
/// No more are taken after so many times the time there is.
const LONGEST: u32 = 3;

/// The flags of a stage that can be measured. A stage groups the flags of its inputs as `Inputs`.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct BenchArgs {
    /// Measure how fast this stage computes, on random weights and images of the config's shapes; reads and makes no artifact
    #[arg(long, conflicts_with_all = ["Inputs", "store", "link"])]
    pub bench: bool,
    /// Seconds that each thing is measured for
    #[arg(long, value_name = "S", default_value_t = 10.0, value_parser = seconds, conflicts_with = "Inputs")]
    bench_seconds: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    let in_range = (1e-3..=1e5).contains(&seconds);
    in_range.then_some(seconds).ok_or_else(|| format!("{seconds} is not in 0.001..=100000"))
}

impl BenchArgs {
    /// A bench on `device`, of which `devices` like it work together.
    pub fn on(&self, device: Device, devices: usize) -> Bench {
        Bench { provenance: Provenance::start(), device, devices, time: Duration::from_secs_f64(self.bench_seconds) }
    }

    /// A bench on the device that was asked for.
    ///
    /// # Errors
    /// Those of [`DeviceArgs::open`].
    pub fn open(&self, device: &DeviceArgs) -> lcf_store::Result<Bench> {
        Ok(self.on(device.open()?, 1))
    }
}

/// Something measured: a piece of work and how long it took.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What it is.
    pub what: String,
    /// How long it took.
    pub times: Times,
    /// How many of what is counted it is, and what that is.
    pub items: (f64, &'static str),
    /// What one of them takes at least.
    pub work: Work,
}

/// A bench under way.
#[derive(Debug)]
pub struct Bench {
    provenance: Provenance,
    device: Device,
    devices: usize,
    time: Duration,
}

impl Bench {
    /// Where it computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Does `piece` `warm_up` times, unless one takes all of the time there is, then again and again for the time there is, and takes the times: of several pieces in
    /// a row where one is short, so that a device is not waited for after each.
    ///
    /// # Errors
    /// Those of `piece`.
    pub fn time<E>(&self, warm_up: u32, piece: impl FnMut() -> Result<(), E>) -> Result<Times, E> {
        self.time_together(warm_up, Ok, piece)
    }

    /// [`Bench::time`] as one of several processes that have to do as many pieces: `agree` says whether one of them has
    /// the wish that this one may have.
    ///
    /// # Errors
    /// Those of `piece` and `agree`.
    pub fn time_together<E>(
        &self,
        warm_up: u32,
        mut agree: impl FnMut(bool) -> Result<bool, E>,
        mut piece: impl FnMut() -> Result<(), E>,
    ) -> Result<Times, E> {
        let mut look = |pieces: u64| {
            let start = Instant::now();
            (0..pieces).try_for_each(|_| piece())?;
            synchronise(self.device);
            Ok(start.elapsed())
        };
        let mut pieces = 1;
        let mut last = look(pieces)?;
        // A piece that takes all of the time is not made again.
        for _ in 0..warm_up {
            if !agree(last < self.time)? {
                break;
            }
            last = look(pieces)?;
        }
        while agree(last < LOOK.min(self.time / 10))? {
            pieces *= 2;
            last = look(pieces)?;
        }
        let ms = |time: Duration| time.as_secs_f64() * 1e3 / pieces as f64;
        let (mut all, mut total) = (vec![ms(last)], last);
        while agree((total < self.time || all.len() < LEAST) && total < LONGEST * self.time)? {
            last = look(pieces)?;
            all.push(ms(last));
            total += last;
        }
        Ok(Times::of(&all, pieces))
    }

    /// The outcome: what was measured, against the rates of the machine, which are taken now.
    pub fn finish(mut self, stage: &str, precision: Precision, measured: Vec<Measured>, settings: Value) -> Outcome {
        // First, since taking the rates needs memory too.
        let peak_bytes = self.peak_bytes();
        let rates = self.rates(precision);
        device::record(&mut self.provenance, self.device, false);
        if self.devices > 1 {
            self.provenance.device = format!("{} x {}", self.devices, self.provenance.device);
        }
        let of = |one: Measured| Measurement::new(&one.what, one.times, one.items, one.work, &rates);
        Outcome {
            stage: stage.to_owned(),
            measurements: measured.into_iter().map(of).collect(),
            settings,
            peak_bytes,
            machine: Machine::of(&self.provenance),
            revision: self.provenance.revision,
            argv: self.provenance.argv,
            threads: tch::get_num_threads() as usize,
            started: self.provenance.started,
            rates,
        }
    }

    fn peak_bytes(&self) -> Option<u64> {
        match self.device {
            Device::Cpu => machine::peak_bytes(),
            device => lcf_native::graph::peak_bytes(device).ok().and_then(|bytes| u64::try_from(bytes).ok()),
        }
    }

    fn rates(&self, precision: Precision) -> Rates {
        let time = self.time.min(rates::ENOUGH);
        let several = self.devices as f64;
        Rates {
            precision: precision.name().to_owned(),
            flop_per_s: several * rates::products(precision.kind(), self.device, time),
            bytes_per_s: several * rates::copies(self.device, time),
        }
    }
}

/// Waits until the device has done all that it was given.
fn synchronise(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{convert::Infallible, thread::sleep};

    fn bench(ms: u64) -> Bench {
        let args = BenchArgs { bench: true, bench_seconds: ms as f64 / 1e3 };
        args.on(Device::Cpu, 1)
    }

    #[test]
    fn long_pieces_are_timed_one_by_one_and_short_ones_in_a_row() {
        let mut made = 0;
        let slow = bench(20).time(1, || -> Result<(), Infallible> {
            made += 1;
            sleep(Duration::from_millis(25));
            Ok(())
        });
        let Ok(slow) = slow;
        assert!(slow.n <= LEAST && slow.pieces == 1 && slow.median_ms >= 25.0, "{slow:?}");
        assert_eq!(made, slow.n);
        let Ok(short) = bench(100).time(0, || -> Result<(), Infallible> {
            sleep(Duration::from_micros(100));
            Ok(())
        });
        assert!(short.n >= LEAST && short.pieces > 1 && short.p5_ms <= short.p95_ms, "{short:?}");
    }

    #[test]
    fn others_may_want_more_and_what_fails_ends_it() {
        let (mut wishes, mut made) = (vec![true, true, true, false, true, false], 0);
        wishes.reverse();
        let times = bench(1000).time_together(
            2,
            |_| wishes.pop().ok_or("asked too often"),
            || {
                made += 1;
                Ok(())
            },
        );
        // Two to warm up and one more; two in a row are enough, and one more time of them is wanted.
        let times = times.unwrap();
        assert_eq!((times.n, times.pieces, made, wishes.len()), (2, 2, 3 + 2 + 2, 0));
        assert_eq!(bench(1).time(0, || Err("broken")).unwrap_err(), "broken");
    }

    #[test]
    fn outcomes_have_rates_and_shares() {
        let bench = bench(1);
        let Ok(times) = bench.time(0, || -> Result<(), Infallible> {
            sleep(Duration::from_millis(1));
            Ok(())
        });
        let work = Work { flop_per_item: Some(1e3), bytes_per_item: None };
        let measured = Measured { what: "nothing".into(), times, items: (2.0, "images"), work };
        let outcome = bench.finish("train", Precision::Fp32, vec![measured], Value::Null);
        assert!(outcome.rates.flop_per_s > 1e6 && outcome.rates.bytes_per_s > 1e6, "{outcome:?}");
        let share = outcome.measurements[0].share.unwrap();
        assert!(share > 0.0 && share < 0.1 && outcome.peak_bytes.unwrap() > 1 << 20, "{outcome:?}");
    }
}
