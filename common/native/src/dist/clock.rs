//! What the watch measures time by.

use std::time::{Duration, Instant};

/// Milliseconds that this process has run: the time for which it was stopped counts little, so that ranks stopped
/// together go on together.
pub struct Clock {
    last: Instant,
    now: u64,
}

impl Clock {
    /// A clock at 0.
    pub fn new() -> Self {
        Self { last: Instant::now(), now: 0 }
    }

    /// The time, asked for often.
    pub fn now(&mut self) -> u64 {
        let passed = self.last.elapsed();
        self.last = Instant::now();
        self.now += passed.min(Duration::from_millis(500)).as_millis() as u64;
        self.now
    }
}

/// How long the main thread has neither made a step nor had an excuse.
#[derive(Default)]
pub struct Stall {
    steps: u64,
    since: u64,
    longest: u64,
}

impl Stall {
    /// Whether it is at the time `now`, after `steps` steps, `limit` milliseconds and five times what it has ever been.
    pub fn lasts(&mut self, now: u64, steps: u64, excused: bool, limit: u64) -> bool {
        let still = now - self.since;
        if excused || steps != self.steps {
            // The first step takes longer than others, and what was before it was none.
            self.longest = if self.steps > 0 { self.longest.max(still) } else { 0 };
            (self.steps, self.since) = (steps, now);
            return false;
        }
        // A whole step has been seen.
        steps > 1 && still > limit.max(5 * self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_without_steps_and_without_an_excuse_counts() {
        let mut stall = Stall::default();
        let mut at = |now, steps, excused| stall.lasts(now, steps, excused, 1000);
        assert!(
            !at(5000, 0, true) && !at(9000, 1, false) && !at(20_000, 1, false),
            "there was no step to compare with"
        );
        assert!(!at(20_100, 2, true) && !at(21_000, 2, false));
        assert!(!at(21_200, 2, true) && !at(22_100, 2, false), "an excuse begins it anew");
    }

    #[test]
    fn longer_than_the_limit_and_than_steps_take() {
        let stalled = |step: u64| {
            let mut stall = Stall::default();
            (0..4).for_each(|n| assert!(!stall.lasts(n * step, n, false, 1000)));
            (1..100_000).find(|later| stall.lasts(3 * step + later, 3, false, 1000)).unwrap()
        };
        assert_eq!((stalled(100), stalled(2000)), (1001, 10_001));
    }

    #[test]
    fn time_for_which_the_process_was_stopped_counts_little() {
        let mut clock = Clock::new();
        clock.last = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap();
        assert_eq!(clock.now(), 500);
    }
}
