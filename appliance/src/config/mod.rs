//! Settings: where they come from and what they mean. Each exists once, under one name in every source.
//!
//! A setting `max-queue` is the flag `--max-queue`, the environment variable `APPLIANCE_MAX_QUEUE`, the
//! parameter `<prefix>/max-queue` of the SSM parameter store, and the key `max-queue` of the instance's user
//! data and of the configuration file; the first of them that has it wins, then its default.
//! [`SETTINGS`] is the one table: parsing, `--help`, `--print-config` and docs/operations/settings.md follow
//! from it.

mod live;
mod page;
mod raw;
mod resolved;
mod sources;
mod value;

pub use live::Live;
pub use page::page;
pub use raw::{ConfigError, Origin, Raw};
pub use resolved::{Resolved, SETTINGS, Scope, Setting};
pub(crate) use sources::nearest_of;
pub use sources::{Flags, HubFlags, Layer, Layers, LoadFlags};
pub use value::{
    Backend, ByteSize, Cloud, Form, Isolation, KvPrecision, LogFormat, ParameterPath, Precision,
    Rebalance, RequestFilter, Secret, SecretLines, SelfTest, ShedStatus, Value,
};

#[cfg(test)]
mod tests;
