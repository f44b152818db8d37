//! The training loop: steps, metrics, snapshots, checkpoints, signals.

use crate::{
    TrainConfig, checkpoint,
    checkpoint::{CALMER, Progress},
    metrics::{self, Window},
    preview,
    progress::Display,
    ranks::Ranks,
    step::{Totals, Trainer},
    tensorboard::Events,
};
use anyhow::{Context, Result};
use lcf_model::{
    Engine,
    config::Input,
    trained::{META, Meta, weights_file},
    weights,
};
use lcf_store::{Error, dataset::Dataset, say, stage::Work};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::{
    fs,
    sync::{
        Arc, LazyLock,
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
    /// A number for what makes the steps: another device, engine, or number of ranks or threads has another.
    pub by: u64,
    /// Epochs between comparisons of the gradients of the two terms of the loss, where given.
    pub term_norms: Option<u64>,
}

impl Pace {
    /// Whether they are compared after so many steps.
    fn terms_are_due(&self, trainer: &Trainer, steps: u64) -> bool {
        self.term_norms.is_some_and(|epochs| steps.is_multiple_of(epochs * trainer.steps_per_epoch()))
    }
}

/// Time between two looks at what happened on a device.
const LOOK: Duration = Duration::from_millis(500);

/// A training under way in its work directory.
struct Run<'a> {
    config: &'a TrainConfig,
    input: Input,
    pace: Pace,
    work: &'a Work,
    trainer: Trainer,
    ranks: Ranks,
    progress: Progress,
    saved: Instant,
    looked: Instant,
}

/// Trains from the work directory's checkpoint, or from the start, to the end, and writes the artifact's files. Returns
/// whether all steps were made by the same, [`Pace::by`].
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
    ranks: &Ranks,
) -> Result<bool> {
    let stop = signals()?;
    let trainer = Trainer::new(config, input, images).among(ranks.clone()).with_engine(pace.engine);
    let mut run = Run {
        config,
        input,
        pace,
        work,
        trainer,
        ranks: ranks.clone(),
        progress: Progress::default(),
        saved: Instant::now(),
        looked: Instant::now(),
    };
    run.resume()?;
    let events = Events::open(work.dir(), run.progress.step)?;
    run.steps(&stop, events)?;
    run.finish(dataset)?;
    Ok(!run.progress.mixed)
}

/// Trains as a rank other than 0, which writes nothing. Returns whether a signal has stopped the training.
///
/// # Errors
/// The connection's.
pub fn follow(config: &TrainConfig, input: Input, images: Tensor, pace: Pace, ranks: &Ranks) -> Result<bool> {
    let stop = signals()?;
    let mut trainer = Trainer::new(config, input, images).among(ranks.clone()).with_engine(pace.engine);
    let first = ranks.align(&mut trainer, 0)?;
    for step in first..config.epochs * trainer.steps_per_epoch() {
        trainer.advance(step);
        let [stopping, saving] = ranks.agree([stop.load(Ordering::Relaxed), false])?;
        if pace.terms_are_due(&trainer, step + 1) {
            trainer.take();
            trainer.term_norms(step);
        }
        if stopping || saving {
            ranks.same(&trainer.params.flat, step + 1)?;
        }
        if stopping {
            return Ok(true);
        }
    }
    // Waits until the last steps are made: the others need this rank for them.
    trainer.take();
    Ok(false)
}

