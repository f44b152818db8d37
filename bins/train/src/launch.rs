//! Starts the ranks of one machine: this program once a rank, and a store where they meet. What torchrun does, without
//! Python.

use crate::{
    ranks::{Ranks, check_batch},
    run::signals,
};
use anyhow::{Context, Result, bail};
use lcf_native::dist::{self, Place, Store};
use lcf_store::{Error, error::STOPPED, say};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::{
    env,
    ffi::OsString,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus, exit},
    sync::atomic::{AtomicBool, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

/// Time that ranks have to end by themselves after one has failed.
const GRACE: Duration = Duration::from_secs(5);

/// The flag that asks for ranks, which those started here do not get.
const FLAG: &str = "--ranks";

/// The flags of a program that trains as several processes.
#[derive(clap::Args, Clone, Debug)]
pub struct RankArgs {
    /// Processes to train with on this machine, each on a GPU of its own (torchrun and srun start them themselves)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    ranks: u64,
    /// Seconds after which a process that is not heard of ends the others
    #[arg(long, value_name = "S", default_value_t = 25, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    rank_timeout: u64,
}

impl RankArgs {
    /// Where several ranks were asked for: runs them to their end, and this process with them. Else does nothing.
    ///
    /// # Errors
    /// [`Error::Usage`] when this is a rank already, or `batch` has too few samples; those of [`launch`].
    pub fn launch(&self, batch: usize) -> Result<()> {
        if self.ranks == 1 {
            return Ok(());
        }
        if !matches!(Place::from_env(), Ok(None)) {
            let message = format!("{FLAG}: this process was started as one of several ranks already");
            return Err(Error::usage(message).with_hint(format!("leave {FLAG} out")).into());
        }
        check_batch(batch, self.ranks as usize)?;
        exit(launch(self.ranks as usize, &*signals()?)?)
    }

    /// The ranks that this process is one of.
    ///
    /// # Errors
    /// Those of [`Ranks::from_env`].
    pub fn join(&self) -> Result<Ranks> {
        Ranks::from_env(Duration::from_secs(self.rank_timeout))
    }
}

/// Runs `size` ranks by the arguments of this process until all have ended, and returns their exit code: 0, or that of
/// the first that failed. A signal that raises `stop` is passed on to them, and ends them with [`STOPPED`].
///
/// # Errors
/// A rank that was ended by a signal, by its number; one that cannot be started.
fn launch(size: usize, stop: &AtomicBool) -> Result<i32> {
    let store = Store::local().context("cannot keep a store for the ranks")?;
    let mut ranks = Children(Vec::new());
    for rank in 0..size {
        let child = command(rank, size, store.port())?.spawn().with_context(|| format!("cannot start rank {rank}"))?;
        ranks.0.push((child, None));
    }
    let mut failure: Option<(usize, ExitStatus, Instant)> = None;
    let mut told = false;
    while ranks.poll()? {
        if stop.load(Ordering::Relaxed) && !told {
            told = true;
            ranks.running().for_each(|child| dist::terminate(child));
        }
        match failure {
            None => {
                failure = ranks.failed().map(|(rank, status)| (rank, status, Instant::now()));
                if let Some((rank, status, _)) = failure {
                    // The rank itself may have said more, and the store keeps what was said first.
                    dist::condemn(&store, &format!("rank {rank} ended: {status}"))?;
                }
            }
            Some((.., since)) if since.elapsed() > GRACE => ranks.kill(),
            Some(_) => {}
        }
        sleep(Duration::from_millis(20));
    }
    let stopped = stop.load(Ordering::Relaxed);
    match failure.map(|(rank, status, _)| (rank, status)).or_else(|| ranks.failed()) {
        None => Ok(0),
        Some((rank, status)) => match (status.code(), status.signal()) {
            (Some(code), _) => Ok(code),
            // Ranks that are about to start do not handle it yet.
            (None, Some(SIGTERM | SIGINT)) if stopped => {
                say!("train: stopped by a signal before the first step\nhint: run the same command again to go on");
                Ok(i32::from(STOPPED))
            }
            (None, _) => bail!("rank {rank} ended: {status}"),
        },
    }
}

/// The ranks, with their exit status once they have ended. None outlives this process by much: without the store they end.
struct Children(Vec<(Child, Option<ExitStatus>)>);

impl Children {
    /// Whether one still runs.
    fn poll(&mut self) -> Result<bool> {
        for (child, status) in self.0.iter_mut().filter(|(_, status)| status.is_none()) {
            *status = child.try_wait().context("cannot wait for a rank")?;
        }
        Ok(self.running().next().is_some())
    }

    fn running(&mut self) -> impl Iterator<Item = &mut Child> {
        self.0.iter_mut().filter(|(_, status)| status.is_none()).map(|(child, _)| child)
    }

    /// One that has failed; one that was killed before others, who may have failed because of it.
    fn failed(&self) -> Option<(usize, ExitStatus)> {
        let failed = self.0.iter().enumerate().filter_map(|(rank, (_, status))| Some((rank, (*status)?)));
        failed.filter(|(_, status)| !status.success()).min_by_key(|(_, status)| status.signal().is_none())
    }

    fn kill(&mut self) {
        // One that cannot be killed has ended.
        self.running().for_each(|child| drop(child.kill()));
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.kill();
    }
}

fn command(rank: usize, size: usize, port: u16) -> Result<Command> {
    let mut command = Command::new(env::current_exe().context("cannot find this program")?);
    command.args(without_flag(env::args_os().skip(1)));
    command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
    command.env("WORLD_SIZE", size.to_string()).env("LOCAL_WORLD_SIZE", size.to_string());
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    command.env("TORCHELASTIC_USE_AGENT_STORE", "True").env("TORCHELASTIC_RESTART_COUNT", "0");
    Ok(command)
}

/// The arguments without `--ranks N` and `--ranks=N`.
fn without_flag(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let (mut kept, mut args) = (Vec::new(), args);
    while let Some(arg) = args.next() {
        if arg == FLAG {
            args.next();
        } else if !arg.to_string_lossy().starts_with(&format!("{FLAG}=")) {
            kept.push(arg);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_is_not_passed_on() {
        let kept = |line: &str| without_flag(line.split(' ').map(OsString::from)).join(" ".as_ref());
        assert_eq!(kept("--ranks 2 --json"), "--json");
        assert_eq!(kept("--json --ranks=2 --rank-timeout 5"), "--json --rank-timeout 5");
    }
}
