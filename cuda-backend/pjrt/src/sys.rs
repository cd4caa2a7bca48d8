//! The part of PJRT's C interface that we call, declared in our own words (version 0.81).
//!
//! Every call takes one pointer to a struct of arguments and returns null or an error. Such a
//! struct begins with the size that its caller knows and a list of extensions, which we leave
//! empty; what the plugin answers is written into its last fields. A plugin refuses a struct that
//! is smaller than its own, so a field that the interface has is declared here even if it stays
//! empty.

use std::ffi::{c_int, c_void};

/// What the interface says `struct_size` holds: all up to the end of the last field, which is less
/// than Rust's size of the struct where padding follows.
pub(crate) trait Arguments {
    /// Bytes.
    const SIZE: usize;
}

/// A struct that begins with its size and the list of extensions.
macro_rules! sized {
    ($(#[$document:meta])* $name:ident { $($field:ident: $type:ty,)* }) => {
        $(#[$document])*
        #[repr(C)]
        pub(crate) struct $name {
            pub(crate) size: usize,
            pub(crate) extensions: *mut c_void,
            $(pub(crate) $field: $type,)*
        }

        impl Arguments for $name {
            const SIZE: usize = {
                let ends = [
                    2 * size_of::<usize>(),
                    $(std::mem::offset_of!($name, $field) + size_of::<$type>(),)*
                ];
                ends[ends.len() - 1]
            };
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    size: Self::SIZE,
                    extensions: std::ptr::null_mut(),
                    $($field: Default::default(),)*
                }
            }
        }
    };
}

