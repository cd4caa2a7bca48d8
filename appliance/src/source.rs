//! Where a model comes from: a directory, or a hub.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use crate::hub::{Hub, HubError, HubModel};

/// Where a model comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A directory in the Hugging Face layout.
    Directory(PathBuf),
    /// `hf://organisation/name@revision`: a model of a hub that speaks Hugging Face's protocol.
    Hub(HubModel),
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
    /// The hub's model cannot be fetched.
    #[error(transparent)]
    Hub(#[from] HubError),
}

impl Source {
    /// The directory of the model, fetched first if it is not here yet. Shows its progress on a terminal.
    pub fn local(&self, hub: &Hub) -> Result<PathBuf, SourceError> {
        match self {
            Self::Directory(path) => directory(path),
            Self::Hub(model) => Ok(hub.fetch(model)?),
        }
    }

    /// A name for the model: the last part of the source.
    pub fn name(&self) -> String {
        let last = match self {
            Self::Directory(path) => path.file_name().map(|name| name.to_string_lossy().into()),
            Self::Hub(model) => Path::new(&model.repository)
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
        let (repository, revision) = rest.split_once('@').unwrap_or((rest, HubModel::MAIN));
        let parts: Vec<&str> = repository.split('/').collect();
        if parts.len() != 2 || !parts.iter().all(|part| is_name(part)) {
            return Err(wrong("a hub's models are called hf://ORGANISATION/NAME"));
        }
        if !revision.split('/').all(is_name) {
            return Err(wrong("after @ comes a branch, a tag or a commit"));
        }
        Ok(Self::Hub(HubModel {
            repository: repository.to_owned(),
            revision: revision.to_owned(),
        }))
    }
}

/// Whether a text can be a part of a model's name, and of a path in the cache.
fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !text.is_empty() && !text.starts_with('.') && text.bytes().all(allowed)
}

/// A directory that could hold a model; the parts of it are looked at by those who read them.
fn directory(path: &Path) -> Result<PathBuf, SourceError> {
    let why = if path.is_dir() {
        if path.join("config.json").exists() {
            return Ok(path.to_owned());
        }
        "it has no config.json".to_owned()
    } else if path.extension().is_some_and(|end| end == "gguf") {
        format!(
            "turn a GGUF file into a directory first: appliance import {} DIR",
            path.display()
        )
    } else {
        "there is no such directory; a model of a hub is hf://ORGANISATION/NAME".to_owned()
    };
    Err(SourceError::Directory {
        path: path.display().to_string(),
        why,
    })
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Hub(model) => model.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, repository: &str, revision: &str) {
        let model = HubModel {
            repository: repository.to_owned(),
            revision: revision.to_owned(),
        };
        assert_eq!(text.parse::<Source>().unwrap(), Source::Hub(model));
    }

    #[track_caller]
    fn check_wrong(text: &str, why: &str) {
        let error = text.parse::<Source>().unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn sources_are_directories_or_models_of_a_hub() {
        check("hf://acme/tiny", "acme/tiny", "main");
        check(
            "hf://acme/tiny-1.5_b@refs/pr/7",
            "acme/tiny-1.5_b",
            "refs/pr/7",
        );
        assert_eq!(
            "./m".parse::<Source>().unwrap(),
            Source::Directory("./m".into())
        );
        check_wrong("", "it is empty");
        check_wrong("s3://bucket/model", "later release");
        for name in [
            "hf://tiny",
            "hf://a/b/c",
            "hf://../b",
            "hf:///b",
            "hf://a/b c",
        ] {
            check_wrong(name, "hf://ORGANISATION/NAME");
        }
        for name in ["hf://a/b@", "hf://a/b@..", "hf://a/b@x/../y", "hf://a/b@/x"] {
            check_wrong(name, "after @ comes");
        }
    }

    #[test]
    fn a_directory_without_a_model_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let check = |path: &Path, expected: &str| {
            let error = directory(path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(dir.path(), "it has no config.json");
        check(&dir.path().join("no"), "there is no such directory");
        check(&dir.path().join("m.gguf"), "appliance import");
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert_eq!(directory(dir.path()).unwrap(), dir.path());
    }
}
