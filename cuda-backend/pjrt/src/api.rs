//! Plugins, clients, programs and arrays, safe to use: the only file of this crate with `unsafe`.
//!
//! Two promises of the interface carry all of it: its functions may be called from any thread, and
//! what a handle points to lives until the function that destroys it is called, which is done when
//! our value of it is dropped.

#![expect(unsafe_code, reason = "calls a C interface")]

use std::collections::HashSet;
use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::ptr::{NonNull, null, null_mut};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, slice};

use libloading::{Library, Symbol};

use crate::element::Element;
use crate::error::{Error, Refusal, Status};
use crate::options::{CompileOptions, Value};
use crate::sys;

/// Major and minor version of the interface that [`sys`] declares. Structs only grow with the minor
/// version, and a plugin takes those that are larger than its own; an older one was never tried.
const VERSION: [c_int; 2] = [0, 81];

/// The plugins of this process: each is set up once and stays.
static OPENED: Mutex<Vec<(PathBuf, Plugin)>> = Mutex::new(Vec::new());

/// A plugin: one kind of device.
#[derive(Clone, Copy)]
pub struct Plugin {
    table: &'static sys::Api,
}

// SAFETY: the table is constant once the plugin is set up, and its functions may be called from any
// thread.
unsafe impl Send for Plugin {}
// SAFETY: as above.
unsafe impl Sync for Plugin {}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = &self.table.version;
        write!(f, "Plugin({}.{})", version.major, version.minor)
    }
}

