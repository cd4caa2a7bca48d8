//! The C interface: the one file that is unsafe, because C hands over pointers. Every function turns
//! them into handles and slices and calls the runtime. A failure is written to stderr, where the
//! real library logs; misuse ends the process.

#![expect(unsafe_code, reason = "C calls these functions with pointers")]

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use graph::Element;
use neuron_sys as sys;
use neuron_sys::{
    NRT_STATUS, nrt_framework_type_t, nrt_instance_info_t, nrt_model_info_t, nrt_model_t,
    nrt_tensor_device_allocation_info_t, nrt_tensor_info_array_t, nrt_tensor_info_t,
    nrt_tensor_placement_t, nrt_tensor_set_t, nrt_tensor_t, nrt_version_t, nrt_vnc_memory_stats_t,
};

use crate::cores;
use crate::handles::Handle;
use crate::process::Process;
use crate::runtime::{Target, TensorInfo};
use crate::settings::Settings;
use crate::status::{Failure, Status, misuse, refuse};

/// This process' runtime.
static PROCESS: Process = Process::new();

/// Lists of inputs and outputs that the caller has not given back, by address.
static LISTS: Mutex<Option<HashMap<usize, List>>> = Mutex::new(None);

/// A list of inputs and outputs: C sees `array`, which points into the others.
struct List {
    array: Vec<u64>,
    _shapes: Vec<Vec<u32>>,
}

// ---- How calls are answered ----

/// The status of a call.
fn answer(call: &str, work: impl FnOnce() -> Result<(), Failure>) -> NRT_STATUS {
    match work() {
        Ok(()) => Status::SUCCESS.0,
        Err(failure) => {
            complain(call, &failure);
            failure.status().0
        }
    }
}

/// Logs a failure; ends the process if it is misuse.
fn complain(call: &str, failure: &Failure) {
    eprintln!("fake-nrt: {call}: {failure}");
    if matches!(failure, Failure::Misuse(_)) {
        std::process::abort();
    }
}

fn handle<T>(pointer: *const T) -> Handle {
    Handle(pointer.addr() as u64)
}

fn pointer<T>(handle: Handle) -> Result<*mut T, Failure> {
    let address = usize::try_from(handle.0);
    let address = address.map_err(|_| refuse!(FAILURE, "handles need addresses of 64 bits"))?;
    Ok(ptr::without_provenance_mut(address))
}

/// Puts a value where the caller wants it.
///
/// # Safety
/// Unless null, `at` can be written.
unsafe fn put<T>(at: *mut T, value: T) -> Result<(), Failure> {
    if at.is_null() {
        return Err(refuse!(INVALID, "a null pointer for a result"));
    }
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe { at.write(value) };
    Ok(())
}

/// The bytes at an address.
///
/// # Safety
/// Unless null, `at` points to `size` bytes that nobody changes while the result lives.
unsafe fn bytes<'a>(at: *const c_void, size: usize) -> Result<&'a [u8], Failure> {
    match (at.is_null(), size) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(refuse!(INVALID, "a null pointer for {size} bytes")),
        // SAFETY: not null, and the caller vouches for the rest.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts(at.cast(), size) }),
    }
}

/// A name that C gives.
///
/// # Safety
/// Unless null, `at` points to a string that ends with a zero.
unsafe fn name(at: *const c_char) -> Result<String, Failure> {
    if at.is_null() {
        return Ok(String::new());
    }
    // SAFETY: not null, and the caller vouches for the rest.
    let text = unsafe { CStr::from_ptr(at) }.to_str();
    let text = text.map_err(|error| refuse!(INVALID, "a name that is no UTF-8: {error}"))?;
    Ok(text.to_owned())
}

/// Text in a field of C, cut to fit with its final zero.
fn field<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().zip(text.bytes().take(N - 1)) {
        *to = c_char::from_ne_bytes([from]);
    }
    field
}

/// Puts a struct whose size the caller says.
///
/// # Safety
/// Unless null, `at` can be written.
unsafe fn put_sized<T>(at: *mut T, size: usize, value: T) -> Result<(), Failure> {
    let own = size_of::<T>();
    if size != own {
        return Err(refuse!(
            INVALID,
            "a struct of {size} bytes where {own} are expected"
        ));
    }
    // SAFETY: as the caller vouches.
    unsafe { put(at, value) }
}

