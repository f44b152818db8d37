//! Each rank beats in the store and listens for the next one's beat. Whoever finds one dead, stopped or hanging says so in
//! the store, which ends all: a collective would wait for ever for a rank that is gone.

use super::{
    Error, Place,
    clock::{Clock, Stall},
    ffi::Store,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

/// Ends the process: is given what has happened.
pub type Report = fn(&str);

/// Key of the first failure.
const FAILED: &str = "failed";
/// Key of the number of ranks, but rank 0, that know of it.
const KNOWN: &str = "known";
/// Key of the number of ranks that are in a long operation of their own.
const BUSY: &str = "busy";

/// What the main thread, the one that beats and the one that judges share. Times are milliseconds of [`Clock`].
#[derive(Debug)]
struct Shared {
    place: Place,
    prefix: String,
    limit: u64,
    report: Report,
    /// The training is over, or the main thread reports its own failure.
    quiet: AtomicBool,
    /// A collective has failed here: someone may be gone, and need not be waited for as long.
    broken: AtomicBool,
    /// Every other rank has beaten since then.
    all_alive: AtomicBool,
    /// Steps made.
    steps: AtomicU64,
    /// The main thread does something long that is no step.
    busy: AtomicBool,
    /// The main thread waits for other ranks.
    waiting: AtomicBool,
    others_busy: AtomicBool,
    /// The main thread has made no step for too long.
    stalled: AtomicBool,
    now: AtomicU64,
    /// When the store last answered.
    answered: AtomicU64,
}

/// What the one that beats has heard of another rank.
#[derive(Debug)]
struct Heard {
    rank: usize,
    beat: Option<String>,
    /// When that beat was first heard.
    at: u64,
    /// How many beats since a collective has failed.
    since_broken: u32,
}

impl Heard {
    fn of(rank: usize) -> Self {
        Self { rank, beat: None, at: 0, since_broken: 0 }
    }
}

/// Watches the other ranks from two threads until it is dropped.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
}

impl Watch {
    /// Starts to watch, over a connection of its own. All ranks have beaten once.
    pub fn start(place: &Place, prefix: &str, store: Store, limit: Duration, report: Report) -> Self {
        let shared = Arc::new(Shared {
            place: place.clone(),
            prefix: prefix.to_owned(),
            limit: limit.as_millis() as u64,
            report,
            quiet: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            all_alive: AtomicBool::new(false),
            steps: AtomicU64::new(0),
            busy: AtomicBool::new(true),
            waiting: AtomicBool::new(false),
            others_busy: AtomicBool::new(true),
            stalled: AtomicBool::new(false),
            now: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        });
        let (beating, judging) = (shared.clone(), shared.clone());
        thread::spawn(move || beating.beat(&store));
        thread::spawn(move || judging.judge());
        Self { shared }
    }

    /// Says that a step was made.
    pub fn step(&self) {
        self.shared.steps.fetch_add(1, SeqCst);
        self.shared.busy.store(false, SeqCst);
    }

    /// Says that what follows takes long, until the next step.
    pub fn busy(&self) {
        self.shared.busy.store(true, SeqCst);
    }

    /// Runs something that waits for other ranks.
    pub fn wait<T>(&self, action: impl FnOnce() -> T) -> T {
        self.shared.waiting.store(true, SeqCst);
        let result = action();
        self.shared.waiting.store(false, SeqCst);
        result
    }

    /// After a failed collective: waits until the one who is gone is found, which ends this process, or every other rank
    /// has been heard of again. No time that is set beforehand would do: on a loaded machine others may take any.
    pub fn verdict(&self) {
        self.shared.broken.store(true, SeqCst);
        self.wait(|| {
            while !self.shared.all_alive.load(SeqCst) {
                thread::sleep(Duration::from_millis(10));
            }
        });
    }

    /// Watches no longer.
    pub fn silence(&self) {
        self.shared.quiet.store(true, SeqCst);
    }

    /// Posts the failure of this rank, which ends the others, and watches no longer.
    pub fn fail(&self, store: &Store, message: &str) {
        if !self.shared.quiet.swap(true, SeqCst) {
            let message = format!("rank {} failed: {message}", self.shared.place.rank);
            // Without a store the others find out by themselves.
            let _ = store.set_once(&self.shared.key(FAILED), &message);
            self.shared.linger(store, self.shared.place.size - 1);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.silence();
    }
}

/// Key of a rank's beat.
pub fn beat_of(prefix: &str, rank: usize) -> String {
    format!("{prefix}beat/{rank}")
}

/// Key of the first failure.
pub fn failed(prefix: &str) -> String {
    format!("{prefix}{FAILED}")
}

impl Shared {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn interval(&self) -> Duration {
        Duration::from_millis((self.limit / 10).clamp(20, 1000))
    }

    /// How long the others may be silent.
    fn patience(&self) -> Duration {
        let limit = if self.broken.load(SeqCst) { self.limit.min(10_000) } else { self.limit };
        Duration::from_millis(limit)
    }

