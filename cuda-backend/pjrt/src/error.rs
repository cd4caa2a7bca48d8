//! Why a plugin did not do what it was asked.

use std::fmt;
use std::path::PathBuf;

/// Why a plugin did not do what it was asked.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The file is no shared library, or one that lacks something.
    #[error("could not open the XLA plugin {}: {cause}", path.display())]
    Open {
        /// Where it was looked for.
        path: PathBuf,
        /// What the loader says.
        cause: libloading::Error,
    },
    /// The library does not hand out its table of functions.
    #[error(
        "the library {} is no XLA plugin that works here: `GetPjrtApi` returned {found}",
        path.display()
    )]
    Table {
        /// Which library.
        path: PathBuf,
        /// What was wrong with the table.
        found: String,
    },
    /// The plugin speaks another version of the interface.
    #[error(
        "the XLA plugin {} speaks version {}.{} of PJRT's C interface; this program needs {}.{} or \
         a later minor version: install a plugin that was built with one",
        path.display(), found[0], found[1], needed[0], needed[1]
    )]
    Version {
        /// Which plugin.
        path: PathBuf,
        /// Major and minor version that it has.
        found: [i32; 2],
        /// Major and the least minor version that it needs.
        needed: [i32; 2],
    },
    /// The plugin has no such function.
    #[error("the XLA plugin has no function to {doing}")]
    Missing {
        /// What it was to do.
        doing: &'static str,
    },
    /// The plugin refused or failed.
    #[error("the XLA plugin could not {doing}: {status}: {message}")]
    Plugin {
        /// What it was to do.
        doing: &'static str,
        /// The kind of failure.
        status: Status,
        /// The plugin's own words.
        message: String,
    },
    /// The client has no such device.
    #[error("there is no device {device}; the client has {devices:?}")]
    Device {
        /// The number that was asked for.
        device: i32,
        /// The numbers there are.
        devices: Vec<i32>,
    },
    /// Lists of arguments that do not fit the devices of the program.
    #[error(
        "the program runs on {devices} devices and needs a list of arguments for each, all of the \
         same length; it was given lists of {given:?} arguments"
    )]
    Arguments {
        /// Devices of the program.
        devices: usize,
        /// The lengths of the lists.
        given: Vec<usize>,
    },
    /// An argument that the program cannot take.
    #[error("argument {argument} of device {device} {cause}")]
    Argument {
        /// The device whose list it is in.
        device: i32,
        /// Where in the list.
        argument: usize,
        /// Why not.
        cause: Refusal,
    },
    /// Devices that are too few, too many or named twice.
    #[error("a program for {count} devices was to run on {devices:?}")]
    Assignment {
        /// Replicas times partitions.
        count: usize,
        /// The devices' numbers.
        devices: Vec<i32>,
    },
    /// Bytes that do not fill the array.
    #[error("an array of {element:?} in sizes {dims:?} has {needed} bytes, not {given}")]
    Bytes {
        /// The type of its elements.
        element: crate::Element,
        /// Its sizes.
        dims: Vec<i64>,
        /// Bytes it has.
        needed: usize,
        /// Bytes that came.
        given: usize,
    },
    /// An array whose elements we have no use for.
    #[error("the array has elements of PJRT's type {number}, which this program cannot hold")]
    Element {
        /// `PJRT_Buffer_Type`.
        number: i32,
    },
}

/// Why a program cannot take an argument.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It belongs to another client.
    #[error("is an array of another client")]
    OtherClient,
    /// It is on the device with this number.
    #[error("is on device {0}")]
    OtherDevice(i32),
    /// It was given away.
    #[error("is deleted: its memory was given to an output before")]
    Deleted,
    /// All devices run one module.
    #[error("has other sizes or elements than that of the first device")]
    OtherForm,
}

/// The kind of a plugin's failure: the codes of Abseil's status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status(pub i32);

impl Status {
    /// The caller's mistake, whatever the state of the device.
    pub const INVALID_ARGUMENT: Self = Self(3);
    /// No memory left.
    pub const RESOURCE_EXHAUSTED: Self = Self(8);
    /// The plugin cannot do it.
    pub const UNIMPLEMENTED: Self = Self(12);
    /// The plugin's own mistake.
    pub const INTERNAL: Self = Self(13);
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 17] = [
            "ok",
            "cancelled",
            "unknown",
            "invalid argument",
            "deadline exceeded",
            "not found",
            "already exists",
            "permission denied",
            "resource exhausted",
            "failed precondition",
            "aborted",
            "out of range",
            "unimplemented",
            "internal",
            "unavailable",
            "data loss",
            "unauthenticated",
        ];
        match usize::try_from(self.0).ok().and_then(|at| NAMES.get(at)) {
            Some(name) => f.write_str(name),
            None => write!(f, "status {}", self.0),
        }
    }
}
