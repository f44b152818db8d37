//! Several processes that train as one: libtorch's c10d, with Gloo for tensors on the CPU and NCCL for those on CUDA.
//!
//! [`Place`] says which of them this process is, [`World`] is what it shares with the others. A rank that dies, hangs or
//! fails ends all of them (`dist/watch.rs`).

mod clock;
mod ffi;
mod meet;
mod place;
mod watch;

pub use ffi::Store;
use ffi::{Group, NcclId};
pub use place::Place;
use std::{
    env,
    process::Child,
    thread::sleep,
    time::{Duration, Instant},
};
use tch::Tensor;
pub use watch::Report;
use watch::Watch;

/// What went wrong between the ranks, on one line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Error(String);

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // libtorch appends a C++ stack to some of its messages.
        f.write_str(self.0.lines().next().unwrap_or_default())
    }
}

impl std::error::Error for Error {}

/// How long ranks wait for each other to start.
const GATHERING: Duration = Duration::from_secs(60);
/// How often a key of the store is looked for.
const POLL: Duration = Duration::from_millis(10);

/// This rank among the others. All ranks call the same collectives in the same order.
#[derive(Debug)]
pub struct World {
    place: Place,
    prefix: String,
    store: Store,
    group: Group,
    watch: Watch,
}

impl World {
    /// Meets the other ranks, whose places [`Place::from_env`] gives them.
    ///
    /// From here on a rank that is not heard of for `limit`, or makes no step for so long, ends this process with exit
    /// code 1 after `report` was called with what happened.
    ///
    /// # Errors
    /// No store to meet at; ranks that do not turn up, by their numbers.
    pub fn join(place: Place, limit: Duration, report: Report) -> Result<Self, Error> {
        let prefix = prefix(place.restart);
        let serve = place.rank == 0 && !place.kept;
        let open =
            |serve| Store::open(&place.host, place.port, serve, GATHERING).map_err(|e| meet::unreachable(&place, e));
        let store = open(serve)?;
        meet::gather(&place, &prefix, &store)?;
        let watch = Watch::start(&place, &prefix, open(false)?, limit, report);
        let address = meet::address_towards(&place)?;
        let interface = env::var("GLOO_SOCKET_IFNAME").unwrap_or_default();
        let at = (place.rank, place.size);
        let group = Group::join(&store, &format!("{prefix}gloo"), at, &address, &interface, GATHERING);
        let group = group.map_err(|error| named(&place, "cannot connect with the other ranks", &error))?;
        Ok(Self { place, prefix, store, group, watch })
    }

    /// Number of this process.
    pub fn rank(&self) -> usize {
        self.place.rank
    }

    /// Number of this process on its machine.
    pub fn local(&self) -> usize {
        self.place.local
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.place.size
    }

    /// Takes CUDA device `device` for tensors that lie on it. Every rank calls this, or none.
    ///
    /// # Errors
    /// NCCL's.
    pub fn join_cuda(&self, device: usize) -> Result<(), Error> {
        let id = if self.rank() == 0 {
            let id = NcclId::new().map_err(|error| named(&self.place, "no NCCL", &error))?;
            self.post("nccl", &id.to_hex())?;
            id
        } else {
            let text = self.await_post("nccl")?;
            NcclId::from_hex(&text).ok_or_else(|| Error(format!("rank 0 posted {text:?}, expected an id of NCCL")))?
        };
        let joined = self.watch.wait(|| self.group.join_nccl(&id, self.rank(), device));
        joined.map_err(|error| named(&self.place, "cannot join the other GPUs", &error))
    }

    /// Sums `x` over the ranks, in place. On CUDA this only queues the work on the current stream.
    ///
    /// # Errors
    /// The network's or NCCL's, when no rank turns out to be gone: that ends the process.
    pub fn all_reduce(&self, x: &mut Tensor) -> Result<(), Error> {
        let done = self.watch.wait(|| self.group.all_reduce(x));
        self.checked("all-reduce", done)
    }

