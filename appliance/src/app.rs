//! Settings to a running server: each part is built from its own settings, in the order in which it
//! is needed.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use engine::{
    Constraint, Demand, Limits, Lost, Penalties, Profile, Request, Sampling, Stop, TokenId,
};
use model::{Decoder, GenerationDefaults, Weights};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::api;
use crate::config::{ConfigError, Flags, LogFormat, Resolved};
use crate::device_metrics;
use crate::dispatch::Dispatch;
use crate::drain::{self, Cut, Signals};
use crate::drivers::{self, DriverError, Load};
use crate::engine_thread;
use crate::generation::{Ask, Generator, Piece, Reason, Refusal};
use crate::health::{Health, Phase, Pulse};
use crate::http;
use crate::metrics::Metrics;
use crate::served::Served;
use crate::source::{Hub, SourceError};
use crate::text::{Template, TemplateError, TextError, Tokenizer};

/// Threads of the event loop. The device's own threads need the cores more; with two, one that
/// parses a large request does not keep the other from answering.
const EVENT_LOOP_THREADS: usize = 2;

/// Threads for what takes milliseconds: tokenizing, templates.
const BLOCKING_THREADS: usize = 8;

/// How long the model may take to produce its first token.
const SELF_TEST: Duration = Duration::from_secs(60);

/// How long an engine whose self-test failed has to say that its device is lost.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Exit code of a command line or settings that are no use (`EX_USAGE` of sysexits.h).
pub const USAGE: u8 = 64;

/// Exit code of a lost device (`EX_SOFTWARE`).
const LOST: u8 = 70;

/// Why a server ended, or never began.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The settings are not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model cannot be served.
    #[error("cannot serve {model}: {why}")]
    Model {
        /// Its source.
        model: String,
        /// What is wrong with it.
        #[source]
        why: LoadError,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {why}; choose another address with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the host said.
        why: io::Error,
    },
    /// The host lacks what any process needs.
    #[error("cannot start: {0}")]
    Host(#[from] io::Error),
    /// The device was lost while it served.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// A second signal cut the drain short.
    #[error("ended by a second signal, before all requests had finished")]
    Cut,
}

