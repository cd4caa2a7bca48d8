//! `appliance pull`: fetches a model, so that a later `serve` finds it here.

use std::path::PathBuf;

use crate::source::Source;

/// Fetches a model without serving it, and prints the directory it is in.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Example:\n  appliance pull hf://HuggingFaceTB/SmolLM2-135M-Instruct")]
pub struct Pull {
    /// hf://ORGANISATION/NAME[@REVISION]
    source: Source,
    /// Copy the model to this directory too.
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

impl Pull {
    /// Fetches, with a progress bar on a terminal.
    pub fn run(&self) -> anyhow::Result<()> {
        anyhow::bail!("cannot pull {} to {:?} yet", self.source, self.to)
    }
}
