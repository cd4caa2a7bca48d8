//! What the server counts and measures, under the names that dashboards know: vLLM's where vLLM has
//! the thing, `appliance_` where it has not. Rendered into a buffer off the request path.

mod distribution;
mod snapshot;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use engine::{Event, Finish, Profile, Refused, Stats};
use prometheus::core::Collector;
use prometheus::{
    CounterVec, Encoder as _, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use self::distribution::Distribution;
pub(crate) use self::snapshot::{Counts, Device, ModelSnapshot, Snapshot};
use crate::access::Tally;
use crate::engine_thread::Shape;
use crate::opening::rate;

/// How often the buffer is rendered at the most. Inference gateways scrape every 50 ms and call what
/// is older than 200 ms stale.
const RENDER: Duration = Duration::from_millis(50);

/// vLLM's edges for the time to the first token.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// vLLM's edges for the time between tokens.
const NEXT_TOKEN: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
/// vLLM's edges for the times of whole requests.
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
/// vLLM's edges for the tokens of a step.
const STEP_TOKENS: &[f64] = &[
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
];
/// vLLM's edges for the number of choices.
const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
/// Edges for the time an HTTP request takes: those of the exporter that vLLM uses.
const HTTP: &[f64] = &[0.1, 0.5, 1.0];

/// All metrics of the server. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    makers: Makers,
    rendered: RwLock<Bytes>,
    changed: AtomicBool,
    http: Http,
    keys: Keys,
    /// The numbers of the device itself.
    device: Mutex<DeviceText>,
    /// Whether somebody reads them.
    device_is_read: AtomicBool,
    /// The model that is served, and its own registry.
    model: RwLock<Option<Arc<Model>>>,
}

/// The numbers of the device itself, already rendered, and the two that are told elsewhere too.
#[derive(Default, Debug)]
struct DeviceText {
    text: Vec<u8>,
    told: Device,
}

/// The metrics of one model, for one of its replicas to write. Cloning shares them.
#[derive(Clone, Debug)]
pub struct ModelMetrics {
    server: Metrics,
    /// Made once the model has passed its self-test, which is not measured.
    model: Arc<OnceLock<Arc<Model>>>,
    /// Which replica writes through this.
    replica: usize,
}

impl Metrics {
    /// The metrics of a server that serves no model yet.
    pub fn new() -> Self {
        let makers = Makers::new(&[]);
        let http = Http::new(&makers);
        let keys = Keys::new(&makers);
        let metrics = Self {
            shared: Arc::new(Shared {
                makers,
                rendered: RwLock::default(),
                changed: AtomicBool::new(true),
                http,
                keys,
                device: Mutex::default(),
                device_is_read: AtomicBool::new(false),
                model: RwLock::default(),
            }),
        };
        metrics.refresh();
        metrics
    }

    /// The Prometheus text exposition, rendered off the request path: this only copies a reference.
    pub fn render(&self) -> Bytes {
        let rendered = self.shared.rendered.read();
        rendered.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps the buffer fresh, for ever.
    pub(crate) async fn keep_rendered(self) {
        let mut ticks = tokio::time::interval(RENDER);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.refresh();
        }
    }

    /// Renders the buffer if something has changed.
    fn refresh(&self) {
        if !self.shared.changed.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut text = Vec::new();
        let mut families = self.shared.makers.registry.gather();
        if let Some(model) = self.model() {
            families.extend(model.makers.registry.gather());
        }
        let encoded = TextEncoder::new().encode(&families, &mut text);
        match encoded {
            Ok(()) => {
                let device = self.shared.device.lock();
                text.extend_from_slice(&device.unwrap_or_else(PoisonError::into_inner).text);
                let mut rendered =
                    (self.shared.rendered.write()).unwrap_or_else(PoisonError::into_inner);
                *rendered = text.into();
            }
            Err(error) => tracing::error!("cannot render the metrics: {error}"),
        }
    }

    /// New settings were refused.
    pub(crate) fn settings_refused(&self) {
        self.shared.http.refused_settings.inc();
        self.change();
    }

