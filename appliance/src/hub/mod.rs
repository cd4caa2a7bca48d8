//! A hub that speaks Hugging Face's protocol: models are listed and fetched over HTTP, into the cache that
//! Hugging Face's own tools use too.

mod download;
mod listing;

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ureq::Agent;
use ureq::config::RedirectAuthHeaders;

use self::download::Download;
use self::listing::{Entry, Listing, is_hex};

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

/// A model of a hub.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HubModel {
    /// `organisation/name`.
    pub repository: String,
    /// A branch, tag or commit.
    pub revision: String,
}

impl HubModel {
    /// The revision of a model whose source names none.
    pub const MAIN: &str = "main";
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf://{}@{}", self.repository, self.revision)
    }
}

/// Why a model cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No answer.
    #[error(
        "cannot reach the hub {endpoint}: {why}; check the network, name a mirror with hub-endpoint, or \
         copy the model to a directory and serve that"
    )]
    Unreachable {
        /// The hub's address.
        endpoint: String,
        /// What happened instead.
        why: String,
    },
    /// The hub knows no such model or revision.
    #[error("the hub {endpoint} has no {model}: check its name and revision")]
    Unknown {
        /// The hub's address.
        endpoint: String,
        /// The model.
        model: String,
    },
    /// The hub wants to know who asks, or does not allow it.
    #[error(
        "the hub {endpoint} does not give out {model}: check its name; if it is not public, set hub-token \
         to a token of an account that may read it"
    )]
    Forbidden {
        /// The hub's address.
        endpoint: String,
        /// The model.
        model: String,
    },
    /// The hub's answer makes no sense here.
    #[error("the hub {endpoint} does not answer as a hub does: {why}")]
    Answer {
        /// The hub's address.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// The model is not in a form that can be served.
    #[error("{model} cannot be served: {why}")]
    Unfit {
        /// The model.
        model: String,
        /// What is missing.
        why: String,
    },
    /// A file could not be fetched whole.
    #[error("fetching {url} broke off: {why}; start again, and it goes on where it stopped")]
    Broken {
        /// The file's address.
        url: String,
        /// What happened.
        why: String,
    },
    /// The cache cannot be written.
    #[error("cannot keep the model in {path}: {why}; set cache-dir to a directory with room")]
    Cache {
        /// The file or directory.
        path: String,
        /// What happened.
        why: String,
    },
}

/// How long the hub may take to accept a connection, and to send the next bytes.
const PATIENCE: Duration = Duration::from_secs(20);

impl Hub {
    /// A hub and a cache; without one, that of Hugging Face's own tools: `$HF_HOME/hub`, else
    /// `~/.cache/huggingface/hub`.
    pub fn new(
        endpoint: String,
        token: Option<crate::config::Secret>,
        cache: Option<PathBuf>,
    ) -> Self {
        let variable = |name| std::env::var_os(name).map(PathBuf::from);
        let theirs = || {
            variable("HF_HOME")
                .or_else(|| Some(variable("HOME")?.join(".cache/huggingface")))
                .unwrap_or_else(std::env::temp_dir)
                .join("hub")
        };
        Self {
            endpoint,
            token,
            cache: cache.unwrap_or_else(theirs),
        }
    }

    /// The directory of `model`: in the cache, after what is missing there has been fetched. Shows its
    /// progress on a terminal.
    ///
    /// A branch or tag is asked for each time; if the hub cannot be reached, what it meant last time is
    /// good enough. A commit that is here whole is not asked for.
    pub fn fetch(&self, model: &HubModel) -> Result<PathBuf, HubError> {
        let folder = self.folder(model);
        if let Some(here) = here(&folder, &model.revision) {
            return Ok(here);
        }
        let agent = agent();
        let listing = match self.list(&agent, model) {
            Err(error @ HubError::Unreachable { .. }) => {
                let Some(last) = last_time(&folder, &model.revision) else {
                    return Err(error);
                };
                tracing::warn!(%model, %error, "taking the model as it was fetched last");
                return Ok(last);
            }
            listing => listing?,
        };
        let wanted = listing.wanted().map_err(|why| HubError::Unfit {
            model: model.to_string(),
            why,
        })?;
        let snapshot = folder.join("snapshots").join(&listing.sha);
        let missing = wanted
            .into_iter()
            .filter(|entry| !snapshot.join(&entry.name).exists());
        self.fetch_files(
            &agent,
            model,
            &folder,
            &listing.sha,
            &missing.collect::<Vec<_>>(),
        )?;
        let reference = folder.join("refs").join(&model.revision);
        if model.revision != listing.sha {
            write(&reference, &listing.sha)?;
        }
        Ok(snapshot)
    }

