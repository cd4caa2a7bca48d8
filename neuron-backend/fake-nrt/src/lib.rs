//! A libnrt that stands in for the real one in tests.

pub mod cores;
pub mod faults;
pub mod handles;
pub mod journal;
pub mod memory;
pub mod names;
pub mod neff;
pub mod settings;
pub mod status;
pub mod topology;