// ---- Life ----

/// Starts the runtime.
///
/// # Safety
/// Unless null, the versions are strings that end with a zero.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_init(
    framework: nrt_framework_type_t,
    fw_version: *const c_char,
    fal_version: *const c_char,
) -> NRT_STATUS {
    answer("nrt_init", || {
        if framework != sys::NRT_FRAMEWORK_TYPE_NO_FW {
            return Err(refuse!(INVALID, "framework {framework}: we are NO_FW (1)"));
        }
        if fw_version.is_null() || fal_version.is_null() {
            return Err(refuse!(INVALID, "a null pointer for a version: pass \"\""));
        }
        PROCESS.init(Settings::from_environment()?).map(drop)
    })
}

/// Ends the runtime.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nrt_close() {
    answer("nrt_close", || {
        let mut lists = LISTS.lock().unwrap_or_else(PoisonError::into_inner);
        let left = lists.take().map_or(0, |lists| lists.len());
        drop(lists);
        let more = (0..left).map(|_| "a list of a model's tensors".to_owned());
        PROCESS.close(&more.collect::<Vec<_>>())
    });
}

/// The runtime's version.
///
/// # Safety
/// Unless null, `ver` can be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_get_version(
    ver: *mut nrt_version_t,
    size: usize,
) -> NRT_STATUS {
    answer("nrt_get_version", || {
        let [major, minor, patch, maintenance] = Settings::from_environment()?.version;
        let version = nrt_version_t {
            rt_major: major,
            rt_minor: minor,
            rt_patch: patch,
            rt_maintenance: maintenance,
            rt_detail: field("fake"),
            git_hash: field("0000000"),
        };
        // SAFETY: as the caller vouches.
        unsafe { put_sized(ver, size, version) }
    })
}

/// What a status is called.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nrt_get_status_as_str(status: NRT_STATUS) -> *const c_char {
    Status(status).c_text().as_ptr()
}

/// The machine.
///
/// # Safety
/// Unless null, `info` can be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_get_instance_info(
    info: *mut nrt_instance_info_t,
    instance_info_len: usize,
) -> NRT_STATUS {
    answer("nrt_get_instance_info", || {
        let instance = Settings::from_environment()?.topology.instance;
        let value = nrt_instance_info_t {
            family: instance.family,
            size: instance.size,
            arch_name: field(instance.chip.architecture),
            device_revision: field("fake"),
        };
        // SAFETY: as the caller vouches.
        unsafe { put_sized(info, instance_info_len, value) }
    })
}

/// Logical cores of the machine.
///
/// # Safety
/// Unless null, `vnc_count` can be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_get_total_vnc_count(vnc_count: *mut u32) -> NRT_STATUS {
    answer("nrt_get_total_vnc_count", || {
        let count = Settings::from_environment()?.topology.cores();
        // SAFETY: as the caller vouches.
        unsafe { put(vnc_count, count) }
    })
}

/// Logical cores of this process.
///
/// # Safety
/// Unless null, `vnc_count` can be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_get_visible_vnc_count(vnc_count: *mut u32) -> NRT_STATUS {
    answer("nrt_get_visible_vnc_count", || {
        let settings = match PROCESS.runtime() {
            Ok(runtime) => runtime.settings().clone(),
            Err(_) => Settings::from_environment()?,
        };
        let visible = cores::visible(&settings)?;
        // SAFETY: as the caller vouches.
        unsafe { put(vnc_count, visible.end - visible.start) }
    })
}

/// The older name of [`nrt_get_total_vnc_count`].
///
/// # Safety
/// Unless null, `nc_count` can be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_get_total_nc_count(nc_count: *mut u32) -> NRT_STATUS {
    // SAFETY: as the caller vouches.
    unsafe { nrt_get_total_vnc_count(nc_count) }
}

/// The older name of [`nrt_get_visible_vnc_count`].
///
/// # Safety
/// Unless null, `nc_count` can be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_get_visible_nc_count(nc_count: *mut u32) -> NRT_STATUS {
    // SAFETY: as the caller vouches.
    unsafe { nrt_get_visible_vnc_count(nc_count) }
}