    fn fetch_files(
        &self,
        agent: &Agent,
        model: &HubModel,
        folder: &Path,
        sha: &str,
        files: &[&Entry],
    ) -> Result<(), HubError> {
        if files.is_empty() {
            return Ok(());
        }
        let bytes = files.iter().map(|entry| entry.size).sum();
        tracing::info!(%model, bytes, files = files.len(), "fetching the model");
        let style = "fetching {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} to go";
        let style =
            ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(bytes).with_style(style);
        for entry in files {
            let download = Download {
                agent,
                hub: self,
                model,
                url: format!(
                    "{}/{}/resolve/{sha}/{}",
                    self.address(),
                    model.repository,
                    entry.name
                ),
                blob: folder.join("blobs").join(&entry.id),
                entry,
                bar: &bar,
            };
            download.run()?;
            point(
                &folder.join("snapshots").join(sha).join(&entry.name),
                &entry.id,
            )?;
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn list(&self, agent: &Agent, model: &HubModel) -> Result<Listing, HubError> {
        let revision = model.revision.replace('/', "%2F");
        let repository = &model.repository;
        let url = format!(
            "{}/api/models/{repository}/revision/{revision}?blobs=true",
            self.address()
        );
        let unreachable = |error: ureq::Error| HubError::Unreachable {
            endpoint: self.endpoint.clone(),
            why: error.to_string(),
        };
        let mut response = self.get(agent, &url).call().map_err(unreachable)?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(self.refusal(model, status, &url));
        }
        let json = response.body_mut().read_to_vec().map_err(unreachable)?;
        Listing::parse(&json).map_err(|why| HubError::Answer {
            endpoint: self.endpoint.clone(),
            why: format!("{url}: {why}"),
        })
    }

    fn get(&self, agent: &Agent, url: &str) -> ureq::RequestBuilder<ureq::typestate::WithoutBody> {
        let request = agent.get(url);
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {}", token.reveal())),
            None => request,
        }
    }

    /// What a status that is no success means.
    fn refusal(&self, model: &HubModel, status: u16, url: &str) -> HubError {
        let endpoint = self.endpoint.clone();
        match status {
            // The hub answers 401 for what it does not know, unless it knows who asks.
            401 | 403 => HubError::Forbidden {
                endpoint,
                model: model.to_string(),
            },
            404 => HubError::Unknown {
                endpoint,
                model: model.to_string(),
            },
            500.. => HubError::Unreachable {
                endpoint,
                why: format!("{url} gives status {status}"),
            },
            _ => HubError::Answer {
                endpoint,
                why: format!("{url} gives status {status}"),
            },
        }
    }

    fn address(&self) -> &str {
        self.endpoint.trim_end_matches('/')
    }

    fn folder(&self, model: &HubModel) -> PathBuf {
        let name = format!("models--{}", model.repository.replace('/', "--"));
        self.cache.join(name)
    }
}

fn agent() -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .timeout_resolve(Some(PATIENCE))
        .timeout_connect(Some(PATIENCE))
        .timeout_per_read(Some(PATIENCE))
        .timeout_per_write(Some(PATIENCE))
        .user_agent(concat!("appliance/", env!("CARGO_PKG_VERSION")));
    config.build().into()
}

/// The directory of the commit `revision`, if it is one and is here whole.
fn here(folder: &Path, revision: &str) -> Option<PathBuf> {
    let commit = revision.len() == 40 && is_hex(revision);
    let snapshot = folder.join("snapshots").join(revision);
    (commit && is_whole(&snapshot)).then_some(snapshot)
}

/// The directory of what `revision` was when it was fetched last, if it is here whole.
fn last_time(folder: &Path, revision: &str) -> Option<PathBuf> {
    let sha = fs::read_to_string(folder.join("refs").join(revision)).ok()?;
    here(folder, sha.trim())
}

/// Whether a snapshot has what it takes to serve.
fn is_whole(snapshot: &Path) -> bool {
    let has = |name: &str| snapshot.join(name).exists();
    let Ok(index) = fs::read(snapshot.join(listing::INDEX)) else {
        return has("config.json") && has("tokenizer.json") && has("model.safetensors");
    };
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap_or_default();
    let shards = index
        .get("weight_map")
        .and_then(serde_json::Value::as_object);
    let shard_is_here = |shard: &serde_json::Value| shard.as_str().is_some_and(has);
    has("config.json")
        && has("tokenizer.json")
        && shards.is_some_and(|shards| shards.values().all(shard_is_here))
}

/// Makes `pointer` a link to the blob of that id.
fn point(pointer: &Path, id: &str) -> Result<(), HubError> {
    let link = || {
        fs::create_dir_all(pointer.parent().unwrap_or(pointer))?;
        match symlink(Path::new("../../blobs").join(id), pointer) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    };
    link().map_err(|error| cannot_keep(pointer, &error))
}

fn write(path: &Path, text: &str) -> Result<(), HubError> {
    let write = || {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        fs::write(path, text)
    };
    write().map_err(|error| cannot_keep(path, &error))
}

fn cannot_keep(path: &Path, error: &io::Error) -> HubError {
    HubError::Cache {
        path: path.display().to_string(),
        why: error.to_string(),
    }
}

#[cfg(test)]
mod tests;
