//! `metrics.csv`: one row for each interval of steps.

use crate::step::{BINS, Totals};
use lcf_store::{Error, Result};
use std::{fs, io::Write, path::Path, time::Instant};

/// Name of the file.
pub const FILE: &str = "metrics.csv";

/// The header line. Losses are means over the interval; `flow` and its bins are mean square errors per dimension. The
/// gradient norms of the two terms are of one step, see [`Window::terms`].
pub fn header() -> String {
    let bins: Vec<String> = (0..BINS).map(bin_name).collect();
    format!(
        "step,epoch,loss,flow,contrast,pull,push,anchors,{},grad_norm,flow_grad_norm,contrast_grad_norm,lr,skipped,overflow,ms_per_step,img_per_s",
        bins.join(",")
    )
}

/// The column of a bin of t.
pub fn bin_name(bin: usize) -> String {
    format!("flow_t0.{bin}")
}

/// Means over the steps since the last row.
#[derive(Debug)]
pub struct Window {
    start: Instant,
    totals: Totals,
    terms: [f64; 2],
}

impl Window {
    /// An empty interval that starts now.
    pub fn new() -> Self {
        Self { start: Instant::now(), totals: Totals::default(), terms: [f64::NAN; 2] }
    }

    /// Milliseconds a step so far.
    pub fn ms_per_step(&self) -> f64 {
        self.start.elapsed().as_secs_f64() * 1e3 / self.totals.steps.max(1) as f64
    }

    /// Mean square error per dimension over the regressed samples.
    pub fn flow(&self) -> f64 {
        mean(self.totals.flow.iter().sum(), self.totals.samples.iter().sum())
    }

    /// Adds steps.
    pub fn add(&mut self, totals: &Totals) {
        self.totals.merge(totals);
    }

    /// Sets the gradient norms of L_FM and of lambda L_cons at the last step.
    pub fn terms(&mut self, norms: [f64; 2]) {
        self.terms = norms;
    }

    /// The row. What had no sample in the interval is empty.
    pub fn row(&self, step: u64, epoch: f64, batch: usize) -> String {
        let t = &self.totals;
        let counted = (t.steps - t.skipped) as f64;
        let ms = self.ms_per_step();
        let mut cells = vec![step.to_string(), format!("{epoch:.3}"), number(mean(t.loss, counted))];
        cells.push(number(self.flow()));
        cells.extend(t.contrast.map(|sum| number(mean(sum, t.contrasted as f64))));
        cells.push(number(mean(t.anchors as f64, counted)));
        cells.extend((0..BINS).map(|bin| number(mean(t.flow[bin], t.samples[bin]))));
        cells.push(number(mean(t.grad_norm, counted)));
        cells.extend(self.terms.map(number));
        cells.push(number(t.lr));
        cells.extend([t.skipped.to_string(), t.overflow.to_string()]);
        cells.extend([format!("{ms:.2}"), format!("{:.1}", batch as f64 * 1e3 / ms.max(1e-9))]);
        cells.join(",")
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::new()
    }
}

fn mean(sum: f64, count: f64) -> f64 {
    if count > 0.0 { sum / count } else { f64::NAN }
}

fn number(value: f64) -> String {
    if value.is_nan() { String::new() } else { format!("{value:.6e}") }
}

/// Appends a row; a new file starts with the header.
///
/// # Errors
/// [`Error::Io`] when the file cannot be written.
pub fn append(path: &Path, row: &str) -> Result<()> {
    let head = if path.exists() { String::new() } else { header() + "\n" };
    let mut file = fs::File::options().create(true).append(true).open(path).map_err(Error::io(path, "open"))?;
    file.write_all(format!("{head}{row}\n").as_bytes()).map_err(Error::io(path, "write"))
}

/// Drops rows of steps after `step`, and a line cut short: they will be made again.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read or rewritten.
pub fn rewind(path: &Path, step: u64) -> Result<()> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        bytes => bytes.map_err(Error::io(path, "read"))?,
    };
    let text = String::from_utf8_lossy(&bytes);
    let kept = text.split_inclusive('\n').enumerate().filter(|(line, row)| {
        let of = row.split(',').next().and_then(|cell| cell.parse::<u64>().ok());
        row.ends_with('\n') && (*line == 0 || of.is_some_and(|of| of <= step))
    });
    let kept: String = kept.map(|(_, row)| row).collect();
    lcf_store::stage::write_atomic(path, kept.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Report;

    fn report(loss: f64) -> Report {
        let mut report =
            Report { loss, grad_norm: 1.0, lr: 0.5, anchors: 2, contrast: Some([3.0; 3]), ..Report::default() };
        (report.flow[1], report.samples[1]) = (4.0, 8.0);
        report
    }

    #[test]
    fn rows_have_a_cell_for_every_name_and_average_what_was_counted() {
        let mut window = Window::new();
        for reports in [vec![report(1.0)], vec![Report { contrast: None, ..report(3.0) }, report(f64::NAN)]] {
            let mut totals = Totals::default();
            reports.iter().zip(1..).for_each(|(report, step)| totals.add(report, step));
            window.add(&totals);
        }
        window.terms([5.0, 7.0]);
        let row = window.row(12, 0.5, 256);
        let cell = |name: &str| {
            let at = header().split(',').position(|n| n == name).unwrap();
            row.split(',').nth(at).unwrap().to_owned()
        };
        assert_eq!(row.split(',').count(), header().split(',').count());
        assert_eq!(cell("loss"), "2.000000e0");
        assert_eq!((cell("flow_grad_norm"), cell("contrast_grad_norm")), ("5.000000e0".into(), "7.000000e0".into()));
        assert_eq!((cell("flow_t0.1"), cell("flow_t0.0")), ("5.000000e-1".into(), String::new()));
        assert_eq!((cell("contrast"), cell("skipped"), cell("step")), ("3.000000e0".into(), "1".into(), "12".into()));
    }

    #[test]
    fn rewinding_drops_later_and_half_written_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        append(&path, "10,a").unwrap();
        append(&path, "20,b").unwrap();
        fs::write(&path, fs::read_to_string(&path).unwrap() + "15,cut").unwrap();
        rewind(&path, 15).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n10,a\n", header()));
        rewind(&dir.path().join("none"), 1).unwrap();
        assert!(matches!(rewind(dir.path(), 1), Err(Error::Io { action: "read", .. })), "a directory is no file");
    }
}
