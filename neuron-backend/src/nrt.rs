//! libnrt, made safe: the one place of this crate that is unsafe, because it calls C.
//!
//! Who owns what keeps the order that the runtime demands. A [`Runtime`] is a handle that models,
//! tensors and sets hold too, so the last of them closes it. A [`TensorSet`] holds the tensors that
//! are bound in it. Models, tensors and sets stay on the thread that made them, which is their
//! rank's: nothing is promised about calls for one of them from several threads at once, and none
//! is needed.

#![expect(unsafe_code, reason = "calls the functions of libnrt")]

mod settings;
mod status;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsString, c_char, c_void};
use std::fmt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use graph::Target;
use neuron_sys::{self as sys, Library, Nrt};

pub use neuron_sys::{OpenError, Version};
pub use settings::Settings;
pub use status::{NrtError, Status};

/// Whether this process has a runtime: there can be one.
static RUNNING: AtomicBool = AtomicBool::new(false);

/// That runtime, for who wants to share it. Once it is closed, a process cannot start it again.
static STARTED: Mutex<Weak<Started>> = Mutex::new(Weak::new());

/// What to pass where a function no longer looks at the count of cores.
const ANY: i32 = -1;

/// The most inputs and outputs that a model is believed to have; what says more is garbage.
const MOST_TENSORS: u64 = 1 << 20;

/// The most dimensions that a tensor is believed to have.
const MOST_DIMENSIONS: u32 = 64;

/// Why the runtime was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// This process has one already.
    #[error(
        "this process runs the Neuron runtime already, and there can be one: drop whatever was \
         loaded first, or use another process"
    )]
    Running,
    /// The environment says something else than the settings.
    #[error(
        "the environment of this process does not say what the Neuron runtime is to do: it needs \
         {}. The program sets them and starts itself again before it has threads; whoever calls \
         this without has to set them",
        listed(.0)
    )]
    Environment(Vec<(&'static str, OsString)>),
    /// The environment says something that makes answers wrong.
    #[error(
        "{name} is set to {}: without barriers ranks compute with each other's old data and \
         nothing notices. Unset it",
        value.display()
    )]
    Harmful {
        /// The variable.
        name: &'static str,
        /// What it is set to.
        value: OsString,
    },
    /// The runtime itself refused.
    #[error(
        "{0}. If other processes use the cores, `neuron-ls` shows them; a core is theirs until \
         they have ended"
    )]
    Refused(#[from] NrtError),
}

