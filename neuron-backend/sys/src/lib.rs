//! The C interface of libnrt, opened at run time.
//!
//! [`bindings`] and [`nrta`] are made by bindgen from the declarations in `abi/`, which say in our
//! own words what the runtime documents; they are committed, so that a build needs no libclang.
//! Enumerations are integers with named constants, because a runtime may return numbers that are
//! newer than ours. [`Library`] finds the shared library, tells what it lacks and keeps the
//! asynchronous functions behind their version.
//!
//! Unsafe are the two generated files, because calling C is, and `library.rs`, because opening a
//! library runs its code and believes its word about what it exports.

#[rustfmt::skip]
#[allow(
    unsafe_code,
    missing_docs,
    missing_debug_implementations,
    non_camel_case_types,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::allow_attributes_without_reason,
    reason = "generated: abi/nrt.h says what each declaration means"
)]
pub mod bindings;
#[rustfmt::skip]
#[allow(
    unsafe_code,
    missing_docs,
    missing_debug_implementations,
    non_camel_case_types,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    reason = "generated: abi/nrta.h says what each declaration means"
)]
pub mod nrta;

mod library;
mod version;

pub use bindings::*;
pub use library::{DEFAULT_PATH, Library, OpenError, PATH_VARIABLE, SONAME};
pub use version::Version;