    /// A change of the model was `done`, or the model before was `kept`, or `lost` too.
    pub(crate) fn swapped(&self, outcome: &str) {
        self.shared.http.swaps.with_label_values(&[outcome]).inc();
        self.change();
    }

    /// What a model that is being opened will be measured by.
    pub(crate) fn of_model(&self) -> ModelMetrics {
        ModelMetrics {
            server: self.clone(),
            model: Arc::default(),
            replica: 0,
        }
    }

    /// Whether somebody reads the device's numbers already; from now on somebody does.
    pub(crate) fn is_device_read(&self) -> bool {
        self.shared.device_is_read.swap(true, Ordering::Relaxed)
    }

    /// The numbers of the device itself are these now, in the exposition's text and in short.
    pub(crate) fn device(&self, text: Vec<u8>, told: Device) {
        let device = self.shared.device.lock();
        *device.unwrap_or_else(PoisonError::into_inner) = DeviceText { text, told };
        self.change();
    }

    /// An HTTP request was answered: by which route, and with which status.
    pub(crate) fn answered(&self, handler: &str, method: &str, status: u16, took: Duration) {
        let http = &self.shared.http;
        let class = format!("{}xx", status / 100);
        let labels = [handler, method, class.as_str()];
        http.requests.with_label_values(&labels).inc();
        let seconds = http.duration.with_label_values(&[handler, method]);
        seconds.observe(took.as_secs_f64());
        self.change();
    }

    /// A request was not let in: for what reason, and whose it was, if that is known.
    pub(crate) fn key_refused(&self, key: &str, project: &str, reason: &str) {
        let refused = &self.shared.keys.refused;
        refused.with_label_values(&[key, project, reason]).inc();
        self.change();
    }

    /// So many requests of a key are running.
    pub(crate) fn key_running(&self, key: &str, project: &str, running: u32) {
        let gauge = self.shared.keys.running.with_label_values(&[key, project]);
        gauge.set(running.into());
        self.change();
    }

    /// A request of a key has ended, and came to this.
    pub(crate) fn key_used(&self, key: &str, project: &str, used: &Tally) {
        let keys = &self.shared.keys;
        keys.requests.with_label_values(&[key, project]).inc();
        for (kind, count) in [
            ("input", used.input_tokens),
            ("cached", used.cached_tokens),
            ("output", used.output_tokens),
        ] {
            keys.tokens
                .with_label_values(&[key, project, kind])
                .inc_by(count);
        }
        let cost = keys.cost.with_label_values(&[key, project]);
        cost.inc_by(used.cost.dollars());
        self.change();
    }

    /// The ledger had no room for a line.
    pub(crate) fn ledger_lost(&self) {
        self.shared.keys.lost.inc();
        self.change();
    }

    /// So many connections are open.
    pub(crate) fn connections(&self, open: usize) {
        let open = i64::try_from(open).unwrap_or(i64::MAX);
        self.shared.http.connections.set(open);
        self.change();
    }

    /// So many more bytes of weights were read; all together so many in so many seconds.
    pub(crate) fn loaded(&self, more: u64, all: u64, seconds: f64) {
        let rate = i64::try_from(rate(all, seconds)).unwrap_or(i64::MAX);
        self.shared.http.load_bytes.inc_by(more);
        self.shared.http.load_rate.set(rate);
        self.change();
    }

    /// So many more data points will not be told to CloudWatch.
    pub(crate) fn cloudwatch_dropped(&self, count: usize) {
        self.shared.http.cloudwatch_dropped.inc_by(count as u64);
        self.change();
    }

    /// How many data points CloudWatch was not told.
    pub(crate) fn dropped_by_cloudwatch(&self) -> u64 {
        self.shared.http.cloudwatch_dropped.get()
    }

    /// The server has entered a phase of its life.
    pub(crate) fn phase(&self, phase: &str) {
        for (name, gauge) in PHASES.iter().zip(&self.shared.http.phases) {
            gauge.set(i64::from(*name == phase));
        }
        self.change();
    }

    /// The model that is served.
    fn model(&self) -> Option<Arc<Model>> {
        let model = self.shared.model.read();
        model.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self) {
        self.shared.changed.store(true, Ordering::Relaxed);
    }
}

