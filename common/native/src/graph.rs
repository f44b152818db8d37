//! CUDA graphs: a sequence of operations recorded once and started as a whole.

use crate::{open, open_cuda};
use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    io::Write,
    os::fd::{AsRawFd, FromRawFd},
    ptr::{NonNull, null_mut},
    sync::OnceLock,
};
use tch::{Device, Kind, TchError, Tensor};

/// The shared object with libtorch's CUDA classes, carried inside the program.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/liblcf_cuda.so"));

unsafe extern "C" {
    fn lcf_use_device(device: c_int) -> c_int;
    fn lcf_can_choose() -> c_int;
    fn lcf_launch_apart(on: c_int);
    fn lcf_choose(handle: u64, limits: *const RawLimits, stream: *mut c_void) -> c_int;
}

type Text = unsafe extern "C" fn() -> *const c_char;
type OnDevice = unsafe extern "C" fn(c_int) -> c_int;
type Make = unsafe extern "C" fn(*mut *mut c_void) -> c_int;
type Use = unsafe extern "C" fn(*mut c_void) -> c_int;
type Free = unsafe extern "C" fn(*mut c_void);
type Count = unsafe extern "C" fn(c_int, *mut i64) -> c_int;
type CountOf = unsafe extern "C" fn(*mut c_void, *mut i64) -> c_int;
type Choice = unsafe extern "C" fn(c_int, *mut u64) -> c_int;
type Choose = unsafe extern "C" fn(c_int, u64) -> c_int;
type Back = unsafe extern "C" fn(c_int, *mut c_int) -> c_int;
type OnDeviceAt = unsafe extern "C" fn(c_int, c_int) -> c_int;
type Ended = unsafe extern "C" fn() -> c_int;

/// Most alternatives of [`one_of`].
const MOST_ALTERNATIVES: usize = 8;

#[repr(C)]
struct RawLimits {
    number: *const c_void,
    count: c_int,
    limits: [c_int; MOST_ALTERNATIVES],
}

/// Its functions.
struct Api {
    error: Text,
    use_stream: OnDevice,
    step_aside: OnDevice,
    step_back: Back,
    join: OnDeviceAt,
    choice: Choice,
    alternatives: Choose,
    alternative_begin: OnDeviceAt,
    alternative_end: OnDevice,
    alternatives_end: Ended,
    begin: Make,
    end: Use,
    replay: Use,
    free: Free,
    peak_bytes: Count,
    kernels: CountOf,
}

impl Api {
    fn get() -> Result<&'static Self, TchError> {
        static API: OnceLock<Result<Api, String>> = OnceLock::new();
        API.get_or_init(Self::load).as_ref().map_err(|reason| TchError::Torch(reason.clone()))
    }

    fn load() -> Result<Self, String> {
        open_cuda()?;
        // SAFETY: a file in memory under a name of our own; the descriptor is owned by the File.
        let mut file = unsafe {
            match libc::memfd_create(c"lcf_cuda".as_ptr(), libc::MFD_CLOEXEC) {
                -1 => return Err(std::io::Error::last_os_error().to_string()),
                fd => std::fs::File::from_raw_fd(fd),
            }
        };
        file.write_all(OBJECT).map_err(|error| error.to_string())?;
        let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("no zero byte");
        let library = open(&path)?;
        let find = |name: &CStr| {
            // SAFETY: the library stays open for good.
            let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
            NonNull::new(symbol).ok_or_else(|| format!("no {} in liblcf_cuda.so", name.to_string_lossy()))
        };
        // SAFETY: graph.cpp defines the functions with these signatures.
        unsafe {
            Ok(Self {
                error: std::mem::transmute::<NonNull<c_void>, Text>(find(c"lcf_graph_error")?),
                use_stream: std::mem::transmute::<NonNull<c_void>, OnDevice>(find(c"lcf_graph_use_stream")?),
                step_aside: std::mem::transmute::<NonNull<c_void>, OnDevice>(find(c"lcf_graph_step_aside")?),
                step_back: std::mem::transmute::<NonNull<c_void>, Back>(find(c"lcf_graph_step_back")?),
                join: std::mem::transmute::<NonNull<c_void>, OnDeviceAt>(find(c"lcf_graph_join")?),
                choice: std::mem::transmute::<NonNull<c_void>, Choice>(find(c"lcf_graph_choice")?),
                alternatives: std::mem::transmute::<NonNull<c_void>, Choose>(find(c"lcf_graph_alternatives")?),
                alternative_begin: std::mem::transmute::<NonNull<c_void>, OnDeviceAt>(find(
                    c"lcf_graph_alternative_begin",
                )?),
                alternative_end: std::mem::transmute::<NonNull<c_void>, OnDevice>(find(c"lcf_graph_alternative_end")?),
                alternatives_end: std::mem::transmute::<NonNull<c_void>, Ended>(find(c"lcf_graph_alternatives_end")?),
                begin: std::mem::transmute::<NonNull<c_void>, Make>(find(c"lcf_graph_begin")?),
                end: std::mem::transmute::<NonNull<c_void>, Use>(find(c"lcf_graph_end")?),
                replay: std::mem::transmute::<NonNull<c_void>, Use>(find(c"lcf_graph_replay")?),
                free: std::mem::transmute::<NonNull<c_void>, Free>(find(c"lcf_graph_free")?),
                peak_bytes: std::mem::transmute::<NonNull<c_void>, Count>(find(c"lcf_graph_peak_bytes")?),
                kernels: std::mem::transmute::<NonNull<c_void>, CountOf>(find(c"lcf_graph_kernels")?),
            })
        }
    }

    fn check(&self, code: c_int) -> Result<(), TchError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: a C string of this thread, valid until its next failure.
        let reason = unsafe { CStr::from_ptr((self.error)()) };
        Err(TchError::Torch(reason.to_string_lossy().into_owned()))
    }
}

