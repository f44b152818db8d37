//! What a person sees while it trains: a bar on a terminal, a line now and then elsewhere.

use crate::metrics::Window;
use indicatif::{ProgressBar, ProgressStyle};
use lcf_store::{cli, say};
use std::time::{Duration, Instant};

/// Time between two lines where there is no terminal.
const QUIET: Duration = Duration::from_secs(30);

/// Shows how far the training is, on stderr.
#[derive(Debug)]
pub struct Display {
    bar: Option<ProgressBar>,
    total: u64,
    last: Instant,
}

impl Display {
    /// Starts at `step` of `total`.
    pub fn new(step: u64, total: u64) -> Self {
        let bar = cli::is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_position(step);
            let style = "{bar:30} {pos}/{len} steps  {elapsed} of {duration}  ETA {eta}  {msg}";
            bar.set_style(ProgressStyle::with_template(style).expect("a valid template"));
            bar.reset_eta();
            bar
        });
        Self { bar, total, last: Instant::now() }
    }

    /// Moves on to `step` steps made.
    pub fn update(&mut self, step: u64, epoch: f64, window: &Window, batch: usize) {
        let ms = window.ms_per_step();
        let text = || {
            let img_per_s = batch as f64 * 1e3 / ms.max(1e-9);
            format!("epoch {epoch:.2}  flow {:.4}  {ms:.1} ms/step  {img_per_s:.0} img/s", window.flow())
        };
        match &self.bar {
            Some(bar) => {
                bar.set_position(step);
                bar.set_message(text());
            }
            None if self.last.elapsed() >= QUIET => {
                self.last = Instant::now();
                let left = Duration::from_secs_f64((self.total - step) as f64 * ms / 1e3);
                let left = indicatif::HumanDuration(left);
                say!("train: step {step}/{}  {}  {left} left", self.total, text());
            }
            None => {}
        }
    }

    /// Prints a line above the bar.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say!("{line}")),
            None => say!("{line}"),
        }
    }
}