impl ModelMetrics {
    /// The engine took a request on, or not.
    pub(crate) fn refused(&self, refused: &Refused) {
        if let Some(model) = self.model() {
            let reason = match refused {
                Refused::TooManyRequests { .. } => "max_num_queued_reqs",
                Refused::TooManyTokens { .. } => "max_num_queued_tokens",
                Refused::TooLong { .. } | Refused::Invalid { .. } | Refused::Lost(_) => return,
            };
            model.counts.rejections.with_label_values(&[reason]).inc();
        }
    }

    /// The same metrics, for the engine of this replica to write.
    pub(crate) fn of_replica(&self, replica: usize) -> Self {
        Self {
            replica,
            ..self.clone()
        }
    }

    /// From now on the model `name` is measured, in the place of whichever was before: it takes
    /// sequences of `context` tokens on `replicas` devices with this profile, `running` at once on each.
    pub(crate) fn serve(
        &self,
        name: &str,
        context: u32,
        profile: &Profile,
        running: u32,
        replicas: usize,
    ) {
        let mut model = Model::new(name, context, profile, replicas);
        model.slots = u64::from(running.min(profile.decode.most())) * replicas as u64;
        let model = Arc::new(model);
        let model = self.model.get_or_init(|| model);
        let served = self.server.shared.model.write();
        *served.unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(model));
        self.server.change();
        // Whoever sees that the server is ready finds them.
        self.server.refresh();
    }

    /// The engine of this replica stood like `before` and stands like `now`.
    pub(crate) fn stats(&self, before: &Stats, now: &Stats) {
        if let Some(model) = self.model() {
            model.stats(self.replica, before, now);
        }
    }

    /// Something happened to a choice of a request, at `now` on the engine's clock.
    pub(crate) fn happened(
        &self,
        shape: &Shape,
        choices: &mut [ChoiceTimes],
        choice: u32,
        event: &Event,
        now: Duration,
    ) {
        let first_of_request = choices.iter().all(|times| times.first.is_none());
        let Some(times) = choices.get_mut(choice as usize) else {
            return;
        };
        let model = self.model().filter(|_| shape.measured);
        match event {
            Event::Started { cached_tokens } => {
                times.started = Some(now);
                times.cached_tokens = *cached_tokens;
            }
            Event::Prompt(_) => {}
            Event::Token(_) => {
                if let Some(model) = model {
                    model.token(shape, times, first_of_request, now);
                }
                times.first.get_or_insert(now);
                times.last = Some(now);
                times.tokens += 1;
            }
            Event::Finished(finish) => {
                let ended = match finish {
                    Finish::Stop(_) => Ended::Stop,
                    Finish::Length => Ended::Length,
                    Finish::Deadline => Ended::Abort,
                    Finish::Failed(_) => Ended::Error,
                };
                self.finished(ended, shape, times, now);
            }
        }
    }

    /// A choice ended, and its client has the whole of it.
    pub(crate) fn finished(&self, ended: Ended, shape: &Shape, times: &ChoiceTimes, now: Duration) {
        if !shape.measured {
            return;
        }
        self.ended(ended);
        if let Some(model) = self.model() {
            model.finished(shape, times, now);
        }
    }

    /// A choice ended.
    pub(crate) fn ended(&self, ended: Ended) {
        if let Some(model) = self.model() {
            model
                .counts
                .success
                .with_label_values(&[ended.name()])
                .inc();
        }
    }

    /// The model's metrics, which are about to change.
    fn model(&self) -> Option<&Model> {
        self.server.change();
        self.model.get().map(|model| &**model)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// When what happened to a choice, on the engine's clock.
#[derive(Clone, Default, Debug)]
pub(crate) struct ChoiceTimes {
    started: Option<Duration>,
    first: Option<Duration>,
    last: Option<Duration>,
    tokens: u32,
    cached_tokens: u32,
    ended: bool,
}

impl ChoiceTimes {
    /// Whether nothing follows.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Nothing follows; whether that is news.
    pub(crate) fn end(&mut self) -> bool {
        !std::mem::replace(&mut self.ended, true)
    }
}

/// Why a choice ended, in vLLM's words.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    /// A stop token or a stop string.
    Stop,
    /// As long as it may be.
    Length,
    /// The client has gone, or the deadline has passed.
    Abort,
    /// The device failed it.
    Error,
}

