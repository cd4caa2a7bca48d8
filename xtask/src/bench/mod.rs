//! `cargo xtask bench`: the server and its peers under the same load, in the same run.
//!
//! What the Neuron path costs is measured beside it, with stand-ins for the device (`neuron.rs`).
//!
//! Peers are fetched by hash, built once and kept in the user's cache folder. One that cannot be
//! had is skipped with the reason. `docs/benchmarks.md` tells the method.

mod journal;
mod llama;
mod machine;
mod measures;
mod naive;
mod neuron;
mod peer;
mod plot;
mod processor;
mod report;
mod server;
mod start;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::workspace::{Profile, Workspace};
use crate::{cache, model};

use machine::Machine;
use measures::Row;
use peer::{Effort, Peer};
use report::Round;

/// What to measure, and how thoroughly.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask bench --quick\n  cargo xtask bench --peers ours,llama --rounds 5\n  \
                  cargo xtask bench --parts neuron"
)]
pub(crate) struct Arguments {
    /// What to measure: the server beside its peers, from exec to ready by phase, and what the Neuron path
    /// costs
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "peers,start,neuron"
    )]
    parts: Vec<Part>,
    /// Whom to measure, in the order of the table
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "ours,llama,naive"
    )]
    peers: Vec<Name>,
    /// How often, the peers taking turns; the table tells medians and the range. The naive server
    /// is measured once: it is slow, and others are told from it by a wide margin
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// One round of a small load: to see that it works, not to quote
    #[arg(long)]
    quick: bool,
    /// Fetch and build what is missing, then stop
    #[arg(long)]
    prepare: bool,
}

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub(crate) enum Part {
    /// The server beside others
    Peers,
    /// From exec to ready, by phase
    Start,
    /// The Neuron path, on stand-ins
    Neuron,
}

/// Whom the server is compared with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Debug)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Name {
    /// The appliance, release build
    Ours,
    /// llama.cpp's server
    Llama,
    /// Transformers behind FastAPI, one `generate` per request
    Naive,
}

impl Name {
    /// What it is called in tables.
    fn title(self) -> &'static str {
        match self {
            Name::Ours => "appliance",
            Name::Llama => "llama.cpp",
            Name::Naive => "naive",
        }
    }
}

/// All that a run found out, as it is saved.
#[derive(Serialize, Debug)]
struct Results {
    machine: Machine,
    quick: bool,
    skipped: Vec<Skipped>,
    rounds: Vec<Round>,
    medians: Vec<Row>,
}

/// A peer that could not be measured.
#[derive(Serialize, Debug)]
struct Skipped {
    peer: Name,
    reason: String,
}

/// Measures what is asked for, prints the tables and saves them.
pub(crate) fn bench(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let folder = cache::folder()?.join("peers");
    fs::create_dir_all(&folder).with_context(|| format!("no folder {}", folder.display()))?;
    let _alone = alone(&folder)?;
    let appliance = workspace.appliance(Profile::Release)?;
    let model = model::fetched(workspace, || Ok(appliance.clone()))?;
    let asked = |part| arguments.parts.contains(&part);
    let peers = match asked(Part::Peers) {
        true => Some(ready(workspace, arguments, &folder, &appliance, &model)?),
        false => None,
    };
    if arguments.prepare {
        return Ok(());
    }
    let saved = fresh_output(workspace)?;
    if let Some((peers, skipped)) = peers {
        let rounds = measured(arguments, &peers, &appliance, &saved)?;
        let results = Results {
            machine: Machine::this(),
            quick: arguments.quick,
            skipped,
            medians: measures::rows(&rounds),
            rounds,
        };
        save(&results, &saved)?;
    }
    if asked(Part::Start) {
        let rounds = if arguments.quick {
            1
        } else {
            2 * arguments.rounds
        };
        start::measured(rounds, &appliance, &model, &saved)?;
    }
    if asked(Part::Neuron) {
        let effort = neuron::Effort::of(arguments.rounds, arguments.quick);
        neuron::measured(workspace, effort, &appliance, &model, &saved)?;
    }
    Ok(())
}

/// The peers asked for, prepared; those that cannot be had are told.
fn ready(
    workspace: &Workspace,
    arguments: &Arguments,
    folder: &Path,
    appliance: &Path,
    model: &Path,
) -> Result<(Vec<Peer>, Vec<Skipped>)> {
    let (peers, skipped) = prepared(workspace, arguments, folder, appliance, model);
    for Skipped { peer, reason } in &skipped {
        eprintln!("skipping {}: {reason}", peer.title());
    }
    ensure!(!peers.is_empty(), "nobody is left to measure");
    Ok((peers, skipped))
}

/// Held while a bench runs: two at once would measure each other.
fn alone(folder: &Path) -> Result<File> {
    let lock = File::create(folder.join("lock"))?;
    if lock.try_lock().is_err() {
        eprintln!("waiting for another bench to end");
        lock.lock()?;
    }
    Ok(lock)
}

/// The peers asked for that are ready to be started, and those that cannot be had.
fn prepared(
    workspace: &Workspace,
    arguments: &Arguments,
    folder: &Path,
    appliance: &Path,
    model: &Path,
) -> (Vec<Peer>, Vec<Skipped>) {
    let sources = workspace.root().join("tests/peers");
    let effort = Effort::full(arguments.rounds, arguments.quick);
    let mut peers = Vec::new();
    let mut skipped = Vec::new();
    for name in arguments.peers.iter().copied() {
        let peer = match name {
            Name::Ours => Ok(peer::ours(appliance, model, effort)),
            Name::Llama => llama::prepared(&sources, folder, effort),
            Name::Naive => naive::prepared(&sources, model, effort.scarce()),
        };
        match peer {
            Ok(peer) => peers.push(peer),
            Err(error) => skipped.push(Skipped {
                peer: name,
                reason: format!("{error:#}"),
            }),
        }
    }
    (peers, skipped)
}

/// Runs the rounds: every peer in turn, so that a machine that drifts drifts for all.
fn measured(
    arguments: &Arguments,
    peers: &[Peer],
    appliance: &Path,
    saved: &Path,
) -> Result<Vec<Round>> {
    let count = if arguments.quick { 1 } else { arguments.rounds };
    let mut rounds = Vec::new();
    for number in 0..count {
        for peer in peers.iter().filter(|peer| number < peer.effort.rounds) {
            let title = peer.name.title();
            eprintln!("\n== round {} of {count}: {title}", number + 1);
            let round = Round::measure(peer, number, appliance, saved)
                .with_context(|| format!("could not measure {title}"))?;
            rounds.push(round);
        }
    }
    Ok(rounds)
}

/// The folder of the results, beside what cargo builds.
fn fresh_output(workspace: &Workspace) -> Result<PathBuf> {
    cache::fresh(
        workspace
            .metadata
            .target_directory
            .as_std_path()
            .join("bench"),
    )
}

fn save(results: &Results, folder: &Path) -> Result<()> {
    let table = measures::table(&results.medians);
    println!("\n{}\n\n{table}", results.machine);
    let others = results.rounds.iter().map(|round| round.share_of_others);
    println!(
        "Others took at most {:.0} % of the processor while a server was measured.",
        100.0 * others.fold(0.0, f64::max)
    );
    let json = serde_json::to_string_pretty(results)?;
    let saved = [
        ("bench.json", json + "\n"),
        ("bench.md", table),
        ("bench.svg", plot::svg(&results.medians)),
    ];
    for (name, text) in saved {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("saved {}", path.display());
    }
    Ok(())
}
