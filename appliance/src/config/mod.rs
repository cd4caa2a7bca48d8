//! Settings: where they come from and what they mean. Each exists once, under one name in every source.
//!
//! A setting `max-queue` is the flag `--max-queue`, the environment variable `APPLIANCE_MAX_QUEUE` and the
//! key `max-queue` of the configuration file; the first of them that has it wins, then its default.
//! [`SETTINGS`] is the one table: parsing, `--help`, `--print-config` and docs/operations/settings.md follow
//! from it.

mod page;
mod raw;
mod resolved;
mod sources;
mod value;

pub use page::page;
pub use raw::{ConfigError, Origin, Raw};
pub use resolved::{Resolved, SETTINGS, Setting};
pub use sources::{Flags, HubFlags, Layer, LoadFlags};
pub use value::{Backend, ByteSize, Form, LogFormat, Precision, Secret, ShedStatus, Value};

#[cfg(test)]
mod tests;
