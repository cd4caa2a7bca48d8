//! A libnrt that stands in for the real one in tests.
//!
//! The shared library exports the part of the C interface that the appliance uses (`abi.rs`); the
//! Rust library has the same runtime without C, the NEFF file that `fake-neuronx-cc` writes, and
//! what tests look at: the journal, and a tree like the driver's in sysfs. README.md lists the
//! environment variables.

mod abi;
mod caches;
mod collectives;
pub mod compiled;
pub mod cores;
mod execute;
pub mod faults;
pub mod handles;
pub mod journal;
pub mod memory;
mod model;
pub mod names;
pub mod neff;
mod process;
pub mod program;
mod runtime;
pub mod sample;
mod set;
pub mod settings;
pub mod status;
pub mod sysfs;
mod tensor;
pub mod topology;
mod xla;

pub use process::Process;
pub use runtime::{Allocation, Runtime, Target, TensorInfo};
