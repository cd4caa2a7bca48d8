//! For whom: HTTP, access, text, metrics, and the life of the server on a host.

pub mod api;
pub mod app;
pub mod bench;
pub mod cli;
pub mod config;
pub mod device_metrics;
mod dispatch;
pub mod doctor;
mod drain;
pub mod drivers;
mod engine_thread;
pub mod generation;
pub mod graph;
pub mod health;
pub mod host;
mod http;
pub mod hub;
pub mod import;
pub mod metrics;
mod opening;
pub mod prepare;
pub mod pull;
pub mod served;
pub mod source;
pub mod text;
