//! The server: see `appliance --help`.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use appliance::app;
use appliance::cli::{Cli, Verb};
use clap::Parser as _;

fn main() -> ExitCode {
    let verb = match Cli::try_parse() {
        Ok(cli) => cli.verb,
        Err(told) => return explained(&told),
    };
    match verb {
        Verb::Serve(flags) => match app::serve(&flags) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => match failure.environment() {
                Some(variables) => ended(&again(variables), ExitCode::FAILURE),
                None => ended(&failure, failure.code()),
            },
        },
        Verb::Import(import) => done(import.run()),
        Verb::Pull(pull) => done(pull.run()),
        Verb::Prepare(prepare) => done(prepare.run()),
        Verb::Graph(graph) => done(graph.run()),
        Verb::Doctor(doctor) => match doctor.run() {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => done(Err(error)),
        },
        Verb::Keys(keys) => done(keys.run()),
        Verb::Bench(bench) => done(bench.run()),
    }
}

/// Set when the program has started itself again, so that it does so once.
const AGAIN: &str = "_APPLIANCE_STARTED_AGAIN";

/// Replaces this process by the same program with more variables in its environment: the libraries of a
/// device read them as they are loaded, and a process with threads must not change its own. Process id,
/// arguments and whatever watches the process stay. Returns why it could not.
fn again(variables: &[(&'static str, OsString)]) -> io::Error {
    let named = variables.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    if std::env::var_os(AGAIN).is_some() {
        return io::Error::other(format!("{} did not last", named.join(", ")));
    }
    tracing::info!("starting again with {} set", named.join(", "));
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error,
    };
    Command::new(program)
        .args(std::env::args_os().skip(1))
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .env(AGAIN, "1")
        .exec()
}

/// Help was asked for, or is needed.
fn explained(told: &clap::Error) -> ExitCode {
    // Nobody is left to tell if this cannot be written.
    told.print().ok();
    match told.use_stderr() {
        true => app::USAGE.into(),
        false => ExitCode::SUCCESS,
    }
}

fn done(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ended(&format!("{error:#}"), ExitCode::FAILURE),
    }
}

/// The one line that says why, where whoever started it looks.
fn ended(why: &dyn std::fmt::Display, code: ExitCode) -> ExitCode {
    eprintln!("appliance: {why}");
    code
}