impl Plugin {
    /// Opens the plugin in the shared library at `path` and sets it up. Opening one again gives the
    /// same.
    ///
    /// # Errors
    /// The library cannot be loaded, is no plugin, speaks another version or fails to set itself up.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, plugin)) = opened.iter().find(|(of, _)| *of == path) {
            return Ok(*plugin);
        }
        let plugin = Self::load(&path)?;
        let mut arguments = sys::Initialize::default();
        // SAFETY: the arguments hold no pointers.
        unsafe { plugin.call("set itself up", plugin.table.initialize, &mut arguments)? };
        opened.push((path, plugin));
        Ok(plugin)
    }

    fn load(path: &Path) -> Result<Self, Error> {
        let open = |cause| Error::Open {
            path: path.to_owned(),
            cause,
        };
        // SAFETY: the file is the one that whoever runs this process named as a plugin; what its
        // initialisers do is theirs to answer for.
        let library = unsafe { Library::new(path) }.map_err(open)?;
        // Never unloaded: the plugin's threads and the table outlive every value of ours.
        let library: &'static Library = Box::leak(Box::new(library));
        // SAFETY: the interface defines this symbol with this signature.
        let get: Symbol<'_, unsafe extern "C" fn() -> *const sys::Api> =
            unsafe { library.get(b"GetPjrtApi") }.map_err(open)?;
        // SAFETY: it takes nothing and may be called at any time.
        let table = unsafe { get() };
        // SAFETY: where it is not null, it points to a table that is never freed, whose first
        // fields, the size and the version, are the same in every version.
        let Some((size, version)) = (unsafe {
            table.as_ref().map(|_| {
                let version = &(*table).version;
                ((*table).size, [version.major, version.minor])
            })
        }) else {
            return Err(not_a_table(path, "nothing".to_owned()));
        };
        if version[0] != VERSION[0] || version[1] < VERSION[1] {
            return Err(Error::Version {
                path: path.to_owned(),
                found: version,
                needed: VERSION,
            });
        }
        if size < size_of::<sys::Api>() {
            return Err(not_a_table(path, format!("a table of {size} bytes")));
        }
        // SAFETY: the table is large enough for our declaration of it, which is that of its
        // version, and is never freed.
        let table = unsafe { &*table };
        Ok(Self { table })
    }

    /// A client with `options`, which differ from plugin to plugin: XLA's for the CPU takes
    /// `cpu_device_count`.
    ///
    /// # Errors
    /// The plugin refuses the options or has no device.
    pub fn client(self, options: &[(&str, Value)]) -> Result<Client, Error> {
        let options: Vec<_> = options.iter().map(named).collect();
        let mut arguments = sys::ClientCreate {
            options: options.as_ptr(),
            options_len: options.len(),
            ..sys::ClientCreate::default()
        };
        let doing = "make a client";
        // SAFETY: the options and what they point to outlive the call.
        unsafe { self.call(doing, self.table.client_create, &mut arguments)? };
        let mut owner = ClientHandle {
            plugin: self,
            client: made(arguments.client, doing)?,
            devices: Vec::new(),
            numbers: Vec::new(),
            launches: AtomicI32::new(1),
        };
        owner.list_devices()?;
        Ok(Client(Arc::new(owner)))
    }

    /// Calls a function of the table.
    ///
    /// # Safety
    /// What the arguments point to is as the function wants it and outlives the call.
    unsafe fn call<A>(
        self,
        doing: &'static str,
        function: sys::Call<A>,
        arguments: &mut A,
    ) -> Result<(), Error> {
        let function = function.ok_or(Error::Missing { doing })?;
        // SAFETY: the caller's promise; the struct has the layout of the interface.
        match NonNull::new(unsafe { function(arguments) }) {
            None => Ok(()),
            Some(failure) => Err(self.explained(doing, failure)),
        }
    }

    /// What a failure says. Frees it.
    fn explained(self, doing: &'static str, failure: NonNull<sys::Failure>) -> Error {
        let mut code = sys::FailureCode {
            failure: failure.as_ptr(),
            ..Default::default()
        };
        let mut message = sys::FailureMessage {
            failure: failure.as_ptr(),
            ..Default::default()
        };
        let mut destroy = sys::FailureDestroy {
            failure: failure.as_ptr(),
            ..Default::default()
        };
        // SAFETY: the failure is alive until it is destroyed, last, and its message until then.
        // That asking for the code does not fail is part of the interface.
        let text = unsafe {
            if let Some(ask) = self.table.failure_code {
                ask(&raw mut code);
            }
            if let Some(ask) = self.table.failure_message {
                ask(&raw mut message);
            }
            let text = bytes(message.message, message.message_size);
            let text = String::from_utf8_lossy(text).into_owned();
            if let Some(free) = self.table.failure_destroy {
                free(&raw mut destroy);
            }
            text
        };
        Error::Plugin {
            doing,
            status: Status(code.code),
            message: text.trim_end().to_owned(),
        }
    }

    /// Waits for an event, if there is one, and frees it.
    ///
    /// # Safety
    /// The event is alive and nobody else's.
    unsafe fn finish(self, doing: &'static str, event: *mut sys::Event) -> Result<(), Error> {
        if event.is_null() {
            return Ok(());
        }
        let mut arguments = sys::OfEvent {
            event,
            ..Default::default()
        };
        // SAFETY: the event is alive until it is destroyed, last.
        unsafe {
            let waited = self.call(doing, self.table.event_await, &mut arguments);
            let freed = self.call(doing, self.table.event_destroy, &mut arguments);
            waited.and(freed)
        }
    }
}

fn not_a_table(path: &Path, found: String) -> Error {
    Error::Table {
        path: path.to_owned(),
        found,
    }
}

/// An option as the interface has it; it borrows the name and the text.
fn named((name, value): &(&str, Value)) -> sys::Named {
    let (kind, value, value_size) = match value {
        Value::Text(text) => (
            sys::NAMED_TEXT,
            sys::Bits {
                text: text.as_ptr(),
            },
            text.len(),
        ),
        Value::Integer(integer) => (sys::NAMED_INTEGER, sys::Bits { integer: *integer }, 1),
        Value::Float(float) => (sys::NAMED_FLOAT, sys::Bits { float: *float }, 1),
        Value::Truth(truth) => (sys::NAMED_TRUTH, sys::Bits { truth: *truth }, 1),
    };
    sys::Named {
        name: name.as_ptr(),
        name_size: name.len(),
        kind,
        value,
        value_size,
        ..Default::default()
    }
}