fn listed(variables: &[(&'static str, OsString)]) -> String {
    let listed: Vec<_> = variables
        .iter()
        .map(|(name, value)| format!("{name}={}", value.display()))
        .collect();
    listed.join(" ")
}

/// The runtime's library, opened, with no core taken yet: it can be asked what is here.
#[derive(Debug)]
pub struct Libnrt(Library);

impl Libnrt {
    /// Opens the library at `path`, or the one that the environment names, or that is installed:
    /// see [`Library::open`].
    ///
    /// # Errors
    /// Whatever keeps it from being used, with what to install.
    pub fn open(path: Option<&Path>) -> Result<Self, OpenError> {
        // SAFETY: which library it is was said by the owner of the machine: by installing it, or
        // in the settings or the environment of this process.
        unsafe { Library::open(path) }.map(Self)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Which it is.
    pub fn version(&self) -> Version {
        self.0.version()
    }

    /// The instance that this process is on.
    ///
    /// # Errors
    /// The runtime does not know it, for instance without its driver.
    pub fn instance(&self) -> Result<InstanceInfo, NrtError> {
        let mut info = sys::nrt_instance_info_t {
            family: 0,
            size: 0,
            arch_name: [0; 16],
            device_revision: [0; 8],
        };
        let size = size_of::<sys::nrt_instance_info_t>();
        // SAFETY: may be called at any time, and is told how much room there is.
        let status = unsafe { self.nrt().nrt_get_instance_info(&raw mut info, size) };
        self.checked("nrt_get_instance_info", status, String::new)?;
        Ok(InstanceInfo {
            family: info.family,
            size: info.size,
            architecture: text(&info.arch_name),
            revision: text(&info.device_revision),
        })
    }

    /// Logical cores of the instance, whoever has them.
    ///
    /// # Errors
    /// The runtime does not know, for instance without its driver.
    pub fn total_cores(&self) -> Result<u32, NrtError> {
        let nrt = self.nrt();
        match &nrt.nrt_get_total_vnc_count {
            Ok(count) => self.count("nrt_get_total_vnc_count", |cores| {
                // SAFETY: may be called at any time; `cores` is where one number has room.
                unsafe { count(cores) }
            }),
            Err(_) => self.count("nrt_get_total_nc_count", |cores| {
                // SAFETY: as above.
                unsafe { nrt.nrt_get_total_nc_count(cores) }
            }),
        }
    }

    /// Logical cores that this process may take, as its environment says.
    ///
    /// # Errors
    /// The runtime does not know, for instance because the environment makes no sense to it.
    pub fn visible_cores(&self) -> Result<u32, NrtError> {
        let nrt = self.nrt();
        match &nrt.nrt_get_visible_vnc_count {
            Ok(count) => self.count("nrt_get_visible_vnc_count", |cores| {
                // SAFETY: may be called at any time; `cores` is where one number has room.
                unsafe { count(cores) }
            }),
            Err(_) => self.count("nrt_get_visible_nc_count", |cores| {
                // SAFETY: as above.
                unsafe { nrt.nrt_get_visible_nc_count(cores) }
            }),
        }
    }

    fn count(
        &self,
        operation: &'static str,
        ask: impl FnOnce(*mut u32) -> u32,
    ) -> Result<u32, NrtError> {
        let mut cores = 0;
        let status = ask(&raw mut cores);
        self.checked(operation, status, String::new)?;
        Ok(cores)
    }

    fn nrt(&self) -> &Nrt {
        self.0.nrt()
    }

    /// A status as a result. One that we do not know is named by the runtime.
    fn checked(
        &self,
        operation: &'static str,
        status: sys::NRT_STATUS,
        detail: impl FnOnce() -> String,
    ) -> Result<(), NrtError> {
        let Err(status) = Status(status).ok() else {
            return Ok(());
        };
        let mut detail = detail();
        if let Some(name) = self.unknown_name(status) {
            detail = format!("{detail}; the runtime calls it {name}");
        }
        Err(NrtError {
            operation,
            status,
            detail,
        })
    }

    fn unknown_name(&self, status: Status) -> Option<String> {
        let ask = self.nrt().nrt_get_status_as_str.as_ref().ok()?;
        if status.name().is_some() {
            return None;
        }
        // SAFETY: may be called at any time with any number.
        let name = unsafe { ask(status.0) };
        // SAFETY: what it returns is a string that is never freed, or nothing.
        let name = (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) })?;
        Some(name.to_string_lossy().into_owned())
    }
}

/// What the runtime says of the instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InstanceInfo {
    /// The runtime's number for the family; newer ones are unknown to us.
    pub family: u32,
    /// The runtime's number for the size.
    pub size: u32,
    /// What it calls the architecture.
    pub architecture: String,
    /// The revision of the chips.
    pub revision: String,
}

impl InstanceInfo {
    /// What modules must be compiled for to run here; `None` where the family is one that this
    /// version does not know, or one that it does not serve.
    pub fn target(&self) -> Option<Target> {
        match self.family {
            sys::NRT_INSTANCE_INF2 | sys::NRT_INSTANCE_INF2E => Some(Target::Inf2),
            sys::NRT_INSTANCE_TRN1 | sys::NRT_INSTANCE_TRN1N => Some(Target::Trn1),
            sys::NRT_INSTANCE_TRN2
            | sys::NRT_INSTANCE_TRN2N
            | sys::NRT_INSTANCE_TRN2P
            | sys::NRT_INSTANCE_TRN2U
            | sys::NRT_INSTANCE_TRN2E
            | sys::NRT_INSTANCE_TRN2EU
            | sys::NRT_INSTANCE_TRN2AC
            | sys::NRT_INSTANCE_TRN2UAC => Some(Target::Trn2),
            sys::NRT_INSTANCE_TRN3 | sys::NRT_INSTANCE_TRN3PDS98 => Some(Target::Trn3),
            _ => None,
        }
    }
}

