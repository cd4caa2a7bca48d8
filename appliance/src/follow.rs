//! The settings as they change: the configuration file, the instance's user data and the parameter store are
//! read as the server starts, and again when something may be new. What is refused changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::{ConfigError, Flags, Layer, Layers, ParameterPath, Raw, Resolved, Scope};
use crate::host::account::{Account, AccountError};
use crate::host::ssm::{Parameters, SsmError};
use crate::metrics::Metrics;
use crate::opening::Progress;
use crate::state::{LastGood, StateDir};
use crate::status::Board;

/// The path of the parameters where nobody names one.
const PREFIX: &str = "/appliance/default";

/// How long the first reading of the parameter store is tried before the last good settings are taken.
const FIRST: Duration = Duration::from_secs(15);

/// The pause between two tries of the first reading.
const AGAIN: Duration = Duration::from_secs(2);

/// The longest pause between two readings, however much the store throttles.
const SLOWEST: Duration = Duration::from_secs(600);

/// Settings that are wanted: valid, and where each came from.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) raw: Raw,
    pub(crate) settings: Arc<Resolved>,
    /// What the parameter store held.
    parameters: BTreeMap<String, String>,
}

impl Wanted {
    /// The source of the model.
    pub(crate) fn model(&self) -> String {
        self.settings
            .model
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default()
    }

