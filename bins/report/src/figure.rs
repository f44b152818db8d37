//! A figure of lines, drawn as SVG and as PNG by the same code.
//!
//! plotters places everything on whole units, so the canvas has [`FINE`] units a pixel: the SVG shows them scaled down,
//! and the PNG is averaged down to [`PNG_SCALE`] pixels a pixel, which is what smooths its lines.

use crate::{
    axis::Axis,
    lettering::{FAMILY, TITLE_SIZE, latin, register, text_width, wrap},
    palette::{AXIS, Colour, GRID, PAPER, TEXT, hex},
};
use anyhow::{Result, anyhow};
use image::{RgbImage, imageops};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use std::io::Cursor;

/// Units of the canvas in a pixel.
pub(crate) const FINE: i32 = 4;
/// Pixels of the PNG in a pixel of the figure.
const PNG_SCALE: u32 = 2;
/// Width in pixels: no wider, since text shrinks with the figure on a phone.
const WIDTH: i32 = 480;
/// Height of the plot in pixels, without what is above it.
const HEIGHT: i32 = 290;
const TITLE: i32 = 30;
const LEGEND_ROW: i32 = 22;
/// What the vertical axis is stands above it: sideways it is hard to read and takes width.
const AXIS_ROW: i32 = 24;
const MARGIN: i32 = 10;
const TEXT_SIZE: i32 = 17;
const LEGEND_SIZE: i32 = 15;
/// Room for the colour before a name in the legend.
const KEY: i32 = 28;
/// One line of a figure.
#[derive(Clone, Debug)]
pub struct Line {
    /// In the legend.
    pub name: String,
    /// Its colour.
    pub colour: Colour,
    /// Values, increasing in x.
    pub points: Vec<(f64, f64)>,
    /// Lowest and highest value by x, where there are several seeds.
    pub band: Vec<(f64, f64, f64)>,
    /// Whether each point is marked: where they are few.
    pub marks: bool,
}

/// A row of text in the legend.
struct Entry<'a> {
    line: &'a Line,
    text: String,
    /// Whether it is the first row of its line, beside which its colour is.
    first: bool,
    left: i32,
    row: i32,
}

/// Lines over two axes.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Above the plot.
    pub title: String,
    /// Horizontal.
    pub x: Axis,
    /// Vertical.
    pub y: Axis,
    /// In the order of the legend.
    pub lines: Vec<Line>,
}

impl Figure {
    /// As an SVG file with a white background.
    ///
    /// # Errors
    /// plotters', which no figure is known to cause.
    pub fn svg(&self) -> Result<String> {
        let (width, height) = self.size();
        let mut text = String::new();
        self.draw(&SVGBackend::with_string(&mut text, fine(width, height)).into_drawing_area())?;
        let (fine, shown) = (fine(width, height), (width, height));
        let size = |(width, height): (u32, u32)| format!("width=\"{width}\" height=\"{height}\"");
        // The view box stays in fine units.
        Ok(text.replacen(&size(fine), &size((shown.0 as u32, shown.1 as u32)), 1))
    }

    /// As a PNG file with a white background.
    ///
    /// # Errors
    /// As [`Figure::svg`].
    pub fn png(&self) -> Result<Vec<u8>> {
        let (width, height) = self.size();
        let (fine_width, fine_height) = fine(width, height);
        let mut pixels = vec![0; (fine_width * fine_height * 3) as usize];
        let area = BitMapBackend::with_buffer(&mut pixels, (fine_width, fine_height)).into_drawing_area();
        self.in_latin().draw(&area)?;
        drop(area);
        let drawn = RgbImage::from_raw(fine_width, fine_height, pixels).expect("three bytes a pixel");
        png(&imageops::thumbnail(&drawn, width as u32 * PNG_SCALE, height as u32 * PNG_SCALE))
    }

    /// Width and height in pixels.
    fn size(&self) -> (i32, i32) {
        (WIDTH, self.head() + HEIGHT)
    }

    /// With the names that the PNG's font can write.
    fn in_latin(&self) -> Self {
        let lines = self.lines.iter().map(|line| Line { name: latin(&line.name), ..line.clone() }).collect();
        Self { title: latin(&self.title), lines, ..self.clone() }
    }

    /// Height in pixels of what is above the plot.
    fn head(&self) -> i32 {
        let rows = self.legend().last().map_or(1, |entry| entry.row + 1);
        self.title_rows().len() as i32 * TITLE + rows * LEGEND_ROW + AXIS_ROW
    }

    fn title_rows(&self) -> Vec<String> {
        wrap(&self.title, WIDTH - 2 * MARGIN, TITLE_SIZE)
    }

