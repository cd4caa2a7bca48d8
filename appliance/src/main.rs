//! The server: see `appliance --help`.

use std::process::ExitCode;

use appliance::app;
use appliance::cli::{Cli, Verb};
use appliance::host::journal;
use clap::Parser as _;

fn main() -> ExitCode {
    let verb = match Cli::try_parse() {
        Ok(cli) => cli.verb,
        Err(told) => return explained(&told),
    };
    match verb {
        Verb::Serve(flags) => match app::serve(&flags) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => ended(&failure, failure.code()),
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
    eprintln!("{}appliance: {why}", journal::of_error());
    code
}
