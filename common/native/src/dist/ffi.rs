//! The C functions of `dist.cpp`, behind types that own what they point to.

use super::Error;
use std::{
    ffi::{CStr, CString, c_char, c_int, c_long, c_void},
    net::TcpListener,
    os::fd::IntoRawFd,
    ptr::NonNull,
    time::Duration,
};
use tch::Tensor;

type Handle = *const c_void;

unsafe extern "C" {
    fn lcf_dist_error() -> *const c_char;
    fn lcf_store_open(host: *const c_char, port: c_int, serve: c_int, fd: c_int, timeout_ms: c_long) -> *mut c_void;
    fn lcf_store_close(store: *mut c_void);
    fn lcf_store_port(store: *const c_void) -> c_int;
    fn lcf_store_set(store: *mut c_void, key: *const c_char, value: *const c_char, once: c_int) -> c_int;
    fn lcf_store_get(
        store: *mut c_void,
        key: *const c_char,
        out: *mut u8,
        capacity: c_long,
        length: *mut c_long,
    ) -> c_int;
    fn lcf_store_add(store: *mut c_void, key: *const c_char, amount: c_long, sum: *mut c_long) -> c_int;
    fn lcf_group_join(
        store: *mut c_void,
        prefix: *const c_char,
        rank: c_int,
        size: c_int,
        address: *const c_char,
        interface: *const c_char,
        timeout_ms: c_long,
    ) -> *mut c_void;
    fn lcf_group_leave(group: *mut c_void);
    fn lcf_nccl_id(out: *mut u8) -> c_int;
    fn lcf_group_join_nccl(group: *mut c_void, id: *const u8, rank: c_int, device: c_int) -> c_int;
    fn lcf_group_all_reduce(group: *mut c_void, x: Handle) -> c_int;
    fn lcf_group_all_gather(group: *mut c_void, x: Handle, out: *mut Handle) -> c_int;
    fn lcf_group_broadcast(group: *mut c_void, x: Handle, root: c_int) -> c_int;
}

/// What the last call that failed on this thread said.
fn last_error() -> Error {
    // SAFETY: a C string that lives until the next call on this thread.
    Error(unsafe { CStr::from_ptr(lcf_dist_error()) }.to_string_lossy().into_owned())
}

fn check(code: c_int) -> Result<(), Error> {
    if code == 0 { Ok(()) } else { Err(last_error()) }
}

/// Text for C: it ends at a zero byte.
fn text(text: &str) -> CString {
    CString::new(text.split('\0').next().unwrap_or_default()).expect("zero bytes are cut off")
}

fn milliseconds(time: Duration) -> c_long {
    c_long::try_from(time.as_millis()).unwrap_or(c_long::MAX)
}

/// The longest value that [`Store::get`] returns whole.
const LONGEST: usize = 4096;

/// A connection to c10d's key-value store.
#[derive(Debug)]
pub struct Store(NonNull<c_void>);

// SAFETY: a TCPStore may be used from any thread; it is used from one at a time, since `Store` is not `Sync`.
unsafe impl Send for Store {}

impl Store {
    /// Connects to the store at `host:port`, waiting for it up to `timeout`; this process keeps it if `serve`.
    pub fn open(host: &str, port: u16, serve: bool, timeout: Duration) -> Result<Self, Error> {
        Self::new(host, port, serve, -1, timeout)
    }

