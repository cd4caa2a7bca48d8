//! The machine and the account that the server runs in: instance metadata, parameters, and what AWS
//! is told. Whatever is missing is noticed once, and the server runs on.

pub mod account;
pub mod asg;
pub(crate) mod cloudwatch;
mod descriptor;
pub(crate) mod door;
pub mod imds;
pub mod journal;
pub(crate) mod lifecycle;
pub mod ssm;
pub(crate) mod systemd;

pub use account::{Account, AccountError};
