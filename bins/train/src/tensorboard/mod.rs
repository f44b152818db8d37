//! TensorBoard event files beside `metrics.csv`: its rows as scalars, the loss by t as a histogram, samples as images.
//!
//! Every start of a training opens a file of its own. Events of steps after the checkpoint that it goes on from are cut
//! off the older ones, since those steps are made again; a TensorBoard that has read them drops them at the START event.

mod proto;
mod record;

use crate::metrics;
use image::RgbImage;
use lcf_store::{Error, Result};
use proto::{Event, Value, What};
use std::{
    fs::{self, File},
    io::{Cursor, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// What TensorBoard knows an event file by.
const PREFIX: &str = "events.out.tfevents.";

/// The event file of a training under way.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// A new file in `dir` for a training that has made `step` steps, after the older ones are cut back to that.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(dir: &Path, step: u64) -> Result<Self> {
        let older = files(dir)?;
        older.iter().try_for_each(|name| rewind(&dir.join(name), step))?;
        // TensorBoard reads them in the order of their names.
        let path = dir.join(format!("{PREFIX}{:06}", older.len() + 1));
        let file = File::create_new(&path).map_err(Error::io(&path, "create"))?;
        let mut events = Self { path, file };
        events.write(0, What::FileVersion("brain.Event:2"))?;
        if !older.is_empty() {
            events.write(step + 1, What::Start)?;
        }
        Ok(events)
    }

    /// A row of `metrics.csv`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn row(&mut self, step: u64, row: &str) -> Result<()> {
        let header = metrics::header();
        let cells = header.split(',').zip(row.split(',')).filter_map(|(name, cell)| Some((name, cell.parse().ok()?)));
        let cells: Vec<(&str, f64)> = cells.collect();
        let scalars = cells.iter().filter_map(|(name, value)| Some((tag(name)?, Value::Scalar(*value))));
        let by_t = ("flow loss by t".to_owned(), by_t(&cells));
        self.write(step, What::Summary(scalars.chain([by_t]).collect()))
    }

    /// A picture.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Bad`] for a picture that cannot be encoded.
    pub fn image(&mut self, step: u64, tag: &str, image: &RgbImage) -> Result<()> {
        let mut png = Cursor::new(Vec::new());
        let encoded = image.write_to(&mut png, image::ImageFormat::Png);
        encoded.map_err(|error| Error::bad(&self.path, format!("cannot encode {tag}: {error}")))?;
        let (width, height) = image.dimensions();
        let image = Value::Image { width, height, png: png.into_inner() };
        self.write(step, What::Summary(vec![(tag.to_owned(), image)]))
    }

    /// In one write, so that a reader sees a record or none.
    fn write(&mut self, step: u64, what: What) -> Result<()> {
        let wall_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let event = Event { wall_time, step, what };
        self.file.write_all(&record::frame(&event.encode())).map_err(Error::io(&self.path, "write"))
    }
}

/// Names of the event files in `dir`, in their order.
///
/// # Errors
/// [`Error::Io`] when the directory cannot be listed.
pub fn files(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).map_err(Error::io(dir, "list"))?;
    let names: std::io::Result<Vec<String>> =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect();
    let mut names = names.map_err(Error::io(dir, "list"))?;
    names.retain(|name| name.starts_with(PREFIX));
    names.sort();
    Ok(names)
}

/// Cuts the file before its first event after `step`, or its first record that is not whole. Steps never fall in a file.
fn rewind(path: &Path, step: u64) -> Result<()> {
    let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
    let mut rest = &bytes[..];
    while let Some((event, after)) = record::unframe(rest)
        && proto::step(event).is_some_and(|of| of <= step)
    {
        rest = after;
    }
    let kept = (bytes.len() - rest.len()) as u64;
    let file = File::options().write(true).open(path).map_err(Error::io(path, "open"))?;
    file.set_len(kept).map_err(Error::io(path, "cut"))
}

/// Where a column of `metrics.csv` stands in TensorBoard; `None` for what is its axis.
fn tag(column: &str) -> Option<String> {
    let group = match column {
        "step" => return None,
        "loss" | "flow" | "contrast" => "loss",
        "pull" | "push" | "anchors" => "contrast",
        "ms_per_step" | "img_per_s" => "speed",
        _ if column.starts_with("flow_t") => "flow loss by t",
        _ => "training",
    };
    Some(format!("{group}/{column}"))
}

/// The loss over t as a histogram: an interval a bin, as high as the loss there, 0 where there was no sample.
fn by_t(cells: &[(&str, f64)]) -> Value {
    let bins = crate::step::BINS;
    let of = |bin: usize| cells.iter().find(|(name, _)| *name == metrics::bin_name(bin)).map_or(0.0, |(_, loss)| *loss);
    let limits = (1..=bins).map(|bin| bin as f64 / bins as f64).collect();
    Value::Histogram { limits, weights: (0..bins).map(of).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(path: &Path) -> Vec<u64> {
        let bytes = fs::read(path).unwrap();
        let (mut rest, mut steps) = (&bytes[..], Vec::new());
        while let Some((event, after)) = record::unframe(rest) {
            steps.push(proto::step(event).unwrap());
            rest = after;
        }
        assert!(rest.is_empty(), "{} bytes are no record", rest.len());
        steps
    }

    fn row(step: u64) -> String {
        let cells = metrics::header().split(',').count();
        format!("{step}{}", ",1.5".repeat(cells - 1))
    }

    #[test]
    fn going_on_cuts_later_events_and_opens_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::open(dir.path(), 0).unwrap();
        for step in [10, 20, 30] {
            events.row(step, &row(step)).unwrap();
        }
        // A crash within a record.
        let first = dir.path().join(&files(dir.path()).unwrap()[0]);
        let whole = fs::read(&first).unwrap();
        fs::write(&first, &whole[..whole.len() - 3]).unwrap();
        let mut events = Events::open(dir.path(), 15).unwrap();
        events.row(20, &row(20)).unwrap();
        let names = files(dir.path()).unwrap();
        assert_eq!(names, ["events.out.tfevents.000001", "events.out.tfevents.000002"]);
        assert_eq!(steps(&first), [0, 10]);
        assert_eq!(steps(&dir.path().join(&names[1])), [0, 16, 20]);
        // Twice from one checkpoint.
        Events::open(dir.path(), 15).unwrap();
        assert_eq!(steps(&dir.path().join(&names[1])), [0]);
        assert_eq!(files(dir.path()).unwrap().len(), 3);
    }

    #[test]
    fn every_column_but_the_step_has_a_tag() {
        let tags: Vec<String> = metrics::header().split(',').filter_map(tag).collect();
        assert_eq!(tags.len(), metrics::header().split(',').count() - 1);
        for expected in ["loss/flow", "contrast/pull", "flow loss by t/flow_t0.3", "speed/img_per_s", "training/lr"] {
            assert!(tags.iter().any(|tag| tag == expected), "{expected} in {tags:?}");
        }
    }

    #[test]
    fn the_histogram_is_as_high_as_the_loss() {
        let Value::Histogram { limits, weights } = by_t(&[("flow_t0.1", 0.5), ("flow_t0.9", 0.25)]) else {
            panic!("a histogram")
        };
        assert_eq!((limits[0], limits[9], weights[0], weights[1], weights[9]), (0.1, 1.0, 0.0, 0.5, 0.25));
    }
}
