//! The harness: starts the real server on a free port and talks to it over a real socket.
//!
//! Nothing in here knows how the server is built: the binary is run as a user runs it, and every
//! byte that it reads and writes passes a socket, a pipe or a file.

pub mod answer;
pub mod aws;
pub mod golden;
pub mod http;
pub mod metrics;
pub mod models;
pub mod neuron;
pub mod server;
#[cfg(test)]
mod specification;
pub mod sse;
pub mod systemd;

pub use answer::Answer;
pub use http::{Connection, Request, Response};
pub use metrics::Metrics;
pub use models::Model;
pub use neuron::Fake;
pub use server::{Ended, Server, appliance};
pub use sse::{Event, Stream};
pub use systemd::Systemd;

use std::time::{Duration, Instant};

/// How long anything may take before a test calls it hung. A bound for failing, never a measure: a
/// machine that others use too has a tenth of a core for us at times.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until `fact` holds, looking every few milliseconds; fails with `what` after [`PATIENCE`].
pub fn eventually(what: &str, fact: impl FnMut() -> bool) {
    within(PATIENCE, what, fact);
}

/// Waits until `fact` holds, looking every few milliseconds; fails with `what` after `bound`.
pub fn within(bound: Duration, what: &str, mut fact: impl FnMut() -> bool) {
    let start = Instant::now();
    while !fact() {
        assert!(start.elapsed() < bound, "not within {bound:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