/// A handle that the plugin says it made.
fn made<T>(handle: *mut T, doing: &'static str) -> Result<NonNull<T>, Error> {
    NonNull::new(handle).ok_or_else(|| Error::Plugin {
        doing,
        status: Status::INTERNAL,
        message: "it reports success and gave nothing".to_owned(),
    })
}

/// Bytes of the plugin's.
///
/// # Safety
/// Unless null, `at` points to `len` bytes that live as long as `'a`.
unsafe fn bytes<'a>(at: *const u8, len: usize) -> &'a [u8] {
    if at.is_null() || len == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { slice::from_raw_parts(at, len) }
}

/// What all values of a client share; the last to go frees the client.
struct ClientHandle {
    plugin: Plugin,
    client: NonNull<sys::Client>,
    devices: Vec<NonNull<sys::Device>>,
    /// The devices' own numbers, in the same order.
    numbers: Vec<i32>,
    /// The number of the next run: what joins the devices of a run in a collective.
    launches: AtomicI32,
}

// SAFETY: clients and devices may be used from any thread.
unsafe impl Send for ClientHandle {}
// SAFETY: as above.
unsafe impl Sync for ClientHandle {}

impl Drop for ClientHandle {
    fn drop(&mut self) {
        let mut arguments = sys::ClientDestroy {
            client: self.client.as_ptr(),
            ..Default::default()
        };
        let function = self.plugin.table.client_destroy;
        // SAFETY: nothing that the client made is left, and nobody uses the client after this.
        // There is nobody to tell of a failure.
        let _ = unsafe { self.plugin.call("end a client", function, &mut arguments) };
    }
}

impl ClientHandle {
    fn list_devices(&mut self) -> Result<(), Error> {
        let doing = "list its devices";
        let table = self.plugin.table;
        let mut list = sys::ClientDevices {
            client: self.client.as_ptr(),
            ..Default::default()
        };
        // SAFETY: the client is alive; the list and the devices live as long as it does.
        let devices = unsafe {
            self.plugin.call(doing, table.client_devices, &mut list)?;
            match list.devices_len {
                0 => &[],
                len => slice::from_raw_parts(list.devices, len),
            }
        };
        for device in devices {
            let device = made(*device, doing)?;
            let mut of = sys::DeviceDescription {
                device: device.as_ptr(),
                ..Default::default()
            };
            let mut number = sys::DescriptionId::default();
            // SAFETY: device and description live as long as the client.
            unsafe {
                self.plugin.call(doing, table.device_description, &mut of)?;
                number.description = of.description;
                self.plugin.call(doing, table.description_id, &mut number)?;
            }
            self.devices.push(device);
            self.numbers.push(number.id);
        }
        Ok(())
    }

    fn device(&self, number: i32) -> Result<NonNull<sys::Device>, Error> {
        let at = self.numbers.iter().position(|is| *is == number);
        at.map(|at| self.devices[at]).ok_or_else(|| Error::Device {
            device: number,
            devices: self.numbers.clone(),
        })
    }
}