    /// Keeps a store for processes of this machine, on a port that is free.
    pub fn local() -> Result<Self, Error> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(|error| Error(format!("127.0.0.1: {error}")))?;
        let port = listener.local_addr().map_err(|error| Error(error.to_string()))?.port();
        Self::new("127.0.0.1", port, true, listener.into_raw_fd(), Duration::from_secs(30))
    }

    fn new(host: &str, port: u16, serve: bool, fd: c_int, timeout: Duration) -> Result<Self, Error> {
        let host = text(host);
        // SAFETY: a valid disposition. The store's server writes to ranks that may be gone.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        // SAFETY: the string outlives the call; a socket that is passed on belongs to the store from here on.
        let store = unsafe { lcf_store_open(host.as_ptr(), port.into(), serve.into(), fd, milliseconds(timeout)) };
        NonNull::new(store).map(Self).ok_or_else(last_error)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        // SAFETY: the store is alive.
        unsafe { lcf_store_port(self.0.as_ptr()) as u16 }
    }

    /// Sets `key`.
    pub fn set(&self, key: &str, value: &str) -> Result<(), Error> {
        self.put(key, value, false)
    }

    /// Sets `key` unless it is there already.
    pub fn set_once(&self, key: &str, value: &str) -> Result<(), Error> {
        self.put(key, value, true)
    }

    fn put(&self, key: &str, value: &str, once: bool) -> Result<(), Error> {
        let (key, value) = (text(key), text(value));
        // SAFETY: the strings outlive the call and the store is alive.
        check(unsafe { lcf_store_set(self.0.as_ptr(), key.as_ptr(), value.as_ptr(), once.into()) })
    }

    /// The value of `key`, if it is there.
    pub fn get(&self, key: &str) -> Result<Option<String>, Error> {
        let key = text(key);
        let (mut bytes, mut length) = (vec![0u8; LONGEST], 0);
        // SAFETY: at most LONGEST bytes are written.
        check(unsafe {
            lcf_store_get(self.0.as_ptr(), key.as_ptr(), bytes.as_mut_ptr(), LONGEST as c_long, &mut length)
        })?;
        let Ok(length) = usize::try_from(length) else { return Ok(None) };
        Ok(Some(String::from_utf8_lossy(&bytes[..length]).into_owned()))
    }

    /// Adds to the number at `key`, which starts at 0, and returns the sum.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64, Error> {
        let (key, mut sum) = (text(key), 0);
        // SAFETY: the string outlives the call and the store is alive.
        check(unsafe { lcf_store_add(self.0.as_ptr(), key.as_ptr(), amount, &mut sum) })?;
        Ok(sum)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: nothing uses it after this.
        unsafe { lcf_store_close(self.0.as_ptr()) }
    }
}

/// The process groups of one rank.
#[derive(Debug)]
pub struct Group(NonNull<c_void>);

impl Group {
    /// Joins Gloo's group as rank `rank` of `size`.
    pub fn join(
        store: &Store,
        prefix: &str,
        (rank, size): (usize, usize),
        address: &str,
        interface: &str,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let (prefix, address, interface) = (text(prefix), text(address), text(interface));
        let (rank, size, timeout) = (rank as c_int, size as c_int, milliseconds(timeout));
        // SAFETY: the strings outlive the call; the group keeps the store alive by its own count.
        let group = unsafe {
            let store = store.0.as_ptr();
            lcf_group_join(store, prefix.as_ptr(), rank, size, address.as_ptr(), interface.as_ptr(), timeout)
        };
        NonNull::new(group).map(Self).ok_or_else(last_error)
    }

    /// Joins NCCL's group with CUDA device `device`.
    pub fn join_nccl(&self, id: &NcclId, rank: usize, device: usize) -> Result<(), Error> {
        // SAFETY: the id has the length that is read.
        check(unsafe { lcf_group_join_nccl(self.0.as_ptr(), id.0.as_ptr(), rank as c_int, device as c_int) })
    }

    pub fn all_reduce(&self, x: &mut Tensor) -> Result<(), Error> {
        // SAFETY: the tensor outlives the call, and is not shared with Rust code that runs meanwhile.
        check(unsafe { lcf_group_all_reduce(self.0.as_ptr(), x.as_ptr() as Handle) })
    }

    pub fn all_gather(&self, x: &Tensor) -> Result<Tensor, Error> {
        let mut out: Handle = std::ptr::null();
        // SAFETY: on success the output is a new tensor, owned by the caller.
        unsafe {
            check(lcf_group_all_gather(self.0.as_ptr(), x.as_ptr() as Handle, &mut out))?;
            Ok(Tensor::from_ptr(out.cast_mut().cast()))
        }
    }

    pub fn broadcast(&self, x: &mut Tensor, root: usize) -> Result<(), Error> {
        // SAFETY: as in `all_reduce`.
        check(unsafe { lcf_group_broadcast(self.0.as_ptr(), x.as_ptr() as Handle, root as c_int) })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: nothing uses it after this.
        unsafe { lcf_group_leave(self.0.as_ptr()) }
    }
}

/// What NCCL's ranks recognise each other by.
#[derive(Debug)]
pub struct NcclId([u8; 128]);

impl NcclId {
    /// A new one.
    pub fn new() -> Result<Self, Error> {
        let mut bytes = [0; 128];
        // SAFETY: 128 bytes are written.
        check(unsafe { lcf_nccl_id(bytes.as_mut_ptr()) })?;
        Ok(Self(bytes))
    }

    /// As text for the store.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// From such a text.
    pub fn from_hex(text: &str) -> Option<Self> {
        let byte = |i: usize| u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..128).map(byte).collect();
        Some(Self(bytes?.try_into().ok()?))
    }
}
