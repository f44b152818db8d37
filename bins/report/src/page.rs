//! `index.html`: one file that needs no other, on light and dark screens, wide and narrow.

use crate::{
    Report,
    figure::dark_rules,
    figures::Section,
    palette::{AXIS, GRID, PAPER, TEXT},
    run::Run,
    samples::{self, Sheet},
    table::{self, NONE, RANK_NOTE, Row},
};
use anyhow::Result;
use lcf_store::text;
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");
/// Rows that stand out.
const MAIN: [&str; 3] = ["fid", "probe_raw_peak", "probe_std_peak"];

/// The page of a report whose figures lie in `figures/`.
///
/// # Errors
/// As [`crate::figure::Figure::svg`].
pub fn page(report: &Report) -> Result<String> {
    let runs = report.runs();
    let names = runs.iter().map(|run| run.name.as_str()).collect::<Vec<_>>().join(", ");
    let colours = report.sections.iter().flat_map(|section| &section.figures).flat_map(|(_, figure)| &figure.lines);
    let dark = dark_rules(colours.map(|line| line.colour).chain([PAPER, TEXT, AXIS, GRID]));
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}@media (prefers-color-scheme: dark) {{\n{dark}}}\n</style>\n</head>\n<body>\n<h1>{title}</h1>\n",
        title = escape(&format!("Local Contrastive Flow: {names}")),
    );
    out += &contents(report);
    out += &results(report, &runs);
    out += &missing(&report.missing);
    for section in &report.sections {
        out += &figures(section)?;
    }
    out += &sheets(&report.sheets, &report.sheet_notes)?;
    out += &settings(report, &runs);
    out += &artifacts(&runs);
    Ok(out + "</body>\n</html>\n")
}

fn contents(report: &Report) -> String {
    let own = [("missing", "Missing"), ("samples", "Samples"), ("settings", "Settings"), ("artifacts", "Artifacts")];
    let drawn = report.sections.iter().map(|section| (section.id, section.heading.as_str()));
    let links = own[..1].iter().copied().chain(drawn).chain(own[1..].iter().copied());
    let links: String = links.map(|(id, name)| format!("<a href=\"#{id}\">{}</a>\n", escape(name))).collect();
    format!("<nav class=\"quiet\">\n{links}</nav>\n")
}

fn results(report: &Report, runs: &[&Run]) -> String {
    let groups = report.groups();
    let mut out = grid(runs, &table::seeded(&groups, runs), &report.results);
    if report.results.iter().flat_map(|row| &row.cells).any(|cell| cell.marked) {
        let _ = writeln!(out, "<p class=\"quiet\">{}</p>", escape(RANK_NOTE));
    }
    out + "<p class=\"quiet\">FID of real images: of as many of the reference's own images, what perfect samples would get. \
           Over sample seeds: mean ± standard deviation (how many). Other half: against test images where FID is against \
           training images, and the other way round. Copies: samples nearer to a training image than the nearest 1 % of test \
           images are, so that 1 is chance. Hours are wall clock; those of a resumed training are the sum over its steps. Of \
           several training seeds: mean (lowest to highest).</p>\n"
}

/// Rows as a table: a column a run, then one a group of several seeds.
fn grid(runs: &[&Run], seeded: &[(&str, Vec<usize>)], rows: &[Row]) -> String {
    let width = 1 + runs.len() + seeded.len();
    let names = runs.iter().map(|run| run.name.as_str()).chain(seeded.iter().map(|(name, _)| *name));
    let head: String = names.map(|name| format!("<th>{}</th>", escape(name))).collect();
    let mut out = format!("<div class=\"wide\"><table>\n<thead><tr><th></th>{head}</tr></thead>\n<tbody>\n");
    let mut part = "";
    for row in rows {
        if row.part != part {
            part = &row.part;
            let _ = writeln!(out, "<tr class=\"part\"><th colspan=\"{width}\"><span>{}</span></th></tr>", escape(part));
        }
        let class = if MAIN.contains(&row.key.as_str()) { " class=\"main\"" } else { "" };
        let cells: String = row.cells.iter().map(|cell| format!("<td>{}</td>", escape(&cell.text))).collect();
        let spread = |columns: &[usize]| match table::spread(row, columns) {
            Some((mean, Some(range))) => format!("{}<small>{}</small>", escape(&mean), escape(&range)),
            Some((same, None)) => escape(&same),
            None => String::new(),
        };
        let spreads: String =
            seeded.iter().map(|(_, columns)| format!("<td class=\"spread\">{}</td>", spread(columns))).collect();
        let _ = writeln!(out, "<tr{class}><th>{}</th>{cells}{spreads}</tr>", escape(&row.label));
    }
    out + "</tbody>\n</table></div>\n"
}

fn missing(missing: &[String]) -> String {
    let text = match missing.is_empty() {
        true => {
            "<p class=\"quiet\">Nothing: every run has all its stages, and every snapshot is evaluated.</p>\n".into()
        }
        false => {
            let how = "The commands take the CFG and SET that the run was made with, where it was made with any.";
            format!("{}<p class=\"quiet\">{how}</p>\n", notes(missing))
        }
    };
    format!("<h2 id=\"missing\">What is missing</h2>\n{text}")
}

