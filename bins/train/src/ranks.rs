//! Several processes that make each step together, each on its share of the batch. Whatever their number, a step is that
//! of one process up to the rounding of sums.
//!
//! The samples of a batch, those with t < T_min first, are dealt like cards: position p goes to rank p mod R. So every rank
//! has as many anchors and as many samples as any other, give or take one.

use crate::step::Trainer;
use anyhow::{Result, bail};
use lcf_model::device::DeviceArgs;
use lcf_native::dist::{Place, World};
use lcf_store::{Error, cli::Failed, say};
use std::{panic::panic_any, rc::Rc, time::Duration};
use tch::{Device, Kind, Tensor};

/// What rank 0 has found out about the artifact.
const PLAN: &str = "plan";
const UP_TO_DATE: &str = "up to date";

/// The ranks of a training. Alone, nothing here does anything.
#[derive(Clone, Debug, Default)]
pub struct Ranks(Option<Rc<World>>);

impl Ranks {
    /// One process.
    pub fn alone() -> Self {
        Self::default()
    }

    /// The ranks that `world` connects.
    pub fn of(world: World) -> Self {
        Self(Some(Rc::new(world)))
    }

    /// The ranks that this process was started among, or none. When one of them is gone for `limit`, this process ends
    /// and says which on stderr.
    ///
    /// # Errors
    /// [`Error::Usage`] for variables that do not make sense; ranks that do not turn up.
    pub fn from_env(limit: Duration) -> Result<Self> {
        let Some(place) = Place::from_env().map_err(|error| Error::usage(error.to_string()))? else {
            return Ok(Self::alone());
        };
        Ok(Self::of(World::join(place, limit, |message| say!("{}: error: {message}", name()))?))
    }

    /// Whether there are no others.
    pub fn are_one(&self) -> bool {
        self.0.is_none()
    }