/// All devices of a plugin, with what they need. A copy of it is the same client.
#[derive(Clone)]
pub struct Client(Arc<ClientHandle>);

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("devices", &self.devices())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// The numbers of the devices.
    pub fn devices(&self) -> &[i32] {
        &self.0.numbers
    }

    /// The name of the kind of device: `cpu`, `cuda`, ..
    ///
    /// # Errors
    /// The plugin fails to tell.
    pub fn platform(&self) -> Result<String, Error> {
        let plugin = self.0.plugin;
        let mut arguments = sys::ClientPlatform {
            client: self.0.client.as_ptr(),
            ..Default::default()
        };
        let function = plugin.table.client_platform;
        // SAFETY: the client is alive, and its name as long as it.
        let name = unsafe {
            plugin.call("name its platform", function, &mut arguments)?;
            bytes(arguments.name, arguments.name_size)
        };
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    /// Compiles a module: `hlo` is a serialized `HloModuleProto`.
    ///
    /// # Errors
    /// The plugin refuses the module or the options; its text says why.
    pub fn compile(&self, hlo: &[u8], options: &CompileOptions) -> Result<Executable, Error> {
        let doing = "compile the module";
        let plugin = self.0.plugin;
        let format = "hlo";
        let program = sys::Program {
            code: hlo.as_ptr(),
            code_size: hlo.len(),
            format: format.as_ptr(),
            format_size: format.len(),
            ..Default::default()
        };
        let devices = self.assigned(options)?;
        let encoded = options.to_bytes(&devices);
        let mut arguments = sys::ClientCompile {
            client: self.0.client.as_ptr(),
            program: &raw const program,
            options: encoded.as_ptr(),
            options_size: encoded.len(),
            ..Default::default()
        };
        // SAFETY: client, module and options outlive the call, and the module is only read.
        unsafe { plugin.call(doing, plugin.table.client_compile, &mut arguments)? };
        self.executable(made(arguments.executable, doing)?, devices)
    }

    /// Makes a program of what [`Executable::serialize`] gave, for the devices of `options`; it
    /// must have been compiled with the same options but for these devices.
    ///
    /// The bytes are machine code for the processor that they were made on, and the plugin does not
    /// look them over: whoever loads them trusts who made them, and makes sure that plugin and
    /// processor are the same.
    ///
    /// # Errors
    /// The plugin cannot load programs, or not this one.
    pub fn load(&self, program: &[u8], options: &CompileOptions) -> Result<Executable, Error> {
        let doing = "load the program";
        let plugin = self.0.plugin;
        let devices = self.assigned(options)?;
        let encoded = options.to_bytes(&devices);
        let mut arguments = sys::ExecutableLoad {
            client: self.0.client.as_ptr(),
            bytes: program.as_ptr(),
            bytes_size: program.len(),
            options: encoded.as_ptr(),
            options_size: encoded.len(),
            ..Default::default()
        };
        // SAFETY: client, program and options outlive the call, and the program is only read.
        unsafe { plugin.call(doing, plugin.table.executable_load, &mut arguments)? };
        self.executable(made(arguments.loaded, doing)?, devices)
    }

    fn executable(
        &self,
        loaded: NonNull<sys::Loaded>,
        devices: Vec<i32>,
    ) -> Result<Executable, Error> {
        let mut executable = Executable {
            client: self.clone(),
            loaded,
            devices,
            outputs: 0,
        };
        executable.outputs = executable.count_outputs()?;
        Ok(executable)
    }

    /// The devices that a program will run on.
    fn assigned(&self, options: &CompileOptions) -> Result<Vec<i32>, Error> {
        let count = options.device_count();
        let devices = match &options.devices {
            Some(devices) => devices.clone(),
            None => self.devices().iter().take(count).copied().collect(),
        };
        let distinct: HashSet<_> = devices.iter().collect();
        if count == 0 || devices.len() != count || distinct.len() != count {
            return Err(Error::Assignment { count, devices });
        }
        for device in &devices {
            self.0.device(*device)?;
        }
        Ok(devices)
    }

    /// Copies an array to the device with this number. `bytes` holds its elements as this machine
    /// has them, the last of `dims` fastest.
    ///
    /// # Errors
    /// There is no such device or no memory, or the bytes are too few or too many.
    pub fn buffer(
        &self,
        device: i32,
        element: Element,
        dims: &[i64],
        bytes: &[u8],
    ) -> Result<Buffer, Error> {
        let doing = "copy an array to a device";
        let plugin = self.0.plugin;
        fits(element, dims, bytes.len())?;
        let mut arguments = sys::BufferFromHost {
            client: self.0.client.as_ptr(),
            data: bytes.as_ptr().cast(),
            element: element.number(),
            dims: dims.as_ptr(),
            dims_len: dims.len(),
            lifetime: sys::ONLY_DURING_CALL,
            device: self.0.device(device)?.as_ptr(),
            ..Default::default()
        };
        // SAFETY: the device is this client's. The bytes are as many as the sizes say and are not
        // read after the call, as its arguments demand.
        unsafe { plugin.call(doing, plugin.table.buffer_from_host, &mut arguments)? };
        let buffer = Buffer {
            client: self.clone(),
            buffer: made(arguments.buffer, doing)?,
            device,
        };
        // SAFETY: the event is ours.
        unsafe { plugin.finish(doing, arguments.done)? };
        Ok(buffer)
    }
}