// ---- Models ----

/// # Safety
/// Unless null, `neff` points to `size` bytes and `model` can be written.
unsafe fn load(
    call: &str,
    (neff, size): (*const c_void, usize),
    target: Target,
    model: *mut *mut nrt_model_t,
) -> NRT_STATUS {
    answer(call, || {
        let runtime = PROCESS.runtime()?;
        // SAFETY: as the caller vouches.
        unsafe { put(model, ptr::null_mut())? };
        // SAFETY: as the caller vouches.
        let neff = unsafe { bytes(neff, size)? };
        let loaded = pointer(runtime.load(neff, target)?)?;
        // SAFETY: as the caller vouches.
        unsafe { put(model, loaded) }
    })
}

/// Loads a NEFF.
///
/// # Safety
/// Unless null, `neff_bytes` points to `size` bytes and `model` can be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_load(
    neff_bytes: *const c_void,
    size: usize,
    vnc: i32,
    vnc_count: i32,
    model: *mut *mut nrt_model_t,
) -> NRT_STATUS {
    let target = Target {
        core: vnc,
        count: vnc_count,
        rank: None,
    };
    // SAFETY: as the caller vouches.
    unsafe { load("nrt_load", (neff_bytes, size), target, model) }
}

/// Loads a NEFF as one of several ranks.
///
/// # Safety
/// Unless null, `neff_bytes` points to `size` bytes and `model` can be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_load_collectives(
    neff_bytes: *const c_void,
    size: usize,
    vnc: i32,
    vnc_count: i32,
    ctx_device_id: u32,
    ctx_device_count: u32,
    model: *mut *mut nrt_model_t,
) -> NRT_STATUS {
    let target = Target {
        core: vnc,
        count: vnc_count,
        rank: Some((ctx_device_id, ctx_device_count)),
    };
    // SAFETY: as the caller vouches.
    unsafe { load("nrt_load_collectives", (neff_bytes, size), target, model) }
}

/// Makes ready for collectives. Loading does it too.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nrt_build_global_comm(
    vnc: i32,
    g_device_id: u32,
    g_device_count: u32,
) -> NRT_STATUS {
    answer("nrt_build_global_comm", || {
        let runtime = PROCESS.runtime()?;
        runtime.check_communicator(vnc, g_device_id, g_device_count)
    })
}

/// Unloads a model.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nrt_unload(model: *mut nrt_model_t) -> NRT_STATUS {
    answer("nrt_unload", || PROCESS.runtime()?.unload(handle(model)))
}

/// Where a model is.
///
/// # Safety
/// Unless null, `info` and `info_size_out` can be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_get_model_info(
    model: *const nrt_model_t,
    info: *mut nrt_model_info_t,
    info_size_in: usize,
    info_size_out: *mut usize,
) -> NRT_STATUS {
    answer("nrt_get_model_info", || {
        let vnc = PROCESS.runtime()?.model_core(handle(model))?;
        // SAFETY: as the caller vouches.
        unsafe { put_sized(info, info_size_in, nrt_model_info_t { vnc })? };
        // SAFETY: as the caller vouches.
        unsafe { put(info_size_out, size_of::<nrt_model_info_t>()) }
    })
}

/// Lists inputs and outputs.
///
/// # Safety
/// Unless null, `tensor_info` can be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_get_model_tensor_info(
    model: *mut nrt_model_t,
    tensor_info: *mut *mut nrt_tensor_info_array_t,
) -> NRT_STATUS {
    answer("nrt_get_model_tensor_info", || {
        let infos = PROCESS.runtime()?.tensor_info(handle(model))?;
        let mut list = List::of(&infos)?;
        let array: *mut nrt_tensor_info_array_t = list.array.as_mut_ptr().cast();
        // SAFETY: as the caller vouches.
        unsafe { put(tensor_info, array)? };
        let mut lists = LISTS.lock().unwrap_or_else(PoisonError::into_inner);
        lists.get_or_insert_default().insert(array.addr(), list);
        Ok(())
    })
}

