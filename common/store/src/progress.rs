//! What a person at a terminal sees of a long loop.

use crate::cli;
pub use indicatif::ProgressBar;
use indicatif::{ProgressDrawTarget, ProgressStyle};

/// A bar on stderr for `total` of `unit` with the rate and the time left; nothing is drawn where there is no terminal.
/// Its message is `label` until another is set.
///
/// # Panics
/// When `unit` holds braces.
pub fn bar(total: u64, label: &str, unit: &str) -> ProgressBar {
    let target = if cli::is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = format!("{{msg:14}} {{wide_bar}} {{human_pos}}/{{human_len}} {unit}  {{per_sec}}  {{eta}} left");
    let style = ProgressStyle::with_template(&style).expect("a unit without braces");
    ProgressBar::with_draw_target(Some(total), target).with_style(style).with_message(label.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_counts_without_a_terminal() {
        let bar = bar(3, "test", "images");
        bar.inc(2);
        assert_eq!((bar.position(), bar.length()), (2, Some(3)));
    }
}