    fn since(&self, time: u64) -> Duration {
        Duration::from_millis(self.now.load(SeqCst).saturating_sub(time))
    }

    /// Ends the process with what has happened, unless it ends anyway. `store`: where the others learn of it.
    fn end(&self, message: &str, store: Option<&Store>) {
        if !self.quiet.swap(true, SeqCst) {
            (self.report)(message);
            if let Some(store) = store {
                // Not rank 0, nor the one that is lost.
                self.linger(store, self.place.size.saturating_sub(2));
            }
            // SAFETY: ends the process at once. The main thread may be inside of a collective for good, so that nothing
            // can be torn down; the files of a training are whole at any moment.
            unsafe { libc::_exit(1) }
        }
    }

    /// Says that this rank knows why all end. Whoever keeps the store stays until `others` do, as far as they live.
    fn linger(&self, store: &Store, others: usize) {
        let known = self.key(KNOWN);
        if self.place.rank > 0 {
            // Without a store there is nobody to tell.
            let _ = store.add(&known, 1);
        } else if !self.place.kept {
            let end = Instant::now() + self.patience().max(2 * self.interval());
            while Instant::now() < end && store.add(&known, 0).is_ok_and(|count| count < others as i64) {
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn beat(&self, store: &Store) {
        let (rank, size) = (self.place.rank, self.place.size);
        // The next one first: in a circle each is heard by one, until something is wrong.
        let mut others: Vec<Heard> = (1..size).map(|ahead| Heard::of((rank + ahead) % size)).collect();
        let mut was_busy = false;
        while !self.quiet.load(SeqCst) {
            let listen = if self.broken.load(SeqCst) { size - 1 } else { 1 };
            match self.round(store, &mut others[..listen], &mut was_busy) {
                Ok(Some(failure)) => return self.end(&failure, Some(store)),
                Ok(None) => {}
                Err(error) => {
                    let keeper = self.place.keeper();
                    return self.end(&format!("{keeper} is gone: {error}"), None);
                }
            }
            if let Some(lost) = others[..listen].iter().find(|other| self.since(other.at) > self.patience()) {
                let (lost, seconds) = (lost.rank, self.patience().as_secs_f64());
                return self.condemn(store, &format!("rank {lost} has not been heard of for {seconds:.0} s"));
            }
            // The first beat of a rank that is listened to since now may be an old one.
            if listen == size - 1 && others.iter().all(|other| other.since_broken >= 2) {
                self.all_alive.store(true, SeqCst);
            }
            self.answered.store(self.now.load(SeqCst), SeqCst);
            if self.stalled.load(SeqCst) {
                return self.condemn(store, &format!("rank {rank} hangs: it beats but makes no step"));
            }
            thread::sleep(self.interval());
        }
    }

    /// Beats once and listens to `others`. Returns the first failure of any rank, if there was one.
    fn round(&self, store: &Store, others: &mut [Heard], was_busy: &mut bool) -> Result<Option<String>, Error> {
        store.add(&beat_of(&self.prefix, self.place.rank), 1)?;
        let busy = self.busy.load(SeqCst);
        let change = i64::from(busy) - i64::from(std::mem::replace(was_busy, busy));
        let all_busy = store.add(&self.key(BUSY), change)?;
        self.others_busy.store(all_busy > i64::from(busy), SeqCst);
        for other in others {
            let beat = store.get(&beat_of(&self.prefix, other.rank))?;
            if other.beat != beat {
                (other.beat, other.at) = (beat, self.now.load(SeqCst));
                other.since_broken += u32::from(self.broken.load(SeqCst));
            }
        }
        store.get(&self.key(FAILED))
    }

    /// Ends all ranks.
    fn condemn(&self, store: &Store, message: &str) {
        if !self.quiet.load(SeqCst) {
            let _ = store.set_once(&self.key(FAILED), message);
            self.end(message, Some(store));
        }
    }

    fn judge(&self) {
        let mut clock = Clock::new();
        let mut stall = Stall::default();
        while !self.quiet.load(SeqCst) {
            thread::sleep(Duration::from_millis(50));
            self.now.store(clock.now(), SeqCst);
            let excused = [&self.busy, &self.waiting, &self.others_busy].iter().any(|flag| flag.load(SeqCst));
            // Later than others would hear nothing of this rank, so that a rank that is stopped is not taken for one
            // that waits for it.
            let limit = self.limit * 5 / 4;
            if stall.lasts(self.now.load(SeqCst), self.steps.load(SeqCst), excused, limit) {
                self.stalled.store(true, SeqCst);
            }
            if self.since(self.answered.load(SeqCst)) > self.patience() + self.interval() {
                let (keeper, seconds) = (self.place.keeper(), self.patience().as_secs_f64());
                self.end(&format!("{keeper} has not been heard of for {seconds:.0} s"), None);
            }
        }
    }
}
