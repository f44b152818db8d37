//! What a person sees of a long loop: a bar on a terminal, a line now and then elsewhere.

use crate::cli;
use indicatif::{HumanCount, HumanDuration, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::{
    fmt::Write,
    sync::Mutex,
    time::{Duration, Instant},
};

/// Time between two lines where there is no terminal.
const QUIET: Duration = Duration::from_secs(10);

/// How far a loop is, with its rate and the time left, on stderr. Threads may share it.
#[derive(Debug)]
pub struct ProgressBar {
    bar: indicatif::ProgressBar,
    unit: String,
    /// When the last line was printed; none on a terminal.
    said: Option<Mutex<Instant>>,
}

/// Progress of `total` of `unit`. Its message is `label` until another is set.
///
/// # Panics
/// When `unit` holds braces.
pub fn bar(total: u64, label: &str, unit: &str) -> ProgressBar {
    let terminal = cli::is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let template =
        format!("{{msg:14}} {{wide_bar}} {{human_pos}}/{{human_len}} {unit}  {{rate}} {unit}/s  ETA {{eta}}");
    let rate = |state: &ProgressState, out: &mut dyn Write| {
        let _ = out.write_str(&rate(state.per_sec()));
    };
    let style = ProgressStyle::with_template(&template).expect("a unit without braces").with_key("rate", rate);
    let bar = indicatif::ProgressBar::with_draw_target(Some(total), target).with_style(style);
    let said = (!terminal).then(|| Mutex::new(Instant::now()));
    ProgressBar { bar: bar.with_message(label.to_owned()), unit: unit.to_owned(), said }
}

impl ProgressBar {
    /// So many more are done.
    pub fn inc(&self, n: u64) {
        self.bar.inc(n);
        let Some(said) = &self.said else { return };
        // Whoever holds the lock is saying it.
        let Ok(mut said) = said.try_lock() else { return };
        if said.elapsed() >= QUIET {
            *said = Instant::now();
            crate::say!("{}", self.line(self.bar.elapsed()));
        }
    }

    /// Says what is being done now.
    pub fn set_message(&self, message: String) {
        self.bar.set_message(message);
    }

    /// How many are done.
    pub fn position(&self) -> u64 {
        self.bar.position()
    }

    /// The end: the bar goes.
    pub fn finish_and_clear(&self) {
        self.bar.finish_and_clear();
    }

    /// What is printed where there is no terminal, `elapsed` after the start.
    fn line(&self, elapsed: Duration) -> String {
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let per_second = done as f64 / elapsed.as_secs_f64().max(1e-9);
        let left = Duration::from_secs_f64(total.saturating_sub(done) as f64 / per_second.max(1e-3));
        let (message, unit, rate) = (self.bar.message(), &self.unit, rate(per_second));
        let (done, total, left) = (HumanCount(done), HumanCount(total), HumanDuration(left));
        format!("{message}: {done} of {total} {unit}, {rate} {unit}/s, {left} left")
    }
}

/// Three digits of a rate.
fn rate(per_second: f64) -> String {
    match per_second {
        0.0..10.0 => format!("{per_second:.2}"),
        10.0..100.0 => format!("{per_second:.1}"),
        _ => format!("{per_second:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_rate_and_the_time_left() {
        let bar = bar(3000, "test", "images");
        bar.inc(1000);
        bar.set_message("train T=5".into());
        let line = bar.line(Duration::from_secs(8));
        assert_eq!(line, "train T=5: 1,000 of 3,000 images, 125 images/s, 16 seconds left");
        assert_eq!(bar.position(), 1000);
        // Before the first is done, and when more came than were announced.
        assert!(super::bar(3, "test", "images").line(Duration::ZERO).starts_with("test: 0 of 3 images, 0.00"));
        bar.inc(5000);
        assert!(bar.line(Duration::from_secs(8)).ends_with("0 seconds left"));
    }
}