    /// The names of the lines beside and below each other; one that is wider than the figure takes several rows.
    fn legend(&self) -> Vec<Entry<'_>> {
        let mut entries: Vec<Entry> = Vec::new();
        let (mut left, mut row) = (MARGIN, 0);
        for line in &self.lines {
            let rows = wrap(&line.name, WIDTH - 2 * MARGIN - KEY, LEGEND_SIZE);
            let width = KEY + rows.iter().map(|text| text_width(text, LEGEND_SIZE)).max().unwrap_or(0) + 16;
            if left > MARGIN && (left + width > WIDTH || rows.len() > 1) {
                (left, row) = (MARGIN, row + 1);
            }
            for (i, text) in rows.iter().enumerate() {
                entries.push(Entry { line, text: text.clone(), first: i == 0, left, row: row + i as i32 });
            }
            row += rows.len() as i32 - 1;
            left += width;
        }
        entries
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Result<()> {
        register();
        area.fill(&PAPER.light).map_err(cannot)?;
        let (head, plot) = area.split_vertically(self.head() * FINE);
        self.draw_head(&head)?;
        self.draw_plot(&plot)?;
        area.present().map_err(cannot)
    }

    fn draw_head<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Result<()> {
        let left = Pos::new(HPos::Left, VPos::Center);
        let style = |size: i32| (FAMILY, size * FINE).into_font().color(&TEXT.light).pos(left);
        let at = |x: i32, y: i32| (x * FINE, y * FINE);
        let title = self.title_rows();
        for (row, text) in title.iter().enumerate() {
            let y = row as i32 * TITLE + TITLE / 2 + 2;
            area.draw_text(text, &style(TITLE_SIZE), at(MARGIN, y)).map_err(cannot)?;
        }
        for Entry { line, text, first, left, row } in self.legend() {
            let y = title.len() as i32 * TITLE + row * LEGEND_ROW + LEGEND_ROW / 2;
            if first {
                let stroke = line.colour.light.stroke_width(3 * FINE as u32);
                area.draw(&PathElement::new([at(left, y), at(left + 22, y)], stroke)).map_err(cannot)?;
            }
            area.draw_text(&text, &style(LEGEND_SIZE), at(left + KEY, y)).map_err(cannot)?;
        }
        let y = self.head() - AXIS_ROW / 2;
        area.draw_text(&self.y.title, &style(LEGEND_SIZE), at(MARGIN, y)).map_err(cannot)
    }

    fn draw_plot<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Result<()> {
        let mut chart = ChartBuilder::on(area)
            .margin_top(4 * FINE)
            .margin_right(14 * FINE)
            .x_label_area_size(46 * FINE)
            .y_label_area_size(54 * FINE)
            .build_cartesian_2d(self.x.clone(), self.y.clone())
            .map_err(cannot)?;
        let style = (FAMILY, TEXT_SIZE * FINE).into_font().color(&TEXT.light);
        chart
            .configure_mesh()
            .x_desc(&self.x.title)
            .x_labels(self.x.ticks.len())
            .y_labels(self.y.ticks.len())
            .x_label_formatter(&|at| tick_label(&self.x, *at))
            .y_label_formatter(&|at| tick_label(&self.y, *at))
            .label_style(style.clone())
            .axis_desc_style(style)
            .axis_style(AXIS.light.stroke_width(FINE as u32))
            .bold_line_style(GRID.light.stroke_width(FINE as u32))
            .light_line_style(TRANSPARENT)
            .set_all_tick_mark_size(4 * FINE)
            .draw()
            .map_err(cannot)?;
        let place = |x: f64, y: f64| (self.x.scale.place(x), self.y.scale.place(y));
        for Line { colour, band, .. } in self.lines.iter().filter(|line| line.band.len() > 1) {
            let above = band.iter().map(|&(x, _, high)| place(x, high));
            let below = band.iter().rev().map(|&(x, low, _)| place(x, low));
            let area: Vec<(f64, f64)> = above.chain(below).collect();
            chart.draw_series([Polygon::new(area, colour.light.mix(0.18).filled())]).map_err(cannot)?;
        }
        for Line { colour, points, marks, .. } in &self.lines {
            let points: Vec<(f64, f64)> = points.iter().map(|&(x, y)| place(x, y)).collect();
            if *marks {
                let dot = |&at| Circle::new(at, 4 * FINE, colour.light.filled());
                chart.draw_series(points.iter().map(dot)).map_err(cannot)?;
            }
            let stroke = colour.light.stroke_width(2 * FINE as u32);
            chart.draw_series([PathElement::new(points, stroke)]).map_err(cannot)?;
        }
        Ok(())
    }
}

fn fine(width: i32, height: i32) -> (u32, u32) {
    ((width * FINE) as u32, (height * FINE) as u32)
}

fn tick_label(axis: &Axis, at: f64) -> String {
    axis.ticks.iter().find(|(tick, _)| *tick == at).map(|(_, label)| label.clone()).unwrap_or_default()
}

pub(crate) fn cannot(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

/// The image as a PNG file.
///
/// # Errors
/// The encoder's.
pub fn png(image: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

/// Style rules that turn figures within a dark page dark.
pub fn dark_rules(colours: impl Iterator<Item = Colour>) -> String {
    let mut rules: Vec<String> = colours
        .map(|colour| {
            let (light, dark) = (hex(colour.light), hex(colour.dark));
            format!("svg [fill=\"{light}\"]{{fill:{dark}}}svg [stroke=\"{light}\"]{{stroke:{dark}}}\n")
        })
        .collect();
    rules.sort();
    rules.dedup();
    rules.concat()
}
