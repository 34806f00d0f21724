//! libtorch on a card: opened when the program runs, and what `shim/cuda.cpp` offers.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::{Path, PathBuf},
    ptr,
    sync::OnceLock,
};

use tch::Tensor as Torch;

use crate::engine::{
    memory::Usage,
    nn::{Error, Result},
};

/// As in `shim/cuda.cpp`.
#[repr(C)]
struct Table {
    version: u32,
    last_error: extern "C" fn() -> *const c_char,
    prepare: extern "C" fn(c_int) -> c_int,
    memory: extern "C" fn(c_int, *mut Memory) -> c_int,
    reset_peak: extern "C" fn(c_int) -> c_int,
    empty_cache: extern "C" fn() -> c_int,
    limit: extern "C" fn(c_int, f64) -> c_int,
    name: extern "C" fn(c_int, *mut c_char, usize) -> c_int,
    pinned: extern "C" fn(i64, *mut *mut torch_sys::C_tensor) -> c_int,
    event_new: extern "C" fn(*mut *mut c_void) -> c_int,
    event_record: extern "C" fn(*mut c_void) -> c_int,
    event_wait: extern "C" fn(*mut c_void) -> c_int,
    event_free: extern "C" fn(*mut c_void),
    graph_begin: extern "C" fn(*mut *mut c_void) -> c_int,
    graph_end: extern "C" fn(*mut c_void) -> c_int,
    graph_replay: extern "C" fn(*mut c_void) -> c_int,
    graph_free: extern "C" fn(*mut c_void),
}

const VERSION: u32 = 1;

#[repr(C)]
#[derive(Default)]
struct Memory {
    allocated: u64,
    reserved: u64,
    peak: u64,
    device_total: u64,
    device_free: u64,
}

/// What there is of CUDA in this process.
enum Cuda {
    /// And why.
    Nothing(String),
    /// Without the shim: it computes, and that is all.
    Bare(String),
    Whole(&'static Table),
}

/// How many cards libtorch can use. Where it finds none or not all that belongs to one, why.
pub fn cards() -> (u32, Option<String>) {
    let (usable, why) = match cuda() {
        Cuda::Nothing(why) => return (0, Some(why.clone())),
        Cuda::Bare(why) => (tch::Cuda::is_available(), Some(why.clone())),
        Cuda::Whole(_) => (tch::Cuda::is_available(), None),
    };
    if usable { (tch::Cuda::device_count() as u32, why) } else { (0, why) }
}

/// Opens the libraries, once. They must be there before libtorch is first asked for cards.
fn cuda() -> &'static Cuda {
    static CUDA: OnceLock<Cuda> = OnceLock::new();
    CUDA.get_or_init(|| {
        if let Err(why) = open(Path::new("libcuda.so.1")) {
            return Cuda::Nothing(format!("there is no NVIDIA driver ({why})"));
        }
        let shim = match shims().map(|path| open(&path)).find(|opened| opened.is_ok()) {
            Some(opened) => opened,
            None => Err("the program was built without CUDA's headers".to_owned()),
        };
        match shim.and_then(table) {
            Ok(table) => Cuda::Whole(table),
            Err(why) => match open(Path::new("libtorch_cuda.so")) {
                Ok(_) => Cuda::Bare(format!(
                    "no CUDA graphs, and no figures of the card's memory: {why}"
                )),
                Err(why) => {
                    Cuda::Nothing(format!("PyTorch's CUDA libraries are not there ({why})"))
                }
            },
        }
    })
}

/// Beside the program, where it was taken elsewhere; or where it was built.
fn shims() -> impl Iterator<Item = PathBuf> {
    let beside = std::env::current_exe().ok();
    let beside = beside.map(|program| program.with_file_name("libdiffused_cuda.so"));
    let built = Path::new(env!("DIFFUSED_CUDA")).to_owned();
    beside.into_iter().chain([built]).filter(|path| path.is_file())
}

fn open(path: &Path) -> std::result::Result<*mut c_void, String> {
    let name = CString::new(path.as_os_str().as_encoded_bytes()).unwrap_or_default();
    // SAFETY: the libraries' initialisers run, as they would if they were linked. For all to see, since
    // libtorch finds its CUDA part by what that has registered.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !library.is_null() {
        return Ok(library);
    }
    // SAFETY: dlerror returns null or a text, after dlopen has failed.
    let why = unsafe { libc::dlerror() };
    // SAFETY: as above.
    let why = if why.is_null() { c"unknown" } else { unsafe { CStr::from_ptr(why) } };
    Err(why.to_string_lossy().into_owned())
}

fn table(library: *mut c_void) -> std::result::Result<&'static Table, String> {
    // SAFETY: the handle is one of dlopen's.
    let symbol = unsafe { libc::dlsym(library, c"diffused_cuda".as_ptr()) };
    if symbol.is_null() {
        return Err("libdiffused_cuda.so is something else".to_owned());
    }
    // SAFETY: `shim/cuda.cpp` has it with that signature, and the table lives as long as the process.
    let table = unsafe {
        let table: extern "C" fn() -> *const Table = std::mem::transmute(symbol);
        &*table()
    };
    match table.version {
        VERSION => Ok(table),
        other => Err(format!("libdiffused_cuda.so is of version {other}, not {VERSION}")),
    }
}

