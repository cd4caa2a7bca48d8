//! The C interface of libnrt, opened at run time.
//!
//! [`bindings`] is made by bindgen from the declarations in `abi/`, which say in our own words what
//! the runtime documents; it is committed, so that a build needs no libclang. Enumerations are
//! integers with named constants, because a runtime may return numbers that are newer than ours.
#[rustfmt::skip]
#[allow(
    unsafe_code,
    unsafe_op_in_unsafe_fn,
    missing_docs,
    missing_debug_implementations,
    non_camel_case_types,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    reason = "generated: see abi/ for what each declaration means"
)]
pub mod bindings;