fn index(device: Device) -> c_int {
    match device {
        Device::Cuda(index) => index as c_int,
        other => panic!("{other:?} is no CUDA device"),
    }
}

/// Makes `device` the one that this thread computes on, and a stream of its own the one that its operations go to.
/// Capturing needs it.
///
/// # Errors
/// No CUDA.
pub fn use_stream(device: Device) -> Result<(), TchError> {
    let api = Api::get()?;
    // SAFETY: no pointers.
    api.check(unsafe { (api.use_stream)(index(device)) })?;
    // SAFETY: no pointers.
    crate::ops::check("device", unsafe { lcf_use_device(index(device)) });
    Ok(())
}

/// What is part of a step panics with the reason, as the operations around it do.
fn done<T>(result: Result<T, TchError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// Work on a second stream of this thread, beside what the first is given until [`Aside::join`]. What it reads has to live
/// until then.
#[derive(Debug)]
#[must_use]
pub struct Aside<T> {
    device: Device,
    piece: c_int,
    result: T,
}

impl<T> Aside<T> {
    /// Starts `work`, operations on `device`, after what the stream was given before.
    ///
    /// # Panics
    /// No CUDA.
    pub fn start(device: Device, work: impl FnOnce() -> T) -> Self {
        let api = done(Api::get());
        // SAFETY: no pointers.
        done(api.check(unsafe { (api.step_aside)(index(device)) }));
        let result = work();
        let mut piece = 0;
        // SAFETY: writes one number.
        done(api.check(unsafe { (api.step_back)(index(device), &mut piece) }));
        Self { device, piece, result }
    }

    /// Goes on with `work`, likewise after what the first stream was given by now.
    ///
    /// # Panics
    /// A CUDA error.
    pub fn then<U>(self, work: impl FnOnce(T) -> U) -> Aside<U> {
        Aside::start(self.device, || work(self.result))
    }

    /// Its result, once what the stream is given from now on waits for it.
    ///
    /// # Panics
    /// A CUDA error.
    pub fn join(self) -> T {
        let api = done(Api::get());
        // SAFETY: no pointers.
        done(api.check(unsafe { (api.join)(index(self.device), self.piece) }));
        self.result
    }
}

/// Does `work(i)` for the first i whose limit `number`, int32 `[1]` on a CUDA device, does not exceed, or for the last one.
///
/// The host does not know the number: a graph that is being recorded holds `work` of every i, and each replay takes one of
/// them. Otherwise the last is done, which therefore has to do for every number. What `work` makes has to be written where it
/// lies in any case: its tensors are gone after it. At most once in a graph.
///
/// # Panics
/// No CUDA, or an operation that cannot be captured: operations of kernels, copies and fills can.
pub fn one_of(number: &Tensor, limits: &[i64], mut work: impl FnMut(usize)) {
    let (api, device) = (done(Api::get()), index(number.device()));
    assert!((1..=MOST_ALTERNATIVES).contains(&limits.len()), "{} alternatives", limits.len());
    let last = limits.len() - 1;
    let mut handle = 0;
    // SAFETY: no pointers.
    if last > 0 && unsafe { lcf_can_choose() } == 1 {
        // SAFETY: writes one number.
        done(api.check(unsafe { (api.choice)(limits.len() as c_int, &mut handle) }));
    }
    if handle == 0 {
        return work(last);
    }
    let mut raw = RawLimits {
        number: crate::ops::data(number, Kind::Int, 1),
        count: limits.len() as c_int,
        limits: [0; MOST_ALTERNATIVES],
    };
    raw.limits.iter_mut().zip(limits).for_each(|(to, from)| *to = *from as c_int);
    // SAFETY: the number was checked, and the graph keeps what it reads.
    crate::ops::check("choice", unsafe { lcf_choose(handle, &raw, crate::ops::stream(number)) });
    // SAFETY: no pointers; this thread records, as there is a handle.
    done(api.check(unsafe { (api.alternatives)(device, handle) }));
    // SAFETY: no pointers.
    unsafe { lcf_launch_apart(1) };
    for i in 0..=last {
        // SAFETY: likewise.
        done(api.check(unsafe { (api.alternative_begin)(device, i as c_int) }));
        work(i);
        // SAFETY: likewise.
        done(api.check(unsafe { (api.alternative_end)(device) }));
    }
    // SAFETY: likewise.
    unsafe { lcf_launch_apart(0) };
    // SAFETY: likewise.
    done(api.check(unsafe { (api.alternatives_end)() }));
}

/// Most bytes that tensors on `device` took at once since the program started.
///
/// # Errors
/// No CUDA.
pub fn peak_bytes(device: Device) -> Result<i64, TchError> {
    let api = Api::get()?;
    let mut bytes = 0;
    // SAFETY: writes one number.
    api.check(unsafe { (api.peak_bytes)(index(device), &mut bytes) })?;
    Ok(bytes)
}

/// A captured sequence of operations. The tensors it reads and writes must outlive it.
#[derive(Debug)]
pub struct Graph {
    handle: NonNull<c_void>,
}

impl Graph {
    /// Records what `body` does on this thread's stream without doing it. [`use_stream`] comes first, and a run of `body`
    /// itself, so that what is made on first use is made.
    ///
    /// # Errors
    /// An operation that cannot be captured.
    pub fn capture(body: impl FnOnce()) -> Result<Self, TchError> {
        let api = Api::get()?;
        let mut handle = null_mut();
        // SAFETY: writes a new graph to handle, or leaves an unfinished one that is freed below.
        let begun = api.check(unsafe { (api.begin)(&mut handle) });
        let graph = Self { handle: NonNull::new(handle).ok_or_else(|| TchError::Torch("no graph".into()))? };
        begun?;
        body();
        // SAFETY: capturing was begun.
        api.check(unsafe { (api.end)(graph.handle.as_ptr()) })?;
        Ok(graph)
    }

    /// How many kernels a replay starts.
    ///
    /// # Errors
    /// A CUDA error.
    pub fn kernels(&self) -> Result<i64, TchError> {
        let api = Api::get()?;
        let mut count = 0;
        // SAFETY: the graph was captured; writes one number.
        api.check(unsafe { (api.kernels)(self.handle.as_ptr(), &mut count) })?;
        Ok(count)
    }

    /// Starts it, and waits for the replay before the last.
    ///
    /// # Errors
    /// A CUDA error, of this or an earlier operation.
    pub fn replay(&self) -> Result<(), TchError> {
        let api = Api::get()?;
        // SAFETY: the graph was captured; what it refers to lives as the type's contract says.
        api.check(unsafe { (api.replay)(self.handle.as_ptr()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(api) = Api::get() {
            // SAFETY: owned by self; freeing waits for the device.
            unsafe { (api.free)(self.handle.as_ptr()) }
        }
    }
}

#[cfg(all(test, feature = "cuda-tests"))]
mod tests {
    //! Run on a GPU machine with `--features cuda-tests`.

    use super::*;

    #[test]
    fn a_replay_takes_the_alternative_of_its_number() {
        let device = Device::Cuda(0);
        use_stream(device).unwrap();
        let mut number = Tensor::from_slice(&[0i32]).to_device(device);
        let mut found = Tensor::zeros([3], (Kind::Float, device));
        let limits = [2, 5, 9];
        let work = |i: usize| {
            // Memory of its own that a later alternative takes again.
            let ones = Tensor::ones([1 << 20], (Kind::Float, device));
            found.shallow_clone().copy_(&(ones * (i as f64 + 1.0)).narrow(0, 0, 3));
        };
        let beside = || {
            let aside = Aside::start(device, || one_of(&number, &limits, work));
            let other = Tensor::full([1 << 20], 7.0, (Kind::Float, device));
            aside.join();
            let _ = found.shallow_clone().g_add_(&other.narrow(0, 0, 3));
        };
        let values = |found: &Tensor| Vec::<f32>::try_from(found).unwrap();
        beside();
        assert_eq!(values(&found), [10.0; 3]);
        let graph = Graph::capture(beside).unwrap();
        assert!(graph.kernels().unwrap() >= 4);
        // What libtorch hands out after it is other memory.
        let rest: Vec<Tensor> = (0..8).map(|_| Tensor::zeros([1 << 20], (Kind::Float, device))).collect();
        for (low, expected) in [(0, 1.0), (2, 1.0), (3, 2.0), (5, 2.0), (6, 3.0), (9, 3.0), (40, 3.0), (1, 1.0)] {
            let _ = number.fill_(low);
            graph.replay().unwrap();
            assert_eq!(values(&found), [expected + 7.0; 3], "{low}");
        }
        let _ = found.fill_(0.0);
        assert!(rest.iter().all(|rest| rest.abs().max().double_value(&[]) == 0.0));
    }
}
