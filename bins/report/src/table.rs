//! The table: a column a run, a row a number or a setting.

use crate::{group::Group, links::STAGES, run::Run};
use lcf_store::text;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A row.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name in JSON.
    pub key: String,
    /// What it is about; rows of one part follow each other.
    pub part: String,
    /// For people.
    pub label: String,
    /// A cell a run.
    pub cells: Vec<Cell>,
}

/// A cell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    /// As it is shown.
    pub text: String,
    /// The number, where it is one: what a mean over seeds is taken of.
    pub value: Option<f64>,
    /// Whether the number is not comparable with others, as [`RANK_NOTE`] says.
    pub marked: bool,
}

/// What an asterisk means.
pub const RANK_NOTE: &str = "* from fewer images than Inception features have dimensions: the covariance is \
                             rank-deficient, and the number is not comparable with published ones.";

/// Where a number or setting is absent.
pub const NONE: &str = "-";

impl Cell {
    /// A text, or a dash.
    pub fn text(text: Option<String>) -> Self {
        Self { text: text.unwrap_or_else(|| NONE.into()), ..Self::default() }
    }

    /// A number, or a dash.
    pub fn number(value: Option<f64>, decimals: usize) -> Self {
        let value = value.filter(|value| value.is_finite());
        Self { value, ..Self::text(value.map(|value| format!("{value:.decimals$}"))) }
    }

    /// A number of things, or a dash.
    pub fn count(value: Option<u64>) -> Self {
        Self { value: value.map(|value| value as f64), ..Self::text(value.map(grouped)) }
    }

    /// The same with an asterisk.
    #[must_use]
    pub fn marked(mut self, marked: bool) -> Self {
        if marked && self.value.is_some() {
            self.text.push('*');
            self.marked = true;
        }
        self
    }
}

/// Digits in threes.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let start = digits.len() % 3;
    let parts: Vec<&str> =
        std::iter::once(&digits[..start]).chain((start..digits.len()).step_by(3).map(|i| &digits[i..i + 3])).collect();
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(",")
}

/// Settings in which the runs that have a stage differ.
pub fn settings(runs: &[&Run]) -> Vec<Row> {
    let all: Vec<BTreeMap<String, String>> = runs.iter().map(|run| run.settings()).collect();
    let mut names: Vec<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    names.sort_by_key(|name| (STAGES.iter().position(|stage| name.split('.').next() == Some(stage)), *name));
    names.dedup();
    let row = |name: &&String| {
        let (stage, setting) = name.split_once('.')?;
        let cell = |settings: &BTreeMap<String, String>| Cell::text(settings.get(*name).cloned());
        let with_stage = runs.iter().zip(&all).filter(|(run, _)| run.artifact(stage).is_some());
        let asked: Vec<Cell> = with_stage.map(|(_, settings)| cell(settings)).collect();
        let differ = asked.windows(2).any(|two| two[0] != two[1]);
        let (key, part, label) = ((*name).clone(), stage.to_owned(), setting.to_owned());
        differ.then(|| Row { key, part, label, cells: all.iter().map(cell).collect() })
    };
    names.iter().filter_map(row).collect()
}

/// A row over the runs of a group: what they have in common, or the mean, and then from where to where they go.
pub fn spread(row: &Row, columns: &[usize]) -> Option<(String, Option<String>)> {
    let cells: Vec<&Cell> = columns.iter().map(|&column| &row.cells[column]).collect();
    if cells.windows(2).all(|two| two[0] == two[1]) {
        return cells.first().map(|cell| (cell.text.clone(), None));
    }
    let values: Vec<f64> = cells.iter().filter_map(|cell| cell.value).collect();
    // With as many decimals as the cells have.
    let text = cells.iter().find(|cell| cell.value.is_some())?.text.trim_end_matches('*');
    let decimals = text.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), &v| (low.min(v), high.max(v)));
    let star = if cells.iter().any(|cell| cell.marked) { "*" } else { "" };
    let of = if values.len() < cells.len() { format!(", {} of {}", values.len(), cells.len()) } else { String::new() };
    Some((format!("{mean:.decimals$}{star}"), Some(format!("{low:.decimals$} to {high:.decimals$}{of}"))))
}

