//! How sizes, times and paths are written.

use serde_json::Value;
use std::{
    env,
    path::{Path, PathBuf},
};

/// Digits of a key or digest that people read.
pub const SHORT: usize = 12;

/// `512 B`, `1.5 KiB`, `2.0 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A time in milliseconds to three digits: `0.520 ms`, `28.2 ms`, `5.21 s`.
pub fn milliseconds(ms: f64) -> String {
    match ms {
        0.0..1e3 => format!("{} ms", digits(ms)),
        _ => format!("{} s", digits(ms / 1e3)),
    }
}

/// Three digits of a number that is not negative, more where it is large, fewer below 0.01: `0.0516`, `28.2`, `9080`.
pub fn digits(value: f64) -> String {
    let decimals = match value {
        0.0..0.09995 => 4,
        0.0..0.9995 => 3,
        0.0..9.995 => 2,
        0.0..99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

/// A large number with its prefix: `797 TFLOP/s`.
pub fn si(value: f64, unit: &str) -> String {
    let prefixes = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let (scale, prefix) = prefixes.into_iter().find(|(scale, _)| value >= *scale).unwrap_or((1.0, ""));
    format!("{} {prefix}{unit}", digits(value / scale))
}

/// How long ago, in its largest unit: `12 s`, `5 min`, `3 h`, `2 d`.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

/// `2026-11-23 01:02:03 UTC` from seconds since 1970. The calendar is H. Hinnant's `civil_from_days`.
pub fn date(seconds: u64) -> String {
    let (days, second) = (seconds / 86400, seconds % 86400);
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02} UTC", second % 60)
}

/// The path as it is typed: relative to the current directory where it lies below it.
pub fn short(path: &Path) -> PathBuf {
    let below = env::current_dir().ok().and_then(|dir| path.strip_prefix(dir).ok().map(Path::to_owned));
    below.filter(|path| !path.as_os_str().is_empty()).unwrap_or_else(|| path.to_owned())
}

/// The start of a key or digest.
pub fn head(hex: &str) -> &str {
    hex.get(..SHORT).unwrap_or(hex)
}

/// A name as one line that any terminal shows as it is: control characters, which a file's name may hold, are escaped.
pub fn visible(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// Rows as columns two spaces apart; columns whose letter in `align` is `r` are flush right.
pub fn columns(align: &str, rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> =
        (0..align.len()).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for ((cell, width), side) in row.iter().zip(&widths).zip(align.chars()) {
            let pad = " ".repeat(width - cell.chars().count());
            line += &if side == 'r' { format!("{pad}{cell}  ") } else { format!("{cell}{pad}  ") };
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// A string or number as people write it.
pub fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_read_well() {
        assert_eq!([0, 1023, 1024, 1536, 1_048_575].map(size), ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB"]);
        assert_eq!([size(5 << 30), size(3 << 40)], ["5.0 GiB", "3.0 TiB"]);
        assert_eq!([59, 60, 7200, 200_000].map(age), ["59 s", "1 min", "2 h", "2 d"]);
    }

    #[test]
    fn measured_numbers_have_three_digits() {
        assert_eq!([0.52, 28.21, 999.9, 5210.0].map(milliseconds), ["0.520 ms", "28.2 ms", "1000 ms", "5.21 s"]);
        assert_eq!([0.05162, 0.9996, 9.999, 99.96, 9080.4].map(digits), ["0.0516", "1.00", "10.0", "100", "9080"]);
        assert_eq!(
            [si(7.97e14, "FLOP/s"), si(2.5e10, "B/s"), si(3.0, "B/s")],
            ["797 TFLOP/s", "25.0 GB/s", "3.00 B/s"]
        );
    }

    /// Against `date -u -d @N`.
    #[test]
    fn dates_are_the_calendars() {
        assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(date(1_709_251_199), "2024-02-29 23:59:59 UTC");
        assert_eq!(date(1_795_395_723), "2026-11-23 01:02:03 UTC");
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [["a", "1"], ["bcd", "20"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(columns("lr", &rows), "a     1\nbcd  20\n");
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(visible("é \"x\"☃"), "é \"x\"☃");
        assert_eq!(visible("a\nb\x1b[31m\u{85}"), "a\\nb\\u{1b}[31m\\u{85}");
    }

    #[test]
    fn paths_below_the_current_directory_are_relative() {
        let here = env::current_dir().unwrap();
        assert_eq!(short(&here.join("a/b")), Path::new("a/b"));
        assert_eq!(short(Path::new("/a")), Path::new("/a"));
    }
}