/// Things that the plugin makes and only it can look into.
macro_rules! opaque {
    ($($(#[$document:meta])* $name:ident,)*) => {
        $(
            $(#[$document])*
            #[repr(C)]
            pub(crate) struct $name {
                hidden: [u8; 0],
            }
        )*
    };
}

opaque! {
    /// Why a call failed; freed by who called.
    Failure,
    /// Work that was begun.
    Event,
    /// All devices of a plugin, with what they need.
    Client,
    /// One of a client's devices; the client owns it.
    Device,
    /// What is known of a device; the device owns it.
    Description,
    /// Where a device has its memory.
    Memory,
    /// A compiled program.
    Executable,
    /// A compiled program with the devices it runs on.
    Loaded,
    /// A compiled program as bytes.
    Serialized,
    /// An array on a device.
    Buffer,
}

/// A call that can fail.
pub(crate) type Call<A> = Option<unsafe extern "C" fn(*mut A) -> *mut Failure>;

/// A call about a failure, which cannot fail.
pub(crate) type Plain<A> = Option<unsafe extern "C" fn(*mut A)>;

/// A call that we never make.
pub(crate) type Unused = Option<unsafe extern "C" fn()>;

sized! {
    /// The version of the interface that the plugin was built with.
    Version { major: c_int, minor: c_int, }
}

sized! {
    /// Frees a failure.
    FailureDestroy { failure: *mut Failure, }
}

sized! {
    /// The words of a failure, which live as long as it does.
    FailureMessage { failure: *const Failure, message: *const u8, message_size: usize, }
}

sized! {
    /// The kind of a failure: a code of Abseil's status.
    FailureCode { failure: *const Failure, code: c_int, }
}

sized! {
    /// Sets the plugin up, before all else.
    Initialize {}
}

sized! {
    /// What is done with an event: awaited, freed.
    OfEvent { event: *mut Event, }
}

/// The value of an option; [`Named::kind`] says which.
#[repr(C)]
pub(crate) union Bits {
    pub(crate) text: *const u8,
    pub(crate) integer: i64,
    pub(crate) float: f32,
    pub(crate) truth: bool,
}

impl Default for Bits {
    fn default() -> Self {
        Self { integer: 0 }
    }
}

/// [`Named::kind`]: the value is text.
pub(crate) const NAMED_TEXT: c_int = 0;
/// [`Named::kind`]: the value is an integer.
pub(crate) const NAMED_INTEGER: c_int = 1;
/// [`Named::kind`]: the value is a float.
pub(crate) const NAMED_FLOAT: c_int = 3;
/// [`Named::kind`]: the value is a truth.
pub(crate) const NAMED_TRUTH: c_int = 4;

sized! {
    /// An option. `value_size` is the length of text, 1 of all else.
    Named {
        name: *const u8,
        name_size: usize,
        kind: c_int,
        value: Bits,
        value_size: usize,
    }
}

sized! {
    /// Makes a client. The store of keys, for several processes, stays empty.
    ClientCreate {
        options: *const Named,
        options_len: usize,
        store_get: Unused,
        store_get_user: usize,
        store_put: Unused,
        store_put_user: usize,
        client: *mut Client,
        store_try_get: Unused,
        store_try_get_user: usize,
    }
}

sized! {
    /// Frees a client.
    ClientDestroy { client: *mut Client, }
}

sized! {
    /// The name of a client's platform, which lives as long as it does.
    ClientPlatform { client: *mut Client, name: *const u8, name_size: usize, }
}

sized! {
    /// The devices that a client can use, which live as long as it does.
    ClientDevices { client: *mut Client, devices: *const *mut Device, devices_len: usize, }
}

sized! {
    /// A program and the format it is in.
    Program {
        code: *const u8,
        code_size: usize,
        format: *const u8,
        format_size: usize,
    }
}

sized! {
    /// Compiles a program for a client's devices. The options are a `CompileOptionsProto`.
    ClientCompile {
        client: *mut Client,
        program: *const Program,
        options: *const u8,
        options_size: usize,
        executable: *mut Loaded,
    }
}

/// [`BufferFromHost::lifetime`]: the plugin has copied all when the call returns.
pub(crate) const ONLY_DURING_CALL: c_int = 0;

sized! {
    /// Copies an array to a device. Without strides and layout: dense, the last dimension fastest.
    BufferFromHost {
        client: *mut Client,
        data: *const c_void,
        element: c_int,
        dims: *const i64,
        dims_len: usize,
        strides: *const i64,
        strides_len: usize,
        lifetime: c_int,
        device: *mut Device,
        memory: *mut Memory,
        layout: *const c_void,
        done: *mut Event,
        buffer: *mut Buffer,
    }
}

sized! {
    /// The number of a device.
    DescriptionId { description: *mut Description, id: c_int, }
}

sized! {
    /// What is known of a device.
    DeviceDescription { device: *mut Device, description: *mut Description, }
}

sized! {
    /// Frees a compiled program.
    ExecutableDestroy { executable: *mut Executable, }
}

sized! {
    /// How many arrays a program gives on each device.
    ExecutableOutputs { executable: *mut Executable, outputs: usize, }
}

/// Frees a compiled program's bytes.
pub(crate) type FreeSerialized = Option<unsafe extern "C" fn(*mut Serialized)>;

sized! {
    /// A compiled program as bytes, which live until `free` is called with what holds them.
    ExecutableSerialize {
        executable: *const Executable,
        bytes: *const u8,
        bytes_size: usize,
        holder: *mut Serialized,
        free: FreeSerialized,
    }
}

sized! {
    /// Makes a loaded program of such bytes. The options are a `CompileOptionsProto`, or empty for
    /// those that the program was compiled with.
    ExecutableLoad {
        client: *mut Client,
        bytes: *const u8,
        bytes_size: usize,
        loaded: *mut Loaded,
        options: *const u8,
        options_size: usize,
    }
}

sized! {
    /// Frees a loaded program.
    LoadedDestroy { executable: *mut Loaded, }
}

sized! {
    /// The compiled program of a loaded one; the caller frees it.
    LoadedExecutable { loaded: *mut Loaded, executable: *mut Executable, }
}

sized! {
    /// How a program is run. All of it stays empty.
    ExecuteOptions {
        send_callbacks: *mut c_void,
        receive_callbacks: *mut c_void,
        sends: usize,
        receives: usize,
        launch: c_int,
        kept: *const i64,
        kept_len: usize,
        context: *mut c_void,
        location: *const u8,
        tasks: usize,
        task_ids: *mut c_int,
        incarnations: *mut i64,
    }
}

sized! {
    /// Runs a program: a list of arguments, a list of outputs and an event for each device.
    LoadedExecute {
        executable: *mut Loaded,
        options: *mut ExecuteOptions,
        arguments: *const *const *mut Buffer,
        devices_len: usize,
        arguments_len: usize,
        outputs: *const *mut *mut Buffer,
        events: *mut *mut Event,
        device: *mut Device,
    }
}

sized! {
    /// Frees an array.
    BufferDestroy { buffer: *mut Buffer, }
}

sized! {
    /// The type of an array's elements.
    BufferElement { buffer: *mut Buffer, element: c_int, }
}

sized! {
    /// The sizes of an array, which live as long as it does.
    BufferDims { buffer: *mut Buffer, dims: *const i64, dims_len: usize, }
}

sized! {
    /// Whether an array's memory was given away.
    BufferDeleted { buffer: *mut Buffer, deleted: bool, }
}

sized! {
    /// Copies an array to the host.
    BufferToHost {
        buffer: *mut Buffer,
        layout: *const c_void,
        data: *mut c_void,
        data_size: usize,
        event: *mut Event,
    }
}

/// The table of functions: what `GetPjrtApi` returns. A plugin may have more after these.
#[repr(C)]
pub(crate) struct Api {
    pub(crate) size: usize,
    pub(crate) extensions: *mut c_void,
    pub(crate) version: Version,

    pub(crate) failure_destroy: Plain<FailureDestroy>,
    pub(crate) failure_message: Plain<FailureMessage>,
    pub(crate) failure_code: Call<FailureCode>,

    pub(crate) initialize: Call<Initialize>,
    attributes: Unused,

    pub(crate) event_destroy: Call<OfEvent>,
    event_is_ready: Unused,
    event_error: Unused,
    pub(crate) event_await: Call<OfEvent>,
    event_on_ready: Unused,

    pub(crate) client_create: Call<ClientCreate>,
    pub(crate) client_destroy: Call<ClientDestroy>,
    pub(crate) client_platform: Call<ClientPlatform>,
    client_process: Unused,
    client_platform_version: Unused,
    client_all_devices: Unused,
    pub(crate) client_devices: Call<ClientDevices>,
    client_lookup: [Unused; 2],
    client_memories: Unused,
    pub(crate) client_compile: Call<ClientCompile>,
    client_assignment: Unused,
    pub(crate) buffer_from_host: Call<BufferFromHost>,

    pub(crate) description_id: Call<DescriptionId>,
    description_others: [Unused; 5],

    pub(crate) device_description: Call<DeviceDescription>,
    device_others: [Unused; 5],

    memory: [Unused; 5],

    pub(crate) executable_destroy: Call<ExecutableDestroy>,
    executable_name: Unused,
    executable_sizes: [Unused; 2],
    pub(crate) executable_outputs: Call<ExecutableOutputs>,
    executable_others: [Unused; 4],
    pub(crate) executable_serialize: Call<ExecutableSerialize>,

    pub(crate) loaded_destroy: Call<LoadedDestroy>,
    pub(crate) loaded_executable: Call<LoadedExecutable>,
    loaded_devices: Unused,
    loaded_delete: [Unused; 2],
    pub(crate) loaded_execute: Call<LoadedExecute>,
    pub(crate) executable_load: Call<ExecutableLoad>,
    loaded_fingerprint: Unused,

    pub(crate) buffer_destroy: Call<BufferDestroy>,
    pub(crate) buffer_element: Call<BufferElement>,
    pub(crate) buffer_dims: Call<BufferDims>,
    buffer_layout: [Unused; 3],
    buffer_size: Unused,
    buffer_place: [Unused; 2],
    buffer_delete: Unused,
    pub(crate) buffer_deleted: Call<BufferDeleted>,
    buffer_copy: Unused,
    pub(crate) buffer_to_host: Call<BufferToHost>,
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// The places of functions in the table, as the interface's own header puts them on a machine
    /// with pointers of eight bytes.
    #[test]
    fn the_table_has_every_function_in_its_place() {
        assert_eq!(offset_of!(Api, version), 16);
        assert_eq!(offset_of!(Api, failure_destroy), 40);
        assert_eq!(offset_of!(Api, client_create), 120);
        assert_eq!(offset_of!(Api, client_compile), 200);
        assert_eq!(offset_of!(Api, buffer_from_host), 216);
        assert_eq!(offset_of!(Api, description_id), 224);
        assert_eq!(offset_of!(Api, device_description), 272);
        assert_eq!(offset_of!(Api, executable_destroy), 360);
        assert_eq!(offset_of!(Api, executable_outputs), 392);
        assert_eq!(offset_of!(Api, executable_serialize), 432);
        assert_eq!(offset_of!(Api, loaded_destroy), 440);
        assert_eq!(offset_of!(Api, loaded_executable), 448);
        assert_eq!(offset_of!(Api, loaded_execute), 480);
        assert_eq!(offset_of!(Api, executable_load), 488);
        assert_eq!(offset_of!(Api, buffer_destroy), 504);
        assert_eq!(offset_of!(Api, buffer_element), 512);
        assert_eq!(offset_of!(Api, buffer_deleted), 584);
        assert_eq!(offset_of!(Api, buffer_to_host), 600);
    }

    #[test]
    fn sizes_are_those_of_the_interface() {
        assert_eq!(Named::SIZE, 56);
        assert_eq!(ClientCreate::SIZE, 88);
        assert_eq!(ClientCompile::SIZE, 56);
        assert_eq!(Program::SIZE, 48);
        assert_eq!(BufferFromHost::SIZE, 120);
        assert_eq!(ExecuteOptions::SIZE, 112);
        assert_eq!(LoadedExecute::SIZE, 80);
        assert_eq!(ExecutableSerialize::SIZE, 56);
        assert_eq!(ExecutableLoad::SIZE, 64);
        assert_eq!(BufferToHost::SIZE, 56);
        assert_eq!(BufferDeleted::SIZE, 25);
        assert_eq!(FailureCode::SIZE, 28);
        assert_eq!(FailureMessage::SIZE, 40);
    }
}