/// Bytes of the device memory that serves a core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryStats {
    /// Taken by whatever is loaded.
    pub used: u64,
    /// All there is.
    pub limit: u64,
}

/// The runtime, started: its cores are this process's. Cheap to clone; the last clone, models and
/// tensors included, gives the cores back.
#[derive(Clone, Debug)]
pub struct Runtime(Arc<Started>);

#[derive(Debug)]
struct Started {
    libnrt: Libnrt,
}

impl Runtime {
    /// Takes the cores that `settings` name, which the environment of this process must say
    /// already: see [`Settings::missing`].
    ///
    /// # Errors
    /// There is one already, the environment says something else, or the runtime refuses.
    pub fn start(libnrt: Libnrt, settings: &Settings) -> Result<Self, StartError> {
        let missing = settings.missing();
        if !missing.is_empty() {
            return Err(StartError::Environment(missing));
        }
        if let Some((name, value)) = Settings::harmful() {
            return Err(StartError::Harmful { name, value });
        }
        if RUNNING.swap(true, Ordering::AcqRel) {
            return Err(StartError::Running);
        }
        let none = c"".as_ptr();
        // SAFETY: nobody else has started it, and the versions are strings that end.
        let status = unsafe {
            libnrt
                .nrt()
                .nrt_init(sys::NRT_FRAMEWORK_TYPE_NO_FW, none, none)
        };
        let started = libnrt.checked("nrt_init", status, || {
            let cores = &settings.cores;
            format!("cores {} to {}", cores.start, cores.end.saturating_sub(1))
        });
        if let Err(error) = started {
            RUNNING.store(false, Ordering::Release);
            return Err(StartError::Refused(error));
        }
        let started = Arc::new(Started { libnrt });
        *STARTED.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&started);
        Ok(Self(started))
    }

    /// The runtime that this process has started, as long as somebody holds it.
    pub fn running() -> Option<Self> {
        let started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        started.upgrade().map(Self)
    }

    /// The runtime that runs, if it has the cores that `settings` name, or else one that is started now.
    ///
    /// # Errors
    /// As for [`Runtime::start`].
    pub fn shared(libnrt: Libnrt, settings: &Settings) -> Result<Self, StartError> {
        match Self::running() {
            Some(running) => match settings.missing() {
                missing if missing.is_empty() => Ok(running),
                missing => Err(StartError::Environment(missing)),
            },
            None => Self::start(libnrt, settings),
        }
    }

    /// The library that it is of.
    pub fn libnrt(&self) -> &Libnrt {
        &self.0.libnrt
    }

    /// The device memory that serves `core`, counted within the visible ones; `None` if this
    /// runtime does not tell.
    ///
    /// # Errors
    /// There is no such core.
    pub fn memory(&self, core: u32) -> Result<Option<MemoryStats>, NrtError> {
        let Ok(ask) = &self.nrt().nrt_get_vnc_memory_stats else {
            return Ok(None);
        };
        let mut stats = sys::nrt_vnc_memory_stats_t {
            bytes_used: 0,
            bytes_limit: 0,
        };
        let size = size_of::<sys::nrt_vnc_memory_stats_t>();
        let mut written = 0;
        // SAFETY: it is told how much room there is, and both results have room.
        let status = unsafe { ask(core, &raw mut stats, size, &raw mut written) };
        self.checked("nrt_get_vnc_memory_stats", status, || {
            format!("core {core}")
        })?;
        Ok((written >= size).then_some(MemoryStats {
            used: stats.bytes_used as u64,
            limit: stats.bytes_limit as u64,
        }))
    }

    fn nrt(&self) -> &Nrt {
        self.0.libnrt.nrt()
    }

    fn checked(
        &self,
        operation: &'static str,
        status: sys::NRT_STATUS,
        detail: impl FnOnce() -> String,
    ) -> Result<(), NrtError> {
        self.0.libnrt.checked(operation, status, detail)
    }

    /// What an allocating function gave, unless it failed or gave nothing.
    fn made<T>(
        &self,
        operation: &'static str,
        status: sys::NRT_STATUS,
        made: *mut T,
        detail: impl Fn() -> String,
    ) -> Result<NonNull<T>, NrtError> {
        self.checked(operation, status, &detail)?;
        NonNull::new(made).ok_or_else(|| NrtError {
            operation,
            status: Status::FAILURE,
            detail: format!("{}: it gave nothing", detail()),
        })
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // SAFETY: it was started, and models, tensors and sets hold what is dropped here, so there
        // are none left.
        unsafe { self.libnrt.nrt().nrt_close() };
        RUNNING.store(false, Ordering::Release);
    }
}

