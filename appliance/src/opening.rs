//! From settings to a model that has proven that it generates: its files, its device, its engines.

use std::io;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use engine::{Demand, Limits, Lost, Profile, TokenId};
use model::{Decoder, GenerationDefaults, Weights};

use crate::config::{self, Resolved};
use crate::device_metrics;
use crate::dispatch::Dispatch;
use crate::drivers::{self, DriverError, Load};
use crate::engine_thread;
use crate::generation::Generator;
use crate::golden::{self, Golden, SelfTestError};
use crate::health::Pulse;
use crate::metrics::{Metrics, ModelMetrics};
use crate::served::Served;
use crate::source::{Means, Source, SourceError};
use crate::state::StateDir;
use crate::text::{Template, TemplateError, TextError, Tokenizer};

/// How often it is told how far the weights are.
const TELL: Duration = Duration::from_millis(500);

/// How long an engine whose self-test failed has to say that its device is lost.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its files cannot be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// None is named.
    #[error(transparent)]
    Settings(#[from] config::ConfigError),
    /// Its config.json or generation_config.json is not one we can use.
    #[error(transparent)]
    Config(#[from] model::ConfigError),
    /// Its weights are not what its config says.
    #[error(transparent)]
    Checkpoint(#[from] model::CheckpointError),
    /// Its tokenizer cannot be used.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Its chat template cannot be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// More context is asked for than it was trained for.
    #[error("max-context {asked} is more than the {most} tokens that the model was made for")]
    Context {
        /// The setting.
        asked: u32,
        /// The model's own limit.
        most: u32,
    },
    /// It does not run on the device.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// It could not be compiled for the device.
    #[error("prepare-on-boot: {0}")]
    Prepare(String),
    /// The host has no room for the engine's thread, or no randomness.
    #[error("the host cannot start the engine: {0}")]
    Host(String),
    /// The device was lost as it was to produce a token.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// It does not answer as it should.
    #[error("the self-test failed: {0}")]
    SelfTest(#[from] SelfTestError),
}

impl LoadError {
    /// Whether another try with the same settings may go better: the device failed, not the model.
    pub(crate) fn is_of_device(&self) -> bool {
        matches!(
            self,
            Self::Driver(DriverError::Device { .. }) | Self::Lost(_)
        )
    }
}

/// Tells what is being done to a model that is not ready yet.
#[derive(Clone)]
pub(crate) struct Progress(Arc<dyn Fn(&str) + Send + Sync>);

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress(..)")
    }
}

impl Progress {
    /// Progress that `tell` is told of, in words such as `the model is being fetched`.
    pub(crate) fn new(tell: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// This is being done now.
    pub(crate) fn say(&self, what: &str) {
        (self.0)(what);
    }
}

/// A model that has proven that it generates, and the engines it runs on.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) served: Arc<Served>,
    pub(crate) dispatch: Dispatch,
}

/// Where a model is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// On a device that holds nothing else of ours.
    Alone,
    /// Beside a model that serves, which must not be harmed.
    Beside,
}

/// Opens the model that `settings` name, off the event loop, and has it prove itself. From then on it is
/// the one that `metrics` measure.
///
/// # Errors
/// What keeps it from serving. Nothing of it is left.
pub(crate) async fn open(
    settings: &Arc<Resolved>,
    place: Place,
    metrics: &Metrics,
    progress: &Progress,
) -> Result<Opened, LoadError> {
    let measured = metrics.of_model();
    let loading = {
        let settings = Arc::clone(settings);
        let (metrics, measured, progress) = (metrics.clone(), measured.clone(), progress.clone());
        tokio::task::spawn_blocking(move || load(&settings, place, &metrics, &measured, &progress))
    };
    let loaded = loading.await;
    let (opened, profile, golden) =
        loaded.map_err(|error| LoadError::Host(error.to_string()))??;
    progress.say("the model is proving that it generates");
    if let Err(why) = golden::self_test(&opened.served, &golden).await {
        let ended = tokio::time::timeout(LAST_WORDS, opened.dispatch.ending().ended()).await;
        return Err(match ended {
            Ok(Err(lost)) => lost.into(),
            Ok(Ok(())) | Err(_) => why.into(),
        });
    }
    let Served { name, context, .. } = &*opened.served;
    let (running, replicas) = (settings.max_running.get(), settings.replicas.get());
    measured.serve(name, *context, &profile, running, replicas as usize);
    Ok(opened)
}

/// The model's name in the API.
fn name(settings: &Resolved, source: &Source) -> String {
    let name = settings.served_model_name.clone();
    name.unwrap_or_else(|| source.name())
}

