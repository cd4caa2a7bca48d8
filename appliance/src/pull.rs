//! `appliance pull`: fetches a model, so that a later `serve` finds it here, or stores it in S3.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use crate::config::HubFlags;
use crate::objects::{MANIFEST, Manifest, Objects, Prefix};
use crate::source::{Found, Means, Source};

const EXAMPLES: &str = "\
Examples:
  appliance pull hf://HuggingFaceTB/SmolLM2-135M-Instruct
  appliance pull hf://HuggingFaceTB/SmolLM2-135M-Instruct@main --to ./model
  appliance pull hf://HuggingFaceTB/SmolLM2-135M-Instruct --to s3://bucket/models/smollm2
  appliance pull s3://bucket/models/smollm2 --to ./model

What is stored in S3 has a manifest of digests, by which serve verifies every byte as it streams.
A prefix is a version: store another model under another prefix. A fetch from a hub that broke off
goes on where it stopped when it is started again. Settings that are not given as flags come from
the environment and the configuration file, as for serve.";

/// Fetches a model without serving it, and prints where it is.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Pull {
    /// The model: hf://ORGANISATION/NAME, followed by @REVISION if that is not main; a directory; or
    /// s3://BUCKET/PREFIX
    source: Source,
    /// Copy the model to this directory, made if it is not there, or to s3://BUCKET/PREFIX
    #[arg(long, value_name = "DIR|s3://BUCKET/PREFIX")]
    to: Option<Target>,
    #[command(flatten)]
    hub: HubFlags,
}

/// Where a model is copied to.
#[derive(Clone, Debug)]
enum Target {
    Directory(PathBuf),
    Objects(Prefix),
}

impl FromStr for Target {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.strip_prefix("s3://")) {
            ("", _) => Err("it is empty"),
            (_, Some(rest)) => rest.parse().map(Self::Objects),
            (path, None) => Ok(Self::Directory(path.into())),
        }
    }
}

impl Pull {
    /// Fetches, with a progress bar on a terminal.
    pub fn run(&self) -> anyhow::Result<()> {
        let means = Means {
            hub: self.hub.hub()?,
            cache: None,
        };
        if let (Source::Objects(_), None | Some(Target::Objects(_))) = (&self.source, &self.to) {
            anyhow::bail!("name a directory with --to: serve streams from S3 and keeps no copy");
        }
        let found = self.source.find(&means)?;
        match &self.to {
            None => println!("{}", found.directory().display()),
            Some(Target::Directory(to)) => {
                fetch(&found, to)?;
                println!("{}", to.display());
            }
            Some(Target::Objects(prefix)) => {
                store(found.directory(), prefix, &self.source.to_string())?;
                println!("{prefix}");
            }
        }
        Ok(())
    }
}

/// Puts all files of a model into a directory.
fn fetch(found: &Found, to: &Path) -> anyhow::Result<()> {
    if let Some(model) = found.object_model() {
        let bar = bar("fetching", model.weight_bytes())?;
        model.fetch_all(to, |bytes| bar.inc(bytes))?;
        bar.finish_and_clear();
        return Ok(());
    }
    copy(found.directory(), to).with_context(|| format!("cannot copy to {}", to.display()))
}

/// Stores the files of the model in `directory`, the manifest last.
fn store(directory: &Path, prefix: &Prefix, source: &str) -> anyhow::Result<()> {
    let mut files = Vec::new();
    for path in files_in(directory)? {
        let name = path.file_name().unwrap_or_default();
        let name = name
            .to_str()
            .with_context(|| format!("{} is no UTF-8", path.display()))?;
        if name != MANIFEST && !name.starts_with('.') && !name.ends_with(".incomplete") {
            files.push((name.to_owned(), fs::metadata(&path)?.len(), path));
        }
    }
    let objects = Objects::open()?;
    let bar = bar("storing", files.iter().map(|(_, bytes, _)| bytes).sum())?;
    let entries = files
        .iter()
        .map(|(name, _, path)| objects.put_file(prefix, name, path, &|bytes| bar.inc(bytes)));
    let entries = entries.collect::<Result<Vec<_>, _>>()?;
    let manifest = Manifest::new(source.to_owned(), entries);
    objects.put(prefix, MANIFEST, manifest.json())?;
    bar.finish_and_clear();
    Ok(())
}

fn bar(what: &str, bytes: u64) -> anyhow::Result<ProgressBar> {
    let style =
        format!("{what} {{bar:30}} {{bytes}} of {{total_bytes}}, {{bytes_per_sec}}, {{eta}} to go");
    Ok(ProgressBar::new(bytes).with_style(ProgressStyle::with_template(&style)?))
}

/// Copies the files of a model. In the cache they are links: what is copied is what they mean.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for path in files_in(from)? {
        fs::copy(&path, to.join(path.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

/// The files of a directory, and of links to files, by name.
fn files_in(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)?;
    let paths = entries.map(|entry| Ok(entry?.path()));
    let mut paths = paths.collect::<std::io::Result<Vec<_>>>()?;
    paths.retain(|path| path.is_file());
    paths.sort();
    Ok(paths)
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
