//! Settings to a running server: each part is built from its own settings, in the order in which it
//! is needed.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::Lost;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::api;
use crate::config::{ConfigError, Flags, Live, LogFormat, Resolved};
use crate::drain::{self, Cut, Signals};
use crate::drivers::{self, DriverError};
use crate::health::{Health, Phase};
use crate::http;
use crate::metrics::Metrics;
use crate::opening::{self, LoadError, Opened, Progress};
use crate::served::Served;

/// Threads of the event loop. The device's own threads need the cores more; with two, one that
/// parses a large request does not keep the other from answering.
const EVENT_LOOP_THREADS: usize = 2;

/// Threads for what takes milliseconds: tokenizing, templates.
const BLOCKING_THREADS: usize = 8;

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
    let model = settings.model.to_string();
    tracing::info!(%address, model, "listening; loading the model");

    let metrics = Metrics::new();
    metrics.phase("loading");
    tokio::spawn(metrics.clone().keep_rendered());
    let (phase, view) = watch::channel(Phase::Loading("the model is being loaded".to_owned()));
    let context = api::Context {
        health: Health::new(view),
        metrics: metrics.clone(),
        settings: Live::new((*settings).clone()),
    };
    let http = http::Server::start(listener, api::router(context), &settings, metrics.clone());

    let progress = {
        let phase = phase.clone();
        Progress::new(move |what| {
            phase.send_replace(Phase::Loading(what.to_owned()));
        })
    };
    let opened = tokio::select! {
        opened = opening::open(&settings, &metrics, &progress) => opened,
        () = signals.next() => return Ok(()),
    };
    let Opened { served, dispatch } = opened.map_err(|why| Failure::Model { model, why })?;
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

fn announce(address: SocketAddr, served: &Served, took: Duration) {
    let seconds = took.as_secs_f64();
    tracing::info!(%address, model = served.name, seconds, "ready");
    tracing::info!(
        "try: curl -N http://{address}/v1/chat/completions -H 'content-type: application/json' \
         -d '{{\"messages\":[{{\"role\":\"user\",\"content\":\"Why is the sky blue?\"}}],\"stream\":true}}'"
    );
}