/// Gives a list back.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nrt_free_model_tensor_info(
    tensor_info: *mut nrt_tensor_info_array_t,
) -> NRT_STATUS {
    answer("nrt_free_model_tensor_info", || {
        let mut lists = LISTS.lock().unwrap_or_else(PoisonError::into_inner);
        let list = lists
            .as_mut()
            .and_then(|lists| lists.remove(&tensor_info.addr()));
        let given = list.ok_or_else(|| misuse!("{tensor_info:?} is no list, or was given back"));
        given.map(drop)
    })
}

impl List {
    fn of(infos: &[TensorInfo]) -> Result<Self, Failure> {
        const HEAD: usize = size_of::<nrt_tensor_info_array_t>();
        const ONE: usize = size_of::<nrt_tensor_info_t>();
        let mut array = vec![0_u64; (HEAD + infos.len() * ONE).div_ceil(8)];
        array[0] = infos.len() as u64;
        let mut shapes = Vec::new();
        let start: *mut u8 = array.as_mut_ptr().cast();
        for (index, info) in infos.iter().enumerate() {
            let sizes = info.binding.shape.iter().map(|size| u32::try_from(*size));
            let sizes: Result<Vec<_>, _> = sizes.collect();
            let mut shape = sizes.map_err(|error| refuse!(FAILURE, "{}: {error}", info.name))?;
            let entry = entry(info, &mut shape)?;
            // SAFETY: the array has room for the head and all entries, and both are aligned to 8.
            unsafe {
                start
                    .add(HEAD + index * ONE)
                    .cast::<nrt_tensor_info_t>()
                    .write(entry)
            };
            shapes.push(shape);
        }
        Ok(Self {
            array,
            _shapes: shapes,
        })
    }
}

/// A list's entry, which points to `shape`.
fn entry(info: &TensorInfo, shape: &mut Vec<u32>) -> Result<nrt_tensor_info_t, Failure> {
    let size = usize::try_from(info.binding.bytes());
    let usage = match info.output {
        false => sys::NRT_TENSOR_USAGE_INPUT,
        true => sys::NRT_TENSOR_USAGE_OUTPUT,
    };
    Ok(nrt_tensor_info_t {
        name: field(&info.name),
        usage,
        size: size.map_err(|error| refuse!(FAILURE, "{}: {error}", info.name))?,
        dtype: dtype(info.binding.element),
        ndim: u32::try_from(shape.len()).unwrap_or(u32::MAX),
        shape: shape.as_mut_ptr(),
    })
}

/// What the runtime says of an element type: floats of 8 bits are integers to it.
fn dtype(element: Element) -> sys::nrt_dtype_t {
    match element {
        Element::Pred => sys::NRT_DTYPE_UINT8,
        Element::S8 | Element::F8e4m3fn => sys::NRT_DTYPE_INT8,
        Element::S32 => sys::NRT_DTYPE_INT32,
        Element::U32 => sys::NRT_DTYPE_UINT32,
        Element::F32 => sys::NRT_DTYPE_FLOAT32,
        Element::Bf16 => sys::NRT_DTYPE_BFLOAT16,
    }
}

// ---- Tensor sets and executions ----

/// A new set.
///
/// # Safety
/// Unless null, `result` can be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_allocate_tensor_set(
    result: *mut *mut nrt_tensor_set_t,
) -> NRT_STATUS {
    answer("nrt_allocate_tensor_set", || {
        let set = pointer(PROCESS.runtime()?.allocate_set())?;
        // SAFETY: as the caller vouches.
        unsafe { put(result, set) }
    })
}

/// Ends a set.
///
/// # Safety
/// Unless null, `tensor_set` can be read and written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_destroy_tensor_set(tensor_set: *mut *mut nrt_tensor_set_t) {
    // SAFETY: as the caller vouches.
    unsafe {
        end("nrt_destroy_tensor_set", tensor_set, |runtime, set| {
            runtime.destroy_set(set)
        })
    };
}