fn whole() -> Option<&'static Table> {
    match cuda() {
        Cuda::Whole(table) => Some(table),
        Cuda::Nothing(_) | Cuda::Bare(_) => None,
    }
}

/// What a function of the shim's returned.
fn done(table: &Table, code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: a text of the shim's, of this thread.
    let why = unsafe { CStr::from_ptr((table.last_error)()) };
    Err(super::failure(&why.to_string_lossy()))
}

/// Makes the card ready for what is to come.
pub fn prepare(card: u32) -> Result<()> {
    match whole() {
        Some(table) => done(table, (table.prepare)(card as c_int)),
        None => {
            tch::Cuda::cudnn_set_benchmark(true);
            Ok(())
        }
    }
}

/// Of the caching allocator, and the card's total.
fn memory(card: u32) -> Option<Memory> {
    let (table, mut memory) = (whole()?, Memory::default());
    done(table, (table.memory)(card as c_int, &mut memory)).ok()?;
    Some(memory)
}

pub fn name(card: u32) -> Option<String> {
    let (table, mut name) = (whole()?, [0_u8; 256]);
    done(table, (table.name)(card as c_int, name.as_mut_ptr().cast(), name.len())).ok()?;
    Some(CStr::from_bytes_until_nul(&name).ok()?.to_string_lossy().into_owned())
}

/// Nothing is known without the shim.
pub fn usage(card: u32) -> Usage {
    memory(card).map_or_else(Usage::default, |memory| Usage {
        allocated_bytes: memory.allocated,
        reserved_bytes: memory.reserved,
        peak_bytes: memory.peak,
    })
}

pub fn reset_peak(card: u32) {
    if let Some(table) = whole() {
        (table.reset_peak)(card as c_int);
    }
}

/// What may be allocated in all: more is refused by the allocator, after it has given back what it keeps.
pub fn set_limit(card: u32, bytes: u64) {
    if let (Some(table), Some(memory)) = (whole(), memory(card)) {
        let fraction = (bytes as f64 / memory.device_total.max(1) as f64).clamp(0.0, 1.0);
        (table.limit)(card as c_int, fraction);
    }
}

/// Waits for the card, and gives it back what the allocator keeps for later.
pub fn empty_cache() {
    if let Some(table) = whole()
        && let Err(error) = done(table, (table.empty_cache)())
    {
        tracing::warn!("the card's memory was not given back: {error}");
    }
}

/// Memory of the host that the card reads by itself, of so many bytes; where that cannot be had,
/// ordinary memory, which takes the driver two copies.
pub fn pinned(bytes: usize) -> Result<Torch> {
    if let Some(table) = whole() {
        let mut tensor = ptr::null_mut();
        if (table.pinned)(bytes as i64, &mut tensor) == 0 {
            // SAFETY: a tensor of libtorch's own, which is ours now.
            return Ok(unsafe { Torch::from_ptr(tensor) });
        }
    }
    Ok(Torch::f_empty([bytes as i64], (tch::Kind::Uint8, tch::Device::Cpu))?)
}

/// A place in the card's work that can be waited for.
pub struct Event(*mut c_void);

impl Event {
    /// Behind all that the card has been told so far; nothing without the shim.
    pub fn now() -> Result<Option<Self>> {
        let Some(table) = whole() else { return Ok(None) };
        let mut event = ptr::null_mut();
        done(table, (table.event_new)(&mut event))?;
        let event = Self(event);
        done(table, (table.event_record)(event.0))?;
        Ok(Some(event))
    }

    pub fn wait(&self) -> Result<()> {
        whole().map_or(Ok(()), |table| done(table, (table.event_wait)(self.0)))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Some(table) = whole() {
            (table.event_free)(self.0);
        }
    }
}

/// A computation that the card repeats by itself, on the same memory.
pub struct Graph(*mut c_void);

// SAFETY: it is used by one thread at a time, and CUDA does not care which.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `compute` tells the card to do, which is not done yet. What comes out is memory that
    /// every replay writes anew.
    pub fn record<T>(compute: impl FnOnce() -> Result<T>) -> Result<(Self, T)> {
        let Some(table) = whole() else {
            return Err(Error::Backend("there are no CUDA graphs".to_owned()));
        };
        let mut graph = ptr::null_mut();
        done(table, (table.graph_begin)(&mut graph))?;
        let graph = Self(graph);
        let computed = compute();
        // Ended in any case, or the stream would stay as it is.
        let ended = done(table, (table.graph_end)(graph.0));
        let computed = computed?;
        ended.map(|()| (graph, computed))
    }

    pub fn replay(&self) -> Result<()> {
        whole().map_or(Ok(()), |table| done(table, (table.graph_replay)(self.0)))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Some(table) = whole() {
            (table.graph_free)(self.0);
        }
    }
}
