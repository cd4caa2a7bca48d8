//! Finding and opening libnrt: the one file of this crate that is unsafe and not generated.

#![expect(
    unsafe_code,
    reason = "opening a shared library runs its code and believes its exports"
)]

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use libloading::os::unix::{self, RTLD_GLOBAL, RTLD_NOW};

use crate::bindings::{self, Nrt, nrt_version_t};
use crate::nrta::Nrta;
use crate::version::Version;

/// The environment variable that names the library to open. Empty is the same as unset.
pub const PATH_VARIABLE: &str = "APPLIANCE_LIBNRT";

/// Where the package `aws-neuronx-runtime-lib` installs it.
pub const DEFAULT_PATH: &str = "/opt/aws/neuron/lib/libnrt.so.1";

/// What the dynamic loader knows it as.
pub const SONAME: &str = "libnrt.so.1";

/// Keeps a library in memory when it is closed (`<dlfcn.h>` of Linux): the runtime has threads of
/// its own, and nobody promises that they have ended when `nrt_close` returns.
const RTLD_NODELETE: i32 = 0x1000;

/// From this runtime on the asynchronous functions have the form that `abi/nrta.h` declares.
const ASYNCHRONOUS: Version = Version::new(2, 31);

/// Why there is no runtime to call.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Neither of the usual places has it.
    #[error(
        "the Neuron runtime is not installed: no {DEFAULT_PATH}, and the loader says: {reason}. \
         Install the package aws-neuronx-runtime-lib, or name the library with {PATH_VARIABLE}"
    )]
    NotInstalled {
        /// What the dynamic loader said.
        reason: String,
    },
    /// The library is there, or was named, and cannot be opened.
    #[error(
        "could not open {path}, {why_this}: {reason}. Reinstall the package \
         aws-neuronx-runtime-lib, or name another library"
    )]
    Unusable {
        /// The library.
        path: PathBuf,
        /// Why it was this one that was to be opened.
        why_this: &'static str,
        /// What the dynamic loader said.
        reason: String,
    },
    /// It lacks a function that we cannot do without.
    #[error(
        "{path}, version {version}, has no function {symbol}: install a newer \
         aws-neuronx-runtime-lib (2.28 or later has all we call)",
        version = named(version.as_ref())
    )]
    Missing {
        /// The library.
        path: PathBuf,
        /// Its version, if it could tell.
        version: Option<Version>,
        /// The function.
        symbol: &'static str,
    },
    /// It does not tell its version.
    #[error(
        "{path} does not tell its version: nrt_get_version returned {status}. Reinstall the \
         package aws-neuronx-runtime-lib"
    )]
    NoVersion {
        /// The library.
        path: PathBuf,
        /// What was returned.
        status: bindings::NRT_STATUS,
    },
}

fn named(version: Option<&Version>) -> String {
    version.map_or_else(|| "unknown".to_owned(), Version::to_string)
}

/// A libnrt that has all functions we cannot do without.
pub struct Library {
    path: PathBuf,
    version: Version,
    nrt: Nrt,
    nrta: Option<Nrta>,
}

impl Library {
    /// Opens `path`; without one what [`PATH_VARIABLE`] names; without that [`DEFAULT_PATH`] if it
    /// is there, else whatever the dynamic loader finds as [`SONAME`]. Once opened it stays in
    /// memory for good.
    ///
    /// # Safety
    ///
    /// The library runs code as it is opened, and its functions must be what their names promise:
    /// open only what the owner of the machine installed or named.
    pub unsafe fn open(path: Option<&Path>) -> Result<Self, OpenError> {
        let place = Place::of(path, std::env::var_os(PATH_VARIABLE), || {
            Path::new(DEFAULT_PATH).exists()
        });
        // SAFETY: the caller vouches for what is installed or named.
        let opened = unsafe { loaded(place.name()) };
        let shared = opened.map_err(|error| place.refused(&error))?;
        // SAFETY: the functions have the types that abi/ declares for their names.
        let nrt = unsafe { Nrt::from_library(shared) };
        let nrt = nrt.map_err(|error| place.refused(&error))?;
        let path = PathBuf::from(place.name());
        let version = version(&nrt);
        if let Some(symbol) = missing(&nrt) {
            return Err(OpenError::Missing {
                path,
                version: version.ok(),
                symbol,
            });
        }
        let version = version.map_err(|status| OpenError::NoVersion {
            path: path.clone(),
            status,
        })?;
        let nrta = (version >= ASYNCHRONOUS)
            .then(|| asynchronous(place.name()))
            .flatten();
        Ok(Self {
            path,
            version,
            nrt,
            nrta,
        })
    }