/// Ends what a pointer points to, and makes it null. After `nrt_close` nothing is left to end.
///
/// # Safety
/// Unless null, `at` can be read and written.
unsafe fn end<T>(
    call: &str,
    at: *mut *mut T,
    work: impl FnOnce(&crate::Runtime, Handle) -> Result<(), Failure>,
) {
    answer(call, || {
        if at.is_null() {
            return Err(refuse!(INVALID, "a null pointer"));
        }
        // SAFETY: not null, and the caller vouches for the rest.
        let pointer = unsafe { at.read() };
        if pointer.is_null() {
            return Ok(());
        }
        if let Some(runtime) = PROCESS.runtime_or_nothing()? {
            work(&runtime, handle(pointer))?;
        }
        // SAFETY: as above.
        unsafe { put(at, ptr::null_mut()) }
    });
}

/// Adds a tensor to a set, or replaces the one of that name.
///
/// # Safety
/// Unless null, `tensor_name` is a string that ends with a zero.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_add_tensor_to_tensor_set(
    tensor_set: *mut nrt_tensor_set_t,
    tensor_name: *const c_char,
    tensor: *mut nrt_tensor_t,
) -> NRT_STATUS {
    answer("nrt_add_tensor_to_tensor_set", || {
        // SAFETY: as the caller vouches.
        let name = unsafe { name(tensor_name)? };
        PROCESS
            .runtime()?
            .add_to_set(handle(tensor_set), &name, handle(tensor))
    })
}

/// The tensor of a name in a set.
///
/// # Safety
/// Unless null, `tensor_name` is a string that ends with a zero, and `tensor` can be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_get_tensor_from_tensor_set(
    tensor_set: *mut nrt_tensor_set_t,
    tensor_name: *const c_char,
    tensor: *mut *mut nrt_tensor_t,
) -> NRT_STATUS {
    answer("nrt_get_tensor_from_tensor_set", || {
        // SAFETY: as the caller vouches.
        let name = unsafe { name(tensor_name)? };
        let found = PROCESS.runtime()?.get_from_set(handle(tensor_set), &name)?;
        // SAFETY: as the caller vouches.
        unsafe { put(tensor, pointer(found)?) }
    })
}

/// Runs a model.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nrt_execute(
    model: *mut nrt_model_t,
    input_set: *const nrt_tensor_set_t,
    output_set: *mut nrt_tensor_set_t,
) -> NRT_STATUS {
    answer("nrt_execute", || {
        let runtime = PROCESS.runtime()?;
        runtime.execute(handle(model), handle(input_set), handle(output_set))
    })
}

// ---- Tensors ----

/// A new tensor.
///
/// # Safety
/// Unless null, `tensor_name` is a string that ends with a zero, and `tensor` can be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_tensor_allocate(
    tensor_placement: nrt_tensor_placement_t,
    vnc: c_int,
    size: usize,
    tensor_name: *const c_char,
    tensor: *mut *mut nrt_tensor_t,
) -> NRT_STATUS {
    answer("nrt_tensor_allocate", || {
        let runtime = PROCESS.runtime()?;
        // SAFETY: as the caller vouches.
        unsafe { put(tensor, ptr::null_mut())? };
        // SAFETY: as the caller vouches.
        let name = unsafe { name(tensor_name)? };
        let core = match tensor_placement {
            sys::NRT_TENSOR_PLACEMENT_DEVICE => {
                let core = u32::try_from(vnc);
                Some(core.map_err(|_| refuse!(INVALID, "there is no core {vnc}"))?)
            }
            sys::NRT_TENSOR_PLACEMENT_HOST => None,
            other => return Err(refuse!(INVALID, "there is no placement {other}")),
        };
        let allocated = pointer(runtime.allocate(core, size as u64, &name)?)?;
        // SAFETY: as the caller vouches.
        unsafe { put(tensor, allocated) }
    })
}

/// A part of another tensor.
///
/// # Safety
/// Unless null, `tensor_name` is a string that ends with a zero, and `tensor_slice` can be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_tensor_allocate_slice(
    tensor_source: *const nrt_tensor_t,
    offset: usize,
    size: usize,
    tensor_name: *const c_char,
    tensor_slice: *mut *mut nrt_tensor_t,
) -> NRT_STATUS {
    answer("nrt_tensor_allocate_slice", || {
        let runtime = PROCESS.runtime()?;
        // SAFETY: as the caller vouches.
        unsafe { put(tensor_slice, ptr::null_mut())? };
        // SAFETY: as the caller vouches.
        let name = unsafe { name(tensor_name)? };
        let slice = runtime.slice(handle(tensor_source), offset as u64, size as u64, &name)?;
        // SAFETY: as the caller vouches.
        unsafe { put(tensor_slice, pointer(slice)?) }
    })
}

