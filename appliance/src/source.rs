//! Where a model comes from: a directory, or a hub.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where a model comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A directory in the Hugging Face layout.
    Directory(PathBuf),
    /// `hf://organisation/name@revision`: a model of a hub that speaks Hugging Face's protocol.
    Hub {
        /// `organisation/name`.
        repository: String,
        /// A branch, tag or commit.
        revision: String,
    },
}

/// Why a model's source cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The text names no source.
    #[error("{text:?} is no source of a model: {why}")]
    Parse {
        /// The text.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is no such directory, or it holds no model.
    #[error("{path} holds no model: {why}")]
    Directory {
        /// The directory.
        path: String,
        /// What is missing.
        why: String,
    },
}

/// Where models are fetched from, and to.
#[derive(Clone, Debug)]
pub struct Hub {
    /// The hub's address.
    pub endpoint: String,
    /// The token that it asks for.
    pub token: Option<crate::config::Secret>,
    /// Where fetched files are kept.
    pub cache: PathBuf,
}

impl Source {
    /// The directory of the model, fetched first if it is not here yet. Shows its progress on a terminal.
    pub fn local(&self, _hub: &Hub) -> Result<PathBuf, SourceError> {
        match self {
            Self::Directory(path) => Ok(path.clone()),
            Self::Hub { .. } => Err(SourceError::Directory {
                path: self.to_string(),
                why: "not fetched yet".to_owned(),
            }),
        }
    }

    /// A name for the model: the last part of the source.
    pub fn name(&self) -> String {
        let last = match self {
            Self::Directory(path) => path.file_name().map(|name| name.to_string_lossy().into()),
            Self::Hub { repository, .. } => Path::new(repository)
                .file_name()
                .map(|name| name.to_string_lossy().into()),
        };
        last.unwrap_or_else(|| "model".to_owned())
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let wrong = |why| SourceError::Parse {
            text: text.to_owned(),
            why,
        };
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        if text.starts_with("s3://") {
            return Err(wrong(
                "s3:// comes with a later release; copy the model to a directory",
            ));
        }
        let Some(rest) = text.strip_prefix("hf://") else {
            return Ok(Self::Directory(text.into()));
        };
        let (repository, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        Ok(Self::Hub {
            repository: repository.to_owned(),
            revision: revision.to_owned(),
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Hub {
                repository,
                revision,
            } => write!(f, "hf://{repository}@{revision}"),
        }
    }
}