impl Failure {
    /// What the environment has to say before the device can be used, if that is all that is wrong: the
    /// program is to start itself again.
    pub fn environment(&self) -> Option<&[(&'static str, OsString)]> {
        match self {
            Self::Model {
                why: LoadError::Driver(DriverError::Environment { variables, .. }),
                ..
            } => Some(variables),
            _ => None,
        }
    }

    /// [`USAGE`] where starting again with the same settings is no use, 70 where the device failed,
    /// 1 where the host may be better next time, or not all requests had finished.
    pub fn code(&self) -> ExitCode {
        match self {
            Self::Lost(_)
            | Self::Model {
                why: LoadError::Driver(DriverError::Device { .. }) | LoadError::Lost(_),
                ..
            } => LOST.into(),
            Self::Config(_) | Self::Model { .. } => USAGE.into(),
            Self::Listen { .. } | Self::Host(_) | Self::Cut => ExitCode::FAILURE,
        }
    }
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its files cannot be had.
    #[error(transparent)]
    Source(#[from] SourceError),
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
    /// The host has no room for the engine's thread, or no randomness.
    #[error("the host cannot start the engine: {0}")]
    Host(String),
    /// The device was lost as it was to produce a token.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// It did not produce a token.
    #[error("the self-test failed: {0}")]
    SelfTest(String),
}

/// `appliance serve`: until a signal ends it.
///
/// # Errors
/// Why it ended otherwise.
pub fn serve(flags: &Flags) -> Result<(), Failure> {
    let raw = flags.resolve()?;
    if flags.print_config {
        print!("{raw}");
    }
    let settings = Resolved::parse(&raw)?;
    if flags.print_config {
        return Ok(());
    }
    log(&settings);
    let unknown = Flags::unknown_variables().into_iter();
    for (variable, nearest) in unknown.filter(|(name, _)| !drivers::VARIABLES.contains(&&**name)) {
        tracing::warn!(variable, nearest, "this environment variable is no setting");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(EVENT_LOOP_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("http")
        .enable_all()
        .build()?;
    let ended = runtime.block_on(run(Arc::new(settings)));
    // A load that was interrupted must not keep the process.
    runtime.shutdown_background();
    ended
}

/// Log lines and panics go to standard error, as the settings say.
fn log(settings: &Resolved) {
    let lines = tracing_subscriber::fmt()
        .with_max_level(settings.log_level)
        .with_target(false)
        .with_writer(io::stderr);
    let set = match settings.log_format {
        LogFormat::Human => {
            let lines = lines.with_ansi(io::stderr().is_terminal());
            tracing::subscriber::set_global_default(lines.finish())
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_span_list(false);
            tracing::subscriber::set_global_default(lines.finish())
        }
    };
    debug_assert!(set.is_ok(), "logging is set up once");
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
}

async fn run(settings: Arc<Resolved>) -> Result<(), Failure> {
    let start = Instant::now();
    let mut signals = Signals::take()?;
    let address = settings.listen;
    let listener =
        (TcpListener::bind(address).await).map_err(|why| Failure::Listen { address, why })?;
    let address = listener.local_addr()?;
    let (model, name) = (settings.model.to_string(), name(&settings));
    tracing::info!(%address, model, "listening; loading the model");

    let metrics = Metrics::new(&name);
    metrics.phase("loading");
    tokio::spawn(metrics.clone().keep_rendered());
    let (phase, view) = watch::channel(Phase::Loading("the model is being loaded".to_owned()));
    let pulses: Arc<[_]> = (0..settings.replicas.get())
        .map(|_| Arc::new(Pulse::new()))
        .collect();
    let context = api::Context {
        health: Health::with_pulses(view, Arc::clone(&pulses)),
        metrics: metrics.clone(),
        settings: Arc::clone(&settings),
    };
    let http = http::Server::start(listener, api::router(context), &settings, metrics.clone());

    let ready = tokio::select! {
        ready = ready(&settings, &name, &metrics, pulses) => ready,
        () = signals.next() => return Ok(()),
    };
    let Ready { served, dispatch } = ready.map_err(|why| Failure::Model { model, why })?;
    metrics.phase("ready");
    phase.send_replace(Phase::Ready(Arc::clone(&served)));
    announce(address, &served, start.elapsed());

    tokio::select! {
        ended = dispatch.ended() => {
            let lost = ended.err().unwrap_or_else(|| Lost(engine::Cause("the engine ended".to_owned())));
            metrics.phase("failed");
            drain::fail(&lost, &dispatch, &phase, http).await;
            Err(lost.into())
        }
        () = signals.next() => {
            metrics.phase("draining");
            let grace = settings.grace;
            let drained = drain::drain(served, &dispatch, &phase, http, grace, &mut signals).await;
            drained.map_err(|cut| match cut {
                Cut::Lost(lost) => lost.into(),
                Cut::Now => Failure::Cut,
            })?;
            tracing::info!("drained");
            Ok(())
        }
    }
}

/// The model's name in the API.
fn name(settings: &Resolved) -> String {
    let name = settings.served_model_name.clone();
    name.unwrap_or_else(|| settings.model.name())
}

fn announce(address: SocketAddr, served: &Served, took: Duration) {
    let seconds = took.as_secs_f64();
    tracing::info!(%address, model = served.name, seconds, "ready");
    tracing::info!(
        "try: curl -N http://{address}/v1/chat/completions -H 'content-type: application/json' \
         -d '{{\"messages\":[{{\"role\":\"user\",\"content\":\"Why is the sky blue?\"}}],\"stream\":true}}'"
    );
}

/// A model that has produced a token, and the engines it runs on.
struct Ready {
    served: Arc<Served>,
    dispatch: Dispatch,
}

/// Loads the model off the event loop and has it produce a token.
async fn ready(
    settings: &Arc<Resolved>,
    name: &str,
    metrics: &Metrics,
    pulses: Arc<[Arc<Pulse>]>,
) -> Result<Ready, LoadError> {
    let loading = {
        let (settings, name) = (Arc::clone(settings), name.to_owned());
        let metrics = metrics.clone();
        tokio::task::spawn_blocking(move || load(&settings, name, &metrics, &pulses))
    };
    let loaded = loading.await;
    let (ready, profile) = loaded.map_err(|error| LoadError::Host(error.to_string()))??;
    if let Err(why) = self_test(&ready.served).await {
        let ended = tokio::time::timeout(LAST_WORDS, ready.dispatch.ended()).await;
        return Err(match ended {
            Ok(Err(lost)) => lost.into(),
            Ok(Ok(())) | Err(_) => why,
        });
    }
    metrics.serve(
        ready.served.context,
        &profile,
        settings.replicas.get() as usize,
    );
    Ok(ready)
}

/// From the model's source to engines that turn.
fn load(
    settings: &Resolved,
    name: String,
    metrics: &Metrics,
    pulses: &[Arc<Pulse>],
) -> Result<(Ready, Profile), LoadError> {
    let driver = drivers::find(settings.backend)?;
    if let Some(reader) = driver.gauges() {
        let kept = device_metrics::keep(reader, metrics.clone());
        kept.map_err(|error| LoadError::Host(error.to_string()))?;
    }
    let dir = settings.model.local(&hub(settings))?;
    let decoder = Decoder::open(&dir)?;
    let defaults = GenerationDefaults::open(&dir)?;
    let tokenizer = Tokenizer::open(&dir)?;
    let template = Template::open(&dir)?;
    let weights = Weights::open(&dir, &decoder)?;
    let demand = demand(settings, &decoder)?;
    let devices = driver.open(&Load {
        precision: settings.dtype,
        replicas: settings.replicas.get(),
        artifacts: settings.artifacts.as_deref(),
        patience: settings.device_timeout,
        source: &settings.model.to_string(),
        decoder: &decoder,
        weights: &weights,
        demand: &demand,
    })?;
    let Some(profile) = devices.first().map(|device| device.profile().clone()) else {
        return Err(LoadError::Host("no device was opened".to_owned()));
    };
    let limits = limits(settings, &demand, &profile);
    let context = limits.context;
    let mut secret = [0; 16];
    getrandom::fill(&mut secret).map_err(|error| LoadError::Host(error.to_string()))?;
    let replicas = devices.into_iter().zip(pulses).enumerate();
    let engines = replicas.map(|(replica, (device, pulse))| {
        let (metrics, pulse) = (metrics.of_replica(replica), Arc::clone(pulse));
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
        name,
        created: since_epoch.unwrap_or_default().as_secs(),
        context,
        vocabulary: profile.vocabulary,
        candidates: profile.candidates,
        eos,
        defaults,
        tokenizer,
        template,
        generator,
    };
    let served = Arc::new(served);
    Ok((Ready { served, dispatch }, profile))
}

fn hub(settings: &Resolved) -> Hub {
    Hub::new(
        settings.hub_endpoint.clone(),
        settings.hub_token.clone(),
        settings.cache_dir.clone(),
    )
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

/// One token through the real path: what a client would be told is what is tested.
async fn self_test(served: &Served) -> Result<(), LoadError> {
    let failed = |why: String| LoadError::SelfTest(why);
    let prompt = served.tokenizer.encode("Hello", true)?;
    let prompt = match prompt.is_empty() {
        true => vec![TokenId(0)],
        false => prompt,
    };
    let answered = async {
        let mut generation = (served.generator.start(greeting(prompt)).await)
            .map_err(|refusal: Refusal| failed(refusal.to_string()))?;
        let mut tokens = 0;
        while let Some(piece) = generation.next().await {
            match piece {
                Piece::Token { .. } => tokens += 1,
                Piece::Finished {
                    reason: Reason::Failed(why),
                    ..
                } => return Err(failed(why)),
                _ => {}
            }
        }
        match tokens {
            0 => Err(failed("the model produced no token".to_owned())),
            _ => Ok(()),
        }
    };
    let answered = tokio::time::timeout(SELF_TEST, answered).await;
    answered.map_err(|_| failed(format!("no token within {} s", SELF_TEST.as_secs())))?
}

/// Asks for one token after `prompt`, the most likely.
fn greeting(prompt: Vec<TokenId>) -> Ask {
    Ask {
        arrived: Instant::now(),
        request: Request {
            prompt: prompt.into(),
            choices: 1,
            sampling: Sampling {
                temperature: 0.0,
                top_k: None,
                top_p: 1.0,
                min_p: 0.0,
                penalties: Penalties::NONE,
                bias: Arc::default(),
                seed: 0,
            },
            stop: Stop {
                tokens: Arc::default(),
                min_tokens: 0,
                max_tokens: 1,
            },
            logprobs: None,
            prompt_logprobs: None,
            constraint: Constraint::Free,
            priority: 0,
            deadline: None,
            cache_salt: 0,
        },
        stops: Vec::new(),
        include_stop: false,
        skip_special: true,
    }
}