/// Which of the ranks that run a module together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rank {
    /// Counted from 0.
    pub index: u32,
    /// How many there are.
    pub count: u32,
}

/// Which side of a model a tensor is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Usage {
    /// The model reads it.
    Input,
    /// The model writes it.
    Output,
}

/// An input or output of a loaded model, as the runtime lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorInfo {
    /// The name to bind it by.
    pub name: String,
    /// Which side it is on.
    pub usage: Usage,
    /// Bytes.
    pub size: usize,
    /// Sizes of its dimensions, outermost first.
    pub shape: Vec<u32>,
    /// The runtime's number for its elements. The numbers changed between versions and 8-bit
    /// floats are listed as integers: show it, and decide nothing by it.
    pub dtype: u32,
}

/// A module on a core. Dropping it unloads it.
pub struct Model {
    handle: NonNull<sys::nrt_model_t>,
    runtime: Runtime,
    tensors: Vec<TensorInfo>,
}

impl Model {
    /// Loads a NEFF that runs by itself on `core`, counted within the visible ones.
    ///
    /// # Errors
    /// What the runtime finds wrong, memory that is not there included.
    pub fn load(runtime: &Runtime, neff: &[u8], core: u32) -> Result<Self, NrtError> {
        let place = signed("nrt_load", core)?;
        let bytes = neff.as_ptr().cast::<c_void>();
        let mut model = ptr::null_mut();
        // SAFETY: `neff` is as long as is said, and the runtime copies what it keeps.
        let status = unsafe {
            runtime
                .nrt()
                .nrt_load(bytes, neff.len(), place, ANY, &raw mut model)
        };
        let detail = || format!("core {core}, NEFF of {} bytes", neff.len());
        let handle = runtime.made("nrt_load", status, model, detail)?;
        Self::listed(runtime, handle)
    }

    /// Loads a NEFF that `rank` runs together with all others, on `core`. Returns when all have
    /// loaded theirs: each must be on a thread of its own.
    ///
    /// # Errors
    /// What the runtime finds wrong, memory that is not there included.
    pub fn load_collectives(
        runtime: &Runtime,
        neff: &[u8],
        core: u32,
        rank: Rank,
    ) -> Result<Self, NrtError> {
        let place = signed("nrt_load_collectives", core)?;
        let bytes = neff.as_ptr().cast::<c_void>();
        let Rank { index, count } = rank;
        let mut model = ptr::null_mut();
        // SAFETY: `neff` is as long as is said, and the runtime copies what it keeps.
        let status = unsafe {
            runtime.nrt().nrt_load_collectives(
                bytes,
                neff.len(),
                place,
                ANY,
                index,
                count,
                &raw mut model,
            )
        };
        let detail = || {
            let bytes = neff.len();
            format!("rank {index} of {count}, core {core}, NEFF of {bytes} bytes")
        };
        let handle = runtime.made("nrt_load_collectives", status, model, detail)?;
        Self::listed(runtime, handle)
    }

    fn listed(runtime: &Runtime, handle: NonNull<sys::nrt_model_t>) -> Result<Self, NrtError> {
        let mut model = Self {
            handle,
            runtime: runtime.clone(),
            tensors: Vec::new(),
        };
        model.tensors = tensors_of(&model)?;
        Ok(model)
    }

