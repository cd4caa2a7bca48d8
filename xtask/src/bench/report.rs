//! What one start of one server showed, read from the reports of `appliance bench`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::run::run;

use super::Name;
use super::peer::Peer;
use super::processor::Times;
use super::server::Server;

/// One start of one server: a single stream, then many clients.
#[derive(Serialize, Debug)]
pub(super) struct Round {
    pub(super) peer: Name,
    pub(super) round: u32,
    /// Seconds from the start of the process to ready.
    pub(super) start_to_ready: f64,
    /// The most memory it held, in bytes.
    pub(super) peak_bytes: u64,
    /// The share of the processor that was taken by neither server nor client, from 0 to 1.
    pub(super) share_of_others: f64,
    pub(super) single: Report,
    pub(super) many: Report,
}

/// The report of `appliance bench`, as far as it is compared. Times are seconds.
#[derive(Clone, Deserialize, Serialize, Debug)]
pub(super) struct Report {
    pub(super) clients: u32,
    pub(super) requests: u32,
    pub(super) seconds: f64,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) events: u64,
    pub(super) output_tokens_per_second: f64,
    pub(super) total_tokens_per_second: f64,
    pub(super) first_token: Spread,
    pub(super) between_tokens: Spread,
    pub(super) single_stream: Option<SingleStream>,
}

/// Median, 95th percentile and greatest.
#[derive(Clone, Copy, Deserialize, Serialize, Debug)]
pub(super) struct Spread {
    pub(super) p50: f64,
    pub(super) p95: f64,
    pub(super) max: f64,
}

/// What one stream alone gets.
#[derive(Clone, Copy, Deserialize, Serialize, Debug)]
pub(super) struct SingleStream {
    pub(super) prefill_tokens_per_second: f64,
    pub(super) decode_tokens_per_second: f64,
}

impl Round {
    /// Starts `peer`, measures it with the client `appliance bench`, and ends it.
    pub(super) fn measure(
        peer: &Peer,
        number: u32,
        appliance: &Path,
        folder: &Path,
    ) -> Result<Round> {
        let server = Server::start(peer, folder)?;
        // Every load of a run has prompts of its own, the same for every peer.
        let load = |clients: u32, requests: u32, seed: u32| {
            let file = folder.join("client.json");
            run(Command::new(appliance)
                .arg("bench")
                .args(["--url", &format!("http://{}", server.address)])
                .args(["--clients", &clients.to_string()])
                .args(["--requests", &requests.to_string()])
                .args(["--seed", &seed.to_string()])
                .arg("--json")
                .arg(&file))?;
            let text = fs::read_to_string(&file)?;
            fs::remove_file(&file)?;
            serde_json::from_str::<Report>(&text).context("`appliance bench` reports differently")
        };
        let effort = peer.effort;
        let before = Times::now(server.id())?;
        let single = load(1, effort.single, number * 2)?;
        let many = load(effort.clients, effort.clients, number * 2 + 1)?;
        let after = Times::now(server.id())?;
        Ok(Round {
            share_of_others: after.share_of_others_since(before),
            peer: peer.name,
            round: number + 1,
            start_to_ready: server.ready_after.as_secs_f64(),
            peak_bytes: server.peak_bytes()?,
            single,
            many,
        })
    }
}
