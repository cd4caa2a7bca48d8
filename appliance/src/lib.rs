//! For whom: HTTP, access, text, metrics, and the life of the server on a host.

pub mod cli;
pub mod config;
pub mod import;
pub mod pull;
pub mod source;
pub mod text;
