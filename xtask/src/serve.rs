//! `cargo xtask serve`: from a fresh clone to a model that answers.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::model;
use crate::workspace::{Profile, Workspace};

/// Where to serve, and what else to tell the server.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Port on 127.0.0.1
    #[arg(long, env = "PORT", default_value_t = 8000)]
    port: u16,
    /// Arguments for `appliance serve`, after `--`; a --model or --listen here replaces ours
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Builds, fetches, then becomes the server: a signal to this process reaches it.
pub(crate) fn serve(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let appliance = workspace.appliance(Profile::Release)?;
    let mut command = Command::new(&appliance);
    command.arg("serve").current_dir(workspace.root());
    if !arguments.names("--model") {
        command
            .arg("--model")
            .arg(model::fetched(workspace, || Ok(appliance))?);
    }
    if !arguments.names("--listen") {
        let address = format!("127.0.0.1:{}", arguments.port);
        command.args(["--listen", &address]);
        println!("{}", invitation(&address));
    }
    Err(command.args(&arguments.rest).exec()).context("could not start the server")
}

impl Arguments {
    /// Whether the caller gives `flag`, as `--flag value` or `--flag=value`.
    fn names(&self, flag: &str) -> bool {
        self.rest
            .iter()
            .any(|word| word.split('=').next() == Some(flag))
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

    fn check(words: &[&str], flag: &str, named: bool) {
        let rest = words.iter().map(|word| (*word).to_owned()).collect();
        assert_eq!(Arguments { port: 1, rest }.names(flag), named, "{words:?}");
    }

    #[test]
    fn a_flag_is_named_with_its_value_apart_or_joined() {
        check(&["--model", "x"], "--model", true);
        check(&["--model=x"], "--model", true);
        check(&["--model-name=x"], "--model", false);
        check(&[], "--model", false);
    }
}