impl Ended {
    const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Abort, Self::Error];

    fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

/// The phases of a server's life, as a label.
pub(crate) const PHASES: [&str; 5] = ["loading", "waiting", "ready", "draining", "failed"];

/// What HTTP and the server's life are measured by.
#[derive(Debug)]
struct Http {
    requests: IntCounterVec,
    duration: HistogramVec,
    connections: IntGauge,
    phases: [IntGauge; 5],
    refused_settings: IntCounter,
    swaps: IntCounterVec,
    load_bytes: IntCounter,
    load_rate: IntGauge,
    cloudwatch_dropped: IntCounter,
}

impl Http {
    fn new(makers: &Makers) -> Self {
        Self {
            requests: makers.add(IntCounterVec::new(
                makers.opts("http_requests_total", "HTTP requests answered"),
                &["handler", "method", "status"],
            )),
            duration: makers.add(HistogramVec::new(
                makers.edges(
                    "http_request_duration_seconds",
                    "From the head of a request to the head of its answer",
                    HTTP,
                ),
                &["handler", "method"],
            )),
            connections: makers.gauge("appliance_connections", "Connections that are open"),
            cloudwatch_dropped: makers.counter(
                "appliance_cloudwatch_dropped_total",
                "Data points that CloudWatch was not told, because it did not take them",
            ),
            phases: PHASES.map(|phase| {
                let opts = makers.opts("appliance_phase", "1 for the phase that the server is in");
                makers.add(IntGauge::with_opts(opts.const_label("phase", phase)))
            }),
            refused_settings: makers.counter(
                "appliance_config_rejected_total",
                "Times that new settings were refused; those before stayed in force",
            ),
            swaps: makers.counters(
                "appliance_model_swaps_total",
                "Changes of the model, by how they went",
                "outcome",
                &["done", "kept", "lost"],
            ),
            load_bytes: makers.counter(
                "appliance_load_bytes_total",
                "Bytes of weights that were read, from wherever they are",
            ),
            load_rate: makers.gauge(
                "appliance_load_bytes_per_second",
                "How fast the weights of the last model that was opened were read, or are being read",
            ),
        }
    }
}

/// What each key is measured by; there are no more series than keys.
#[derive(Debug)]
struct Keys {
    requests: IntCounterVec,
    refused: IntCounterVec,
    running: IntGaugeVec,
    tokens: IntCounterVec,
    cost: CounterVec,
    lost: IntCounter,
}

impl Keys {
    fn new(makers: &Makers) -> Self {
        let counters = |name, help, labels: &[&str]| {
            makers.add(IntCounterVec::new(makers.opts(name, help), labels))
        };
        Self {
            requests: counters(
                "appliance_key_requests_total",
                "Requests of a key that have ended",
                &["key", "project"],
            ),
            refused: counters(
                "appliance_key_refused_total",
                "Requests that were not let in; without a key if it is none of ours",
                &["key", "project", "reason"],
            ),
            running: makers.add(IntGaugeVec::new(
                makers.opts(
                    "appliance_key_running",
                    "Requests of a key that run or wait",
                ),
                &["key", "project"],
            )),
            tokens: counters(
                "appliance_key_tokens_total",
                "Tokens of a key's requests; cached ones count as input too",
                &["key", "project", "kind"],
            ),
            cost: makers.add(CounterVec::new(
                makers.opts("appliance_key_cost_dollars_total", "What they cost"),
                &["key", "project"],
            )),
            lost: makers.counter(
                "appliance_ledger_lost_total",
                "Lines that the ledger had no room for",
            ),
        }
    }
}

/// What the model is measured by.
#[derive(Debug)]
struct Model {
    makers: Makers,
    /// Its name in the API.
    name: String,
    /// Continuations that can run at once.
    slots: u64,
    /// Tells it from another of the same name.
    identity: Arc<()>,
    state: State,
    counts: Counters,
    times: Times,
    sizes: Sizes,
}

