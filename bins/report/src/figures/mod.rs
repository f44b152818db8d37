//! The figures of a report, in sections. A section that cannot be drawn says why.

mod curves;
mod training;

use crate::{
    axis::{Axis, Scale},
    figure::{Figure, Line},
    group::{Group, Spread},
    palette::Colour,
    run::Run,
};

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
    /// What is not shown and why, and what to beware of.
    pub notes: Vec<String>,
}

impl Section {
    fn new(id: &'static str, heading: &str, about: &str) -> Self {
        Self { id, heading: heading.to_owned(), about: about.to_owned(), figures: Vec::new(), notes: Vec::new() }
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

/// All sections but the sample sheets.
pub fn sections(groups: &[Group]) -> Vec<Section> {
    vec![
        curves::probe(groups),
        training::fid(groups),
        training::loss(groups),
        curves::by_epoch(groups),
        curves::by_size(groups),
        training::distances(groups),
    ]
}

/// Lines as a figure whose vertical axis fits them; `None` without any.
fn figure(title: &str, x: Axis, y: (&str, Scale), lines: Vec<Line>) -> Option<Figure> {
    let lines: Vec<Line> = lines.into_iter().filter(|line| !line.points.is_empty()).collect();
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

/// Letters, digits and dashes.
pub fn slug(name: &str) -> String {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    plain.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
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
    }
}
