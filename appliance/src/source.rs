//! Where a model comes from: a directory, a hub, or objects of S3.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use model::{CheckpointError, Decoder, Weights};
use tempfile::TempDir;

use crate::config::Resolved;
pub use crate::hub::{Hub, HubError, HubModel};
use crate::objects::{BlockCache, ObjectError, ObjectModel, Objects, Prefix};

/// Where a model comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A directory in the Hugging Face layout.
    Directory(PathBuf),
    /// `hf://organisation/name@revision`: a model of a hub that speaks Hugging Face's protocol.
    Hub(HubModel),
    /// `s3://bucket/prefix`: a model in the Hugging Face layout under a prefix of a bucket.
    Objects(Prefix),
}

/// What models are fetched with.
#[derive(Clone, Debug)]
pub struct Means {
    /// The hub, and where what is fetched from it is kept.
    pub hub: Hub,
    /// Where weights that were streamed are kept, and how many bytes of them.
    pub cache: Option<(PathBuf, u64)>,
}

impl Means {
    /// As the settings say.
    pub fn of(settings: &Resolved) -> Self {
        Self {
            hub: Hub::new(
                settings.hub_endpoint.clone(),
                settings.hub_token.clone(),
                settings.cache_dir.clone(),
            ),
            cache: settings
                .weights_cache
                .clone()
                .map(|directory| (directory, settings.weights_cache_size.0)),
        }
    }
}

/// A model that was found: its small files are in a directory of this host.
#[derive(Debug)]
pub struct Found {
    directory: PathBuf,
    /// What is elsewhere, and the directory's end.
    elsewhere: Option<(ObjectModel, TempDir)>,
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
    /// The model's objects cannot be had.
    #[error(transparent)]
    Objects(#[from] ObjectError),
    /// There is no room for the small files of a model.
    #[error(
        "cannot make a directory for the model's small files: {0}; set TMPDIR to one with room"
    )]
    Temporary(std::io::Error),
}

impl Source {
    /// Finds the model. One of a hub is fetched first if it is not here yet, with progress on a terminal; of
    /// one that is made of objects, only what is small.
    pub fn find(&self, means: &Means) -> Result<Found, SourceError> {
        let directory = match self {
            Self::Directory(path) => directory(path)?,
            Self::Hub(model) => means.hub.fetch(model)?,
            Self::Objects(prefix) => return Found::objects(prefix, means),
        };
        Ok(Found {
            directory,
            elsewhere: None,
        })
    }

    /// A name for the model: the last part of the source.
    pub fn name(&self) -> String {
        let last = match self {
            Self::Directory(path) => path.file_name().map(|name| name.to_string_lossy().into()),
            Self::Hub(model) => Path::new(&model.repository)
                .file_name()
                .map(|name| name.to_string_lossy().into()),
            Self::Objects(prefix) => Some(prefix.name().to_owned()),
        };
        last.unwrap_or_else(|| "model".to_owned())
    }
}

/// A file of a model as it is now: another version has other bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FileVersion {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// When it was written, or the tag of the object.
    pub version: String,
}

impl Found {
    /// The model's weights and tokenizer, as they are now.
    ///
    /// # Errors
    /// They cannot be looked at.
    pub fn versions(&self) -> io::Result<Vec<FileVersion>> {
        let mut all = match self.object_model() {
            Some(model) => model.versions(),
            None => versions_in(&self.directory)?,
        };
        all.retain(|FileVersion { name, .. }| {
            let is_index = name.ends_with(".safetensors.index.json");
            name.ends_with(".safetensors") || is_index || name == "tokenizer.json"
        });
        all.sort();
        Ok(all)
    }

    fn objects(prefix: &Prefix, means: &Means) -> Result<Self, SourceError> {
        let cache = means.cache.clone();
        let cache = cache.map(|(directory, limit)| Arc::new(BlockCache::open(directory, limit)));
        let model = ObjectModel::open(&Objects::open()?, prefix, cache)?;
        let directory = tempfile::Builder::new()
            .prefix("appliance-model-")
            .tempdir()
            .map_err(SourceError::Temporary)?;
        model.fetch_small(directory.path())?;
        Ok(Self {
            directory: directory.path().to_owned(),
            elsewhere: Some((model, directory)),
        })
    }

    /// Where its small files are: all but the weights. It may be gone with this value.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its weights, wherever they are.
    ///
    /// # Errors
    /// They are not those of `decoder`.
    pub fn weights(&self, decoder: &Decoder) -> Result<Weights, CheckpointError> {
        match &self.elsewhere {
            Some((model, _)) => Weights::of(model, decoder),
            None => Weights::open(&self.directory, decoder),
        }
    }

    /// The objects, if it is made of some.
    pub fn object_model(&self) -> Option<&ObjectModel> {
        self.elsewhere.as_ref().map(|(model, _)| model)
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
        if let Some(rest) = text.strip_prefix("s3://") {
            return rest.parse().map(Self::Objects).map_err(wrong);
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
            Self::Objects(prefix) => prefix.fmt(f),
        }
    }
}

fn versions_in(directory: &Path) -> io::Result<Vec<FileVersion>> {
    let versions = fs::read_dir(directory)?.map(|entry| {
        let path = entry?.path();
        // A hub's cache holds links.
        let facts = fs::metadata(&path)?;
        let written = facts.modified()?.duration_since(SystemTime::UNIX_EPOCH);
        Ok(FileVersion {
            name: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            size: facts.len(),
            version: written.unwrap_or_default().as_nanos().to_string(),
        })
    });
    versions.collect()
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
        let objects = "s3://bucket/models/tiny/".parse::<Source>().unwrap();
        assert_eq!(objects.to_string(), "s3://bucket/models/tiny");
        assert_eq!(objects.name(), "tiny");
        check_wrong("s3://b", "the name of a bucket");
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
