//! A checkpoint: safetensors in one file or in shards with an index, found by name.
//!
//! Every header and index is foreign bytes. The crate `safetensors` parses a header and holds that
//! its tensors lie one after another, without gap or overlap, each as long as its shape and dtype
//! say; the lengths that it adds up unchecked are checked here.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;

use crate::bytes::{Bytes, Files};

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

/// The open shards of a checkpoint, each with what to call it, and where in them each tensor lies.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    shards: Vec<Shard>,
    tensors: HashMap<String, Located>,
}

/// An open file of a checkpoint and what to call it.
pub(crate) type Shard = (Arc<dyn Bytes>, PathBuf);

impl Checkpoint {
    /// Opens `model.safetensors` among `files`, or else the shards that its index names.
    pub(crate) fn open(files: &dyn Files) -> Result<Self, CheckpointError> {
        if let Some(single) = find(files, SINGLE)? {
            return Self::read(vec![single]);
        }
        let Some((index, path)) = find(files, INDEX)? else {
            let path = files.path(SINGLE);
            let path = path.parent().unwrap_or(&path).to_owned();
            return Err(CheckpointError::Absent { path });
        };
        let places = read_index(&*index, path)?;
        let names = places.values().collect::<BTreeSet<_>>();
        let shards = names.iter().map(|name| {
            let path = files.path(name);
            let shard = files.open(name);
            let shard = shard.map_err(|source| CheckpointError::Read {
                path: path.clone(),
                source,
            })?;
            Ok((shard, path))
        });
        let checkpoint = Self::read(shards.collect::<Result<_, CheckpointError>>()?)?;
        for (tensor, name) in &places {
            let shard = checkpoint.find(tensor).map(|located| located.shard);
            if shard.is_none_or(|shard| checkpoint.shards[shard].1 != files.path(name)) {
                return Err(CheckpointError::Misplaced {
                    tensor: tensor.clone(),
                    path: files.path(name),
                });
            }
        }
        Ok(checkpoint)
    }

    fn read(shards: Vec<Shard>) -> Result<Self, CheckpointError> {
        let mut tensors = HashMap::new();
        for (shard, (bytes, path)) in shards.iter().enumerate() {
            for (tensor, located) in read_header(&**bytes, path, shard)? {
                if tensors.contains_key(&tensor) {
                    let path = path.clone();
                    return Err(CheckpointError::Repeated { tensor, path });
                }
                tensors.insert(tensor, located);
            }
        }
        Ok(Self { shards, tensors })
    }

    /// The tensor called `name`.
    pub(crate) fn find(&self, name: &str) -> Option<&Located> {
        self.tensors.get(name)
    }

    /// The shards, in the order that [`Located::shard`] counts.
    pub(crate) fn into_shards(self) -> Vec<Shard> {
        self.shards
    }
}

/// The file called `name`, if there is one.
fn find(files: &dyn Files, name: &str) -> Result<Option<Shard>, CheckpointError> {
    let path = files.path(name);
    match files.open(name) {
        Ok(bytes) => Ok(Some((bytes, path))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CheckpointError::Read { path, source }),
    }
}

/// Reads the index at `path`: the shard of each tensor.
fn read_index(
    index: &dyn Bytes,
    path: PathBuf,
) -> Result<HashMap<String, String>, CheckpointError> {
    let length = index.len();
    let places = if length > INDEX_LIMIT {
        Err(IndexError::Large { found: length })
    } else {
        parse_index(&read_range(index, &path, 0, length)?)
    };
    places.map_err(|why| CheckpointError::Index { path, why })
}

/// Reads the header of a shard: where each tensor lies.
fn read_header(
    file: &dyn Bytes,
    path: &Path,
    shard: usize,
) -> Result<Vec<(String, Located)>, CheckpointError> {
    let wrong = |why| CheckpointError::Header {
        path: path.into(),
        why,
    };
    let total = file.len();
    let length = read_range(file, path, 0, total.min(8))?;
    let length = header_length(&length, total).map_err(wrong)?;
    let header = read_range(file, path, 8, length)?;
    locate(&header, total, shard).map_err(wrong)
}

fn read_range(
    file: &dyn Bytes,
    path: &Path,
    at: u64,
    len: u64,
) -> Result<Vec<u8>, CheckpointError> {
    // Lengths are checked against limits before.
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    match file.read(at, &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(source) => Err(CheckpointError::Read {
            path: path.into(),
            source,
        }),
    }
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

/// How many bytes the header of a safetensors file has, of which these are the first 8, and `total`
/// all.
pub(crate) fn header_length(start: &[u8], total: u64) -> Result<u64, HeaderError> {
    let length = start
        .first_chunk::<8>()
        .ok_or(HeaderError::Short { found: total })?;
    let length = u64::from_le_bytes(*length);
    if length > HEADER_LIMIT || length > total - 8 {
        return Err(HeaderError::Length {
            found: length,
            file: total,
        });
    }
    Ok(length)
}

/// Reads the header of a safetensors file of `total` bytes: where each tensor lies. Every range is
/// within the file, and as long as the tensor's shape and dtype say.
pub(crate) fn locate(
    header: &[u8],
    total: u64,
    shard: usize,
) -> Result<Vec<(String, Located)>, HeaderError> {
    // `Metadata` refuses gaps, overlaps and lengths that shape and dtype do not give; what it
    // leaves to its caller is that the last tensor ends with the file.
    let metadata = serde_json::from_slice::<Metadata>(header)
        .map_err(|error| HeaderError::Layout(error.to_string()))?;
    let start = 8 + header.len();
    let data = total - start as u64;
    if metadata.data_len() as u64 != data {
        return Err(HeaderError::Extent {
            expected: metadata.data_len() as u64,
            found: data,
        });
    }
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
