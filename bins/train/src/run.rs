//! The training loop: steps, metrics, snapshots, checkpoints, signals.

use crate::{
    TrainConfig, checkpoint,
    checkpoint::Progress,
    metrics::{self, Window},
    progress::Display,
    step::{Report, Trainer},
};
use anyhow::{Context, Result};
use lcf_model::{
    Engine,
    config::Input,
    trained::{META, Meta, weights_file},
    weights,
};
use lcf_store::{Error, dataset::Dataset, stage::Work};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tch::Tensor;

/// Steps in a row that may be left out before training stops.
const MAX_SKIPPED_IN_A_ROW: u64 = 10;

/// How often things are written; changes no result.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Steps between rows of `metrics.csv`.
    pub log_steps: u64,
    /// Steps between checkpoints, where given.
    pub checkpoint_steps: Option<u64>,
    /// Time between checkpoints.
    pub checkpoint_every: Duration,
    /// What computes the residual stream; changes results by rounding alone.
    pub engine: Engine,
}

/// A training under way in its work directory.
struct Run<'a> {
    config: &'a TrainConfig,
    input: Input,
    pace: Pace,
    work: &'a Work,
    trainer: Trainer,
    progress: Progress,
    skipped_in_a_row: u64,
    saved: Instant,
}

/// Trains from the work directory's checkpoint, or from the start, to the end, and writes the artifact's files.
///
/// # Errors
/// A signal (after writing a checkpoint), a run of losses that are not finite, or a file that cannot be written.
pub fn train(
    config: &TrainConfig,
    dataset: &Dataset,
    input: Input,
    images: Tensor,
    pace: Pace,
    work: &Work,
) -> Result<()> {
    let stop = signals()?;
    let trainer = Trainer::new(config, input, images).with_engine(pace.engine);
    let mut run = Run {
        config,
        input,
        pace,
        work,
        trainer,
        progress: Progress::default(),
        skipped_in_a_row: 0,
        saved: Instant::now(),
    };
    run.resume()?;
    run.steps(&stop)?;
    run.finish(dataset)
}

/// A flag that SIGTERM and SIGINT raise. More of them change nothing: one that is sent to a process group comes twice
/// where make passes it on, and the checkpoint must be written all the same.
fn signals() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, flag.clone()).context("cannot handle signals")?;
    }
    Ok(flag)
}

impl Run<'_> {
    fn total(&self) -> u64 {
        self.config.epochs * self.trainer.steps_per_epoch()
    }

    fn epoch(&self) -> f64 {
        self.progress.step as f64 / self.trainer.steps_per_epoch() as f64
    }

    fn resume(&mut self) -> Result<()> {
        let dir = self.work.dir();
        if let Some(progress) = checkpoint::restore(dir, &mut self.trainer)? {
            self.progress = progress;
            eprintln!("train: resuming at step {} of {} (epoch {:.2})", progress.step, self.total(), self.epoch());
            metrics::rewind(&self.work.path(metrics::FILE), progress.step)?;
        } else {
            self.work.clear()?;
        }
        let weights = self.work.path("weights");
        fs::create_dir_all(&weights).map_err(Error::io(&weights, "create"))?;
        Ok(())
    }

    fn steps(&mut self, stop: &AtomicBool) -> Result<()> {
        let mut display = Display::new(self.progress.step, self.total());
        let mut window = Window::new();
        while self.progress.step < self.total() {
            let report = self.trainer.step(self.progress.step);
            self.progress.step += 1;
            self.check(&report, &display)?;
            window.add(&report);
            self.end_of_epoch()?;
            display.update(self.progress.step, self.epoch(), &window, self.config.batch);
            let stopping = stop.load(Ordering::Relaxed);
            let row_is_due = window.steps() == self.pace.log_steps || self.progress.step == self.total();
            // The row comes first: without the checkpoint of its step it is dropped again, see `metrics::rewind`.
            if row_is_due || stopping {
                let row = window.row(self.progress.step, self.epoch(), self.config.batch);
                metrics::append(&self.work.path(metrics::FILE), &row)?;
                window = Window::new();
            }
            if stopping || self.checkpoint_is_due() {
                checkpoint::save(self.work.dir(), &self.trainer, self.progress)?;
                self.saved = Instant::now();
            }
            if stopping {
                let message = format!("stopped by a signal after step {}; checkpoint written", self.progress.step);
                return Err(Error::Stopped { path: self.work.dir().to_owned(), message }.into());
            }
        }
        Ok(())
    }

    fn checkpoint_is_due(&self) -> bool {
        let by_steps = self.pace.checkpoint_steps.is_some_and(|n| self.progress.step.is_multiple_of(n));
        by_steps || self.saved.elapsed() >= self.pace.checkpoint_every
    }

    /// Counts steps that were left out, and gives up after a run of them.
    fn check(&mut self, report: &Report, display: &Display) -> Result<()> {
        if report.is_finite() {
            self.skipped_in_a_row = 0;
            self.progress.epoch_flow.0 += report.flow.iter().sum::<f64>();
            self.progress.epoch_flow.1 += report.samples.iter().sum::<f64>();
            return Ok(());
        }
        self.progress.skipped += 1;
        self.skipped_in_a_row += 1;
        let step = self.progress.step;
        let (loss, norm) = (report.loss, report.grad_norm);
        display.say(&format!(
            "train: step {step}: loss {loss}, gradient norm {norm}: not finite, update left out ({} in a row)",
            self.skipped_in_a_row
        ));
        if self.skipped_in_a_row < MAX_SKIPPED_IN_A_ROW {
            return Ok(());
        }
        let message =
            format!("{MAX_SKIPPED_IN_A_ROW} steps in a row up to step {step} were not finite; training stopped");
        let hint = "lower train.optim.lr or train.contrast.lambda; the last good checkpoint is kept in this directory";
        Err(Error::bad(self.work.dir(), message).with_hint(hint).into())
    }

    fn end_of_epoch(&mut self) -> Result<()> {
        let per_epoch = self.trainer.steps_per_epoch();
        if !self.progress.step.is_multiple_of(per_epoch) {
            return Ok(());
        }
        let (sum, count) = std::mem::take(&mut self.progress.epoch_flow);
        self.progress.last_epoch_flow = (count > 0.0).then(|| sum / count);
        let epoch = self.progress.step / per_epoch;
        if self.config.snapshots.contains(&epoch) {
            self.save(&format!("epoch-{epoch}"), &self.trainer.average)?;
        }
        Ok(())
    }

    fn save(&self, name: &str, flat: &Tensor) -> Result<()> {
        let path = self.work.path(&weights_file(name));
        Ok(weights::save(&path, &self.config.model, &self.input, &self.trainer.params.layout, flat)?)
    }

    fn finish(&self, dataset: &Dataset) -> Result<()> {
        self.save("raw", &self.trainer.params.flat)?;
        self.save("ema", &self.trainer.average)?;
        let meta = Meta {
            model: self.config.model,
            input: self.input,
            objective: self.config.objective.name().to_owned(),
            parameters: self.trainer.params.layout.parameters(),
            velocity_from: self.config.velocity_from(),
            epochs: self.config.epochs,
            steps: self.progress.step,
            skipped: self.progress.skipped,
            final_loss: self.progress.last_epoch_flow,
            dataset: dataset.meta.name.clone(),
            data: dataset.artifact.digest().to_owned(),
        };
        lcf_store::stage::write_atomic(&self.work.path(META), &lcf_store::stage::pretty(&meta))?;
        Ok(())
    }
}