/// Frees a tensor.
///
/// # Safety
/// Unless null, `tensor` can be read and written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_tensor_free(tensor: *mut *mut nrt_tensor_t) {
    // SAFETY: as the caller vouches.
    unsafe {
        end("nrt_tensor_free", tensor, |runtime, tensor| {
            runtime.free(tensor)
        })
    };
}

/// Copies bytes from a tensor.
///
/// # Safety
/// Unless null, `buf` has room for `size` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_tensor_read(
    tensor: *const nrt_tensor_t,
    buf: *mut c_void,
    offset: usize,
    size: usize,
) -> NRT_STATUS {
    answer("nrt_tensor_read", || {
        let runtime = PROCESS.runtime()?;
        let into = match (buf.is_null(), size) {
            (_, 0) => &mut [][..],
            (true, _) => return Err(refuse!(INVALID, "a null pointer for {size} bytes")),
            // SAFETY: not null, and the caller vouches for the rest.
            (false, _) => unsafe { std::slice::from_raw_parts_mut(buf.cast(), size) },
        };
        runtime.read(handle(tensor), offset as u64, into)
    })
}

/// Copies bytes into a tensor.
///
/// # Safety
/// Unless null, `buf` points to `size` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_tensor_write(
    tensor: *mut nrt_tensor_t,
    buf: *const c_void,
    offset: usize,
    size: usize,
) -> NRT_STATUS {
    answer("nrt_tensor_write", || {
        let runtime = PROCESS.runtime()?;
        // SAFETY: as the caller vouches.
        let from = unsafe { bytes(buf, size)? };
        runtime.write(handle(tensor), offset as u64, from)
    })
}

/// Copies bytes from tensor to tensor.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nrt_tensor_copy(
    src: *const nrt_tensor_t,
    src_offset: usize,
    dst: *mut nrt_tensor_t,
    dst_offset: usize,
    size: usize,
) -> NRT_STATUS {
    answer("nrt_tensor_copy", || {
        let from = (handle(src), src_offset as u64);
        let to = (handle(dst), dst_offset as u64);
        PROCESS.runtime()?.copy(from, to, size as u64)
    })
}

/// Sets bytes of a tensor.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nrt_tensor_memset(
    tensor: *mut nrt_tensor_t,
    offset: u64,
    value: c_int,
    size: usize,
) -> NRT_STATUS {
    answer("nrt_tensor_memset", || {
        let byte = u8::try_from(value);
        let byte = byte.map_err(|_| refuse!(INVALID, "{value} is no byte"))?;
        PROCESS
            .runtime()?
            .fill(handle(tensor), offset, byte, size as u64)
    })
}

/// Bytes of a tensor; 0 for none.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nrt_tensor_get_size(tensor: *const nrt_tensor_t) -> usize {
    let mut size = 0;
    answer("nrt_tensor_get_size", || {
        let bytes = PROCESS.runtime()?.size(handle(tensor))?;
        size = usize::try_from(bytes).unwrap_or(usize::MAX);
        Ok(())
    });
    size
}

/// Where a tensor is.
///
/// # Safety
/// Unless null, `alloc_info` can be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_tensor_get_device_allocation_info(
    tensor: *const nrt_tensor_t,
    alloc_info: *mut nrt_tensor_device_allocation_info_t,
) -> NRT_STATUS {
    answer("nrt_tensor_get_device_allocation_info", || {
        let allocation = PROCESS.runtime()?.allocation(handle(tensor))?;
        let info = nrt_tensor_device_allocation_info_t {
            physical_address: allocation.address,
            size: usize::try_from(allocation.bytes).unwrap_or(usize::MAX),
            hbm_index: c_int::try_from(allocation.bank).unwrap_or(c_int::MAX),
        };
        // SAFETY: as the caller vouches.
        unsafe { put(alloc_info, info) }
    })
}