    /// The tensors of all ranks, which have one shape, as `[size, ...]`. Without a gradient.
    ///
    /// # Errors
    /// As of [`World::all_reduce`].
    pub fn all_gather(&self, x: &Tensor) -> Result<Tensor, Error> {
        let done = self.watch.wait(|| self.group.all_gather(x));
        self.checked("all-gather", done)
    }

    /// Overwrites `x` with that of rank `root`.
    ///
    /// # Errors
    /// As of [`World::all_reduce`].
    pub fn broadcast(&self, x: &mut Tensor, root: usize) -> Result<(), Error> {
        let done = self.watch.wait(|| self.group.broadcast(x, root));
        self.checked("broadcast", done)
    }

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// As of [`World::all_reduce`].
    pub fn barrier(&self) -> Result<(), Error> {
        self.all_reduce(&mut Tensor::from_slice(&[0.0f32]))
    }

    /// Sets a value that the others get by [`World::await_post`].
    ///
    /// # Errors
    /// The store's, when no rank turns out to be gone.
    pub fn post(&self, key: &str, value: &str) -> Result<(), Error> {
        let done = self.store.set(&format!("{}{key}", self.prefix), value);
        self.checked("the store of the ranks", done)
    }

    /// Waits for what another rank posts, for as long as that takes.
    ///
    /// # Errors
    /// As of [`World::post`].
    pub fn await_post(&self, key: &str) -> Result<String, Error> {
        let key = format!("{}{key}", self.prefix);
        let found = self.watch.wait(|| {
            loop {
                match self.store.get(&key)? {
                    Some(value) => return Ok(value),
                    None => sleep(POLL),
                }
            }
        });
        self.checked("the store of the ranks", found)
    }

    /// To be called at each step: a rank that makes none for too long counts as hanging. Starts with the first call.
    pub fn step(&self) {
        self.watch.step();
    }

    /// What this rank does until its next step takes long: nobody hangs meanwhile.
    pub fn busy(&self) {
        self.watch.busy();
    }

    /// Tells the others that this rank has failed, which ends them.
    pub fn fail(&self, message: &str) {
        self.watch.fail(&self.store, message);
    }

    /// The end: returns on rank 0 when the others have called this, and on them when rank 0 has.
    ///
    /// # Errors
    /// As of [`World::post`].
    pub fn leave(&self) -> Result<(), Error> {
        if self.rank() > 0 {
            self.await_post("over")?;
            self.watch.silence();
            // Rank 0 may not wait for it.
            let _ = self.store.add(&format!("{}left", self.prefix), 1);
            return Ok(());
        }
        self.post("over", "")?;
        self.watch.silence();
        // It keeps the store, perhaps: the others have to see this first.
        let start = Instant::now();
        let left = || self.store.add(&format!("{}left", self.prefix), 0).unwrap_or(i64::MAX);
        while left() < self.size() as i64 - 1 && start.elapsed() < Duration::from_secs(10) {
            sleep(POLL);
        }
        Ok(())
    }

    /// Names this rank in an error, once it is clear that no other is the cause.
    fn checked<T>(&self, what: &str, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| {
            self.watch.verdict();
            named(&self.place, what, &error)
        })
    }
}

impl Drop for World {
    /// Without [`World::leave`] it ends by a failure.
    fn drop(&mut self) {
        self.fail("it ended early");
    }
}

/// Says at the store of a launcher why all ranks have to end.
///
/// # Errors
/// The store's.
pub fn condemn(store: &Store, message: &str) -> Result<(), Error> {
    store.set_once(&watch::failed(&prefix(0)), message)
}

/// Asks a process that this one has started to end, by SIGTERM.
pub fn terminate(child: &Child) {
    // SAFETY: the child has not been waited for, so that its number is still its own.
    unsafe {
        libc::kill(child.id() as libc::pid_t, libc::SIGTERM);
    }
}

/// What the keys of a start begin with.
fn prefix(restart: u64) -> String {
    format!("lcf/{restart}/")
}

fn named(place: &Place, what: &str, error: &Error) -> Error {
    Error(format!("rank {}: {what}: {error}", place.rank))
}

#[cfg(test)]
mod tests;
