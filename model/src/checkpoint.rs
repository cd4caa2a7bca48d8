//! A checkpoint directory: safetensors in one file or in shards with an index, found by name.
//!
//! Every header and index is foreign bytes. The crate `safetensors` parses a header and holds that
//! its tensors lie one after another, without gap or overlap, each as long as its shape and dtype
//! say; the lengths that it adds up unchecked are checked here.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;

use crate::bytes::Map;

/// A checkpoint in one file.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The index of a checkpoint in shards.
const INDEX: &str = "model.safetensors.index.json";
/// As the crate `safetensors` has it.
const HEADER_LIMIT: u64 = 100_000_000;
/// A 405B checkpoint has an index of 0.1 MB.
const INDEX_LIMIT: u64 = 64 << 20;

/// Why a checkpoint cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file cannot be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The directory holds no safetensors.
    #[error("{} holds neither {SINGLE} nor {INDEX}", path.display())]
    Absent {
        /// The directory.
        path: PathBuf,
    },
    /// A safetensors header is not what the format says.
    #[error("{} is not a safetensors file: {why}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: HeaderError,
    },
    /// The index of the shards is not what the format says.
    #[error("{} is no index of shards: {why}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        why: IndexError,
    },
    /// A tensor that the index promises is not in its shard.
    #[error("tensor `{tensor}` is not in {}, where the index says it is", path.display())]
    Misplaced {
        /// The tensor.
        tensor: String,
        /// The shard.
        path: PathBuf,
    },
    /// A tensor is in two shards.
    #[error("tensor `{tensor}` is in {} and in another shard too", path.display())]
    Repeated {
        /// The tensor.
        tensor: String,
        /// One of the shards.
        path: PathBuf,
    },
    /// A tensor that the decoder needs is missing.
    #[error("tensor `{tensor}` of shape {expected:?} is missing")]
    Missing {
        /// The tensor.
        tensor: String,
        /// Its shape.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{tensor}` has shape {found:?}, but config.json makes it {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// The shape that the decoder needs.
        expected: Vec<usize>,
        /// The shape that the checkpoint has.
        found: Vec<usize>,
    },
    /// A tensor's numbers are stored in a way that is not supported.
    #[error("tensor `{tensor}` is stored as {found}; supported are F32, F16 and BF16")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// How it is stored.
        found: String,
    },
    /// The experts of a layer are in one tensor.
    #[error(
        "tensor `{tensor}` holds all experts of a layer, and only checkpoints with tensors for each \
         expert are supported: load and save it with transformers (`save_pretrained`), which writes \
         them so"
    )]
    Packed {
        /// The tensor.
        tensor: String,
    },
    /// The checkpoint has a tensor that the configuration denies: running without it would
    /// compute something else than was trained.
    #[error("tensor `{tensor}` is in the checkpoint, but config.json describes a model without it")]
    Unused {
        /// The tensor.
        tensor: String,
    },
}

/// What is wrong with a safetensors header.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Too short to hold the header's length.
    #[error("it has {found} bytes, fewer than the 8 of a header's length")]
    Short {
        /// Bytes of the file.
        found: u64,
    },
    /// The header's length is beyond the file or the format's limit.
    #[error(
        "its header is said to have {found} bytes, but the file has {file} and the limit is \
         {HEADER_LIMIT}"
    )]
    Length {
        /// What the file says of its header.
        found: u64,
        /// Bytes of the file.
        file: u64,
    },
    /// The header is no JSON object of tensors that lie one after another.
    #[error("{0}")]
    Layout(String),
    /// The tensors do not end where the file does.
    #[error("its tensors have {expected} bytes, but {found} bytes follow the header")]
    Extent {
        /// Bytes of all tensors.
        expected: u64,
        /// Bytes that follow the header.
        found: u64,
    },
}

/// What is wrong with an index of shards.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Larger than any index should be.
    #[error("it has {found} bytes, more than {INDEX_LIMIT}")]
    Large {
        /// Bytes of the file.
        found: u64,
    },
    /// Not JSON, or without a `weight_map` of strings.
    #[error("{0}")]
    Syntax(#[from] serde_json::Error),
    /// A shard that is not a plain file name: an index may not name files outside its directory.
    #[error("shard `{0}` is not the name of a file beside it")]
    Outside(String),
}

/// One tensor as a shard's header describes it.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    /// Which shard.
    pub(crate) shard: usize,
    /// How its numbers are stored.
    pub(crate) dtype: Dtype,
    /// Its sizes, slowest first.
    pub(crate) shape: Vec<usize>,
    /// Its bytes in the shard.
    pub(crate) bytes: Range<usize>,
}

/// The mapped shards of a checkpoint and where in them each tensor lies.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    shards: Vec<Map>,
    tensors: HashMap<String, Located>,
}

