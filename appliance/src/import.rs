//! `appliance import`: a GGUF file to a directory in the Hugging Face layout.

use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use model::gguf::{self, Progress};

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
        let bar = ProgressBar::no_length().with_style(ProgressStyle::with_template(
            "importing {bar:30} {bytes} of {total_bytes}",
        )?);
        gguf::import(&self.file, &self.dir, |Progress { done, total }| {
            bar.set_length(total);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        Ok(())
    }
}
