//! `lcf-artifact`: list, show, verify, export and clean up the artifacts of a store.

use clap::{Args, Parser, Subcommand};
use lcf_artifact::{
    export::{Choice, Exported, Format, export},
    gc, list, show,
    store::{Store, find, links},
    summary::Summary,
    text::short,
    verify,
};
use lcf_store::{Artifact, Error, artifact::MANIFEST, cli, say, tell};
use std::{
    error::Error as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};

/// List, show, verify, export and clean up artifacts
#[derive(Parser)]
#[command(name = "lcf-artifact", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Every artifact of the store: stage, key, size, age, and the runs that link to it
    List {
        #[command(flatten)]
        place: Place,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// One artifact (its directory or a link to it), or the results of a run (a directory like data/runs/smoke)
    Show {
        /// Artifact, link, or directory of a run
        path: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Check size and SHA-256 of every file; exit 1 when one is wrong, after naming all that are
    Verify {
        /// Artifacts, links, runs, or a store with all that is in it
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Write an artifact as files that other programs open, to a folder that is not there yet or empty
    ///
    /// A training: model.safetensors with DiT's names, config.json, a model card, the network in PyTorch and an example
    /// that runs. Samples: PNG files, or samples.npz. Probes: their weights as .npy. Features and statistics are .npy
    /// already and are copied.
    Export {
        /// Artifact of train, sample, extract, probe, fid or reference, or a link to it
        path: PathBuf,
        /// The folder
        out: PathBuf,
        /// Of a training: ema, raw, or epoch-N for a snapshot [default: ema]
        #[arg(long, value_name = "NAME")]
        weights: Option<String>,
        /// Of samples: the kind of files [default: png]
        #[arg(long)]
        format: Option<Format>,
    },
    /// Remove artifacts that no run needs, interrupted builds (with their checkpoints), and unused locks
    ///
    /// A run needs the artifacts it links to and, in turn, all that they were made from. What a running stage has
    /// locked stays; what it has just published and not linked yet does not: wait for make to end.
    Gc {
        #[command(flatten)]
        place: Place,
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
    },
}

/// Where to look.
#[derive(Args)]
struct Place {
    /// Directory of all artifacts
    #[arg(long, value_name = "DIR", default_value = "data/artifacts")]
    store: PathBuf,
    /// Directory of the runs, whose links say what is needed
    #[arg(long, value_name = "DIR", default_value = "data/runs")]
    runs: PathBuf,
}

fn main() -> ExitCode {
    cli::main("artifact", |args: Cli| match args.command {
        Command::List { place, json } => print_list(&place, json),
        Command::Show { path, json } => print_show(&path, json),
        Command::Verify { paths } => check(&paths),
        Command::Export { path, out, weights, format } => write(&path, &out, &Choice { weights, format }),
        Command::Gc { place, dry_run } => clean(&place, dry_run),
    })
}

fn print_list(place: &Place, json: bool) -> anyhow::Result<()> {
    let store = Store::scan(&place.store)?;
    let links = links(&place.runs)?;
    for error in &store.unreadable {
        say!("artifact: warning: {error}");
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    match json {
        true => cli::print_json(&list::json(&store, &links)),
        false => cli::tell(&list::table(&store, &links, now)),
    }
    Ok(())
}

fn print_show(path: &Path, json: bool) -> anyhow::Result<()> {
    if !path.join(MANIFEST).exists()
        && let Some(summary) = Summary::of(path)?
    {
        match json {
            true => cli::print_json(&summary.json()),
            false => cli::tell(&summary.text()),
        }
        return Ok(());
    }
    let artifact = Artifact::read(path)?;
    let store = show::store_of(&artifact)?;
    match json {
        true => cli::print_json(&show::json(&artifact, &store)),
        false => cli::tell(&show::text(&artifact, &store)),
    }
    Ok(())
}

fn check(paths: &[PathBuf]) -> anyhow::Result<()> {
    let found = find(paths)?;
    let report = verify::verify(&found);
    for error in &report.bad {
        say!("artifact: error: {error}");
        if let Some(cause) = error.source() {
            say!("  because: {cause}");
        }
        if let Some(hint) = error.hint() {
            say!("hint: {hint}");
        }
    }
    tell!("{}", report.line());
    match report.bad.is_empty() {
        true => Ok(()),
        false => Err(Error::bad(&paths[0], format!("{} did not verify", report.bad.len())).into()),
    }
}

fn write(path: &Path, out: &Path, choice: &Choice) -> anyhow::Result<()> {
    let Exported { dir, files, stage } = export(path, out, choice)?;
    tell!("{}: {stage}, {files} files", dir.display());
    Ok(())
}

fn clean(place: &Place, dry_run: bool) -> anyhow::Result<()> {
    let plan = gc::plan(&place.store, &place.runs)?;
    for kept in &plan.kept {
        say!("artifact: warning: {kept}");
    }
    let mut bytes = 0;
    for item in &plan.items {
        let removed = if dry_run { item.is_free()? } else { item.remove()? };
        match removed {
            true => tell!("{}", item.line()),
            false => tell!("kept, in use: {}", short(item.path()).display()),
        }
        bytes += if removed { item.bytes() } else { 0 };
    }
    tell!("{}", gc::total(plan.items.len(), bytes, dry_run));
    Ok(())
}
