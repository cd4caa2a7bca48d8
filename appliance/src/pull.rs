//! `appliance pull`: fetches a model, so that a later `serve` finds it here.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::config::HubFlags;
use crate::source::Source;

/// Fetches a model without serving it, and prints the directory it is in.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  appliance pull hf://HuggingFaceTB/SmolLM2-135M-Instruct\n  appliance pull hf://HuggingFaceTB/SmolLM2-135M-Instruct@main --to ./model\n\nA fetch that broke off goes on where it stopped when it is started again. Settings that are not\ngiven as flags come from the environment and the configuration file, as for serve."
)]
pub struct Pull {
    /// The model: hf://ORGANISATION/NAME, followed by @REVISION if that is not main.
    source: Source,
    /// Copy the model to this directory too; made if it is not there.
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    #[command(flatten)]
    hub: HubFlags,
}

impl Pull {
    /// Fetches, with a progress bar on a terminal.
    pub fn run(&self) -> anyhow::Result<()> {
        let mut dir = self.source.local(&self.hub.hub()?)?;
        if let Some(to) = &self.to {
            copy(&dir, to).with_context(|| format!("cannot copy to {}", to.display()))?;
            dir.clone_from(to);
        }
        println!("{}", dir.display());
        Ok(())
    }
}

/// Copies the files of a model. In the cache they are links: what is copied is what they mean.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_holds_files_and_no_links() {
        let dir = tempfile::tempdir().unwrap();
        let [blob, from, to] = ["blob", "from", "to/here"].map(|name| dir.path().join(name));
        fs::create_dir(&from).unwrap();
        fs::write(&blob, "{}").unwrap();
        std::os::unix::fs::symlink(&blob, from.join("config.json")).unwrap();
        copy(&from, &to).unwrap();
        assert!(to.join("config.json").symlink_metadata().unwrap().is_file());
        assert_eq!(fs::read_to_string(to.join("config.json")).unwrap(), "{}");
    }
}
