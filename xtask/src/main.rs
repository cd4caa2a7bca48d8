//! Every chore of the project as `cargo xtask VERB`. The Makefile and `.ci/run` call the same verbs.

mod bench;
mod binary;
mod bindings;
mod cache;
mod ci;
mod deny;
mod house;
mod model;
mod moto;
mod python;
mod run;
mod serve;
mod stand_ins;
mod test;
mod workspace;
mod xla;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use workspace::{Profile, Workspace};

/// The project's chores.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

/// What can be done.
#[derive(Subcommand, Debug)]
enum Verb {
    /// Builds the server, fetches the default model and serves it in the foreground
    Serve(serve::Arguments),
    /// Runs every test: Rust and Python clients, with the real binary and the default model
    Test,
    /// Measures the server against llama.cpp's and a naive one, and what the Neuron path costs; saves
    /// tables, JSON and a plot
    Bench(bench::Arguments),
    /// Fetches and imports the default model into the user's cache folder, and prints where it is
    Model,
    /// Fetches moto, which answers for AWS in tests, and prints the variable by which single tests find it
    Moto,
    /// Holds the bindings of libnrt against our declarations, or an installed runtime's headers
    Bindings(bindings::Arguments),
    /// Checks the rules of the house: who may import whom, and what may be in the repository
    House,
    /// Checks licences, sources and duplicates of what we depend on, with cargo-deny
    Deny,
    /// Everything that must hold before a change is taken, each phase timed
    Ci,
}

fn main() -> ExitCode {
    match perform(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(verb: Verb) -> Result<()> {
    let workspace = Workspace::here()?;
    match verb {
        Verb::Serve(arguments) => serve::serve(&workspace, &arguments),
        Verb::Test => test::test(&workspace),
        Verb::Bench(arguments) => bench::bench(&workspace, &arguments),
        Verb::Model => {
            let model = model::fetched(&workspace, || workspace.appliance(Profile::Release))?;
            println!("{}", model.display());
            Ok(())
        }
        Verb::Moto => moto::moto(),
        Verb::Bindings(arguments) => bindings::bindings(&workspace, &arguments),
        Verb::House => house::house(&workspace),
        Verb::Deny => deny::deny(&workspace),
        Verb::Ci => ci::ci(&workspace),
    }
}
