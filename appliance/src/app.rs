//! Settings to a running server: each part is built from its own settings, in the order in which it
//! is needed.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use engine::Lost;
use tokio::sync::{mpsc, watch};

use crate::access::{Access, AccessError};
use crate::api::{self, Control};
use crate::config::{ConfigError, Flags, Live, Resolved, Scope};
use crate::dispatch::Ending;
use crate::drain::{self, Cut, Signals};
use crate::drivers::{self, DriverError};
use crate::follow::{Reload, Sources, SourcesError, Unread, Wanted};
use crate::health::{Health, Phase};
use crate::host::cloudwatch::CloudWatch;
use crate::host::door::{self, Door};
use crate::host::lifecycle::{Leave, Life};
use crate::host::{AccountError, systemd};
use crate::http::{self, Tls, TlsError};
use crate::log;
use crate::metrics::Metrics;
use crate::opening::{self, LoadError, Opened, Place, Progress};
use crate::served::Served;
use crate::starts::Starts;
use crate::status::Board;
use crate::swap::{Failed, Swap};

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
    /// There is no account to take settings from.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// The certificate or its key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The keys or the ledger cannot be used.
    #[error(transparent)]
    Access(#[from] AccessError),
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

impl From<SourcesError> for Failure {
    fn from(error: SourcesError) -> Self {
        match error {
            SourcesError::Config(error) => error.into(),
            SourcesError::Account(error) => error.into(),
        }
    }
}

impl Failure {
    /// What the environment has to say before the device can be used, if that is all that is wrong: the
    /// program is to start itself again.
    fn environment(&self) -> Option<&[(&'static str, OsString)]> {
        match self {
            Self::Model {
                why: LoadError::Driver(DriverError::Environment { variables, .. }),
                ..
            } => Some(variables),
            _ => None,
        }
    }

    /// Whether another start may find the device well.
    fn is_of_device(&self) -> bool {
        matches!(self, Self::Model { why, .. } if why.is_of_device())
    }

    /// Whether another start may go better as things are: the device or the host failed, not the model.
    fn may_pass(&self) -> bool {
        self.is_of_device() || self.environment().is_some() || !matches!(self, Self::Model { .. })
    }

    /// [`USAGE`] where starting again with the same settings is no use, 70 where the device failed,
    /// 1 where the host may be better next time, or not all requests had finished.
    pub fn code(&self) -> ExitCode {
        match self {
            Self::Lost(_) => LOST.into(),
            Self::Model { .. } if self.is_of_device() => LOST.into(),
            Self::Config(_)
            | Self::Account(_)
            | Self::Tls(_)
            | Self::Access(_)
            | Self::Model { .. } => USAGE.into(),
            Self::Listen { .. } | Self::Host(_) | Self::Cut => ExitCode::FAILURE,
        }
    }
}

/// `appliance serve`: until a signal ends it.
///
/// # Errors
/// Why it ended otherwise.
pub fn serve(flags: &Flags) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(EVENT_LOOP_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("http")
        .enable_all()
        .build()?;
    let door = OnceLock::new();
    let ended = runtime.block_on(async {
        match flags.print_config {
            true => print(flags).await,
            false => run(flags, &door).await,
        }
    });
    // A load that was interrupted must not keep the process.
    runtime.shutdown_background();
    let Some(door) = door.into_inner() else {
        return ended;
    };
    if let Err(failure) = &ended
        && let Some(variables) = failure.environment()
    {
        return Err(door.start_again(variables).into());
    }
    systemd::ended(ended.as_ref().err());
    ended
}

/// Shows the settings and where each came from.
async fn print(flags: &Flags) -> Result<(), Failure> {
    let sources = Sources::find(flags).await?;
    let (raw, why) = sources.all().await?;
    print!("{raw}");
    match why {
        None => {}
        Some(Unread::Refused(why)) => return Err(why.into()),
        Some(Unread::Away(why)) => eprintln!("appliance: {why}: what it has is not shown"),
    }
    Resolved::parse(&raw)?;
    Ok(())
}

async fn run(flags: &Flags, door: &OnceLock<Door>) -> Result<(), Failure> {
    let start = Instant::now();
    let early = Resolved::early(&flags.layers()?.raw())?;
    let level = log::begin(early.log_format, early.log_level);
    let unknown = Flags::unknown_variables().into_iter();
    for (variable, nearest) in unknown.filter(|(name, _)| !drivers::VARIABLES.contains(&&**name)) {
        tracing::warn!(variable, nearest, "this environment variable is no setting");
    }
    let mut signals = Signals::take()?;
    let sources = Arc::new(Sources::find(flags).await?);
    let early = Resolved::early(&sources.early()?)?;
    let tls = Tls::open(&early)?;
    let address = early.listen;
    let opened = Door::open(address).map_err(|why| Failure::Listen { address, why })?;
    let listener = door.get_or_init(|| opened).listener()?;
    let address = listener.local_addr()?;
    tracing::info!(%address, "listening");

    let (phase, view) = watch::channel(Phase::Loading("the settings are being read".to_owned()));
    let (ask, asked) = mpsc::channel(RELOADS);
    let metrics = Metrics::new();
    let settings = Live::new(early.clone());
    let life = Life::begin(sources.account.as_ref(), &settings).await;
    let server = Server {
        life,
        address,
        access: Access::open(&early, metrics.clone())?,
        settings,
        level,
        phase,
        metrics,
        board: Board::new(),
        sources,
    };
    server.metrics.phase("loading");
    tokio::spawn(server.metrics.clone().keep_rendered());
    tokio::spawn(server.access.clone().follow(server.settings.clone()));
    server.keep_status_written();
    let health = Health::new(view, server.life.duty());
    systemd::attend(health.clone());
    server.life.keep(health.clone());
    server.report_bad_starts().await;
    let context = api::Context {
        health,
        metrics: server.metrics.clone(),
        settings: server.settings.clone(),
        access: server.access.clone(),
        control: Control {
            board: server.board.clone(),
            ask,
        },
    };
    let http = http::Server::start(
        listener,
        tls,
        api::router(context),
        &early,
        server.metrics.clone(),
    );

    let cloudwatch = server.cloudwatch();
    let waiting = server.waiting();
    let mut wanted = tokio::select! {
        first = server.sources.first(&waiting, &server.board) => {
            server.follow(first?, asked)
        }
        leave = server.life.leave() => {
            server.end(Some(leave)).await;
            return Ok(());
        }
        () = signals.next() => {
            server.end(None).await;
            return Ok(());
        }
    };
    let opened = tokio::select! {
        opened = server.open(&mut wanted) => opened,
        leave = server.life.leave() => {
            server.end(Some(leave)).await;
            return Ok(());
        }
        () = signals.next() => {
            server.end(None).await;
            return Ok(());
        }
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(failure) => {
            if !failure.may_pass() {
                server.life.abandon(&failure.to_string()).await;
            }
            return Err(failure);
        }
    };
    server.announce(&opened.served, start.elapsed());
    let ended = server.serve(opened, wanted, http, signals).await;
    server.access.flush();
    if let Some(cloudwatch) = cloudwatch {
        cloudwatch.flush().await;
    }
    if ended.is_ok() {
        server.end(None).await;
    }
    ended
}

/// Requests to read the settings anew that may wait.
const RELOADS: usize = 16;

/// How long after a swap that failed without harm it is tried again: a store that was away may be back.
const OWED: Duration = Duration::from_mins(5);

/// A server's life: what it is made of, and what it is told.
#[derive(Debug)]
struct Server {
    life: Life,
    address: SocketAddr,
    access: Access,
    settings: Live,
    level: log::Level,
    phase: watch::Sender<Phase>,
    metrics: Metrics,
    board: Board,
    sources: Arc<Sources>,
}

/// Settings that are wanted, whenever they change.
type Changes = watch::Receiver<Arc<Wanted>>;

impl Server {
    /// Tells the parameter store what the server says of itself, if it may.
    fn keep_status_written(&self) {
        let instance = self
            .sources
            .account
            .as_ref()
            .and_then(|account| account.identity.instance.clone());
        if let (Some(parameters), Some(instance)) = (self.sources.parameters(), instance) {
            tokio::spawn(
                self.board
                    .clone()
                    .keep_written(parameters.clone(), instance),
            );
        }
    }

    /// Tells CloudWatch how the server does, where there is an account.
    fn cloudwatch(&self) -> Option<CloudWatch> {
        let account = self.sources.account.as_ref()?;
        let (settings, metrics) = (self.settings.clone(), self.metrics.clone());
        Some(CloudWatch::start(account, settings, metrics))
    }

    /// An instance on which the program ends badly again and again is replaced by its group.
    async fn report_bad_starts(&self) {
        let limit = self.settings.now().unhealthy_after.get();
        let Some(state) = self.sources.state().filter(|_| !door::is_started_again()) else {
            return;
        };
        if let Some(bad) = Starts::begin(state, limit) {
            let why = format!("the program has ended badly {bad} times within ten minutes");
            self.life.unhealthy(&why).await;
        }
    }

    /// The server ends as it should: whoever waits for that is told, last of all.
    async fn end(&self, before_ready: Option<Leave>) {
        if let Some(leave) = before_ready {
            tracing::warn!("{leave} before the model is ready");
        }
        if let Some(state) = self.sources.state() {
            Starts::end(state);
        }
        self.life.gone().await;
    }

    /// Has the settings followed from `first` on.
    fn follow(&self, first: Wanted, asked: mpsc::Receiver<Reload>) -> Changes {
        let (sender, changes) = watch::channel(Arc::new(first));
        let (board, metrics) = (self.board.clone(), self.metrics.clone());
        tokio::spawn(Arc::clone(&self.sources).follow(sender, asked, board, metrics));
        changes
    }

    /// Tells who asks for work what is being done instead.
    fn boot_progress(&self) -> Progress {
        let (phase, board, metrics) =
            (self.phase.clone(), self.board.clone(), self.metrics.clone());
        Progress::new(move |what| {
            tracing::info!("{what}");
            board.state("loading", what);
            metrics.phase("loading");
            phase.send_replace(Phase::Loading(what.to_owned()));
        })
    }

    /// Tells everybody what is waited for.
    fn waiting(&self) -> Progress {
        let (phase, board, metrics) =
            (self.phase.clone(), self.board.clone(), self.metrics.clone());
        Progress::new(move |why| {
            board.state("waiting", why);
            metrics.phase("waiting");
            phase.send_replace(Phase::Waiting(why.to_owned()));
        })
    }

    /// Tells the operator what is being done while another model serves.
    fn swap_progress(&self) -> Progress {
        let board = self.board.clone();
        Progress::new(move |what| {
            tracing::info!("the next model: {what}");
            board.state("swapping", what);
        })
    }

    /// Settings that hold at once do from here on.
    ///
    /// # Errors
    /// The file of keys is no good: those of before stay.
    fn apply(&self, wanted: &Wanted) -> Result<(), AccessError> {
        self.level.set(wanted.settings.log_level);
        self.settings.replace(Arc::clone(&wanted.settings));
        self.access.apply(&self.settings)
    }

    /// Opens the first model. Where settings can change by themselves it waits for better ones if those
    /// that it has cannot be served.
    async fn open(&self, wanted: &mut Changes) -> Result<Opened, Failure> {
        loop {
            let now = Arc::clone(&wanted.borrow_and_update());
            self.apply(&now)?;
            let progress = self.boot_progress();
            let opened = opening::open(&now.settings, Place::Alone, &self.metrics, &progress).await;
            let why = match opened {
                Ok(opened) => {
                    self.phase
                        .send_replace(Phase::Ready(Arc::clone(&opened.served)));
                    self.metrics.phase("ready");
                    self.serves(&now);
                    return Ok(opened);
                }
                Err(why) => Failure::Model {
                    model: now.model(),
                    why,
                },
            };
            if why.environment().is_some()
                || why.is_of_device()
                || self.sources.parameters().is_none()
            {
                return Err(why);
            }
            tracing::error!("{why}; waiting for other settings");
            self.waiting().say(&why.to_string());
            self.life.abandon(&why.to_string()).await;
            if wanted.changed().await.is_err() {
                return Err(why);
            }
        }
    }

    /// A model serves with these settings.
    fn serves(&self, wanted: &Wanted) {
        self.board.serves(&wanted.model(), &wanted.digest());
        self.sources.remember(wanted);
    }

    fn announce(&self, served: &Served, took: Duration) {
        let (seconds, address) = (took.as_secs_f64(), self.address);
        tracing::info!(%address, model = served.name, seconds, "ready");
        if !self.access.has_keys() && !address.ip().is_loopback() {
            tracing::warn!(%address, "whoever can connect is served: set keys, or listen on 127.0.0.1");
        }
        if self.access.forgets_budgets() {
            tracing::warn!("keys have budgets, which begin anew with every start: set ledger");
        }
        let scheme = match self.settings.now().tls_certificate {
            Some(_) => "https",
            None => "http",
        };
        tracing::info!(
            "try: curl -N {scheme}://{address}/v1/chat/completions -H 'content-type: application/json' \
             -d '{{\"messages\":[{{\"role\":\"user\",\"content\":\"Why is the sky blue?\"}}],\"stream\":true}}'"
        );
    }

    /// Serves until a signal or the loss of the device, and follows the settings meanwhile.
    async fn serve(
        &self,
        opened: Opened,
        mut wanted: Changes,
        http: http::Server,
        mut signals: Signals,
    ) -> Result<(), Failure> {
        let mut applied = Arc::clone(&wanted.borrow());
        let mut current = Some(opened);
        // Whether a model is wanted that could not be had without harm to the one that serves.
        let mut owed = false;
        loop {
            let Some(ending) = current.as_ref().map(|opened| opened.dispatch.ending()) else {
                return Err(Failure::Host(io::Error::other("no model serves")));
            };
            tokio::select! {
                ended = ending.ended() => {
                    let ended_alone = || Lost(engine::Cause("the engine ended".to_owned()));
                    return self.fail(ended.err().unwrap_or_else(ended_alone), &ending, http).await;
                }
                () = signals.next() => return self.drain(current, None, http, signals).await,
                leave = self.life.leave() => return self.drain(current, Some(leave), http, signals).await,
                Ok(()) = wanted.changed() => {}
                () = tokio::time::sleep(OWED), if owed => {}
            }
            owed = false;
            let new = Arc::clone(&wanted.borrow_and_update());
            if let Err(why) = self.apply(&new) {
                tracing::error!(audit = "keys", "{why}; the keys of before stay");
            }
            let changes = new.raw.changes(&applied.raw, Scope::Model);
            if changes.is_empty() {
                self.serves(&new);
                applied = new;
                continue;
            }
            tracing::info!(changes = changes.join(", "), "the model is being changed");
            let swapped = tokio::select! {
                swapped = self.swap(&mut current, &applied, &new) => swapped,
                () = signals.next() => return self.drain(current, None, http, signals).await,
                leave = self.life.leave() => return self.drain(current, Some(leave), http, signals).await,
                Err(lost) = ending.ended() => return self.fail(lost, &ending, http).await,
            };
            match swapped {
                Ok(()) => applied = new,
                Err(Failed::Kept(_)) => owed = true,
                Err(Failed::Restored(_)) => {}
                Err(Failed::Lost(why)) => {
                    let (model, why) = (applied.model(), why);
                    self.metrics.phase("failed");
                    self.phase.send_replace(Phase::Failed(why.to_string()));
                    return Err(Failure::Model { model, why });
                }
            }
        }
    }

    /// Puts the model of `new` in the place of the one that serves, and tells how it went.
    async fn swap(
        &self,
        current: &mut Option<Opened>,
        old: &Wanted,
        new: &Wanted,
    ) -> Result<(), Failed> {
        let start = Instant::now();
        let swap = Swap {
            phase: &self.phase,
            metrics: &self.metrics,
            progress: &self.swap_progress(),
            grace: new.settings.grace,
        };
        let swapped = swap.run(current, &old.settings, &new.settings).await;
        let (model, seconds) = (new.model(), start.elapsed().as_secs_f64());
        match &swapped {
            Ok(()) => {
                tracing::info!(model, seconds, "the model has been changed");
                self.metrics.swapped("done");
                self.serves(new);
            }
            Err(Failed::Kept(why) | Failed::Restored(why)) => {
                tracing::error!(model, "{why}; the model before stays");
                self.metrics.swapped("kept");
                self.board.kept(&format!("cannot serve {model}: {why}"));
            }
            Err(Failed::Lost(why)) => {
                tracing::error!(model, "{why}");
                self.metrics.swapped("lost");
                self.board.state("failed", &why.to_string());
            }
        }
        swapped
    }

    /// The device is lost: everybody gets to know.
    async fn fail(&self, lost: Lost, ending: &Ending, http: http::Server) -> Result<(), Failure> {
        self.metrics.phase("failed");
        self.board.state("failed", &lost.to_string());
        drain::fail(&lost, ending, &self.phase, http).await;
        Err(lost.into())
    }

    /// Lets what runs finish, then closes. If the instance is to `leave`, whoever sends requests here is given
    /// the time to notice first.
    async fn drain(
        &self,
        current: Option<Opened>,
        leave: Option<Leave>,
        http: http::Server,
        mut signals: Signals,
    ) -> Result<(), Failure> {
        self.metrics.phase("draining");
        self.board.state("draining", "");
        let Some(Opened { served, dispatch }) = current else {
            return Ok(());
        };
        let (ending, settings) = (dispatch.ending(), self.settings.now());
        let mut grace = settings.grace;
        if let Some(leave) = leave {
            let (delay, left) = leave.times(&settings);
            grace = left;
            let (delay_s, grace_s) = (delay.as_secs(), grace.as_secs());
            tracing::warn!(
                delay_s,
                grace_s,
                "{leave}: not ready any more, and still serving for a while"
            );
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = signals.next() => {}
                Err(lost) = ending.ended() => return self.fail(lost, &ending, http).await,
            }
        }
        let drained = drain::drain(served, &ending, &self.phase, http, grace, &mut signals).await;
        drained.map_err(|cut| match cut {
            Cut::Lost(lost) => lost.into(),
            Cut::Now => Failure::Cut,
        })?;
        tracing::info!("drained");
        Ok(())
    }
}