fn notes(notes: &[String]) -> String {
    let items: String = notes.iter().map(|note| format!("<li>{}</li>\n", escape(note))).collect();
    if items.is_empty() { items } else { format!("<ul class=\"notes\">\n{items}</ul>\n") }
}

fn figures(section: &Section) -> Result<String> {
    let (id, heading, about) = (section.id, escape(&section.heading), escape(&section.about));
    let mut out = format!("<h2 id=\"{id}\">{heading}</h2>\n<p class=\"quiet\">{about}</p>\n<div class=\"figures\">\n");
    for (name, figure) in &section.figures {
        let label = format!("<svg role=\"img\" aria-label=\"{}\" ", escape(&figure.title));
        let svg = figure.svg()?.replacen("<svg ", &label, 1);
        let _ = writeln!(out, "<figure>{svg}\n<figcaption>{}</figcaption></figure>", files(name));
    }
    out += "</div>\n";
    if !section.pictures.is_empty() {
        out += "<div class=\"figures\">\n";
    }
    for (caption, picture) in &section.pictures {
        let caption = escape(caption);
        let _ = writeln!(
            out,
            "<figure class=\"picture\"><img src=\"{picture}\" alt=\"{caption}\"><figcaption>{caption}</figcaption></figure>"
        );
    }
    if !section.pictures.is_empty() {
        out += "</div>\n";
    }
    Ok(out + &notes(&section.notes))
}

/// Where the figure lies as a file.
fn files(name: &str) -> String {
    let link = |kind: &str| format!("<a href=\"figures/{name}.{kind}\">{}</a>", kind.to_uppercase());
    format!("{} {}", link("svg"), link("png"))
}

fn sheets(sheets: &[Sheet], about: &[String]) -> Result<String> {
    let mut out = "<h2 id=\"samples\">Samples</h2>\n<p class=\"quiet\">The first samples of each run, from the final \
                   weights. Figure 10 of the paper.</p>\n<div class=\"sheets\">\n"
        .to_owned();
    for sheet in sheets {
        let (name, image) = (escape(&sheet.name), samples::data_uri(&sheet.image)?);
        let _ = writeln!(
            out,
            "<figure><figcaption>{name}</figcaption><img src=\"{image}\" alt=\"{} samples of {name}\"></figure>",
            sheet.count
        );
    }
    let link = if sheets.is_empty() { String::new() } else { format!("<p class=\"quiet\">{}</p>\n", files("samples")) };
    Ok(out + "</div>\n" + &link + &notes(about))
}

fn settings(report: &Report, runs: &[&Run]) -> String {
    let text = match (runs.len(), report.settings.is_empty()) {
        (1, _) => {
            "<p class=\"quiet\">There is one run; its settings are in the manifests of its artifacts.</p>\n".into()
        }
        (_, true) => "<p class=\"quiet\">None.</p>\n".into(),
        _ => grid(runs, &[], &report.settings),
    };
    format!("<h2 id=\"settings\">Settings that differ</h2>\n{text}")
}

fn artifacts(runs: &[&Run]) -> String {
    let mut out = "<h2 id=\"artifacts\">Artifacts</h2>\n<p class=\"quiet\">Digests of all that this page was made from; \
                   <code>lcf-artifact show DIR</code> says how each was made.</p>\n<div class=\"wide\"><table>\n\
                   <thead><tr><th>run and stage</th><th>seconds</th><th>device</th><th>revision</th><th>digest</th></tr>\
                   </thead>\n<tbody>\n"
        .to_owned();
    for (run, (role, artifact)) in runs.iter().flat_map(|run| run.artifacts.iter().map(move |one| (run, one))) {
        let made = &artifact.manifest().provenance;
        let revision = match made.revision.strip_suffix("-dirty") {
            Some(revision) => format!("{}-dirty", text::head(revision)),
            None => text::head(&made.revision).to_owned(),
        };
        let cells =
            [made.seconds.to_string(), made.device.clone(), if revision.is_empty() { NONE.into() } else { revision }];
        let cells: String = cells.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
        let name = escape(&format!("{}/{role}", run.name));
        let _ = writeln!(out, "<tr><th>{name}</th>{cells}<td><code>{}</code></td></tr>", artifact.digest());
    }
    out + "</tbody>\n</table></div>\n"
}

/// Text as HTML and SVG take it.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_nothing_missing_is_said() {
        assert_eq!(escape("a<b & \"c\">"), "a&lt;b &amp; &quot;c&quot;&gt;");
        assert!(missing(&[]).contains("Nothing: every run"));
        assert!(missing(&["x: no <fid>".into()]).contains("<li>x: no &lt;fid&gt;</li>"));
        assert!(!STYLE.contains("http"), "the page loads nothing");
    }
}
