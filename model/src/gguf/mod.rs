//! GGUF -> the Hugging Face layout, once, so that everything after knows one form of a model.

mod config;
mod container;
mod keys;
mod quant;
mod tokenizer;
mod weights;

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::checkpoint::{CheckpointError, SINGLE};
use crate::decoder::Decoder;
use crate::fields::ConfigError;
use crate::generation::GenerationDefaults;
use crate::map::Map as Mapped;
use crate::weights::Weights;
use container::Container;
use keys::Keys;

pub use container::GgufError;
pub use keys::KeyError;
pub use tokenizer::TokenizerError;
pub use weights::TensorError;

/// Why a GGUF file cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The GGUF file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The directory is not empty.
    #[error("{} is not empty: remove it or name another directory", path.display())]
    Occupied {
        /// The directory.
        path: PathBuf,
    },
    /// A file or directory cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is no GGUF, or none that can be read.
    #[error("{} cannot be imported: {why}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: Refusal,
    },
    /// What was written cannot be read back.
    #[error("the imported model cannot be read back: {0}")]
    Unreadable(#[from] CheckpointError),
}

/// Why a GGUF is refused before anything is written.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Its container is broken or not supported.
    #[error("{0}")]
    Container(#[from] GgufError),
    /// Its metadata are.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// It would become a `config.json` that is not supported.
    #[error("as a Hugging Face model, {0}")]
    Config(#[from] ConfigError),
    /// Its tokenizer is.
    #[error("its tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// Its tensors are not those of its model.
    #[error("{0}")]
    Tensor(#[from] TensorError),
}

/// How far an import is, in bytes of the GGUF's tensors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Written so far.
    pub done: u64,
    /// All there are.
    pub total: u64,
}

/// What an import will write: made from a GGUF's bytes without touching any other file.
struct Plan {
    texts: [(&'static str, Vec<u8>); 4],
    decoder: Decoder,
    tensors: Vec<weights::Planned>,
    total: u64,
}

impl Plan {
    /// Reads the head of a GGUF `file` given whole; refuses what is broken or not supported.
    fn of(file: &[u8]) -> Result<Self, Refusal> {
        let gguf = Container::parse(file)?;
        let keys = Keys(&gguf.values);
        let architecture = config::architecture(keys)?;
        let frequencies = gguf.tensors.get(config::FREQUENCIES);
        let frequencies = frequencies.map(|stored| weights::numbers(file, stored));
        let config = config::config(&gguf, architecture, frequencies.as_deref())?;
        let generation = config::generation(keys)?;
        GenerationDefaults::of(&generation, &config)?;
        let context = config["max_position_embeddings"].clone();
        let config = pretty(&config);
        let decoder = Decoder::parse(&config)?;
        let tensors = weights::plan(&gguf, architecture, &decoder)?;
        let tokenizer = tokenizer::tokenizer(keys, decoder.vocabulary)?;
        let tokenizer_config = tokenizer::tokenizer_config(keys, &context)?;
        let total = tensors.iter().map(weights::Planned::length).sum();
        Ok(Self {
            texts: [
                ("config.json", config),
                ("generation_config.json", pretty(&generation)),
                ("tokenizer.json", tokenizer.to_string().into_bytes()),
                ("tokenizer_config.json", pretty(&tokenizer_config)),
            ],
            decoder,
            tensors,
            total,
        })
    }

    /// Writes the model into `dir`, which is empty. `file` is what the plan is of.
    fn write(
        &self,
        file: &[u8],
        dir: &Path,
        progress: impl FnMut(Progress),
    ) -> Result<(), ImportError> {
        for (name, bytes) in &self.texts {
            let path = dir.join(name);
            let written = File::create_new(&path).and_then(|mut file| {
                file.write_all(bytes)?;
                file.sync_all()
            });
            written.map_err(|source| ImportError::Write { path, source })?;
        }
        let path = dir.join(SINGLE);
        self.write_weights(file, &path, progress)
            .map_err(|source| ImportError::Write { path, source })?;
        Weights::open(dir, &self.decoder)?;
        Ok(())
    }

    fn write_weights(
        &self,
        file: &[u8],
        path: &Path,
        mut progress: impl FnMut(Progress),
    ) -> io::Result<()> {
        let (mut done, total) = (0, self.total);
        let advance = |bytes| {
            done += bytes;
            progress(Progress { done, total });
        };
        let mut out = BufWriter::with_capacity(1 << 20, File::create_new(path)?);
        weights::write(file, &self.tensors, &mut out, advance)?;
        out.into_inner()?.sync_all()
    }
}

/// Plans the import of a GGUF `file` given whole and writes its weights nowhere, for `tests/fuzz`.
pub(crate) fn rehearse(file: &[u8]) -> Result<(), Refusal> {
    let plan = Plan::of(file)?;
    let written = weights::write(file, &plan.tensors, &mut io::sink(), |_| {});
    written.expect("nowhere is always writable");
    Ok(())
}

/// Turns the GGUF file `from` into `dir`: `config.json`, `generation_config.json`,
/// `tokenizer.json`, `tokenizer_config.json` and `model.safetensors` in BF16. `dir` must be empty or
/// not there; it appears whole or not at all, though an import that is killed leaves a directory
/// `.importing-*` beside it. `progress` is called after each tensor.
///
/// # Errors
/// A file that cannot be read, is not supported or cannot be written, with what to do about it.
pub fn import(from: &Path, dir: &Path, progress: impl FnMut(Progress)) -> Result<(), ImportError> {
    let file = Mapped::open(from).map_err(|source| ImportError::Read {
        path: from.into(),
        source,
    })?;
    let plan = Plan::of(&file).map_err(|why| ImportError::Refused {
        path: from.into(),
        why,
    })?;
    let cannot_write = |source| ImportError::Write {
        path: dir.into(),
        source,
    };
    if dir.read_dir().is_ok_and(|mut files| files.next().is_some()) {
        return Err(ImportError::Occupied { path: dir.into() });
    }
    // Beside it, so that renaming it into place is one step on one file system.
    let parent = match dir.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(cannot_write)?;
    let scratch = tempfile::Builder::new()
        .prefix(".importing-")
        .permissions(Permissions::from_mode(0o777)) // less the umask
        .tempdir_in(parent)
        .map_err(cannot_write)?;
    plan.write(&file, scratch.path(), progress)?;
    fs::rename(scratch.path(), dir).map_err(cannot_write)?;
    // Nothing is left under the name that it would remove.
    let _ = scratch.keep();
    Ok(())
}

fn pretty(object: &Map<String, Value>) -> Vec<u8> {
    format!("{:#}\n", Value::from(object.clone())).into_bytes()
}