/// How the engines stand now, all replicas together.
#[derive(Debug)]
struct State {
    running: IntGauge,
    waiting: IntGauge,
    waiting_tokens: IntGauge,
    kv_usage: Gauge,
    /// One for each replica.
    engines: Mutex<Vec<Stats>>,
}

/// What has happened since the start.
#[derive(Debug)]
struct Counters {
    prefix_queries: IntCounter,
    prefix_hits: IntCounter,
    preemptions: IntCounter,
    prompt_tokens: IntCounter,
    cached_tokens: IntCounter,
    generation_tokens: IntCounter,
    padding_tokens: IntCounter,
    steps: IntCounter,
    rejections: IntCounterVec,
    success: IntCounterVec,
}

/// How long things take.
#[derive(Debug)]
struct Times {
    first_token: Histogram,
    inter_token: Histogram,
    exact_first_token: Distribution,
    exact_inter_token: Distribution,
    per_output_token: Histogram,
    request_per_output_token: Histogram,
    e2e: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
}

/// How large things are.
#[derive(Debug)]
struct Sizes {
    step_tokens: Histogram,
    prompt: Histogram,
    generation: Histogram,
    computed: Histogram,
    max_generation: Histogram,
    choices: Histogram,
    max_tokens: Histogram,
}

impl State {
    fn new(makers: &Makers, pages: u32, replicas: usize) -> Self {
        let idle = Stats {
            pages,
            ..Stats::default()
        };
        Self {
            running: makers.gauge("vllm:num_requests_running", "Continuations in execution"),
            waiting: makers.gauge("vllm:num_requests_waiting", "Requests that wait to be run"),
            waiting_tokens: makers.gauge(
                "appliance_waiting_tokens",
                "Prompt tokens of the requests that wait",
            ),
            kv_usage: makers.add(Gauge::with_opts(makers.opts(
                "vllm:kv_cache_usage_perc",
                "The part of the KV pages that some request holds, 1 being all",
            ))),
            engines: Mutex::new(vec![idle; replicas]),
        }
    }

    /// The engine of `replica` stands like `now`.
    fn set(&self, replica: usize, now: &Stats) {
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = engines.get_mut(replica) {
            *engine = *now;
        }
        let total = |part: fn(&Stats) -> u64| engines.iter().map(part).sum::<u64>();
        let set =
            |gauge: &IntGauge, part| gauge.set(i64::try_from(total(part)).unwrap_or(i64::MAX));
        set(&self.running, |stats| stats.running.into());
        set(&self.waiting, |stats| stats.waiting.into());
        set(&self.waiting_tokens, |stats| stats.waiting_tokens);
        let [used, pages]: [fn(&Stats) -> u64; 2] =
            [|stats| stats.pages_used.into(), |stats| stats.pages.into()];
        self.kv_usage
            .set(count(total(used)) / count(total(pages).max(1)));
    }
}

impl Counters {
    fn new(makers: &Makers) -> Self {
        Self {
            prefix_queries: makers.counter(
                "vllm:prefix_cache_queries_total",
                "Prompt tokens looked up in the prefix cache",
            ),
            prefix_hits: makers.counter(
                "vllm:prefix_cache_hits_total",
                "Prompt tokens found in the prefix cache",
            ),
            preemptions: makers.counter(
                "vllm:num_preemptions_total",
                "Continuations put back to be computed again",
            ),
            prompt_tokens: makers.counter("vllm:prompt_tokens_total", "Prompt tokens processed"),
            cached_tokens: makers.counter(
                "vllm:prompt_tokens_cached_total",
                "Prompt tokens that needed no processing",
            ),
            generation_tokens: makers.counter("vllm:generation_tokens_total", "Tokens generated"),
            padding_tokens: makers.counter(
                "appliance_padding_tokens_total",
                "Tokens that steps were padded with to a size the device runs",
            ),
            steps: makers.counter("appliance_steps_total", "Steps that the device has run"),
            rejections: makers.counters(
                "vllm:admission_rejections_total",
                "Requests refused because too much was waiting",
                "reason",
                &["max_num_queued_reqs", "max_num_queued_tokens"],
            ),
            success: makers.counters(
                "vllm:request_success_total",
                "Continuations that ended, by reason",
                "finished_reason",
                &Ended::ALL.map(Ended::name),
            ),
        }
    }
}

