//! Who is measured: how it is started and how much load it gets.

use std::env;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Name;

/// A server that is ready to be started.
pub(super) struct Peer {
    pub(super) name: Name,
    /// How it is started, to listen at an address.
    pub(super) command: Box<dyn Fn(SocketAddr) -> Command>,
    pub(super) effort: Effort,
}

/// How much load a peer gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Effort {
    /// How often it is started and measured.
    pub(super) rounds: u32,
    /// Requests of the single stream.
    pub(super) single: u32,
    /// Clients at once; each sends one request.
    pub(super) clients: u32,
}

impl Effort {
    /// What a server gets that answers many at once.
    pub(super) fn full(rounds: u32, quick: bool) -> Effort {
        match quick {
            false => Effort {
                rounds,
                single: 4,
                clients: 32,
            },
            true => Effort {
                rounds: 1,
                single: 1,
                clients: 8,
            },
        }
    }

    /// What a server gets that answers one after the other: its throughput is the same with fewer
    /// clients, and 32 would take minutes. Its waits would be longer with more.
    pub(super) fn scarce(self) -> Effort {
        Effort {
            rounds: 1,
            single: self.single.div_ceil(2),
            clients: self.clients.div_ceil(4),
        }
    }
}

/// Our own server with its default settings; none of the developer's reaches into it.
pub(super) fn ours(appliance: &Path, model: &Path, effort: Effort) -> Peer {
    let [appliance, model]: [PathBuf; 2] = [appliance.into(), model.into()];
    let command = move |address: SocketAddr| {
        let mut command = Command::new(&appliance);
        command.args([
            "serve",
            "--backend",
            "cpu",
            "--listen",
            &address.to_string(),
        ]);
        command.arg("--model").arg(&model);
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("APPLIANCE_") {
                command.env_remove(name);
            }
        }
        command
    };
    Peer {
        name: Name::Ours,
        command: Box::new(command),
        effort,
    }
}
