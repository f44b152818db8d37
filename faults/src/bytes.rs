//! Every byte counts: a file of the store that is not what it was is refused by name, or changes no result.

use crate::{
    Options, Size,
    bench::{Bench, RUN, Stage, text},
    cases::{self, Random},
    damage::{Damage, Done},
    kill,
    place::{Place, list, name},
    shim::{Calls, Fault},
};
use anyhow::{Context, Result, ensure};
use lcf_store::{
    Artifact,
    artifact::{MANIFEST, Manifest},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

/// How often each published file is damaged, and how many cases of all CI takes.
const ROUNDS: usize = 56;
const IN_CI: usize = 120;
/// The same for the files of an unfinished training.
const BUILD_ROUNDS: usize = 40;
const BUILD_IN_CI: usize = 24;

/// Damages published files.
///
/// # Errors
/// When a case cannot be set up.
pub fn published(bench: &Bench, options: &Options) -> Result<bool> {
    let files = files(&bench.base.store())?;
    let files: Vec<PathBuf> = files.iter().map(|file| relative(&bench.base, file)).collect();
    let cases: Vec<&PathBuf> = (0..ROUNDS).flat_map(|_| &files).collect();
    let describe = |file: &&PathBuf| file.display().to_string();
    let test = |case, file: &&PathBuf| damaged(bench, options, case, file, &files);
    cases::run("bytes", options, &cases, IN_CI, describe, test)
}

fn damaged(bench: &Bench, options: &Options, case: usize, file: &Path, files: &[PathBuf]) -> Result<&'static str> {
    let mut random = Random::new(options, "bytes", case);
    let place = bench.copy(&format!("bytes-{case}"))?;
    let others: Vec<PathBuf> = files.iter().filter(|own| *own != file).map(|own| place.dir.join(own)).collect();
    let damage = *random.pick(&Damage::ALL);
    let file = place.dir.join(file);
    let dir = artifact_of(&file).to_owned();
    let before = manifest(&dir)?;
    let Some(done) = damage.apply(&file, &others, &mut random)? else {
        fs::remove_dir_all(&place.dir)?;
        return Ok("unchanged");
    };
    let ending = judge(bench, &place, &done, &dir, &before, &mut random).with_context(|| done.text)?;
    fs::remove_dir_all(&place.dir)?;
    Ok(ending)
}

/// `lcf-artifact verify`, then the stage itself or one that reads it: both refuse the file by name, or nothing changed.
fn judge(
    bench: &Bench,
    place: &Place,
    done: &Done,
    dir: &Path,
    before: &Manifest,
    random: &mut Random,
) -> Result<&'static str> {
    let verified = bench.artifact(&[Path::new("verify"), dir]).output()?;
    if verified.status.success() {
        ensure!(same(&manifest(dir)?, before), "lcf-artifact verify accepts another manifest");
    } else {
        refused(&verified, done)?;
    }
    let reader = *random.pick(&readers(bench, &before.stage));
    if reader.name != before.stage {
        place.forget(&reader.name)?;
    }
    let output = bench.command(reader, place).output()?;
    if output.status.success() {
        // Without its manifest it was no artifact, and whoever makes such ones made it again.
        let makes = reader.name == before.stage || !reader.reads(&before.stage);
        let rebuilt = makes && done.text == "deleted" && done.files[0].ends_with(MANIFEST);
        ensure!(verified.status.success() || rebuilt, "{} accepts what does not verify", reader.name);
        let digest = Artifact::open_any(&place.link(&reader.name))?.digest().to_owned();
        ensure!(bench.digests[&reader.name] == digest, "{} gives another result", reader.name);
        return Ok("harmless: same digests");
    }
    refused(&output, done).with_context(|| format!("lcf-{}", reader.name))?;
    ensure!(!verified.status.success(), "lcf-artifact verify accepts what {} refuses", reader.name);
    Ok("refused by name")
}

/// That the program ended with exit code 1 and one line that names a file that is wrong: by its path, and where that is a
/// manifest, by the directory of the artifact or the link to it.
fn refused(output: &Output, done: &Done) -> Result<()> {
    let text = text(output);
    ensure!(output.status.code() == Some(1), "ended with {}: {text}", output.status);
    let names = |file: &PathBuf| {
        let dir = file.parent().unwrap_or(file);
        let link = format!("/runs/{RUN}/{}", dir.parent().map(name).unwrap_or_default());
        let is_manifest = file.ends_with(MANIFEST);
        text.contains(&name(file)) || (is_manifest && (text.contains(&name(dir)) || text.contains(&link)))
    };
    let named = done.files.iter().any(names);
    ensure!(named && text.contains("error: ") && !text.contains("panicked"), "does not name the file: {text}");
    Ok(())
}

/// The stage that makes an artifact, and those that read it.
fn readers<'a>(bench: &'a Bench, stage: &str) -> Vec<&'a Stage> {
    let readers = bench.stages.iter().filter(|own| own.name == stage || own.reads(stage));
    // The reference statistics are made and read by fid.
    let readers: Vec<&Stage> = readers.collect();
    if readers.is_empty() { vec![bench.stage("fid")] } else { readers }
}