impl Times {
    fn new(makers: &Makers) -> Self {
        let token = |name, help| makers.histogram(name, help, NEXT_TOKEN);
        let request = |name, help| makers.histogram(name, help, REQUEST);
        Self {
            first_token: makers.histogram(
                "vllm:time_to_first_token_seconds",
                "From a request's arrival to its first token",
                FIRST_TOKEN,
            ),
            inter_token: token(
                "vllm:inter_token_latency_seconds",
                "From a token to the next of the same continuation",
            ),
            exact_first_token: Distribution::new(),
            exact_inter_token: Distribution::new(),
            per_output_token: token(
                "vllm:time_per_output_token_seconds",
                "The same under its older name",
            ),
            request_per_output_token: token(
                "vllm:request_time_per_output_token_seconds",
                "A continuation's mean time from a token to the next",
            ),
            e2e: request(
                "vllm:e2e_request_latency_seconds",
                "From a request's arrival to its end",
            ),
            queue: request(
                "vllm:request_queue_time_seconds",
                "From a request's arrival to its first step",
            ),
            prefill: request(
                "vllm:request_prefill_time_seconds",
                "From a request's first step to its first token",
            ),
            decode: request(
                "vllm:request_decode_time_seconds",
                "From a request's first token to its last",
            ),
            inference: request(
                "vllm:request_inference_time_seconds",
                "From a request's first step to its last token",
            ),
        }
    }
}

impl Sizes {
    /// Token counts go up to `context`.
    fn new(makers: &Makers, context: u32) -> Self {
        let edges = one_two_five(context);
        let tokens = |name, help| makers.histogram(name, help, &edges);
        Self {
            step_tokens: makers.histogram(
                "vllm:iteration_tokens_total",
                "Tokens of a step",
                STEP_TOKENS,
            ),
            prompt: tokens("vllm:request_prompt_tokens", "Tokens of a prompt"),
            generation: tokens("vllm:request_generation_tokens", "Tokens of a continuation"),
            computed: tokens(
                "vllm:request_prefill_kv_computed_tokens",
                "Tokens of a prompt that were not in the prefix cache",
            ),
            max_generation: tokens(
                "vllm:request_max_num_generation_tokens",
                "Tokens of a request's longest continuation so far",
            ),
            choices: makers.histogram("vllm:request_params_n", "Continuations asked for", CHOICES),
            max_tokens: tokens(
                "vllm:request_params_max_tokens",
                "Tokens that a continuation may have",
            ),
        }
    }
}

impl Model {
    fn new(name: &str, context: u32, profile: &Profile, replicas: usize) -> Self {
        let makers = Makers::new(&[("model_name", name), ("engine", "0")]);
        makers.constants(profile);
        Self {
            state: State::new(&makers, profile.pages, replicas),
            counts: Counters::new(&makers),
            times: Times::new(&makers),
            sizes: Sizes::new(&makers, context),
            makers,
            name: name.to_owned(),
            slots: 0,
            identity: Arc::default(),
        }
    }

    fn stats(&self, replica: usize, before: &Stats, now: &Stats) {
        self.state.set(replica, now);
        let add = |counter: &IntCounter, count: fn(&Stats) -> u64| {
            counter.inc_by(count(now).saturating_sub(count(before)));
        };
        add(&self.counts.prefix_queries, |stats| stats.prefix_queries);
        add(&self.counts.prefix_hits, |stats| stats.prefix_hits);
        add(&self.counts.preemptions, |stats| stats.preemptions);
        add(&self.counts.generation_tokens, |stats| stats.decode_tokens);
        add(&self.counts.padding_tokens, |stats| stats.padding_tokens);
        add(&self.counts.steps, |stats| stats.steps);
        if now.steps > before.steps {
            let tokens = |stats: &Stats| stats.prefill_tokens + stats.decode_tokens;
            let tokens = tokens(now).saturating_sub(tokens(before));
            // A turn lands one step.
            self.sizes.step_tokens.observe(count(tokens));
        }
    }