/// Groups of several seeds, with the columns of their runs.
pub fn seeded<'a>(groups: &'a [Group], runs: &[&Run]) -> Vec<(&'a str, Vec<usize>)> {
    let column = |run: &&Run| runs.iter().position(|other| std::ptr::eq(*other, *run));
    let several = groups.iter().filter(|group| group.runs.len() > 1);
    several.map(|group| (group.name.as_str(), group.runs.iter().filter_map(column).collect())).collect()
}

/// Rows of the headline, and their names there.
const HEADLINE: [(&str, &str); 9] = [
    ("objective", "objective"),
    ("epochs", "epochs"),
    ("ms_per_step", "ms/step"),
    ("gpu_hours", "GPU h"),
    ("fid", "FID"),
    ("kid", "KID x 1000"),
    ("probe_raw_t0", "probe t=0, %"),
    ("probe_raw_peak", "peak, %"),
    ("probe_raw_gap", "gap"),
];

/// The headline as a terminal shows it, a line a run.
pub fn headline(runs: &[&Run], rows: &[Row]) -> String {
    let picked: Vec<(&str, &Row)> =
        HEADLINE.iter().filter_map(|(key, name)| Some((*name, rows.iter().find(|row| row.key == *key)?))).collect();
    let head = std::iter::once("run").chain(picked.iter().map(|(name, _)| *name)).map(str::to_owned).collect();
    let line = |i: usize| {
        let cells = picked.iter().map(|(_, row)| row.cells[i].text.clone());
        std::iter::once(runs[i].name.clone()).chain(cells).collect()
    };
    let lines: Vec<Vec<String>> = std::iter::once(head).chain((0..runs.len()).map(line)).collect();
    let mut out = text::columns(&format!("ll{}", "r".repeat(picked.len() - 1)), &lines);
    if rows.iter().flat_map(|row| &row.cells).any(|cell| cell.marked) {
        out += &format!("{RANK_NOTE}\n");
    }
    out
}

/// The rows as one JSON object a run, numbers as numbers.
pub fn json(runs: &[&Run], rows: &[Row]) -> Vec<Value> {
    let value = |cell: &Cell| match cell.value {
        Some(value) => json!(value),
        None if cell.text == NONE => Value::Null,
        None => json!(cell.text),
    };
    let of = |i: usize| {
        let mut object = Map::from_iter([("run".to_owned(), json!(runs[i].name))]);
        object.extend(rows.iter().map(|row| (row.key.clone(), value(&row.cells[i]))));
        Value::Object(object)
    };
    (0..runs.len()).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: Vec<Cell>) -> Row {
        Row { key: "fid".into(), part: "samples".into(), label: "FID".into(), cells }
    }

    #[test]
    fn long_numbers_are_readable() {
        assert_eq!([7, 1234, 32_471_436].map(grouped), ["7", "1,234", "32,471,436"]);
        assert_eq!((Cell::count(Some(1000)).value, Cell::count(None).text), (Some(1000.0), NONE.to_owned()));
    }

    #[test]
    fn numbers_are_rounded_marked_or_a_dash() {
        assert_eq!(Cell::number(Some(2.0 / 3.0), 2).text, "0.67");
        assert_eq!(Cell::number(Some(1.0), 1).marked(true).text, "1.0*");
        assert_eq!(Cell::number(Some(f64::NAN), 1).marked(true), Cell::text(None));
    }

    #[test]
    fn the_spread_is_that_of_its_runs_with_their_decimals() {
        let cells = [1.0, 9.0, 4.0].map(|v| Cell::number(Some(v), 1)).to_vec();
        assert_eq!(spread(&row(cells.clone()), &[0, 2]).unwrap(), ("2.5".into(), Some("1.0 to 4.0".into())));
        let some = vec![cells[0].clone().marked(true), Cell::text(None)];
        assert_eq!(spread(&row(some), &[0, 1]).unwrap(), ("1.0*".into(), Some("1.0 to 1.0, 1 of 2".into())));
        assert_eq!(spread(&row(vec![cells[1].clone(), cells[1].clone()]), &[0, 1]).unwrap(), ("9.0".into(), None));
        let texts = vec![Cell::text(Some("a".into())), Cell::text(Some("b".into()))];
        assert_eq!(spread(&row(texts), &[0, 1]), None);
    }
}