impl Checkpoint {
    /// Opens `model.safetensors` in `dir`, or else the shards that its index names.
    pub(crate) fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if single.exists() {
            return Self::read(&[single]);
        }
        if !index.exists() {
            return Err(CheckpointError::Absent { path: dir.into() });
        }
        let places = read_index(&index)?;
        let names = places.values().collect::<BTreeSet<_>>();
        let paths = names.iter().map(|name| dir.join(name)).collect::<Vec<_>>();
        let checkpoint = Self::read(&paths)?;
        for (tensor, name) in &places {
            let shard = checkpoint.find(tensor).map(|located| located.shard);
            if shard.is_none_or(|shard| paths[shard] != dir.join(name)) {
                return Err(CheckpointError::Misplaced {
                    tensor: tensor.clone(),
                    path: dir.join(name),
                });
            }
        }
        Ok(checkpoint)
    }

    fn read(paths: &[PathBuf]) -> Result<Self, CheckpointError> {
        let mut checkpoint = Self {
            shards: Vec::with_capacity(paths.len()),
            tensors: HashMap::new(),
        };
        for (shard, path) in paths.iter().enumerate() {
            let map = Map::open(path).map_err(|source| CheckpointError::Read {
                path: path.clone(),
                source,
            })?;
            let tensors = locate(&map, shard).map_err(|why| CheckpointError::Header {
                path: path.clone(),
                why,
            })?;
            for (tensor, located) in tensors {
                if checkpoint.tensors.contains_key(&tensor) {
                    let path = path.clone();
                    return Err(CheckpointError::Repeated { tensor, path });
                }
                checkpoint.tensors.insert(tensor, located);
            }
            checkpoint.shards.push(map);
        }
        Ok(checkpoint)
    }

    /// The tensor called `name`.
    pub(crate) fn find(&self, name: &str) -> Option<&Located> {
        self.tensors.get(name)
    }

    /// The mapped shards, in the order that [`Located::shard`] counts.
    pub(crate) fn into_shards(self) -> Vec<Map> {
        self.shards
    }
}

/// Reads the index at `path`: the shard of each tensor.
fn read_index(path: &Path) -> Result<HashMap<String, String>, CheckpointError> {
    let read = |source| CheckpointError::Read {
        path: path.into(),
        source,
    };
    let length = fs::metadata(path).map_err(read)?.len();
    let places = if length > INDEX_LIMIT {
        Err(IndexError::Large { found: length })
    } else {
        parse_index(&fs::read(path).map_err(read)?)
    };
    places.map_err(|why| CheckpointError::Index {
        path: path.into(),
        why,
    })
}

/// Reads an index: the shard of each tensor, each a plain file name.
pub(crate) fn parse_index(json: &[u8]) -> Result<HashMap<String, String>, IndexError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let Index { weight_map } = serde_json::from_slice(json)?;
    match weight_map.values().find(|name| !is_plain(name)) {
        None => Ok(weight_map),
        Some(name) => Err(IndexError::Outside(name.clone())),
    }
}

/// Whether `name` is one file name and nothing else: no root, no parent, no folder.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let first = parts.next();
    matches!(first, Some(Component::Normal(part)) if part == name) && parts.next().is_none()
}

/// Reads the header of a safetensors file given whole: where each tensor lies. Every range is
/// within `file`, and as long as the tensor's shape and dtype say.
pub(crate) fn locate(file: &[u8], shard: usize) -> Result<Vec<(String, Located)>, HeaderError> {
    let total = file.len() as u64;
    let (length, rest) = file
        .split_first_chunk::<8>()
        .ok_or(HeaderError::Short { found: total })?;
    let length = u64::from_le_bytes(*length);
    let (header, data) = usize::try_from(length)
        .ok()
        .filter(|_| length <= HEADER_LIMIT)
        .and_then(|length| rest.split_at_checked(length))
        .ok_or(HeaderError::Length {
            found: length,
            file: total,
        })?;
    // `Metadata` refuses gaps, overlaps and lengths that shape and dtype do not give; what it
    // leaves to its caller is that the last tensor ends with the file.
    let metadata = serde_json::from_slice::<Metadata>(header)
        .map_err(|error| HeaderError::Layout(error.to_string()))?;
    if metadata.data_len() != data.len() {
        return Err(HeaderError::Extent {
            expected: metadata.data_len() as u64,
            found: data.len() as u64,
        });
    }
    let start = file.len() - data.len();
    let tensors = metadata.tensors().into_iter().map(|(name, tensor)| {
        let located = Located {
            shard,
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            bytes: start + tensor.data_offsets.0..start + tensor.data_offsets.1,
        };
        (name, located)
    });
    Ok(tensors.collect())
}