    /// Number of this process.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |world| world.rank())
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.0.as_ref().map_or(1, |world| world.size())
    }

    /// How many of the first `count` positions of a batch are this rank's.
    pub fn dealt(&self, count: i64) -> i64 {
        (count + self.size() as i64 - 1 - self.rank() as i64) / self.size() as i64
    }

    /// This rank's device, of the kind that all have, ready to use.
    ///
    /// # Errors
    /// Those of [`DeviceArgs::open`]; [`Error::Usage`] for one device for all, and where ranks differ; NCCL's.
    pub fn open(&self, args: &DeviceArgs) -> Result<Device> {
        let Some(world) = &self.0 else { return Ok(args.open()?) };
        if args.device.starts_with("cuda:") {
            let message = format!("--device {}: each of several ranks takes a device of its own", args.device);
            return Err(Error::usage(message).with_hint("--device cuda").into());
        }
        let device = args.open_for(world.local())?;
        let cuda = device != Device::Cpu;
        if let Some(other) = odd_one(world, i64::from(cuda))? {
            let of = |cuda: bool| if cuda { "a GPU" } else { "the CPU" };
            let message =
                format!("rank {other} and rank 0 differ: one computes on {}, the other on {}", of(true), of(false));
            return Err(Error::usage(message).with_hint("--device cuda says what is missing").into());
        }
        if let Device::Cuda(index) = device {
            world.join_cuda(index)?;
        }
        Ok(device)
    }

    /// Sums `x` over all ranks, in place; on CUDA in the order of the current stream.
    ///
    /// # Panics
    /// When the connection fails although no rank is gone, as operations of libtorch do.
    pub fn sum(&self, x: &mut Tensor) {
        if let Some(world) = &self.0 {
            world.all_reduce(x).unwrap_or_else(|error| panic_any(Failed(error.to_string())));
        }
    }

    /// The rows of the whole batch, in its order, from those of each rank: `total` rows, no gradient.
    ///
    /// # Panics
    /// As [`Ranks::sum`].
    pub fn gather(&self, x: &Tensor, total: i64) -> Tensor {
        let Some(world) = &self.0 else { return x.detach() };
        let (rows, columns) = x.size2().expect("rows of features");
        let most = (total + world.size() as i64 - 1) / world.size() as i64;
        let padded = x.detach().constant_pad_nd([0, 0, 0, most - rows]).contiguous();
        let all = world.all_gather(&padded).unwrap_or_else(|error| panic_any(Failed(error.to_string())));
        // Row i of rank r is position i R + r.
        all.transpose(0, 1).reshape([-1, columns]).narrow(0, 0, total)
    }

    /// The rows of this rank, from those of the whole batch.
    pub fn own(&self, x: &Tensor) -> Tensor {
        x.slice(0, self.rank() as i64, None, self.size() as i64)
    }

    /// At the end of each step: whether any rank wants it, for two wishes.
    ///
    /// # Errors
    /// The connection's.
    pub fn agree(&self, wishes: [bool; 2]) -> Result<[bool; 2]> {
        let Some(world) = &self.0 else { return Ok(wishes) };
        let mut sum = Tensor::from_slice(&wishes.map(f32::from));
        world.all_reduce(&mut sum)?;
        world.step();
        Ok([0, 1].map(|wish| sum.double_value(&[wish]) > 0.0))
    }

    /// Says that something other than a step follows, which may take its time.
    pub fn busy(&self) {
        if let Some(world) = &self.0 {
            world.busy();
        }
    }

    /// Makes every rank go on from where rank 0 is, which is at `step`. Returns that step.
    ///
    /// # Errors
    /// The connection's.
    pub fn align(&self, trainer: &mut Trainer, step: u64) -> Result<u64> {
        let Some(world) = &self.0 else { return Ok(step) };
        let share = |x: &mut Tensor| world.broadcast(x, 0);
        let mut counts = Tensor::from_slice(&[step as i64, trainer.optim.updates as i64]);
        share(&mut counts)?;
        let optim = &mut trainer.optim;
        for tensor in [&mut trainer.params.flat, &mut trainer.average, &mut optim.first, &mut optim.second] {
            share(tensor)?;
        }
        optim.updates = counts.int64_value(&[1]) as u64;
        trainer.refresh();
        Ok(counts.int64_value(&[0]) as u64)
    }

    /// Checks that all ranks have the weights `flat`, to the bit, as they must have at any step.
    ///
    /// # Errors
    /// A rank that has others; the connection's.
    pub fn same(&self, flat: &Tensor, step: u64) -> Result<()> {
        let Some(world) = &self.0 else { return Ok(()) };
        let bits = flat.view_dtype(Kind::Int).sum(Kind::Int64).int64_value(&[]);
        match odd_one(world, bits)? {
            None => Ok(()),
            Some(other) => {
                bail!("rank {other} has other weights than rank 0 after step {step}: they compute differently")
            }
        }
    }

    /// Rank 0 says what it has found: an artifact that is up to date, or that `key` is to be built.
    ///
    /// # Errors
    /// The connection's.
    pub fn announce(&self, key: Option<&str>) -> Result<()> {
        let Some(world) = &self.0 else { return Ok(()) };
        Ok(world.post(PLAN, key.unwrap_or(UP_TO_DATE))?)
    }

    /// The other ranks wait for it: whether there is something to be built, which must be `key`.
    ///
    /// # Errors
    /// [`Error::Usage`] when rank 0 builds something else; the connection's.
    pub fn await_plan(&self, key: &str) -> Result<bool> {
        let Some(world) = &self.0 else { return Ok(true) };
        let plan = world.await_post(PLAN)?;
        if plan != UP_TO_DATE && plan != key {
            let message = format!("rank {} was given another config or other data than rank 0", world.rank());
            return Err(Error::usage(message)
                .with_hint("start every rank by the same command on the same files")
                .into());
        }
        Ok(plan == key)
    }

    /// The end of the training, by success, or by a signal after its checkpoint: rank 0 waits for the others to see it,
    /// and they for rank 0.
    ///
    /// # Errors
    /// The connection's.
    pub fn leave(&self) -> Result<()> {
        if let Some(world) = &self.0 {
            world.leave()?;
        }
        Ok(())
    }

    /// Ends the other ranks because this one has failed.
    pub fn fail(&self, reason: &str) {
        if let Some(world) = &self.0 {
            world.fail(reason.lines().next().unwrap_or_default());
        }
    }
}

/// What this process calls itself on stderr: `train`, or `train[2]` for rank 2.
pub fn name() -> String {
    match Place::from_env() {
        Ok(Some(place)) if place.rank > 0 => format!("train[{}]", place.rank),
        _ => "train".to_owned(),
    }
}

/// Whether each of `ranks` gets a sample of every batch.
///
/// # Errors
/// [`Error::Usage`] when there are more ranks.
pub fn check_batch(batch: usize, ranks: usize) -> Result<()> {
    match batch < ranks {
        true => Err(Error::usage(format!("train.batch: {batch} is not enough for {ranks} ranks")).into()),
        false => Ok(()),
    }
}

/// The first rank whose value is not that of rank 0.
fn odd_one(world: &World, value: i64) -> Result<Option<usize>> {
    let all = Vec::<i64>::try_from(world.all_gather(&Tensor::from_slice(&[value]))?.view([-1])).expect("a vector");
    Ok(all.iter().position(|found| *found != all[0]))
}