/// Refuses bytes that are not as many as an array has.
fn fits(element: Element, dims: &[i64], given: usize) -> Result<(), Error> {
    let needed = dims.iter().try_fold(element.bytes(), |bytes, size| {
        bytes.checked_mul(usize::try_from(*size).ok()?)
    });
    if needed == Some(given) {
        return Ok(());
    }
    Err(Error::Bytes {
        element,
        dims: dims.to_vec(),
        needed: needed.unwrap_or(usize::MAX),
        given,
    })
}

/// A compiled module on the devices that it runs on.
pub struct Executable {
    client: Client,
    loaded: NonNull<sys::Loaded>,
    /// The numbers of its devices, one for each list of arguments.
    devices: Vec<i32>,
    outputs: usize,
}

// SAFETY: a loaded program may be used from any thread, by several at once.
unsafe impl Send for Executable {}
// SAFETY: as above.
unsafe impl Sync for Executable {}

impl fmt::Debug for Executable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executable")
            .field("devices", &self.devices)
            .field("outputs", &self.outputs)
            .finish_non_exhaustive()
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        let plugin = self.client.0.plugin;
        let mut arguments = sys::LoadedDestroy {
            executable: self.loaded.as_ptr(),
            ..Default::default()
        };
        let function = plugin.table.loaded_destroy;
        // SAFETY: the program is alive and nobody uses it after this. There is nobody to tell of a
        // failure.
        let _ = unsafe { plugin.call("free a program", function, &mut arguments) };
    }
}

impl Executable {
    /// The numbers of the devices that it runs on.
    pub fn devices(&self) -> &[i32] {
        &self.devices
    }

