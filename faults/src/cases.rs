//! Running many cases, counting how they ended, and saying how to repeat one that failed.

use crate::{Options, Size};
use anyhow::Result;
use lcf_store::random::{GAMMA, mix};
use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Between two lines that say how far a suite is.
const BETWEEN_PROGRESS: Duration = Duration::from_secs(10);

/// Random numbers that follow from the seed and the number of the case.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Those of case `case` of `suite`.
    pub fn new(options: &Options, suite: &str, case: usize) -> Self {
        let name = suite.bytes().fold(options.seed, |state, byte| mix(state ^ u64::from(byte)));
        Self(mix(name.wrapping_add(case as u64)))
    }

    /// The next number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(GAMMA);
        (mix(self.0) % n.max(1) as u64) as usize
    }

    /// One of `items`.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// Runs `test` for each of `cases`, of which the CI size takes `sample`. A case returns how it ended, which is counted, or
/// what does not hold. Returns whether all passed.
///
/// # Errors
/// When the result cannot be printed.
pub fn run<C: Sync>(
    suite: &str,
    options: &Options,
    cases: &[C],
    sample: usize,
    describe: impl Fn(&C) -> String + Sync,
    test: impl Fn(usize, &C) -> Result<&'static str> + Sync,
) -> Result<bool> {
    let chosen = choose(options, suite, cases.len(), sample);
    let (next, tally, failed) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()), AtomicUsize::new(0));
    let started = Instant::now();
    let (done, said) = (AtomicUsize::new(0), Mutex::new(started));
    // Full size takes an hour: how far it is, now and then.
    let progress = || {
        let done = 1 + done.fetch_add(1, Ordering::Relaxed);
        let mut said = said.lock().expect("no panic");
        if said.elapsed() >= BETWEEN_PROGRESS {
            *said = Instant::now();
            let (all, failed, seconds) = (chosen.len(), failed.load(Ordering::Relaxed), started.elapsed().as_secs());
            eprintln!("{suite}: {done} of {all} cases in {seconds} s; {failed} failed");
        }
    };
    let work = || {
        while let Some(&case) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            match test(case, &cases[case]) {
                Ok(ending) => *tally.lock().expect("no panic").entry(ending).or_insert(0usize) += 1,
                Err(error) => {
                    failed.fetch_add(1, Ordering::Relaxed);
                    eprintln!("FAILED {suite} {case}: {}\n    {error:#}", describe(&cases[case]));
                    let Options { seed, size, .. } = options;
                    let size = if *size == Size::Full { "full" } else { "ci" };
                    eprintln!("    repeat: lcf-faults {suite} --size {size} --seed {seed} --case {case} --keep");
                }
            }
            progress();
        }
    };
    std::thread::scope(|scope| {
        (0..options.jobs.max(1)).for_each(|_| drop(scope.spawn(work)));
    });
    let failed = failed.into_inner();
    let endings: Vec<String> = tally.into_inner()?.iter().map(|(ending, n)| format!("{n} {ending}")).collect();
    let seconds = started.elapsed().as_secs();
    println!(
        "{suite}: {} of {} cases in {seconds} s: {}; {failed} failed",
        chosen.len(),
        cases.len(),
        endings.join(", ")
    );
    Ok(failed == 0)
}

/// All cases, the one that was asked for, or a sample spread over them that moves with the seed.
fn choose(options: &Options, suite: &str, cases: usize, sample: usize) -> Vec<usize> {
    let sample = options.cases.unwrap_or(if options.size == Size::Full { cases } else { sample });
    match options.case {
        Some(case) => (0..cases).filter(|&own| own == case).collect(),
        None if sample >= cases => (0..cases).collect(),
        None => {
            let mut random = Random::new(options, suite, cases);
            (0..sample).map(|i| (i * cases + random.below(cases)) / sample).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(size: Size, seed: u64) -> Options {
        Options { size, seed, cases: None, case: None, jobs: 2, programs: None, repository: None, keep: false }
    }

    #[test]
    fn a_sample_is_spread_over_all_cases_and_moves_with_the_seed() {
        let chosen = choose(&options(Size::Ci, 0), "x", 100, 10);
        assert!(chosen.iter().enumerate().all(|(i, case)| (10 * i..10 * i + 10).contains(case)), "{chosen:?}");
        assert_ne!(chosen, choose(&options(Size::Ci, 1), "x", 100, 10));
        assert_eq!(choose(&options(Size::Full, 0), "x", 3, 1), [0, 1, 2]);
        assert_eq!(choose(&options(Size::Ci, 0), "x", 3, 10), [0, 1, 2]);
        let few = Options { cases: Some(2), ..options(Size::Full, 0) };
        assert_eq!(choose(&few, "x", 100, 10).len(), 2);
    }

    #[test]
    fn failures_are_counted_and_every_case_runs_once() {
        let seen = Mutex::new(Vec::new());
        let test = |case: usize, _: &usize| {
            seen.lock().unwrap().push(case);
            if case == 3 { anyhow::bail!("no") } else { Ok("done") }
        };
        let passed = run("x", &options(Size::Full, 0), &[0, 1, 2, 3, 4], 0, |c| c.to_string(), test).unwrap();
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        assert_eq!((passed, seen), (false, vec![0, 1, 2, 3, 4]));
    }
}