    fn token(&self, shape: &Shape, times: &ChoiceTimes, first_of_request: bool, now: Duration) {
        if first_of_request {
            self.counts.prompt_tokens.inc_by(shape.prompt_tokens as u64);
            self.counts
                .cached_tokens
                .inc_by(u64::from(times.cached_tokens));
        }
        match times.last {
            None => {
                let seconds = seconds(Some(shape.arrived), Some(now));
                self.times.first_token.observe(seconds);
                self.times.exact_first_token.observe(seconds);
            }
            Some(last) => {
                let seconds = seconds(Some(last), Some(now));
                self.times.inter_token.observe(seconds);
                self.times.exact_inter_token.observe(seconds);
                self.times.per_output_token.observe(seconds);
            }
        }
    }

    fn finished(&self, shape: &Shape, times: &ChoiceTimes, now: Duration) {
        let ChoiceTimes {
            started,
            first,
            last,
            tokens,
            cached_tokens,
            ..
        } = *times;
        self.times
            .e2e
            .observe(seconds(Some(shape.arrived), Some(now)));
        self.times
            .queue
            .observe(seconds(Some(shape.arrived), started.or(Some(now))));
        self.times.prefill.observe(seconds(started, first));
        self.times.decode.observe(seconds(first, last));
        self.times.inference.observe(seconds(started, last));
        if tokens > 1 {
            let mean = seconds(first, last) / f64::from(tokens - 1);
            self.times.request_per_output_token.observe(mean);
        }
        self.sizes.prompt.observe(count(shape.prompt_tokens as u64));
        self.sizes.generation.observe(f64::from(tokens));
        let computed = (shape.prompt_tokens as u64).saturating_sub(u64::from(cached_tokens));
        self.sizes.computed.observe(count(computed));
        self.sizes.max_generation.observe(f64::from(tokens));
        self.sizes.choices.observe(f64::from(shape.choices));
        self.sizes.max_tokens.observe(f64::from(shape.max_tokens));
    }
}

/// From one moment to the other; 0 if either has not been.
fn seconds(from: Option<Duration>, to: Option<Duration>) -> f64 {
    let span = from.zip(to).map(|(from, to)| to.saturating_sub(from));
    span.unwrap_or_default().as_secs_f64()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of tokens are far below 2^53"
)]
fn count(tokens: u64) -> f64 {
    tokens as f64
}

/// 1, 2, 5, 10, 20, .. up to `most`.
fn one_two_five(most: u32) -> Vec<f64> {
    let decades = std::iter::successors(Some(1_u64), |decade| Some(decade * 10));
    decades
        .flat_map(|decade| [decade, 2 * decade, 5 * decade])
        .take_while(|edge| *edge <= u64::from(most))
        .map(count)
        .collect()
}

/// Makes metrics with the same labels, such as the model they are about, and registers each once.
#[derive(Debug)]
struct Makers {
    registry: Registry,
    labels: HashMap<String, String>,
}

