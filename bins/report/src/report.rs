//! The stage: what a report holds, what it is keyed by, and the files it writes.

use crate::{
    figures::{self, Section},
    group::{self, Group},
    page, results,
    run::{LIST, Run},
    samples::{self, Sheet},
    table::{self, Row},
};
use anyhow::Result;
use lcf_store::{
    Artifact, Error,
    artifact::MANIFEST,
    cli::StageArgs,
    digest,
    stage::{Begin, Plan, Work, pretty, write_atomic},
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The stage's name.
pub const STAGE: &str = "report";
/// Bumped by hand when the same artifacts give another report.
const VERSION: u32 = 2;
/// The page.
pub const PAGE: &str = "index.html";
/// Its numbers.
pub const NUMBERS: &str = "report.json";

/// Everything on the page.
#[derive(Debug)]
pub struct Report {
    runs: Vec<Run>,
    /// What the runs lack.
    pub missing: Vec<String>,
    /// Numbers by run.
    pub results: Vec<Row>,
    /// Settings that differ.
    pub settings: Vec<Row>,
    /// Figures, once drawn.
    pub sections: Vec<Section>,
    /// Samples, once drawn.
    pub sheets: Vec<Sheet>,
    /// What to know about them.
    pub sheet_notes: Vec<String>,
}

impl Report {
    /// Reads the runs in `dirs`, without anything that is costly to draw.
    ///
    /// # Errors
    /// [`Error::Usage`] for a directory that is not there or without a run, or two runs of one name, [`Error::Bad`] for damaged artifacts.
    pub fn read(dirs: &[PathBuf]) -> Result<Self> {
        let mut missing = Vec::new();
        let mut runs: Vec<Run> = Vec::new();
        for dir in dirs {
            let name = name(dir)?;
            if runs.iter().any(|run| run.name == name) {
                let message = format!("{}: a run called {name} is among the others already", dir.display());
                return Err(Error::usage(message)
                    .with_hint("give each run once; rename one of the directories")
                    .into());
            }
            runs.push(Run::read(dir, &name, &mut missing)?);
        }
        let all: Vec<&Run> = runs.iter().collect();
        let (results, settings) = (results::rows(&all), table::settings(&all));
        Ok(Self { runs, missing, results, settings, sections: vec![], sheets: vec![], sheet_notes: vec![] })
    }

    /// The runs, as they were given.
    pub fn runs(&self) -> Vec<&Run> {
        self.runs.iter().collect()
    }

    /// Runs that differ in their seeds alone, together.
    pub fn groups(&self) -> Vec<Group<'_>> {
        group::groups(&self.runs)
    }

    /// The artifact, and whether it was built now.
    ///
    /// # Errors
    /// Samples that are not what they have to be, a store that cannot be written.
    pub fn build(&mut self, args: &StageArgs) -> Result<(Artifact, bool)> {
        match self.plan()?.begin(args)? {
            Begin::UpToDate(artifact) => Ok((artifact, false)),
            Begin::Build(work) => {
                work.clear()?;
                self.draw()?;
                Ok((self.write(work)?, true))
            }
        }
    }

    /// What is asked for: these runs with these artifacts. Times and devices are shown and are not in an artifact's
    /// digest, hence the hash of the manifests themselves.
    fn plan(&self) -> Result<Plan> {
        #[derive(Serialize)]
        struct Asked<'a> {
            runs: Vec<&'a str>,
            missing: &'a [String],
        }
        let runs = self.runs.iter().map(|run| run.name.as_str()).collect();
        let mut plan = Plan::new(STAGE, VERSION, &Asked { runs, missing: &self.missing });
        let mut manifests = Vec::new();
        for run in &self.runs {
            for (role, artifact) in &run.artifacts {
                plan = plan.input(&format!("{}/{role}", run.name), artifact.digest());
                let path = artifact.dir().join(MANIFEST);
                manifests.extend(fs::read(&path).map_err(Error::io(&path, "read"))?);
            }
        }
        Ok(plan.input("manifests", &digest::of_bytes(&manifests)))
    }

    fn draw(&mut self) -> Result<()> {
        self.sections = figures::sections(&self.groups())?;
        let sheets: Result<Vec<Option<Sheet>>> = self.runs.iter().map(samples::sheet).collect();
        self.sheets = sheets?.into_iter().flatten().collect();
        self.sheet_notes = samples::notes(&self.runs, &self.sheets);
        Ok(())
    }

    /// Times are shown in two of the files, which are logs for that; figures and samples are content.
    fn write(&self, mut work: Work) -> Result<Artifact> {
        let figures = work.path("figures");
        fs::create_dir_all(&figures).map_err(Error::io(&figures, "create"))?;
        let save = |name: &str, bytes: &[u8]| {
            let path = work.path(name);
            fs::write(&path, bytes).map_err(Error::io(&path, "write"))
        };
        for (name, figure) in self.sections.iter().flat_map(|section| &section.figures) {
            save(&format!("figures/{name}.svg"), figure.svg()?.as_bytes())?;
            save(&format!("figures/{name}.png"), &figure.png()?)?;
        }
        if !self.sheets.is_empty() {
            save("figures/samples.svg", samples::svg(&self.sheets)?.as_bytes())?;
            save("figures/samples.png", &samples::png(&self.sheets)?)?;
        }
        save(PAGE, page::page(self)?.as_bytes())?;
        write_atomic(&work.path(NUMBERS), &pretty(&self.json()))?;
        work.log(PAGE);
        work.log(NUMBERS);
        Ok(work.publish()?)
    }

    /// The numbers of the page.
    pub fn json(&self) -> Value {
        let runs = self.runs();
        let groups: Vec<Value> = self
            .groups()
            .iter()
            .map(|group| {
                let names: Vec<&str> = group.runs.iter().map(|run| run.name.as_str()).collect();
                json!({ "name": group.name, "runs": names })
            })
            .collect();
        json!({
            "runs": table::json(&runs, &self.results), "settings": table::json(&runs, &self.settings),
            "groups": groups, "missing": self.missing,
        })
    }
}

/// The last part of the directory's path.
fn name(dir: &Path) -> Result<String> {
    if !dir.is_dir() {
        let message = format!("{}: no such run (a directory with links like train, probe and fid)", dir.display());
        return Err(Error::usage(message).with_hint(LIST).into());
    }
    let full = fs::canonicalize(dir).map_err(Error::io(dir, "open"))?;
    Ok(full.file_name().map_or_else(|| "run".to_owned(), |name| name.to_string_lossy().into_owned()))
}