    /// Arrays that it gives on each device.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    fn count_outputs(&self) -> Result<usize, Error> {
        let doing = "count the program's outputs";
        let plugin = self.client.0.plugin;
        self.with_program(doing, |program| {
            let mut count = sys::ExecutableOutputs {
                executable: program,
                ..Default::default()
            };
            // SAFETY: the program is alive.
            unsafe { plugin.call(doing, plugin.table.executable_outputs, &mut count)? };
            Ok(count.outputs)
        })
    }

    /// The compiled program as bytes: what [`Client::load`] of the same plugin on the same kind of
    /// processor takes.
    ///
    /// # Errors
    /// The plugin cannot do that.
    pub fn serialize(&self) -> Result<Vec<u8>, Error> {
        let doing = "serialize the program";
        let plugin = self.client.0.plugin;
        self.with_program(doing, |program| {
            let mut arguments = sys::ExecutableSerialize {
                executable: program,
                ..Default::default()
            };
            // SAFETY: the program is alive, and its bytes until they are freed, last.
            unsafe {
                plugin.call(doing, plugin.table.executable_serialize, &mut arguments)?;
                let copy = bytes(arguments.bytes, arguments.bytes_size).to_vec();
                if let Some(free) = arguments.free {
                    free(arguments.holder);
                }
                Ok(copy)
            }
        })
    }

    /// What `ask` learns from the program apart from its devices, which lives while it asks.
    fn with_program<T>(
        &self,
        doing: &'static str,
        ask: impl FnOnce(*mut sys::Executable) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let plugin = self.client.0.plugin;
        let mut of = sys::LoadedExecutable {
            loaded: self.loaded.as_ptr(),
            ..Default::default()
        };
        // SAFETY: the loaded program is alive.
        unsafe { plugin.call(doing, plugin.table.loaded_executable, &mut of)? };
        let asked = ask(of.executable);
        let mut destroy = sys::ExecutableDestroy {
            executable: of.executable,
            ..Default::default()
        };
        // SAFETY: the program is ours to free, and nobody uses it after this.
        unsafe { plugin.call(doing, plugin.table.executable_destroy, &mut destroy)? };
        asked
    }

    /// Runs it: one list of arguments for each device, in the order of
    /// [`CompileOptions::devices`]. Returns, once all devices are done, the lists of their outputs.
    /// An argument that the module gives away to an output is deleted by this.
    ///
    /// # Errors
    /// The arguments do not fit the module, or the run failed. Arguments that were to be given away
    /// may be deleted then.
    pub fn execute(&self, arguments: &[Vec<&Buffer>]) -> Result<Vec<Vec<Buffer>>, Error> {
        let doing = "run the program";
        let plugin = self.client.0.plugin;
        let length = self.check(arguments)?;
        let arguments: Vec<Vec<_>> = arguments
            .iter()
            .map(|list| list.iter().map(|buffer| buffer.buffer.as_ptr()).collect())
            .collect();
        let arguments: Vec<_> = arguments.iter().map(Vec::as_ptr).collect();
        let mut outputs = vec![vec![null_mut(); self.outputs]; self.devices.len()];
        let lists: Vec<_> = outputs.iter_mut().map(Vec::as_mut_ptr).collect();
        let mut events = vec![null_mut(); self.devices.len()];
        let mut options = sys::ExecuteOptions {
            launch: self.client.0.launches.fetch_add(1, Ordering::Relaxed),
            ..Default::default()
        };
        let mut call = sys::LoadedExecute {
            executable: self.loaded.as_ptr(),
            options: &raw mut options,
            arguments: arguments.as_ptr(),
            devices_len: self.devices.len(),
            arguments_len: length,
            outputs: lists.as_ptr(),
            events: events.as_mut_ptr(),
            ..Default::default()
        };
        // SAFETY: the program runs on as many devices as there are lists, gives as many outputs as
        // each list has room for, and all arguments are alive and of the same client.
        unsafe { plugin.call(doing, plugin.table.loaded_execute, &mut call)? };
        // Owned before anything can fail, so that all are freed.
        let outputs: Result<Vec<Vec<_>>, _> = outputs
            .into_iter()
            .zip(&self.devices)
            .map(|(list, device)| self.owned(list, *device))
            .collect();
        let mut finished = Ok(());
        for event in events {
            // SAFETY: the events are ours. All are waited for, whatever the first says.
            finished = finished.and(unsafe { plugin.finish(doing, event) });
        }
        finished?;
        outputs
    }

    /// The length of the lists. Refuses what the plugin would refuse on some devices only: the
    /// others would begin, and wait in their first collective for those that did not.
    fn check(&self, arguments: &[Vec<&Buffer>]) -> Result<usize, Error> {
        let length = arguments.first().map_or(0, Vec::len);
        if arguments.len() != self.devices.len()
            || arguments.iter().any(|list| list.len() != length)
        {
            return Err(Error::Arguments {
                devices: self.devices.len(),
                given: arguments.iter().map(Vec::len).collect(),
            });
        }
        let first: Vec<_> = match arguments {
            [first, _, ..] => first.iter().map(|buffer| buffer.form()).collect(),
            _ => Vec::new(),
        };
        for (device, list) in self.devices.iter().zip(arguments) {
            for (argument, buffer) in list.iter().enumerate() {
                let refused = |cause| Error::Argument {
                    device: *device,
                    argument,
                    cause,
                };
                if !Arc::ptr_eq(&buffer.client.0, &self.client.0) {
                    return Err(refused(Refusal::OtherClient));
                }
                if buffer.device != *device {
                    return Err(refused(Refusal::OtherDevice(buffer.device)));
                }
                if buffer.is_deleted()? {
                    return Err(refused(Refusal::Deleted));
                }
                if first
                    .get(argument)
                    .is_some_and(|form| *form != buffer.form())
                {
                    return Err(refused(Refusal::OtherForm));
                }
            }
        }
        Ok(length)
    }

    fn owned(&self, buffers: Vec<*mut sys::Buffer>, device: i32) -> Result<Vec<Buffer>, Error> {
        let owned = |buffer| {
            Ok(Buffer {
                client: self.client.clone(),
                buffer: made(buffer, "run the program")?,
                device,
            })
        };
        buffers.into_iter().map(owned).collect()
    }
}

