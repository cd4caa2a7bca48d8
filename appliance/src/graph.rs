//! `appliance graph`: what a model is compiled from, to look at.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use neuron_backend::Bucket;
use neuron_backend::plan::{Named, Plan};

use crate::prepare::{Prospect, Wanted};

const EXAMPLES: &str = "\
Examples:
  appliance graph --model ./model --target trn2 --tp 4 --bucket decode-4x8
  appliance graph --model ./model --target trn1 --tp 2 --bucket all --format pb --dump ./modules

The modules are those that prepare would compile with the same flags; one that it would not, such
as decode-4x8, can be asked for by its name.";

/// Writes what a model would be compiled from: HLO modules, as text or as bytes.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXAMPLES, args_override_self = true)]
pub struct Graph {
    #[command(flatten)]
    wanted: Wanted,
    /// The module: its name, or all
    #[arg(long, value_name = "NAME|all", default_value = "all")]
    bucket: Which,
    /// Where to write: a file, for all modules a directory, or - for standard output
    #[arg(long, value_name = "OUT|-", default_value = "-")]
    dump: PathBuf,
    /// HLO text, or the bytes that the compiler reads
    #[arg(long, value_name = "text|pb", default_value = "text")]
    format: Format,
}

/// Which modules.
#[derive(Clone, Copy, Debug)]
enum Which {
    All,
    One(Bucket),
}

/// How a module is written.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Text,
    Pb,
}

impl std::str::FromStr for Which {
    type Err = neuron_backend::plan::UnknownBucket;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::All),
            name => name.parse().map(|Named(bucket)| Self::One(bucket)),
        }
    }
}

impl Graph {
    /// Writes the modules.
    pub fn run(&self) -> anyhow::Result<()> {
        let Prospect { decoder, wish, .. } = self.wanted.prospect()?;
        let plan = Plan::new(&decoder, &wish)?;
        let module = |bucket: Bucket| -> anyhow::Result<Vec<u8>> {
            let module = neuron_backend::lower(&decoder, &plan.form, bucket)?;
            Ok(match self.format {
                Format::Text => neuron_backend::text(&module.proto).into_bytes(),
                Format::Pb => module.proto.to_bytes(),
            })
        };
        match (self.bucket, self.dump.as_os_str() == "-") {
            (Which::One(bucket), true) => write_out(&module(bucket)?),
            (Which::One(bucket), false) => write(&self.dump, &module(bucket)?),
            (Which::All, true) if matches!(self.format, Format::Pb) => {
                bail!("--format pb: the bytes of several modules need a directory: --dump DIR")
            }
            (Which::All, true) => {
                for bucket in plan.buckets {
                    write_out(&module(bucket)?)?;
                }
                Ok(())
            }
            (Which::All, false) => {
                fs::create_dir_all(&self.dump)
                    .with_context(|| format!("cannot make {}", self.dump.display()))?;
                for bucket in plan.buckets {
                    let ending = match self.format {
                        Format::Text => "hlo.txt",
                        Format::Pb => "hlo.pb",
                    };
                    let path = self.dump.join(format!("{}.{ending}", bucket.name()));
                    write(&path, &module(bucket)?)?;
                }
                Ok(())
            }
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// To standard output; whoever reads it may stop early.
fn write_out(bytes: &[u8]) -> anyhow::Result<()> {
    match io::stdout().write_all(bytes) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
