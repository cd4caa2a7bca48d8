//! The machine and the account that the server runs in: instance metadata, parameters, and what AWS
//! is told. Whatever is missing is noticed once, and the server runs on.

pub mod account;
pub mod imds;
pub mod ssm;

pub use account::{Account, AccountError};
