//! The table: a row a measurement.

use super::Bench;
use lcf_store::{
    bench::{Measurement, Rates, Times},
    text,
};

/// The names of its columns.
pub const HEAD: [&str; 8] =
    ["stage", "what", "median", "5 to 95 %", "n", "a second", "share of the floor", "peak memory"];
/// Which are numbers.
pub const ALIGN: &str = "llrrrrrr";

/// The rows, PyTorch's below those of the training.
pub fn rows(bench: &Bench) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for outcome in &bench.stages {
        for (i, measurement) in outcome.measurements.iter().enumerate() {
            // Of the whole program.
            let peak = outcome.peak_bytes.filter(|_| i == 0);
            rows.push(row(&outcome.stage, measurement, peak));
        }
        if outcome.stage == "train" {
            let torch = bench.torch_measurements();
            rows.extend(torch.iter().zip(&bench.torch).map(|(step, torch)| row("", step, torch.peak_bytes)));
        }
    }
    rows
}

fn row(stage: &str, measurement: &Measurement, peak: Option<u64>) -> Vec<String> {
    let Times { n, median_ms, p5_ms, p95_ms, .. } = measurement.times;
    let [median, low, high] = [median_ms, p5_ms, p95_ms].map(text::milliseconds);
    // One unit is enough where both have the same.
    let low = match (low.split_once(' '), high.split_once(' ')) {
        (Some((number, unit)), Some((_, same))) if unit == same => number.to_owned(),
        _ => low,
    };
    vec![
        stage.to_owned(),
        measurement.what.clone(),
        median,
        format!("{low} to {high}"),
        n.to_string(),
        format!("{} {}", text::digits(measurement.items_per_s), measurement.item),
        measurement.share_text().unwrap_or_else(|| "-".into()),
        peak.map_or_else(|| "-".into(), text::size),
    ]
}

/// What the machine can do, a pair a rate.
pub fn rates(bench: &Bench) -> Vec<(String, String)> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for Rates { precision, flop_per_s, bytes_per_s } in bench.stages.iter().map(|outcome| &outcome.rates) {
        pairs.push((format!("{precision} products"), text::si(*flop_per_s, "FLOP/s")));
        pairs.push(("copy, read and written".into(), text::si(*bytes_per_s, "B/s")));
    }
    pairs.sort();
    pairs.dedup();
    pairs
}

/// For a terminal.
pub fn text(bench: &Bench) -> String {
    let head = HEAD.map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows(bench)).collect();
    let rates: Vec<String> = rates(bench).into_iter().map(|(what, rate)| format!("{what} {rate}")).collect();
    format!("{}{}: {}\n", text::columns(ALIGN, &rows), bench.stages[0].machine.name(), rates.join(", "))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::bench, *};

    #[test]
    fn a_row_a_measurement_and_pytorch_below_the_training() {
        let text = text(&bench());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "stage    what           median       5 to 95 %  n     a second  share of the floor  peak memory",
                "train    step           1.00 s  1.00 to 1.00 s  1  10.0 images  5.0 % (arithmetic)      1.0 GiB",
                "         PyTorch eager  2.00 s  2.00 to 2.00 s  2  5.00 images  2.5 % (arithmetic)      2.0 GiB",
                "probe    step           1.00 s  1.00 to 1.00 s  1  10.0 images                   -      1.0 GiB",
                "extract  step           1.00 s  1.00 to 1.00 s  1  10.0 images  5.0 % (arithmetic)      1.0 GiB",
                "NVIDIA H100 80GB HBM3: bf16 products 200 GFLOP/s, copy, read and written 2.00 GB/s, fp32 products 40.0 GFLOP/s",
            ]
        );
    }

    #[test]
    fn units_are_kept_where_they_differ() {
        let mut bench = bench();
        bench.stages[0].measurements[0].times.p5_ms = 900.0;
        assert_eq!(rows(&bench)[0][3], "900 ms to 1.00 s");
    }
}