/// A flag that SIGTERM and SIGINT raise. More of them change nothing: one that is sent to a process group comes twice
/// where make passes it on, and the checkpoint must be written all the same. There is one, however often it is asked for.
///
/// # Errors
/// The operating system's refusal.
pub fn signals() -> Result<Arc<AtomicBool>> {
    static FLAG: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, FLAG.clone()).context("cannot handle signals")?;
    }
    Ok(FLAG.clone())
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
            say!("train: resuming at step {} of {} (epoch {:.2})", progress.step, self.total(), self.epoch());
            metrics::rewind(&self.work.path(metrics::FILE), progress.step)?;
        } else {
            self.work.clear()?;
        }
        self.progress.hand_over(self.pace.by);
        self.ranks.align(&mut self.trainer, self.progress.step)?;
        let weights = self.work.path("weights");
        fs::create_dir_all(&weights).map_err(Error::io(&weights, "create"))?;
        Ok(())
    }

    fn steps(&mut self, stop: &AtomicBool, mut events: Events) -> Result<()> {
        let mut display = Display::new(self.progress.step, self.total());
        let (mut window, mut since_row) = (Window::new(), 0);
        while self.progress.step < self.total() {
            self.trainer.advance(self.progress.step);
            self.progress.step += 1;
            since_row += 1;
            let [stopping, saving] = self.ranks.agree([stop.load(Ordering::Relaxed), self.checkpoint_is_due()])?;
            let saving = stopping || saving;
            let row_is_due = since_row == self.pace.log_steps || self.progress.step == self.total() || stopping;
            if !(row_is_due || saving || self.epoch_ends() || self.looking_is_due()) {
                continue;
            }
            let totals = self.trainer.take();
            self.looked = Instant::now();
            self.check(&totals, &display)?;
            window.add(&totals);
            if self.pace.terms_are_due(&self.trainer, self.progress.step) {
                self.trainer.term_norms(self.progress.step - 1).into_iter().for_each(|norms| window.terms(norms));
            }
            self.end_of_epoch(&mut events, &display)?;
            display.update(self.progress.step, self.epoch(), &window, self.config.batch);
            // The row comes first: without the checkpoint of its step it is dropped again, see `metrics::rewind`.
            if row_is_due {
                let row = window.row(self.progress.step, self.epoch(), self.config.batch);
                metrics::append(&self.work.path(metrics::FILE), &row)?;
                events.row(self.progress.step, &row)?;
                (window, since_row) = (Window::new(), 0);
            }
            if saving {
                self.ranks.same(&self.trainer.params.flat, self.progress.step)?;
                self.ranks.busy();
                checkpoint::save(self.work.dir(), &self.trainer, self.progress)?;
                self.saved = Instant::now();
            }
            if stopping {
                self.ranks.leave()?;
                let message = format!("stopped by a signal after step {}; checkpoint written", self.progress.step);
                return Err(Error::Stopped { path: self.work.dir().to_owned(), message }.into());
            }
        }
        Ok(())
    }

    /// Looking at what happened makes the host wait for the device, so that is not done at every step there.
    fn looking_is_due(&self) -> bool {
        self.trainer.is_stepwise() || self.looked.elapsed() >= LOOK
    }

    fn epoch_ends(&self) -> bool {
        self.progress.step.is_multiple_of(self.trainer.steps_per_epoch())
    }

    fn checkpoint_is_due(&self) -> bool {
        let by_steps = self.pace.checkpoint_steps.is_some_and(|n| self.progress.step.is_multiple_of(n));
        by_steps || self.saved.elapsed() >= self.pace.checkpoint_every
    }

    /// Counts steps that were left out, and gives up after a run of them.
    fn check(&mut self, totals: &Totals, display: &Display) -> Result<()> {
        self.progress.epoch_flow.0 += totals.flow.iter().sum::<f64>();
        self.progress.epoch_flow.1 += totals.samples.iter().sum::<f64>();
        if totals.overflow > 0 {
            display.say(&format!("train: {} low-noise samples had no anchor slot and were left out", totals.overflow));
        }
        if totals.skipped == 0 {
            return Ok(());
        }
        self.progress.skipped += totals.skipped;
        let Totals { skipped, in_a_row, last_bad, .. } = *totals;
        // Where the weights are still those of that step, it can be computed again; else its gradient is what is left of it.
        let place = (last_bad == self.progress.step)
            .then(|| self.trainer.diagnose(last_bad - 1).or_else(|| self.trainer.bad_gradient()))
            .flatten();
        let place = place.map(|place| format!(" ({place})")).unwrap_or_default();
        display.say(&format!(
            "train: step {last_bad}: loss or gradient not finite{place}; update left out ({skipped} of the last {} steps, \
             {in_a_row} in a row)",
            totals.steps
        ));
        if in_a_row < MAX_SKIPPED_IN_A_ROW {
            return Ok(());
        }
        let message =
            format!("{in_a_row} steps in a row up to step {last_bad} were not finite{place}; training stopped");
        let hint = format!("{CALMER}; the last good checkpoint is kept in this directory");
        Err(Error::bad(self.work.dir(), message).with_hint(hint).into())
    }

    fn end_of_epoch(&mut self, events: &mut Events, display: &Display) -> Result<()> {
        if !self.epoch_ends() {
            return Ok(());
        }
        if let Some(text) = self.progress.end_epoch() {
            display.say(&format!("train: warning: {text}"));
        }
        let epoch = self.progress.step / self.trainer.steps_per_epoch();
        let kept = self.config.snapshots.contains(&epoch);
        if kept || epoch == self.config.epochs {
            self.ranks.busy();
        }
        if kept {
            self.save(&format!("epoch-{epoch}"), &self.trainer.average)?;
        }
        if kept || epoch == self.config.epochs {
            self.show(events)?;
        }
        Ok(())
    }

    /// Samples of the average, for TensorBoard.
    fn show(&self, events: &mut Events) -> Result<()> {
        let layout = &self.trainer.params.layout;
        match preview::sheet(self.config, self.input, layout, &self.trainer.average) {
            Some(sheet) => events.image(self.progress.step, "samples", &sheet)?,
            None => say!("train: step {}: samples of the average are not finite", self.progress.step),
        }
        Ok(())
    }

    fn save(&self, name: &str, flat: &Tensor) -> Result<()> {
        let path = self.work.path(&weights_file(name));
        Ok(weights::save(&path, &self.config.model, &self.input, &self.trainer.params.layout, flat)?)
    }

    fn finish(&self, dataset: &Dataset) -> Result<()> {
        self.ranks.busy();
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