    /// Its inputs and outputs, in the runtime's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Runs it once and waits for it. A tensor that is in both sets is changed in place. With
    /// [`load_collectives`](Self::load_collectives) it waits for the other ranks as well.
    ///
    /// # Errors
    /// What the runtime says became of the execution; unless it is 0 the outputs are worthless.
    pub fn execute(&self, inputs: &TensorSet, outputs: &TensorSet) -> Result<(), Status> {
        let (model, inputs, outputs) = (self.handle, inputs.handle, outputs.handle);
        // SAFETY: all three live as long as they are borrowed, with the tensors that the sets hold.
        // None of them can be used by another thread meanwhile.
        let status = unsafe {
            self.runtime
                .nrt()
                .nrt_execute(model.as_ptr(), inputs.as_ptr(), outputs.as_ptr())
        };
        Status(status).ok()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: it was loaded, and nothing refers to it but this.
        let status = unsafe { self.runtime.nrt().nrt_unload(self.handle.as_ptr()) };
        if let Err(error) = self.runtime.checked("nrt_unload", status, String::new) {
            tracing::warn!("{error}");
        }
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("tensors", &self.tensors)
            .finish_non_exhaustive()
    }
}

/// The runtime's own list of a model's tensors, given back when dropped.
struct Listing<'a> {
    model: &'a Model,
    array: NonNull<sys::nrt_tensor_info_array_t>,
}

impl Drop for Listing<'_> {
    fn drop(&mut self) {
        let runtime = &self.model.runtime;
        // SAFETY: it came from the function that this is the counterpart of, and is not used after.
        let status = unsafe {
            runtime
                .nrt()
                .nrt_free_model_tensor_info(self.array.as_ptr())
        };
        if let Err(error) = runtime.checked("nrt_free_model_tensor_info", status, String::new) {
            tracing::warn!("{error}");
        }
    }
}

/// Copies the runtime's list of a model's tensors.
fn tensors_of(model: &Model) -> Result<Vec<TensorInfo>, NrtError> {
    const OPERATION: &str = "nrt_get_model_tensor_info";
    let runtime = &model.runtime;
    let mut array = ptr::null_mut();
    // SAFETY: the model is loaded, and there is room for the result.
    let status = unsafe {
        runtime
            .nrt()
            .nrt_get_model_tensor_info(model.handle.as_ptr(), &raw mut array)
    };
    let array = runtime.made(OPERATION, status, array, String::new)?;
    let listing = Listing { model, array };
    let array = listing.array.as_ptr();
    // SAFETY: the runtime filled it in.
    let count = unsafe { (*array).tensor_count };
    if count > MOST_TENSORS {
        return Err(invalid(OPERATION, format!("it lists {count} tensors")));
    }
    // SAFETY: an address within what the runtime filled in; nothing is read.
    let first = unsafe { &raw const (*array).tensor_array }.cast::<sys::nrt_tensor_info_t>();
    let count = usize::try_from(count).unwrap_or(0);
    (0..count)
        .map(|index| {
            // SAFETY: there are `count` of them from `first` on, and the listing is still held.
            let info = unsafe { &*first.add(index) };
            copied(info).map_err(|detail| invalid(OPERATION, detail))
        })
        .collect()
}

/// One entry of the runtime's list, or what is wrong with it.
fn copied(info: &sys::nrt_tensor_info_t) -> Result<TensorInfo, String> {
    let name = text(&info.name);
    let usage = match info.usage {
        sys::NRT_TENSOR_USAGE_INPUT => Usage::Input,
        sys::NRT_TENSOR_USAGE_OUTPUT => Usage::Output,
        other => return Err(format!("{name} is neither input nor output but {other}")),
    };
    if info.ndim > MOST_DIMENSIONS {
        return Err(format!("{name} has {} dimensions", info.ndim));
    }
    let shape = if info.shape.is_null() {
        Vec::new()
    } else {
        // SAFETY: the runtime says that there are this many numbers, and the listing is held.
        unsafe { std::slice::from_raw_parts(info.shape, info.ndim as usize) }.to_vec()
    };
    Ok(TensorInfo {
        name,
        usage,
        size: info.size,
        shape,
        dtype: info.dtype,
    })
}

/// Bytes in the memory of a core. Dropping it frees them, unless a slice still needs them.
pub struct Tensor {
    handle: NonNull<sys::nrt_tensor_t>,
    runtime: Runtime,
    size: usize,
}