    /// What was opened: a path, or [`SONAME`] where the loader found it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `nrt_get_version` says.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The functions. Those that [`open`](Self::open) requires are there; the others are `Ok` where
    /// this runtime has them.
    pub fn nrt(&self) -> &Nrt {
        &self.nrt
    }

    /// The asynchronous functions, all of them, in the form they have from runtime 2.31 on. `None`
    /// in older runtimes, whose functions of the same names take other arguments.
    pub fn asynchronous(&self) -> Option<&Nrta> {
        self.nrta.as_ref()
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library")
            .field("path", &self.path)
            .field("version", &self.version)
            .field("asynchronous", &self.nrta.is_some())
            .finish_non_exhaustive()
    }
}

/// Which library is to be opened, and who said so.
#[derive(PartialEq, Eq, Debug)]
enum Place {
    Named(PathBuf),
    Variable(OsString),
    Default,
    Loader,
}

impl Place {
    fn of(
        path: Option<&Path>,
        variable: Option<OsString>,
        installed: impl FnOnce() -> bool,
    ) -> Self {
        let variable = variable.filter(|name| !name.is_empty());
        match (path, variable) {
            (Some(path), _) => Self::Named(path.to_owned()),
            (None, Some(name)) => Self::Variable(name),
            (None, None) if installed() => Self::Default,
            (None, None) => Self::Loader,
        }
    }

    fn name(&self) -> &OsStr {
        match self {
            Self::Named(path) => path.as_os_str(),
            Self::Variable(name) => name,
            Self::Default => DEFAULT_PATH.as_ref(),
            Self::Loader => SONAME.as_ref(),
        }
    }

    fn refused(&self, error: &libloading::Error) -> OpenError {
        let reason = told(error);
        let why_this = match self {
            Self::Loader => return OpenError::NotInstalled { reason },
            Self::Named(_) => "which was asked for",
            Self::Variable(_) => "which the environment variable APPLIANCE_LIBNRT names",
            Self::Default => "which is installed",
        };
        OpenError::Unusable {
            path: self.name().into(),
            why_this,
            reason,
        }
    }
}

/// The loader's own words: they are in the source of the error.
fn told(error: &libloading::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => error.to_string(),
    }
}

/// Opens a library for good. Its symbols are global because libnccom, which the runtime opens for
/// collectives, calls back into it.
///
/// # Safety
///
/// As [`Library::open`].
unsafe fn loaded(name: &OsStr) -> Result<libloading::Library, libloading::Error> {
    let flags = RTLD_NOW | RTLD_GLOBAL | RTLD_NODELETE;
    // SAFETY: the caller vouches for the library.
    unsafe { unix::Library::open(Some(name), flags) }.map(Into::into)
}

/// The first function that is not there and that we cannot do without.
fn missing(nrt: &Nrt) -> Option<&'static str> {
    macro_rules! absent {
        ($($symbol:ident)*) => {
            [$((stringify!($symbol), nrt.$symbol.is_err())),*]
        };
    }
    let single = absent![
        nrt_init nrt_close nrt_get_version nrt_get_instance_info
        nrt_load nrt_load_collectives nrt_unload
        nrt_get_model_tensor_info nrt_free_model_tensor_info
        nrt_allocate_tensor_set nrt_destroy_tensor_set nrt_add_tensor_to_tensor_set nrt_execute
        nrt_tensor_allocate nrt_tensor_allocate_slice nrt_tensor_free
        nrt_tensor_read nrt_tensor_write nrt_tensor_get_size
    ];
    // Runtimes have the one name, the other or both.
    let total = nrt.nrt_get_total_vnc_count.is_err() && nrt.nrt_get_total_nc_count.is_err();
    let visible = nrt.nrt_get_visible_vnc_count.is_err() && nrt.nrt_get_visible_nc_count.is_err();
    let either = [
        ("nrt_get_total_vnc_count", total),
        ("nrt_get_visible_vnc_count", visible),
    ];
    single
        .into_iter()
        .chain(either)
        .find_map(|(symbol, absent)| absent.then_some(symbol))
}