/// From the model's source to engines that turn.
fn load(
    settings: &Resolved,
    place: Place,
    metrics: &Metrics,
    measured: &ModelMetrics,
    progress: &Progress,
) -> Result<(Opened, Profile, Golden), LoadError> {
    let source = settings.source()?;
    let driver = drivers::find(settings.backend)?;
    if let Some(reader) = driver.gauges() {
        let kept = device_metrics::keep(reader, metrics.clone());
        kept.map_err(|error| LoadError::Host(error.to_string()))?;
    }
    progress.say("the model is being fetched");
    let found = source.find(&Means::of(settings))?;
    progress.say("the model is being opened");
    let dir = found.directory();
    let decoder = Decoder::open(dir)?;
    let defaults = GenerationDefaults::open(dir)?;
    let tokenizer = Tokenizer::open(dir)?;
    let template = Template::open(dir)?;
    let weights = found.weights(&decoder)?;
    let demand = demand(settings, &decoder)?;
    let load = Load {
        beside: place == Place::Beside,
        precision: settings.dtype,
        kv: settings.kv_dtype,
        replicas: settings.replicas.get(),
        artifacts: settings.artifacts.as_ref(),
        patience: settings.device_timeout,
        source: &source.to_string(),
        decoder: &decoder,
        weights: &weights,
        demand: &demand,
    };
    let open = || watched(&weights, metrics, progress, || driver.open(&load));
    let devices = match open() {
        Err(DriverError::Unprepared { arguments, .. }) if settings.prepare_on_boot => {
            progress.say("the model is being compiled for the device");
            prepare(&arguments)?;
            open()
        }
        opened => opened,
    }?;
    let Some(profile) = devices.first().map(|device| device.profile().clone()) else {
        return Err(LoadError::Host("no device was opened".to_owned()));
    };
    let limits = limits(settings, &demand, &profile);
    let context = limits.context;
    let artifacts = settings.artifacts.as_ref();
    let artifacts = artifacts.and_then(|artifacts| artifacts.directory().ok());
    let golden = golden::find(&golden::Opened {
        self_test: settings.self_test,
        precision: settings.dtype,
        source: &source.to_string(),
        found: &found,
        decoder: &decoder,
        weights: &weights,
        tokenizer: &tokenizer,
        artifacts: artifacts.as_deref(),
        state: StateDir::new(settings.state_dir.as_deref()).as_ref(),
        context,
        on_processor: driver.is_reference(),
    });
    let mut secret = [0; 16];
    getrandom::fill(&mut secret).map_err(|error| LoadError::Host(error.to_string()))?;
    let pulses: Box<[_]> = devices.iter().map(|_| Arc::new(Pulse::new())).collect();
    let replicas = devices.into_iter().zip(&pulses).enumerate();
    let engines = replicas.map(|(replica, (device, pulse))| {
        let (metrics, pulse) = (measured.of_replica(replica), Arc::clone(pulse));
        engine_thread::start(device, limits.clone(), secret, metrics, pulse)
    });
    let mailboxes = engines.collect::<Result<_, _>>();
    let dispatch = Dispatch::new(mailboxes.map_err(|error| LoadError::Host(error.to_string()))?);
    let mut eos: Vec<TokenId> = defaults.eos.iter().copied().map(TokenId).collect();
    eos.sort_unstable();
    eos.dedup();
    let generator = Generator::new(
        dispatch.clone(),
        tokenizer.clone(),
        eos.clone().into(),
        settings.request_timeout,
    );
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    let served = Served {
        name: name(settings, source),
        created: since_epoch.unwrap_or_default().as_secs(),
        context,
        vocabulary: profile.vocabulary,
        candidates: profile.candidates,
        eos,
        defaults,
        tokenizer,
        template,
        generator,
        pulses,
    };
    let served = Arc::new(served);
    Ok((Opened { served, dispatch }, profile, golden))
}

/// Compiles what the device needs, as whoever was refused would. What it says goes where our own lines go.
fn prepare(arguments: &[String]) -> Result<(), LoadError> {
    let failed = |why: String| {
        let command = arguments.join(" ");
        LoadError::Prepare(format!("appliance {command}: {why}"))
    };
    tracing::info!(command = arguments.join(" "), "preparing");
    let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let ended = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .status();
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(status.to_string())),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Runs `open`, and tells how far the weights are meanwhile.
fn watched<T>(
    weights: &Weights,
    metrics: &Metrics,
    progress: &Progress,
    open: impl FnOnce() -> T,
) -> T {
    let reading = weights.progress();
    let (done, is_done) = sync_channel::<()>(1);
    thread::scope(|scope| {
        scope.spawn(move || {
            let start = Instant::now();
            let mut before = 0;
            loop {
                let over = is_done.recv_timeout(TELL) != Err(RecvTimeoutError::Timeout);
                let (read, total) = (reading.read(), reading.total());
                let seconds = start.elapsed().as_secs_f64();
                metrics.loaded(read - before, read, seconds);
                before = read;
                if over {
                    let (mib, mib_per_second) = (read >> 20, rate(read, seconds) >> 20);
                    tracing::info!(mib, seconds, mib_per_second, "weights read");
                    return;
                }
                if let Some(percent) = (read * 100).checked_div(total) {
                    progress.say(&format!(
                        "the weights are being loaded: {percent} % of {} MiB, {} MiB/s",
                        total >> 20,
                        rate(read, seconds) >> 20
                    ));
                }
            }
        });
        let opened = open();
        drop(done);
        opened
    })
}

/// Bytes a second.
pub(crate) fn rate(bytes: u64, seconds: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "it is shown, rounded to more than what is lost"
    )]
    let rate = (bytes as f64 / seconds.max(1e-3)) as u64;
    rate
}

/// What the settings want of a device for this model.
fn demand(settings: &Resolved, decoder: &Decoder) -> Result<Demand, LoadError> {
    let most = decoder.context;
    let asked = settings.max_context.map_or(most, |context| context.get());
    if asked > most {
        return Err(LoadError::Context { asked, most });
    }
    Ok(Demand {
        context: asked,
        rows: settings.max_running.get(),
        step_tokens: settings.step_tokens.get(),
        kv_tokens: settings.kv_tokens,
        cores: settings.cores.map(|cores| cores.get()),
    })
}

/// What the engine takes on, on a device with this profile.
fn limits(settings: &Resolved, demand: &Demand, profile: &Profile) -> Limits {
    let held = u64::from(profile.pages) * u64::from(profile.page_tokens);
    let held = u32::try_from(held).unwrap_or(u32::MAX);
    Limits {
        queued_requests: settings.max_queue,
        queued_tokens: settings.max_queue_tokens,
        running: demand.rows,
        context: demand.context.min(profile.context.most()).min(held),
        step_tokens: demand.step_tokens,
        step_time: settings.step_time,
    }
}