    /// A digest of the parameters, to tell whether two instances have the same.
    pub(crate) fn digest(&self) -> String {
        let mut digest = Sha256::new();
        for (key, value) in &self.parameters {
            for text in [key, value] {
                digest.update((text.len() as u64).to_le_bytes());
                digest.update(text);
            }
        }
        let digest = digest.finalize();
        digest[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// Why there are no new settings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unread {
    /// They are not valid.
    #[error(transparent)]
    Refused(#[from] ConfigError),
    /// The parameter store does not tell.
    #[error(transparent)]
    Away(#[from] SsmError),
}

/// Somebody wants the settings read now, and to know what came of it.
pub(crate) type Reload = oneshot::Sender<Result<Vec<&'static str>, String>>;

/// Where settings come from.
#[derive(Debug)]
pub(crate) struct Sources {
    flags: Flags,
    user_data: Layer,
    parameters: Option<Parameters>,
    /// Whether somebody named the path of the parameters: then there is no going on without them.
    named: bool,
    state: Option<StateDir>,
    /// The account, if the machine is in one.
    pub(crate) account: Option<Account>,
}

impl Sources {
    /// Finds them: what the process has at hand, and the account that the machine is in.
    ///
    /// # Errors
    /// Flags, variables or the file are not valid, or an account is wanted and there is none.
    pub(crate) async fn find(flags: &Flags) -> Result<Self, SourcesError> {
        let mut layers = flags.layers()?;
        let account = Account::open(layers.raw().parse("cloud")?).await?;
        let imds = account.as_ref().and_then(|account| account.imds.as_ref());
        if let Some(imds) = imds {
            match imds.user_data().await {
                Ok(text) => layers.user_data = user_data(text.as_deref()),
                Err(silent) => tracing::warn!("{silent}; going on without user data"),
            }
        }
        let raw = layers.raw();
        let prefix: Option<ParameterPath> = raw.parse("ssm-prefix")?;
        let prefix = prefix.map(|path| path.as_str().to_owned());
        let tag = account
            .as_ref()
            .and_then(|account| account.identity.prefix.clone());
        let prefix = prefix.or(tag);
        let named = prefix.is_some();
        let prefix = prefix.unwrap_or_else(|| PREFIX.to_owned());
        let parameters = account
            .as_ref()
            .map(|account| Parameters::new(account, &prefix));
        let state: Option<std::path::PathBuf> = raw.parse("state-dir")?;
        Ok(Self {
            flags: flags.clone(),
            user_data: layers.user_data,
            parameters,
            named,
            state: StateDir::new(state.as_deref()),
            account,
        })
    }

    /// The parameter store's part, if there is an account.
    pub(crate) fn parameters(&self) -> Option<&Parameters> {
        self.parameters.as_ref()
    }

    /// The place for what must outlive a restart.
    pub(crate) fn state(&self) -> Option<&StateDir> {
        self.state.as_ref()
    }

    /// All but what the parameter store has: what is needed before it can be asked.
    ///
    /// # Errors
    /// The configuration file is not valid.
    pub(crate) fn early(&self) -> Result<Raw, ConfigError> {
        Ok(self.layers()?.raw())
    }

    fn layers(&self) -> Result<Layers, ConfigError> {
        let mut layers = self.flags.layers()?;
        layers.user_data.clone_from(&self.user_data);
        Ok(layers)
    }

    /// All texts, valid or not, and what keeps the parameter store's from being among them.
    ///
    /// # Errors
    /// What the process has at hand is not valid.
    pub(crate) async fn all(&self) -> Result<(Raw, Option<Unread>), ConfigError> {
        let mut layers = self.layers()?;
        let Some(parameters) = &self.parameters else {
            return Ok((layers.raw(), None));
        };
        let named = match parameters.read().await {
            Ok(named) => Layer::parameters(parameters.prefix(), &named).map_err(Unread::from),
            Err(away) => Err(away.into()),
        };
        let why = named.map(|named| layers.parameters = named).err();
        Ok((layers.raw(), why))
    }

    /// All of them, as they are now.
    pub(crate) async fn read(&self) -> Result<Wanted, Unread> {
        let named = match &self.parameters {
            Some(parameters) => parameters.read().await?,
            None => BTreeMap::new(),
        };
        Ok(self.wanted(named)?)
    }

    fn wanted(&self, named: BTreeMap<String, String>) -> Result<Wanted, ConfigError> {
        let mut layers = self.layers()?;
        if let Some(parameters) = &self.parameters {
            layers.parameters = Layer::parameters(parameters.prefix(), &named)?;
        }
        let raw = layers.raw();
        Ok(Wanted {
            settings: Arc::new(Resolved::parse(&raw)?),
            raw,
            parameters: named,
        })
    }

    /// The first settings. With a parameter store it waits until there are valid ones; if the store does
    /// not answer, those with which a model last served are taken; or what there is without the store, if
    /// nobody has named a path. Somebody who has may keep the keys of clients
    /// there: without them the server would let everybody in.
    ///
    /// # Errors
    /// There is no parameter store that could mend what is not valid.
    pub(crate) async fn first(
        &self,
        waiting: &Progress,
        board: &Board,
    ) -> Result<Wanted, ConfigError> {
        let Some(parameters) = &self.parameters else {
            return self.wanted(BTreeMap::new());
        };
        let (start, mut told) = (Instant::now(), String::new());
        loop {
            let why = match self.read().await {
                Ok(wanted) => return Ok(wanted),
                Err(Unread::Refused(why)) => {
                    board.refused(Some(why.to_string()));
                    format!("the settings are refused: {why}; waiting for others")
                }
                Err(Unread::Away(why)) => {
                    let denied = matches!(why, SsmError::Denied { .. });
                    let enough = denied || start.elapsed() >= FIRST;
                    if let Some(wanted) = enough
                        .then(|| self.without_store(parameters, &why))
                        .flatten()
                    {
                        return Ok(wanted);
                    }
                    format!("{why}; there are no settings yet")
                }
            };
            if why != told {
                tracing::warn!("{why}");
                waiting.say(&why);
                told = why;
            }
            tokio::time::sleep(jittered(AGAIN)).await;
        }
    }

    /// Settings without an answer of the store.
    fn without_store(&self, parameters: &Parameters, why: &SsmError) -> Option<Wanted> {
        let kept = self.state.as_ref().and_then(|state| {
            let kept = state.read::<LastGood>(LastGood::FILE);
            kept.unwrap_or_else(|error| {
                tracing::warn!("the last good settings cannot be read: {error}");
                None
            })
        });
        let kept = kept.filter(|kept| kept.prefix == parameters.prefix());
        if let Some(wanted) = kept.and_then(|kept| self.wanted(kept.parameters).ok()) {
            tracing::warn!("{why}; going on with the settings with which a model last served");
            return Some(wanted);
        }
        if self.named {
            return None;
        }
        let wanted = self.wanted(BTreeMap::new()).ok()?;
        tracing::warn!("{why}; going on without the parameter store");
        Some(wanted)
    }

    /// A model serves with these settings: they are what to go on with if the store does not answer.
    pub(crate) fn remember(&self, wanted: &Wanted) {
        let (Some(parameters), Some(state)) = (&self.parameters, &self.state) else {
            return;
        };
        let good = LastGood {
            prefix: parameters.prefix().to_owned(),
            parameters: wanted.parameters.clone(),
        };
        if let Err(error) = state.write(LastGood::FILE, &good) {
            let file = state.file(LastGood::FILE);
            tracing::warn!(
                "cannot keep the settings for a start without the parameter store in {}: {error}",
                file.display()
            );
        }
    }

    /// Reads the settings again and again, for ever: now and then, when `asked`, and on SIGHUP. New ones go
    /// to `wanted`.
    pub(crate) async fn follow(
        self: Arc<Self>,
        wanted: watch::Sender<Arc<Wanted>>,
        mut asked: mpsc::Receiver<Reload>,
        board: Board,
        metrics: Metrics,
    ) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => Some(hangup),
            Err(error) => {
                tracing::warn!("SIGHUP will not be heard: {error}");
                None
            }
        };
        let mut slowness = 1;
        let mut told = None;
        loop {
            let interval = wanted.borrow().settings.ssm_interval * slowness;
            let pause = jittered(interval.min(SLOWEST));
            let (reply, told_to) = tokio::select! {
                () = tokio::time::sleep(pause), if self.parameters.is_some() => (None, false),
                () = heard(&mut hangup) => (None, true),
                reload = asked.recv() => match reload {
                    Some(reload) => (Some(reload), true),
                    None => return,
                },
            };
            let read = self.read().await;
            let throttled = matches!(read, Err(Unread::Away(SsmError::Throttled)));
            slowness = if throttled {
                slowness.saturating_mul(2).min(64)
            } else {
                1
            };
            let outcome = match read {
                Ok(new) => {
                    board.refused(None);
                    told = None;
                    Ok(changed(&wanted, new, told_to))
                }
                Err(why) => {
                    let refused = matches!(why, Unread::Refused(_));
                    let why = why.to_string();
                    if told.as_ref() != Some(&why) {
                        tracing::warn!("{why}; the settings before stay in force");
                        if refused {
                            metrics.settings_refused();
                            board.refused(Some(why.clone()));
                        }
                        told = Some(why.clone());
                    }
                    Err(why)
                }
            };
            if let Some(reply) = reply {
                // Whoever asked may have gone.
                reply.send(outcome).ok();
            }
        }
    }
}

/// Makes `new` what is wanted, if it differs; the names of what does. Somebody who has told the server to
/// read it wants what failed before tried again.
fn changed(wanted: &watch::Sender<Arc<Wanted>>, new: Wanted, told_to: bool) -> Vec<&'static str> {
    let mut names = Vec::new();
    wanted.send_if_modified(|current| {
        for scope in [Scope::Model, Scope::Live] {
            names.extend(new.raw.changes(&current.raw, scope));
        }
        let modified = told_to || !names.is_empty();
        if modified {
            *current = Arc::new(new);
        }
        modified
    });
    names
}

/// Waits for the next SIGHUP.
async fn heard(hangup: &mut Option<Signal>) {
    match hangup {
        Some(hangup) => {
            hangup.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// The settings in user data; what is not valid is told and left out.
fn user_data(text: Option<&str>) -> Layer {
    Layer::user_data(text.unwrap_or_default()).unwrap_or_else(|error| {
        tracing::error!("{error}; going on without the settings of the user data");
        Layer::default()
    })
}

/// `pause`, give or take a fifth, so that instances do not ask all at once.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [128];
    // Without randomness there is no jitter.
    getrandom::fill(&mut byte).ok();
    pause.mul_f64(0.8 + 0.4 * f64::from(byte[0]) / 255.0)
}

/// Why no settings can be had at all.
#[derive(Debug, thiserror::Error)]
pub enum SourcesError {
    /// What the process has at hand is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An account is wanted, and there is none.
    #[error(transparent)]
    Account(#[from] AccountError),
}
