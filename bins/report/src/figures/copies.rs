//! Whether samples copy training images: how far the nearest one is, and what it looks like.

use super::{Section, figure, slug};
use crate::{
    axis::{Axis, Scale},
    figure::{Figure, Line},
    group::Group,
    palette::distinct,
    read::Fid,
    run::Run,
};
use anyhow::Result;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

/// The picture of an artifact of `fid`.
const PICTURE: &str = "neighbours.png";
/// Where `fid.json` has distances, what they are of, and what the axis says.
const SPACES: [(&str, &str, &str); 2] = [
    ("features", "Inception features", "distance"),
    ("pixels", "pixels", "root mean square difference of grey levels, 0 to 255"),
];

/// Histograms and pictures.
///
/// # Errors
/// A damaged picture, by name.
pub fn copies(groups: &[Group]) -> Result<Section> {
    let about = "Distance of each sample to the training image nearest to it. Test images, which the model has never seen, \
                 show what is near by chance: samples that copy lie left of them.";
    let mut section = Section::new("copies", "Nearest training images", about);
    for run in groups.iter().flat_map(|group| &group.runs) {
        let Some(fid) = &run.last.fid else { continue };
        for (space, title, unit) in SPACES {
            let drawn = histogram(&format!("{}, {title}", run.name), unit, fid, space);
            section.add(format!("nearest-{}-{space}", slug(&run.name)), drawn);
        }
        if let Some(uri) = picture(run)? {
            let caption = format!(
                "{}: samples on the left, first those nearest to a training image; beside each its nearest training images, \
                 by features and then by pixels",
                run.name
            );
            section.pictures.push((caption, uri));
        }
    }
    let known = |run: &Run| run.last.fid.as_ref().is_some_and(|fid| fid.0["memorisation"].is_object());
    section.without(groups, "distances in the artifact of fid", known);
    Ok(section)
}

/// Shares of samples and test images by distance.
fn histogram(title: &str, unit: &str, fid: &Fid, space: &str) -> Option<Figure> {
    let found = fid.0.pointer(&format!("/memorisation/{space}/histogram"))?;
    let numbers = |key: &str| -> Option<Vec<f64>> { found[key].as_array()?.iter().map(Value::as_f64).collect() };
    let edges = numbers("edges")?;
    let lines: Option<Vec<Line>> = [("samples", "samples", 1), ("test", "test images", 0)]
        .into_iter()
        .map(|(key, name, colour)| {
            let (points, name) = (shares(&edges, &numbers(key)?), name.to_owned());
            Some(Line { name, colour: distinct(colour), points, band: Vec::new(), marks: false })
        })
        .collect();
    let lines = lines?;
    let x = Axis::of(unit, Scale::Linear, lines.iter().flat_map(|line| &line.points).map(|point| point.0));
    figure(title, x, ("% of the images", Scale::Linear), lines)
}

/// The outline of a histogram as shares in percent, from its first count that is not 0 to its last.
fn shares(edges: &[f64], counts: &[f64]) -> Vec<(f64, f64)> {
    let total = counts.iter().sum::<f64>().max(1.0);
    let bins: Vec<(f64, f64, f64)> =
        edges.windows(2).zip(counts).map(|(ends, count)| (ends[0], ends[1], 100.0 * count / total)).collect();
    let first = bins.iter().position(|bin| bin.2 > 0.0).unwrap_or(0);
    let last = bins.iter().rposition(|bin| bin.2 > 0.0).map_or(0, |last| last + 1);
    let bins = bins.get(first..last).unwrap_or_default();
    let ends = bins.first().zip(bins.last());
    let steps = bins.iter().flat_map(|&(low, high, share)| [(low, share), (high, share)]);
    let Some((left, right)) = ends else { return Vec::new() };
    std::iter::once((left.0, 0.0)).chain(steps).chain([(right.1, 0.0)]).collect()
}

/// The picture of samples beside their nearest training images, where `fid` has made one, as a data URI.
fn picture(run: &Run) -> Result<Option<String>> {
    let Some(artifact) = run.artifact("fid").filter(|artifact| artifact.file(PICTURE).is_ok()) else {
        return Ok(None);
    };
    let path = artifact.verified(PICTURE)?;
    let bytes = std::fs::read(&path).map_err(lcf_store::Error::io(&path, "read"))?;
    Ok(Some(format!("data:image/png;base64,{}", STANDARD.encode(bytes))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outline_is_of_what_there_is() {
        let outline = shares(&[0.0, 1.0, 2.0, 3.0, 4.0], &[0.0, 3.0, 1.0, 0.0]);
        assert_eq!(outline, [(1.0, 0.0), (1.0, 75.0), (2.0, 75.0), (2.0, 25.0), (3.0, 25.0), (3.0, 0.0)]);
        assert_eq!((shares(&[0.0, 1.0], &[0.0]), shares(&[], &[])), (vec![], vec![]));
        assert!(histogram("", "", &Fid(serde_json::json!({"memorisation": null})), "pixels").is_none());
        let found = serde_json::json!({"edges": [0.0, 1.0, 2.0], "samples": [1, 3], "test": [0, 9]});
        let fid = Fid(serde_json::json!({"memorisation": {"pixels": {"histogram": found}}}));
        let drawn = histogram("", "", &fid, "pixels").unwrap();
        assert_eq!(drawn.lines[0].points, [(0.0, 0.0), (0.0, 25.0), (1.0, 25.0), (1.0, 75.0), (2.0, 75.0), (2.0, 0.0)]);
    }
}