impl Tensor {
    /// Makes room for `size` bytes in the memory of `core`, counted within the visible ones. What
    /// is in them is anything. The runtime's log uses the name.
    ///
    /// # Errors
    /// The memory is not there (status `RESOURCE`), or the core is not.
    pub fn allocate(
        runtime: &Runtime,
        core: u32,
        size: usize,
        name: &str,
    ) -> Result<Self, NrtError> {
        const OPERATION: &str = "nrt_tensor_allocate";
        let place = signed(OPERATION, core)?;
        let c_name = c_string(OPERATION, name)?;
        let mut tensor = ptr::null_mut();
        // SAFETY: the name ends, and there is room for the result.
        let status = unsafe {
            runtime.nrt().nrt_tensor_allocate(
                sys::NRT_TENSOR_PLACEMENT_DEVICE,
                place,
                size,
                c_name.as_ptr(),
                &raw mut tensor,
            )
        };
        let detail = || format!("{name}, {size} bytes on core {core}");
        let handle = runtime.made(OPERATION, status, tensor, detail)?;
        Ok(Self {
            handle,
            runtime: runtime.clone(),
            size,
        })
    }

    /// `size` bytes of this tensor from `offset` on as a tensor of its own. Both see the same
    /// bytes, which stay until both are dropped.
    ///
    /// # Errors
    /// It reaches beyond the end, or the runtime refuses.
    pub fn slice(&self, offset: usize, size: usize, name: &str) -> Result<Self, NrtError> {
        const OPERATION: &str = "nrt_tensor_allocate_slice";
        self.holds(OPERATION, offset, size)?;
        let c_name = c_string(OPERATION, name)?;
        let mut slice = ptr::null_mut();
        // SAFETY: the tensor lives, the name ends, and there is room for the result.
        let status = unsafe {
            self.runtime.nrt().nrt_tensor_allocate_slice(
                self.handle.as_ptr(),
                offset,
                size,
                c_name.as_ptr(),
                &raw mut slice,
            )
        };
        let detail = || format!("{name}, {size} bytes from {offset} on");
        let handle = self.runtime.made(OPERATION, status, slice, detail)?;
        Ok(Self {
            handle,
            runtime: self.runtime.clone(),
            size,
        })
    }

