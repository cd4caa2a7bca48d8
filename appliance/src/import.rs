//! `appliance import`: a GGUF file to a directory in the Hugging Face layout.

use std::path::PathBuf;

/// Turns a GGUF file into a directory that `appliance serve` takes.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  appliance import model.gguf ./model && appliance serve --model ./model"
)]
pub struct Import {
    /// The GGUF file.
    file: PathBuf,
    /// The directory to write; made if it is not there.
    dir: PathBuf,
}

impl Import {
    /// Imports, with a progress bar on a terminal.
    pub fn run(&self) -> anyhow::Result<()> {
        anyhow::bail!(
            "cannot import {} to {} yet",
            self.file.display(),
            self.dir.display()
        )
    }
}