/// Whether two manifests say the same of what was asked for and what came out.
fn same(a: &Manifest, b: &Manifest) -> bool {
    let outputs = a.outputs == b.outputs && a.digest == b.digest;
    outputs && a.key == b.key && a.config == b.config && a.inputs == b.inputs && a.version == b.version
}

fn manifest(dir: &Path) -> Result<Manifest> {
    Ok(serde_json::from_slice(&fs::read(dir.join(MANIFEST))?)?)
}

/// The directory of the artifact that a file is in: STORE/STAGE/KEY.
fn artifact_of(file: &Path) -> &Path {
    file.ancestors().find(|dir| dir.join(MANIFEST).exists()).expect("a published file")
}

fn relative(place: &Place, file: &Path) -> PathBuf {
    file.strip_prefix(&place.dir).expect("below the place").to_owned()
}

/// Every file below a directory, those of work directories and locks left out.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in list(dir)?.into_iter().filter(|path| !name(path).starts_with('.')) {
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

/// Damages the files of a training that was killed: after a checkpoint, and between its manifest and its publication.
///
/// # Errors
/// When a case cannot be set up.
pub fn unfinished(bench: &Bench, options: &Options) -> Result<bool> {
    let calls = kill::calls(bench, Calls::Writes)?;
    let find = |text: &str, nth: usize| {
        let found = calls.iter().filter(|call| call.stage == "train" && call.text.ends_with(text)).nth(nth);
        found.map(|call| call.at).with_context(|| format!("the training has no call {text}"))
    };
    let mut cases = Vec::new();
    for (state, at) in [("checkpoint", find("/.checkpoint.json", 1)? + 2), ("manifest", find("/manifest.json", 0)? + 1)]
    {
        let place = bench.copy(state)?;
        place.forget("train")?;
        let mut command = bench.command(bench.stage("train"), &place);
        bench.shim.inject(&mut command, &place.dir, Calls::Writes, at, Fault::Kill);
        command.output()?;
        let work = work(&place)?;
        let mut files: Vec<PathBuf> = list(&work)?.into_iter().filter(|path| path.is_file()).collect();
        files.extend(list(&work.join("weights"))?);
        let files: Vec<PathBuf> = files.iter().map(|file| relative(&place, file)).collect();
        ensure!(files.len() > 3, "{state}: no unfinished training in {}", work.display());
        cases.extend((0..BUILD_ROUNDS).flat_map(|_| &files).map(|file| (state, file.clone())).collect::<Vec<_>>());
    }
    let describe = |(state, file): &(&str, PathBuf)| format!("{} after the {state}", file.display());
    let test = |case, (state, file): &(&str, PathBuf)| resumed(bench, options, case, state, file);
    cases::run("bytes-build", options, &cases, BUILD_IN_CI, describe, test)
}

fn resumed(bench: &Bench, options: &Options, case: usize, state: &str, file: &Path) -> Result<&'static str> {
    let mut random = Random::new(options, "bytes-build", case);
    let place = bench.copy_of(&Place { dir: bench.path(state) }, &format!("bytes-build-{case}"))?;
    let work = work(&place)?;
    let file = place.dir.join(file);
    let others: Vec<PathBuf> = list(&work)?.into_iter().filter(|path| path.is_file() && *path != file).collect();
    let Some(done) = random.pick(&Damage::ALL).apply(&file, &others, &mut random)? else {
        fs::remove_dir_all(&place.dir)?;
        return Ok("unchanged");
    };
    let ending = (|| {
        let output = bench.command(bench.stage("train"), &place).output()?;
        let refused = !output.status.success();
        if refused {
            let text = text(&output);
            ensure!(output.status.code() == Some(1), "ended with {}: {text}", output.status);
            ensure!(text.contains(&name(&work)) && !text.contains("panicked"), "names no file of the build: {text}");
            ensure!(place.verify()? > 0 && !place.link("train").exists(), "published all the same");
            if options.size == Size::Full {
                // What the hint says.
                fs::remove_dir_all(&work)?;
                let output = bench.command(bench.stage("train"), &place).output()?;
                ensure!(output.status.success(), "does not start over: {}", self::text(&output));
            }
        }
        if !refused || options.size == Size::Full {
            let digest = Artifact::open_any(&place.link("train"))?.digest().to_owned();
            ensure!(bench.digests["train"] == digest, "other weights than undisturbed");
        }
        Ok(if refused { "refused by name" } else { "harmless: same digests" })
    })();
    let ending = ending.with_context(|| done.text)?;
    fs::remove_dir_all(&place.dir)?;
    Ok(ending)
}

/// The work directory of the training.
fn work(place: &Place) -> Result<PathBuf> {
    let found = list(&place.store().join("train"))?.into_iter().find(|path| name(path).starts_with(".work-"));
    found.context("no unfinished training")
}
