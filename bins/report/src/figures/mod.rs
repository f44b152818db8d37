//! The figures of a report, in sections. A section that cannot be drawn says why.

mod copies;
mod curves;
mod training;

use crate::{
    axis::{Axis, Scale},
    figure::{Figure, Line},
    group::{Group, Spread},
    palette::Colour,
    run::Run,
};
use anyhow::Result;
use std::collections::BTreeSet;

/// Figures on one question.
#[derive(Clone, Debug)]
pub struct Section {
    /// Names it within the page.
    pub id: &'static str,
    /// Its title.
    pub heading: String,
    /// What is shown, and which figure of the paper shows the like.
    pub about: String,
    /// By name of file.
    pub figures: Vec<(String, Figure)>,
    /// Pictures that artifacts hold, with what is in them, as data URIs.
    pub pictures: Vec<(String, String)>,
    /// What is not shown and why, and what to beware of.
    pub notes: Vec<String>,
}

impl Section {
    fn new(id: &'static str, heading: &str, about: &str) -> Self {
        let (figures, pictures, notes) = (Vec::new(), Vec::new(), Vec::new());
        Self { id, heading: heading.to_owned(), about: about.to_owned(), figures, pictures, notes }
    }

    /// Adds a figure unless it has no line.
    fn add(&mut self, name: String, figure: Option<Figure>) {
        self.figures.extend(figure.map(|figure| (name, figure)));
    }

    /// Notes which runs are not in it.
    fn without(&mut self, groups: &[Group], what: &str, has: impl Fn(&Run) -> bool) {
        let names: Vec<&str> =
            groups.iter().flat_map(|group| &group.runs).filter(|run| !has(run)).map(|run| run.name.as_str()).collect();
        if !names.is_empty() {
            self.notes.push(format!("Not shown for want of {what}: {}.", names.join(", ")));
        }
    }
}

/// All sections but the sample sheets. The names of their figures are all different.
///
/// # Errors
/// A damaged picture, by name.
pub fn sections(groups: &[Group]) -> Result<Vec<Section>> {
    let mut sections = vec![
        curves::probe(groups),
        training::fid(groups),
        training::loss(groups),
        curves::by_epoch(groups),
        curves::by_size(groups),
        training::distances(groups),
        copies::copies(groups)?,
    ];
    number_doubles(&mut sections);
    Ok(sections)
}

/// Lines as a figure whose vertical axis fits them; `None` without any. On a logarithmic axis there is no place for 0.
fn figure(title: &str, x: Axis, y: (&str, Scale), mut lines: Vec<Line>) -> Option<Figure> {
    if y.1 == Scale::Log {
        for line in &mut lines {
            line.points.retain(|point| point.1 > 0.0);
            line.band.retain(|(_, low, _)| *low > 0.0);
        }
    }
    lines.retain(|line| !line.points.is_empty());
    let values = lines.iter().flat_map(|line| {
        let ends = line.band.iter().flat_map(|&(_, low, high)| [low, high]);
        line.points.iter().map(|point| point.1).chain(ends)
    });
    let y = Axis::of(y.0, y.1, values);
    (!lines.is_empty()).then(|| Figure { title: title.to_owned(), x, y, lines })
}

/// One line for the curves of several seeds.
fn line(name: &str, colour: Colour, curves: &[Vec<(f64, f64)>]) -> Line {
    let Spread { mean, band } = Spread::of(curves);
    let marks = mean.len() <= 40;
    let there = curves.iter().filter(|curve| !curve.is_empty()).count();
    let some = there < curves.len();
    let name = if some { format!("{name}: {there} of {}", curves.len()) } else { name.to_owned() };
    Line { name, colour, points: mean, band, marks }
}

/// Epochs from 0 to the last of all runs.
fn epochs_axis(groups: &[Group]) -> Axis {
    let last =
        groups.iter().flat_map(|group| &group.runs).filter_map(|run| run.train.as_ref()).map(|train| train.epochs);
    Axis::of("epochs", Scale::Linear, [0.0, last.max().unwrap_or(1) as f64].into_iter())
}

/// Gives the second figure of a name, and those after it, a number: names that differ in their signs alone are one as
/// names of files.
fn number_doubles(sections: &mut [Section]) {
    let mut taken: BTreeSet<String> = BTreeSet::new();
    for (name, _) in sections.iter_mut().flat_map(|section| &mut section.figures) {
        let first = name.clone();
        for n in 2.. {
            if taken.insert(name.clone()) {
                break;
            }
            *name = format!("{first}-{n}");
        }
    }
}

/// Letters, digits and dashes; for a name without any, `run`.
pub fn slug(name: &str) -> String {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let slug = plain.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
    if slug.is_empty() { "run".into() } else { slug }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::palette::distinct;

    #[test]
    fn a_figure_without_lines_is_none_and_the_axis_holds_the_spread() {
        let x = || Axis::of("x", Scale::Linear, [0.0, 1.0].into_iter());
        assert!(figure("", x(), ("y", Scale::Linear), vec![line("a", distinct(0), &[vec![]])]).is_none());
        let curves = [vec![(0.0, 1.0)], vec![(0.0, 9.0)]];
        let drawn = figure("", x(), ("y", Scale::Linear), vec![line("a", distinct(0), &curves)]).unwrap();
        assert!(drawn.y.range.0 < 1.0 && drawn.y.range.1 > 9.0);
        assert_eq!((drawn.lines[0].points[0], slug("lcf (2 seeds)")), ((0.0, 5.0), "lcf-2-seeds".into()));
        // Nothing is drawn at the end of the world where a logarithm has no place for it.
        let curve = vec![(0.0, 0.0), (1.0, 2.0)];
        let drawn = figure("", x(), ("y", Scale::Log), vec![line("a", distinct(0), &[curve])]).unwrap();
        assert_eq!(drawn.lines[0].points, [(1.0, 2.0)]);
    }

    #[test]
    fn every_figure_has_a_file_of_its_own() {
        let x = || Axis::of("x", Scale::Linear, [0.0, 1.0].into_iter());
        let mut section = Section::new("s", "", "");
        for name in ["run.1", "run-1", "日本", "ラン"] {
            let lines = vec![line(name, distinct(0), &[vec![(0.0, 1.0)]])];
            section.add(format!("loss-{}", slug(name)), figure("", x(), ("y", Scale::Linear), lines));
        }
        let mut sections = [section];
        number_doubles(&mut sections);
        let names: Vec<&str> = sections[0].figures.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["loss-run-1", "loss-run-1-2", "loss-run", "loss-run-2"]);
    }
}