    /// Bytes that it holds.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Copies `bytes` to the device, to `offset` and on.
    ///
    /// # Errors
    /// They reach beyond the end, or the runtime refuses.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), NrtError> {
        const OPERATION: &str = "nrt_tensor_write";
        self.holds(OPERATION, offset, bytes.len())?;
        let from = bytes.as_ptr().cast::<c_void>();
        // SAFETY: the tensor lives and has room, `bytes` is as long as is said, and the copy is
        // done when it returns.
        let status = unsafe {
            self.runtime
                .nrt()
                .nrt_tensor_write(self.handle.as_ptr(), from, offset, bytes.len())
        };
        self.runtime
            .checked(OPERATION, status, || self.range(offset, bytes.len()))
    }

    /// Copies bytes from the device, from `offset` on, as many as there is room for.
    ///
    /// # Errors
    /// They reach beyond the end, or the runtime refuses.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), NrtError> {
        const OPERATION: &str = "nrt_tensor_read";
        self.holds(OPERATION, offset, bytes.len())?;
        let to = bytes.as_mut_ptr().cast::<c_void>();
        // SAFETY: the tensor lives and has that many, and so has `bytes`.
        let status = unsafe {
            self.runtime
                .nrt()
                .nrt_tensor_read(self.handle.as_ptr(), to, offset, bytes.len())
        };
        self.runtime
            .checked(OPERATION, status, || self.range(offset, bytes.len()))
    }

    /// Sets every byte to zero, on the device where the runtime can.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn zero(&self) -> Result<(), NrtError> {
        /// Bytes that are sent at once where the runtime cannot.
        const CHUNK: usize = 16 << 20;
        if let Ok(set) = &self.runtime.nrt().nrt_tensor_memset {
            // SAFETY: the tensor lives and has that many bytes.
            let status = unsafe { set(self.handle.as_ptr(), 0, 0, self.size) };
            return self
                .runtime
                .checked("nrt_tensor_memset", status, || self.range(0, self.size));
        }
        let zeros = vec![0; CHUNK.min(self.size)];
        for offset in (0..self.size).step_by(CHUNK) {
            self.write(offset, &zeros[..CHUNK.min(self.size - offset)])?;
        }
        Ok(())
    }

    fn holds(&self, operation: &'static str, offset: usize, size: usize) -> Result<(), NrtError> {
        let end = offset.checked_add(size);
        if end.is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        Err(invalid(operation, self.range(offset, size)))
    }

    fn range(&self, offset: usize, size: usize) -> String {
        format!("{size} bytes from {offset} on of {}", self.size)
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        let mut tensor = self.handle.as_ptr();
        // SAFETY: it was allocated, and no set has it: those that do hold this.
        unsafe { self.runtime.nrt().nrt_tensor_free(&raw mut tensor) };
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// Tensors by the names that a model has for its inputs, or for its outputs. Made once and used
/// for many executions: the runtime keeps what it prepared for a pair of sets.
pub struct TensorSet {
    handle: NonNull<sys::nrt_tensor_set_t>,
    runtime: Runtime,
    bound: BTreeMap<CString, Rc<Tensor>>,
}

impl TensorSet {
    /// A set without tensors.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn new(runtime: &Runtime) -> Result<Self, NrtError> {
        const OPERATION: &str = "nrt_allocate_tensor_set";
        let mut set = ptr::null_mut();
        // SAFETY: there is room for the result.
        let status = unsafe { runtime.nrt().nrt_allocate_tensor_set(&raw mut set) };
        let handle = runtime.made(OPERATION, status, set, String::new)?;
        Ok(Self {
            handle,
            runtime: runtime.clone(),
            bound: BTreeMap::new(),
        })
    }

    /// Binds a tensor by a name, in place of the one that had it. The set holds it from then on.
    ///
    /// # Errors
    /// The runtime refuses; the set is as before.
    pub fn bind(&mut self, name: &str, tensor: &Rc<Tensor>) -> Result<(), NrtError> {
        const OPERATION: &str = "nrt_add_tensor_to_tensor_set";
        let c_name = c_string(OPERATION, name)?;
        let (set, tensor_handle) = (self.handle.as_ptr(), tensor.handle.as_ptr());
        // SAFETY: set and tensor live, the name ends, and the set holds the tensor below, so it
        // outlives the set.
        let status = unsafe {
            self.runtime
                .nrt()
                .nrt_add_tensor_to_tensor_set(set, c_name.as_ptr(), tensor_handle)
        };
        self.runtime
            .checked(OPERATION, status, || name.to_owned())?;
        // Only now may the one that had the name go.
        self.bound.insert(c_name, Rc::clone(tensor));
        Ok(())
    }

    /// The tensor that has a name.
    pub fn tensor(&self, name: &str) -> Option<&Rc<Tensor>> {
        self.bound.get(CString::new(name).ok()?.as_c_str())
    }

    /// How many tensors it has.
    pub fn len(&self) -> usize {
        self.bound.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.bound.is_empty()
    }
}

impl Drop for TensorSet {
    fn drop(&mut self) {
        let mut set = self.handle.as_ptr();
        // SAFETY: it was allocated; its tensors are dropped after it, as `bound` is.
        unsafe { self.runtime.nrt().nrt_destroy_tensor_set(&raw mut set) };
    }
}

impl fmt::Debug for TensorSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&self.bound).finish()
    }
}

/// A string in an array of C's, up to its zero or its end.
fn text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars
        .iter()
        // Signed on some processors and not on others.
        .map(|char| u8::from_ne_bytes(char.to_ne_bytes()))
        .take_while(|byte| *byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn c_string(operation: &'static str, name: &str) -> Result<CString, NrtError> {
    CString::new(name).map_err(|_| invalid(operation, format!("{name:?} holds a zero byte")))
}

/// A core's number as the runtime takes it.
fn signed(operation: &'static str, core: u32) -> Result<i32, NrtError> {
    i32::try_from(core).map_err(|_| invalid(operation, format!("there is no core {core}")))
}

/// What the runtime would say of arguments that make no sense, without asking it.
fn invalid(operation: &'static str, detail: String) -> NrtError {
    NrtError {
        operation,
        status: Status::INVALID,
        detail,
    }
}
