//! The command line: `appliance VERB`.

use clap::{Parser, Subcommand};

use crate::bench::Bench;
use crate::config::Flags;
use crate::import::Import;
use crate::pull::Pull;

/// Serves open language models over an OpenAI-style HTTP API.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "appliance",
    version,
    after_help = "Example:\n  appliance serve --model hf://HuggingFaceTB/SmolLM2-135M-Instruct --listen 127.0.0.1:8000"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Subcommand, Clone, Debug)]
pub enum Verb {
    /// Serve a model over HTTP
    #[command(
        after_help = "Example:\n  appliance serve --model ./model --listen 0.0.0.0:8000 --max-running 32"
    )]
    Serve(Flags),
    /// Turn a GGUF file into a directory that serve takes
    Import(Import),
    /// Fetch a model without serving it
    Pull(Pull),
    /// Measure a server under load
    Bench(Bench),
}
