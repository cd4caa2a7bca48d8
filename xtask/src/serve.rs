//! `cargo xtask serve`: from a fresh clone to a model that answers.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::model;
use crate::stand_ins::{self, StandIns};
use crate::workspace::{Profile, Workspace};

/// Where to serve, and what else to tell the server.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Port on 127.0.0.1
    #[arg(long, env = "PORT", default_value_t = 8000)]
    port: u16,
    /// Device to run on, as `appliance serve --backend` has them; neuron-fake is the Neuron path with
    /// stand-ins for libnrt and neuronx-cc
    #[arg(long, env = "BACKEND", default_value = AUTO)]
    backend: String,
    /// Arguments for `appliance serve`, after `--`; a --model or --listen here replaces ours
    #[arg(last = true)]
    rest: Vec<String>,
}

/// What the server takes by itself, unless its settings say otherwise.
const AUTO: &str = "auto";

/// Builds, fetches, then becomes the server: a signal to this process reaches it.
pub(crate) fn serve(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let appliance = workspace.appliance(Profile::Release)?;
    let model = match arguments.value("--model") {
        Some(named) => PathBuf::from(named),
        None => model::fetched(workspace, || Ok(appliance.clone()))?,
    };
    let mut command = Command::new(&appliance);
    command.arg("serve").current_dir(workspace.root());
    arguments.choose_device(workspace, &appliance, &model, &mut command)?;
    if !arguments.names("--model") {
        command.arg("--model").arg(model);
    }
    if !arguments.names("--listen") {
        let address = format!("127.0.0.1:{}", arguments.port);
        command.args(["--listen", &address]);
        println!("{}", invitation(&address));
    }
    Err(command.args(&arguments.rest).exec()).context("could not start the server")
}

impl Arguments {
    /// Has `command` serve on the device that was asked for, which may have to be made first.
    fn choose_device(
        &self,
        workspace: &Workspace,
        appliance: &Path,
        model: &Path,
        command: &mut Command,
    ) -> Result<()> {
        match self.backend.as_str() {
            AUTO => {}
            stand_ins::NAME => {
                let stand_ins = StandIns::built(workspace)?;
                let bundles = stand_ins.prepared(appliance, model)?;
                stand_ins.lend(command);
                command.args(["--backend", "neuron", "--artifacts"]);
                command.arg(bundles);
            }
            name => {
                command.args(["--backend", name]);
            }
        }
        Ok(())
    }

    /// Whether the caller gives `flag`, as `--flag value` or `--flag=value`.
    fn names(&self, flag: &str) -> bool {
        self.value(flag).is_some()
    }

    /// What the caller gives for `flag`: the next word where there is no `=`, nothing at the end.
    fn value(&self, flag: &str) -> Option<&str> {
        let mut words = self.rest.iter();
        while let Some(word) = words.next() {
            match word.split_once('=') {
                Some((name, value)) if name == flag => return Some(value),
                None if word == flag => return Some(words.next().map_or("", String::as_str)),
                _ => {}
            }
        }
        None
    }
}

/// A line to paste into another terminal.
fn invitation(address: &str) -> String {
    format!(
        "\nOnce it is ready, try in another terminal, or open http://{address}/ in a browser:\n\n  \
         curl -N http://{address}/v1/chat/completions -H 'content-type: application/json' \
         -d '{{\"messages\":[{{\"role\":\"user\",\"content\":\"Why is the sky blue?\"}}],\
         \"stream\":true}}'\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(words: &[&str], flag: &str, value: Option<&str>) {
        let arguments = Arguments {
            port: 1,
            backend: AUTO.to_owned(),
            rest: words.iter().map(|word| (*word).to_owned()).collect(),
        };
        assert_eq!(arguments.value(flag), value, "{words:?}");
        assert_eq!(arguments.names(flag), value.is_some(), "{words:?}");
    }

    #[test]
    fn a_flag_is_named_with_its_value_apart_or_joined() {
        check(&["--model", "x"], "--model", Some("x"));
        check(&["--grace", "1s", "--model=x=y"], "--model", Some("x=y"));
        check(&["--model"], "--model", Some(""));
        check(&["--model-name=x"], "--model", None);
        check(&[], "--model", None);
    }
}