/// An array on a device.
pub struct Buffer {
    client: Client,
    buffer: NonNull<sys::Buffer>,
    device: i32,
}

// SAFETY: an array may be used from any thread, by several at once.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("device", &self.device)
            .field("element", &self.element().ok())
            .field("dims", &self.dims().ok())
            .finish_non_exhaustive()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let plugin = self.client.0.plugin;
        let mut arguments = sys::BufferDestroy {
            buffer: self.buffer.as_ptr(),
            ..Default::default()
        };
        let function = plugin.table.buffer_destroy;
        // SAFETY: the array is alive and nobody uses it after this; the plugin waits for what it
        // runs on it. There is nobody to tell of a failure.
        let _ = unsafe { plugin.call("free an array", function, &mut arguments) };
    }
}

impl Buffer {
    /// The number of the device that it is on.
    pub fn device(&self) -> i32 {
        self.device
    }

    /// The type of its elements.
    ///
    /// # Errors
    /// It is one that we have no name for.
    pub fn element(&self) -> Result<Element, Error> {
        let number = self.element_number()?;
        Element::from_number(number).ok_or(Error::Element { number })
    }

    /// What two arrays must have in common to be the same argument; nothing if that fails.
    fn form(&self) -> Option<(c_int, Vec<i64>)> {
        Some((self.element_number().ok()?, self.dims().ok()?))
    }

    fn element_number(&self) -> Result<c_int, Error> {
        let plugin = self.client.0.plugin;
        let mut arguments = sys::BufferElement {
            buffer: self.buffer.as_ptr(),
            ..Default::default()
        };
        let function = plugin.table.buffer_element;
        // SAFETY: the array is alive.
        unsafe { plugin.call("tell an array's type", function, &mut arguments)? };
        Ok(arguments.element)
    }

    /// Its sizes, slowest first.
    ///
    /// # Errors
    /// The plugin fails to tell.
    pub fn dims(&self) -> Result<Vec<i64>, Error> {
        let plugin = self.client.0.plugin;
        let mut arguments = sys::BufferDims {
            buffer: self.buffer.as_ptr(),
            ..Default::default()
        };
        let function = plugin.table.buffer_dims;
        // SAFETY: the array is alive, and its sizes as long as it.
        unsafe {
            plugin.call("tell an array's sizes", function, &mut arguments)?;
            Ok(match arguments.dims_len {
                0 => Vec::new(),
                len => slice::from_raw_parts(arguments.dims, len).to_vec(),
            })
        }
    }

    /// Whether its memory was given away: to an output of a run that took it as an argument.
    ///
    /// # Errors
    /// The plugin fails to tell.
    pub fn is_deleted(&self) -> Result<bool, Error> {
        let plugin = self.client.0.plugin;
        let mut arguments = sys::BufferDeleted {
            buffer: self.buffer.as_ptr(),
            ..Default::default()
        };
        let function = plugin.table.buffer_deleted;
        // SAFETY: the array is alive, even if its memory is not.
        unsafe { plugin.call("tell whether an array is deleted", function, &mut arguments)? };
        Ok(arguments.deleted)
    }

    /// Copies its elements into `bytes`, as this machine has them, the last dimension fastest.
    ///
    /// # Errors
    /// The bytes are too few or too many, the array is deleted, or what was to fill it failed.
    pub fn to_host(&self, bytes: &mut [u8]) -> Result<(), Error> {
        let doing = "copy an array to the host";
        let plugin = self.client.0.plugin;
        fits(self.element()?, &self.dims()?, bytes.len())?;
        let mut arguments = sys::BufferToHost {
            buffer: self.buffer.as_ptr(),
            layout: null(),
            data: bytes.as_mut_ptr().cast(),
            data_size: bytes.len(),
            ..Default::default()
        };
        // SAFETY: the array is alive, and the bytes are ours alone until the copy is done, which is
        // waited for.
        unsafe {
            plugin.call(doing, plugin.table.buffer_to_host, &mut arguments)?;
            plugin.finish(doing, arguments.event)
        }
    }
}
