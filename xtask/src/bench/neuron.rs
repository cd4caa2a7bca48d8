//! What the Neuron path costs, as far as it shows without a device: bytes that its modules move, the
//! host's time beside a device that takes none, and how busy a device of 5 ms a step is kept.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::run::run;
use crate::stand_ins::StandIns;
use crate::workspace::Workspace;
use crate::{cache, xla};

use super::Name;
use super::journal::{Executions, Steady};
use super::machine::Machine;
use super::peer::{self, Peer};
use super::processor::Times;
use super::report::Report;
use super::server::Server;

/// Microseconds that the device takes for whatever it runs.
const LATENCY: u32 = 5000;

/// Clients at once, and rows of the largest decode module.
const CLIENTS: u32 = 64;

/// The least part of the time that the device is to be busy.
const BUSY: f64 = 0.97;

/// How the model is prepared: so that all clients decode in one step.
const FORM: &[&str] = &[
    "--target",
    "trn2",
    "--tp",
    "1",
    "--max-context",
    "1024",
    "--max-running",
    "64",
    "--step-tokens",
    "1024",
    "--page-tokens",
    "32",
    "--kv-pages",
    "2048",
    "--decode-rows",
    "1,16,64",
    "--prefill-tokens",
    "128,1024",
    "--context-pages",
    "32",
];

/// How the server is started, beside where it listens.
const SETTINGS: &[&str] = &[
    "--max-context",
    "1024",
    "--max-running",
    "64",
    "--step-tokens",
    "1024",
];

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    rounds: u32,
    /// Tokens of each answer.
    tokens: u32,
}

impl Effort {
    /// So many rounds, or one short one.
    pub(super) fn of(rounds: u32, quick: bool) -> Effort {
        match quick {
            false => Effort {
                rounds: rounds.max(1),
                tokens: 512,
            },
            true => Effort {
                rounds: 1,
                tokens: 128,
            },
        }
    }
}

/// All that was found out, as it is saved.
#[derive(Serialize, Debug)]
struct Results {
    machine: Machine,
    /// As `graph/benches/bytes.rs` writes it.
    bytes: Value,
    /// As `neuron-backend/benches/step` writes it.
    step: Value,
    served: Vec<Served>,
}

/// A round of clients at a server on a device of a fixed latency.
#[derive(Serialize, Debug)]
struct Served {
    latency_us: u32,
    steady: Steady,
    /// Of all tokens that the device could have given with all clients in each step, the part that
    /// the clients got, from the first request to the last answer.
    of_the_most: f64,
    share_of_others: f64,
    report: Report,
}

/// Measures all of it, prints it and saves it.
pub(super) fn measured(
    workspace: &Workspace,
    effort: Effort,
    appliance: &Path,
    model: &Path,
    saved: &Path,
) -> Result<()> {
    println!("\nbytes and operations of the modules\n");
    let bytes = bench(workspace, "graph", "bytes", None, &[], saved)?;
    let stand_ins = match StandIns::hollow(workspace) {
        Ok(stand_ins) => stand_ins,
        Err(error) => {
            println!("skipped: what needs the stand-ins for libnrt and neuronx-cc: {error:#}");
            return Ok(());
        }
    };
    println!("\nthe host beside a device that takes no time\n");
    let rounds = effort.rounds.to_string();
    let step = bench(
        workspace,
        "neuron-backend",
        "step",
        Some(&stand_ins),
        &["--rounds", &rounds],
        saved,
    )?;
    println!("\n{CLIENTS} clients, a device of {LATENCY} us a step\n");
    let bundles = stand_ins.prepared_as(FORM, appliance, model)?;
    let mut served = Vec::new();
    for _ in 0..effort.rounds {
        let command = command(&stand_ins, appliance, model, &bundles, saved);
        let round = Served::measured(command, effort, appliance, saved)?;
        println!("{}", round.line());
        served.push(round);
    }
    println!("{}", verdict(&served));
    let results = Results {
        machine: Machine::this(),
        bytes,
        step,
        served,
    };
    let path = saved.join("neuron.json");
    let json = serde_json::to_string_pretty(&results)?;
    fs::write(&path, json + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    println!("saved {}", path.display());
    Ok(())
}

/// Runs a bench of one of our crates, and reads the figures that it writes beside its table.
fn bench(
    workspace: &Workspace,
    package: &str,
    name: &str,
    stand_ins: Option<&StandIns>,
    arguments: &[&str],
    saved: &Path,
) -> Result<Value> {
    let file = saved.join(format!("{name}.json"));
    let mut command = workspace.cargo("bench");
    command.args(["--package", package, "--bench", name, "--"]);
    command.args(arguments).arg("--json").arg(&file);
    if let Some(stand_ins) = stand_ins {
        command.env("APPLIANCE_LIBNRT", &stand_ins.libnrt);
        command.env_remove(xla::VARIABLE);
    }
    run(&mut command)?;
    let text = fs::read_to_string(&file)?;
    fs::remove_file(&file)?;
    serde_json::from_str(&text).with_context(|| format!("`{name}` writes no JSON"))
}

/// How a server on the device is started, to listen at an address.
fn command(
    stand_ins: &StandIns,
    appliance: &Path,
    model: &Path,
    bundles: &Path,
    saved: &Path,
) -> impl Fn(SocketAddr) -> Command + 'static {
    let mut variables = Command::new("");
    stand_ins.lend(&mut variables);
    let variables: Vec<_> = variables
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    let [appliance, model, bundles]: [PathBuf; 3] =
        [appliance.into(), model.into(), bundles.into()];
    let (machine, journal) = (saved.join("machine"), journal_in(saved));
    move |address| {
        let mut command = Command::new(&appliance);
        command.args(["serve", "--backend", "neuron", "--listen"]);
        command.arg(address.to_string()).args(SETTINGS);
        command.arg("--model").arg(&model);
        command.arg("--artifacts").arg(&bundles);
        let strangers = env::vars_os().map(|(name, _)| name);
        for name in strangers.filter(|name| name.to_string_lossy().starts_with("APPLIANCE_")) {
            command.env_remove(name);
        }
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        command.env("FAKE_NRT_LATENCY_US", LATENCY.to_string());
        command.env("APPLIANCE_SELF_TEST", "token");
        command.env("FAKE_NRT_DIR", &machine);
        command.env("FAKE_NRT_JOURNAL", &journal);
        command
    }
}