// ---- Memory ----

/// Bytes of the memory that serves a core.
///
/// # Safety
/// Unless null, `stats` and `stats_size_out` can be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nrt_get_vnc_memory_stats(
    vnc: u32,
    stats: *mut nrt_vnc_memory_stats_t,
    stats_size_in: usize,
    stats_size_out: *mut usize,
) -> NRT_STATUS {
    answer("nrt_get_vnc_memory_stats", || {
        let (used, limit) = PROCESS.runtime()?.memory_stats(vnc)?;
        let value = nrt_vnc_memory_stats_t {
            bytes_used: usize::try_from(used).unwrap_or(usize::MAX),
            bytes_limit: usize::try_from(limit).unwrap_or(usize::MAX),
        };
        // SAFETY: as the caller vouches.
        unsafe { put_sized(stats, stats_size_in, value)? };
        // SAFETY: as the caller vouches.
        unsafe { put(stats_size_out, size_of::<nrt_vnc_memory_stats_t>()) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compiles only if each function has the type that the appliance calls it by.
    fn hold_to_declarations(nrt: &mut sys::Nrt) {
        nrt.nrt_init = Ok(nrt_init);
        nrt.nrt_close = Ok(nrt_close);
        nrt.nrt_get_version = Ok(nrt_get_version);
        nrt.nrt_get_status_as_str = Ok(nrt_get_status_as_str);
        nrt.nrt_get_instance_info = Ok(nrt_get_instance_info);
        nrt.nrt_get_total_vnc_count = Ok(nrt_get_total_vnc_count);
        nrt.nrt_get_visible_vnc_count = Ok(nrt_get_visible_vnc_count);
        nrt.nrt_get_total_nc_count = Ok(nrt_get_total_nc_count);
        nrt.nrt_get_visible_nc_count = Ok(nrt_get_visible_nc_count);
        nrt.nrt_load = Ok(nrt_load);
        nrt.nrt_load_collectives = Ok(nrt_load_collectives);
        nrt.nrt_unload = Ok(nrt_unload);
        nrt.nrt_get_model_info = Ok(nrt_get_model_info);
        nrt.nrt_get_model_tensor_info = Ok(nrt_get_model_tensor_info);
        nrt.nrt_free_model_tensor_info = Ok(nrt_free_model_tensor_info);
        nrt.nrt_allocate_tensor_set = Ok(nrt_allocate_tensor_set);
        nrt.nrt_destroy_tensor_set = Ok(nrt_destroy_tensor_set);
        nrt.nrt_add_tensor_to_tensor_set = Ok(nrt_add_tensor_to_tensor_set);
        nrt.nrt_get_tensor_from_tensor_set = Ok(nrt_get_tensor_from_tensor_set);
        nrt.nrt_execute = Ok(nrt_execute);
        nrt.nrt_tensor_allocate = Ok(nrt_tensor_allocate);
        nrt.nrt_tensor_allocate_slice = Ok(nrt_tensor_allocate_slice);
        nrt.nrt_tensor_free = Ok(nrt_tensor_free);
        nrt.nrt_tensor_read = Ok(nrt_tensor_read);
        nrt.nrt_tensor_write = Ok(nrt_tensor_write);
        nrt.nrt_tensor_copy = Ok(nrt_tensor_copy);
        nrt.nrt_tensor_memset = Ok(nrt_tensor_memset);
        nrt.nrt_tensor_get_size = Ok(nrt_tensor_get_size);
        nrt.nrt_tensor_get_device_allocation_info = Ok(nrt_tensor_get_device_allocation_info);
        nrt.nrt_get_vnc_memory_stats = Ok(nrt_get_vnc_memory_stats);
    }

    #[test]
    fn functions_have_the_declared_types() {
        let _: fn(&mut sys::Nrt) = hold_to_declarations;
    }

    #[test]
    fn fields_end_with_a_zero() {
        let name: [c_char; 4] = field("abcdef");
        assert_eq!(
            name.map(|letter| u8::from_ne_bytes([letter.to_ne_bytes()[0]])),
            *b"abc\0"
        );
    }
}