impl Makers {
    fn new(labels: &[(&str, &str)]) -> Self {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self {
            registry: Registry::new(),
            labels: labels.iter().map(owned).collect(),
        }
    }

    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(name, help).const_labels(self.labels.clone())
    }

    fn edges(&self, name: &str, help: &str, edges: &[f64]) -> HistogramOpts {
        HistogramOpts::new(name, help)
            .const_labels(self.labels.clone())
            .buckets(edges.to_vec())
    }

    fn add<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("names, labels and edges are valid");
        let registered = self.registry.register(Box::new(metric.clone()));
        registered.expect("each metric is registered once");
        metric
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::with_opts(self.opts(name, help)))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::with_opts(self.opts(name, help)))
    }

    /// A counter for each of `values`, there from the start: a dashboard tells 0 from absent.
    fn counters(&self, name: &str, help: &str, label: &str, values: &[&str]) -> IntCounterVec {
        let counters = self.add(IntCounterVec::new(self.opts(name, help), &[label]));
        for value in values {
            counters.with_label_values(&[value]);
        }
        counters
    }

    fn histogram(&self, name: &str, help: &str, edges: &[f64]) -> Histogram {
        self.add(Histogram::with_opts(self.edges(name, help, edges)))
    }

    /// What routers want to know and does not change.
    fn constants(&self, profile: &Profile) {
        let cache = self
            .opts("vllm:cache_config_info", "The KV cache")
            .const_label("block_size", profile.page_tokens.to_string())
            .const_label("num_gpu_blocks", profile.pages.to_string())
            .const_label("num_cpu_blocks", "0")
            .const_label("enable_prefix_caching", "True")
            .const_label(
                "kv_cache_size_tokens",
                (u64::from(profile.pages) * u64::from(profile.page_tokens)).to_string(),
            );
        self.add(Gauge::with_opts(cache)).set(1.0);
        let lora = self.add(GaugeVec::new(
            self.opts("vllm:lora_requests_info", "When adapters last changed"),
            &["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        ));
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        lora.with_label_values(&["0", "", ""])
            .set(now.unwrap_or_default().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> ModelMetrics {
        let metrics = Metrics::new().of_model();
        let profile = Profile {
            prefill: engine::Axis::UpTo(64),
            decode: engine::Axis::UpTo(8),
            context: engine::Axis::UpTo(100),
            mixed: true,
            page_tokens: 16,
            pages: 10,
            vocabulary: 32,
            candidates: 32,
            depth: 1,
        };
        metrics.serve("tiny", 100, &profile, 8, 1);
        metrics
    }

    #[track_caller]
    fn check(metrics: &ModelMetrics, line: &str) {
        metrics.server.refresh();
        let text = String::from_utf8(metrics.server.render().to_vec()).unwrap();
        let text = text.replace(r#"engine="0","#, "");
        assert!(
            text.lines().any(|other| other == line),
            "no {line} in\n{text}"
        );
    }

    #[test]
    fn edges_of_tokens_go_up_to_the_context() {
        assert_eq!(one_two_five(100), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(one_two_five(7), [1.0, 2.0, 5.0]);
    }

    #[test]
    fn a_request_is_measured_from_its_arrival_to_its_end() {
        let metrics = metrics();
        let at = Duration::from_secs;
        let shape = Shape {
            arrived: at(1),
            prompt_tokens: 7,
            max_tokens: 9,
            choices: 1,
            measured: true,
        };
        let mut choices = [ChoiceTimes::default()];
        let token = Event::Token(engine::Scored {
            token: engine::TokenId(3),
            logprob: None,
            top: Vec::new(),
        });
        let started = Event::Started { cached_tokens: 4 };
        let events = [
            (started, 3),
            (token.clone(), 4),
            (token, 6),
            (Event::Finished(Finish::Length), 6),
        ];
        for (event, now) in events {
            metrics.happened(&shape, &mut choices, 0, &event, at(now));
        }
        let model = r#"model_name="tiny""#;
        for (name, value) in [
            ("prompt_tokens_total", 7),
            ("prompt_tokens_cached_total", 4),
            ("time_to_first_token_seconds_sum", 3),
            ("inter_token_latency_seconds_sum", 2),
            ("request_queue_time_seconds_sum", 2),
            ("request_prefill_time_seconds_sum", 1),
            ("request_decode_time_seconds_sum", 2),
            ("request_inference_time_seconds_sum", 3),
            ("e2e_request_latency_seconds_sum", 5),
            ("request_prefill_kv_computed_tokens_sum", 3),
        ] {
            check(&metrics, &format!("vllm:{name}{{{model}}} {value}"));
        }
        let success =
            format!(r#"vllm:request_success_total{{finished_reason="length",{model}}} 1"#);
        check(&metrics, &success);
    }

    #[test]
    fn counters_follow_the_engine() {
        let metrics = metrics();
        let before = Stats::default();
        let now = Stats {
            pages: 10,
            pages_used: 5,
            steps: 1,
            decode_tokens: 2,
            prefill_tokens: 6,
            ..before
        };
        metrics.stats(&before, &now);
        let model = r#"{model_name="tiny"}"#;
        check(&metrics, &format!("vllm:kv_cache_usage_perc{model} 0.5"));
        check(&metrics, &format!("vllm:generation_tokens_total{model} 2"));
        check(
            &metrics,
            &format!("vllm:iteration_tokens_total_sum{model} 8"),
        );
    }
}
