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

/// How long the main thread has made no step without an excuse.
#[derive(Default)]
pub struct Stall {
    steps: u64,
    since: u64,
}

impl Stall {
    /// Milliseconds since the last of `steps`, or the last time there was an excuse.
    pub fn still_for(&mut self, now: u64, steps: u64, excused: bool) -> u64 {
        if excused || steps != self.steps {
            (self.steps, self.since) = (steps, now);
        }
        now - self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_without_steps_and_without_an_excuse_counts() {
        let mut stall = Stall::default();
        assert_eq!(stall.still_for(1000, 0, true), 0);
        assert_eq!(stall.still_for(3000, 0, false), 2000);
        assert_eq!(stall.still_for(4000, 1, false), 0);
        assert_eq!(stall.still_for(9000, 1, false), 5000);
        assert_eq!(stall.still_for(9500, 1, true), 0);
        assert_eq!(stall.still_for(9600, 1, false), 100);
    }

    #[test]
    fn time_for_which_the_process_was_stopped_counts_little() {
        let mut clock = Clock::new();
        clock.last = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap();
        assert_eq!(clock.now(), 500);
    }
}
