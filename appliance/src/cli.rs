//! The command line: `appliance VERB`.

use clap::{Parser, Subcommand};

use crate::access::new::KeysVerb;
use crate::bench::Bench;
use crate::config::Flags;
use crate::doctor::Doctor;
use crate::graph::Graph;
use crate::import::Import;
use crate::prepare::Prepare;
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
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Flags),
    /// Turn a GGUF file into a directory that serve takes
    Import(Import),
    /// Fetch a model without serving it
    Pull(Pull),
    /// Compile a model ahead of time, for devices that need it
    Prepare(Prepare),
    /// Show what would be compiled
    Graph(Graph),
    /// Examine the device of this host
    Doctor(Doctor),
    /// Make keys for clients
    Keys(KeysVerb),
    /// Measure a server under load
    Bench(Bench),
}

const SERVE_EXAMPLES: &str = "\
Examples:
  appliance serve --model ./model
  appliance serve --model hf://HuggingFaceTB/SmolLM2-135M-Instruct --listen 0.0.0.0:8000
  APPLIANCE_MODEL=./model appliance serve --max-running 32 --log-format json
  appliance serve --config ./appliance.toml --print-config

Each setting --NAME is also the variable APPLIANCE_NAME and the key NAME of the configuration
file: flags win over variables, and those over the file.

To try a server:
  curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'";