fn journal_in(saved: &Path) -> PathBuf {
    saved.join("neuron.journal")
}

impl Served {
    /// Starts a server, puts the load on it, and reads from the journal what the device did.
    fn measured(
        command: impl Fn(SocketAddr) -> Command + 'static,
        effort: Effort,
        appliance: &Path,
        saved: &Path,
    ) -> Result<Served> {
        let journal = journal_in(saved);
        cache::fresh(saved.join("machine"))?;
        fs::write(&journal, "")?;
        let peer = Peer {
            name: Name::Ours,
            command: Box::new(command),
            effort: peer::Effort::full(1, false),
        };
        let server = Server::start(&peer, saved)?;
        let file = saved.join("client.json");
        let before = Times::now(server.id())?;
        run(Command::new(appliance)
            .arg("bench")
            .args(["--url", &format!("http://{}", server.address)])
            .args(["--clients", &CLIENTS.to_string()])
            .args(["--requests", &CLIENTS.to_string()])
            .args(["--prompt-tokens", "64"])
            .args(["--output-tokens", &effort.tokens.to_string()])
            .arg("--json")
            .arg(&file)
            .stdout(std::process::Stdio::null()))?;
        let after = Times::now(server.id())?;
        drop(server);
        let text = fs::read_to_string(&file)?;
        fs::remove_file(&file)?;
        let report: Report = serde_json::from_str(&text)?;
        let executions = Executions::read(&journal)?;
        fs::remove_file(&journal)?;
        let most = f64::from(CLIENTS) * 1e6 / f64::from(LATENCY);
        Ok(Served {
            latency_us: LATENCY,
            steady: executions
                .steady()
                .context("the journal shows no steady part")?,
            of_the_most: report.output_tokens_per_second / most,
            share_of_others: after.share_of_others_since(before),
            report,
        })
    }

    fn line(&self) -> String {
        let Steady {
            busy, gap, device, ..
        } = &self.steady;
        format!(
            "device busy {:.1} % of the steady part; between steps {:.0} us (p95 {:.0}), a step \
             {:.0} us; {:.0} tokens/s, {:.0} % of the most; others had {:.0} % of the processor",
            100.0 * busy,
            gap.p50,
            gap.p95,
            device.p50,
            self.report.output_tokens_per_second,
            100.0 * self.of_the_most,
            100.0 * self.share_of_others,
        )
    }
}

fn verdict(served: &[Served]) -> String {
    let mut busy: Vec<_> = served.iter().map(|round| round.steady.busy).collect();
    busy.sort_by(f64::total_cmp);
    let median = busy.get(busy.len() / 2).copied().unwrap_or_default();
    let word = if median >= BUSY {
        "within"
    } else {
        "NOT within"
    };
    format!(
        "median {:.1} %: {word} the target of {:.0} %",
        100.0 * median,
        100.0 * BUSY
    )
}