/// What the library says its version is, or the status that it answered with.
fn version(nrt: &Nrt) -> Result<Version, bindings::NRT_STATUS> {
    let Ok(ask) = &nrt.nrt_get_version else {
        return Err(bindings::NRT_FAILURE);
    };
    let mut version = nrt_version_t {
        rt_major: 0,
        rt_minor: 0,
        rt_patch: 0,
        rt_maintenance: 0,
        rt_detail: [0; 128],
        git_hash: [0; 64],
    };
    // SAFETY: it may be called at any time, and is told how much room there is.
    let status = unsafe { ask(&raw mut version, size_of::<nrt_version_t>()) };
    if status != bindings::NRT_SUCCESS {
        return Err(status);
    }
    Ok(Version {
        major: version.rt_major,
        minor: version.rt_minor,
        patch: version.rt_patch,
        maintenance: version.rt_maintenance,
    })
}

/// The asynchronous functions, if all are there.
fn asynchronous(name: &OsStr) -> Option<Nrta> {
    // SAFETY: it has been opened before under this name, so nothing runs.
    let shared = unsafe { loaded(name) }.ok()?;
    // SAFETY: the version says that the functions have the types that abi/nrta.h declares.
    let nrta = unsafe { Nrta::from_library(shared) }.ok()?;
    let all = nrta.nrta_execute_schedule.is_ok()
        && nrta.nrta_is_completed.is_ok()
        && nrta.nrta_get_sequence.is_ok();
    all.then_some(nrta)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_comes_before_the_environment_and_that_before_what_is_installed() {
        let named = Some(Path::new("/named"));
        let variable = || Some(OsString::from("/variable"));
        let check = |path, variable, installed, place: &str| {
            let found = Place::of(path, variable, || installed);
            assert_eq!(found.name(), place, "{found:?}");
        };
        check(named, variable(), true, "/named");
        check(None, variable(), true, "/variable");
        check(None, Some(OsString::new()), true, DEFAULT_PATH);
        check(None, None, true, DEFAULT_PATH);
        check(None, None, false, SONAME);
    }

    #[test]
    fn a_host_without_a_runtime_is_told_what_to_install() {
        let loader = Place::Loader;
        // SAFETY: there is no such library.
        let error = unsafe { loaded("libnrt-that-nobody-has.so".as_ref()) }.expect_err("absent");
        let text = loader.refused(&error).to_string();
        assert!(text.contains("aws-neuronx-runtime-lib"), "{text}");
        assert!(text.contains("libnrt-that-nobody-has.so"), "{text}");
    }

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let path = Path::new("/nowhere/libnrt.so.1");
        // SAFETY: there is no such library.
        let error = unsafe { Library::open(Some(path)) }.expect_err("absent");
        let text = error.to_string();
        assert!(
            text.starts_with("could not open /nowhere/libnrt.so.1, which was asked for"),
            "{text}"
        );
    }

    #[test]
    fn a_library_that_is_no_runtime_is_told_what_it_lacks() {
        // SAFETY: the C library of this process.
        let error = unsafe { Library::open(Some(Path::new("libc.so.6"))) }.expect_err("no nrt");
        assert_eq!(
            error.to_string(),
            "libc.so.6, version unknown, has no function nrt_init: install a newer \
             aws-neuronx-runtime-lib (2.28 or later has all we call)"
        );
    }
}
