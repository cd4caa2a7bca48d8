//! Wire dialects: bodies to asks, pieces to chunks. Nothing here knows a socket.

pub(crate) mod access;
mod admin;
mod body;
mod chat;
mod completions;
mod conversation;
mod error;
mod field;
#[cfg(test)]
mod fixture;
mod logprobs;
mod manner;
mod models;
mod openapi;
mod params;
mod places;
mod probes;
mod run;
mod sse;
mod tokenize;
mod trace;
mod usage;

use std::borrow::Cow;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use engine::TokenId;
use tokio::sync::{Semaphore, mpsc};

use self::error::ApiError;
use self::params::Facts;
use self::places::Audience;
use self::run::Run;
use self::trace::Arrival;
use crate::access::{Access, Caller, Request, redact};
use crate::config::{Live, RequestFilter};
use crate::follow::Reload;
use crate::generation::{Ask, OURS};
use crate::health::{Health, Phase};
use crate::metrics::Metrics;
use crate::served::Served;
use crate::status::Board;

/// What every handler can reach. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Context {
    /// Whether there is a model, and which.
    pub health: Health,
    /// What is counted.
    pub metrics: Metrics,
    /// The settings.
    pub settings: Live,
    /// Who is let in.
    pub access: Access,
    /// What operators see and do.
    pub(crate) control: Control,
}

/// What operators see and do. Cloning shares it.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    /// What the server says of itself.
    pub(crate) board: Board,
    /// Has the settings read anew.
    pub(crate) ask: mpsc::Sender<Reload>,
}

/// All routes.
pub fn router(context: Context) -> Router {
    let api = Arc::new(Api::new(context));
    places::all()
        .into_iter()
        .fold(Router::new(), |router, place| {
            let served_by = match place.audience {
                Audience::Anybody => place.served_by,
                Audience::Keys => {
                    let guard = from_fn_with_state(api.clone(), access::guard);
                    place.served_by.route_layer(guard)
                }
                Audience::Operators => {
                    let guard = from_fn_with_state(api.clone(), admin::guard);
                    place.served_by.layer(guard)
                }
            };
            router.route(place.about.path, served_by)
        })
        .fallback(async |uri: Uri| ApiError::no_route(uri.path()))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            ApiError::no_method(method.as_str(), uri.path())
        })
        .layer(from_fn_with_state(api.clone(), trace::around))
        .with_state(api)
}

/// How many of the largest bodies are received or read at once; more are refused.
const BODIES: u64 = 16;

/// What the handlers share.
#[derive(Debug)]
struct Api {
    context: Context,
    /// Bounds the bytes of all bodies that are being received or read.
    bodies: Arc<Semaphore>,
    /// Bounds how many texts are rendered and tokenised at once.
    text: Arc<Semaphore>,
    /// Secret of this process: what is drawn and hashed with it cannot be foreseen.
    random: RandomState,
    drawn: AtomicU64,
}

impl Api {
    fn new(context: Context) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let bodies = context.settings.now().body_limit.0.saturating_mul(BODIES);
        let bodies = usize::try_from(bodies).unwrap_or(usize::MAX);
        Self {
            context,
            bodies: Arc::new(Semaphore::new(bodies.min(Semaphore::MAX_PERMITS))),
            text: Arc::new(Semaphore::new(cores)),
            random: RandomState::new(),
            drawn: AtomicU64::new(0),
        }
    }

    /// The model, if requests are taken.
    fn served(&self) -> Result<Arc<Served>, ApiError> {
        match self.context.health.phase() {
            Phase::Ready(served) => Ok(served),
            Phase::Loading(what) => Err(ApiError::unavailable(
                format!("The model is not ready: {what}."),
                2,
            )),
            Phase::Warm(_) => Err(ApiError::unavailable(
                "The instance waits in a warm pool.",
                5,
            )),
            Phase::Draining(_) => Err(ApiError::unavailable("The server is shutting down.", 5)),
            Phase::Waiting(why) | Phase::Failed(why) => Err(ApiError::unavailable(
                format!("The server has no model: {why}."),
                30,
            )),
        }
    }

    /// The model, whether or not requests are taken.
    fn loaded(&self) -> Option<Arc<Served>> {
        match self.context.health.phase() {
            Phase::Ready(served) | Phase::Warm(served) => Some(served),
            Phase::Draining(served) => served,
            Phase::Loading(_) | Phase::Waiting(_) | Phase::Failed(_) => None,
        }
    }

    /// Runs `work`, which renders or tokenises, off the event loop. A panic in it is the request's.
    async fn text_work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = self.text.clone().acquire_owned().await;
        let span = tracing::Span::current();
        let work = move || {
            let _permit = permit;
            span.in_scope(work)
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|_| Err(ApiError::panicked()))
    }

    /// Has `asks` of `caller` admitted, and takes what they may come to from what it may use. `prompt` is
    /// the field that holds the prompt.
    async fn start(
        &self,
        served: &Served,
        (caller, arrival): (&Caller, &Arrival),
        mut asks: Vec<Ask>,
        prompt: &str,
    ) -> Result<Run, ApiError> {
        let (mut input, mut most) = (0, 0);
        for Ask { request, .. } in &mut asks {
            request.priority = caller.priority(request.priority);
            request.cache_salt = self.isolated(caller, request.cache_salt);
            input += request.prompt.len() as u64;
            most += u64::from(request.choices) * u64::from(request.stop.max_tokens);
        }
        let request = Request {
            id: arrival.id.clone(),
            model: served.name.clone(),
            arrived: arrival.at,
        };
        let bill = caller.bill(request, input, most);
        let bill = bill.map_err(|refusal| ApiError::from_access(&refusal))?;
        let shed = StatusCode::from_u16(self.context.settings.now().shed_status.code())
            .unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        let refused = |refusal| ApiError::from_refusal(refusal, shed, prompt);
        Run::start(&served.generator, asks, bill, refused).await
    }

    /// `path` as it may stand in an audit line.
    fn shown<'a>(&self, path: &'a str) -> Cow<'a, str> {
        match self.context.settings.now().redact_audit {
            true => redact::mask(path),
            false => path.into(),
        }
    }

    /// A number that nobody foresees.
    fn draw(&self) -> u64 {
        self.random
            .hash_one(self.drawn.fetch_add(1, Ordering::Relaxed))
    }

    /// `salt`, and what keeps the cached prefixes of `caller` apart from those of others.
    fn isolated(&self, caller: &Caller, salt: u64) -> u64 {
        let mut hasher = self.random.build_hasher();
        match caller.isolate(&mut hasher) {
            true => {
                salt.hash(&mut hasher);
                hasher.finish().clamp(1, OURS - 1)
            }
            false => salt,
        }
    }

    /// What keeps the cached prefixes of a salt apart; without a salt the common pool.
    fn cache_salt(&self, salt: Option<&str>) -> u64 {
        salt.map_or(0, |salt| self.random.hash_one(salt).clamp(1, OURS - 1))
    }
}

/// What parsing needs to know of `served`.
fn facts(served: &Served) -> Facts<'_> {
    Facts {
        context: served.context,
        vocabulary: served.vocabulary,
        candidates: served.candidates,
        eos: &served.eos,
        defaults: &served.defaults,
    }
}

/// Tokenises `text`, which stands in the field `param`, as far as `filter` lets it through. What cannot fit the context whatever it says
/// is refused before it costs a minute and gigabytes. Not for the event loop.
fn encode(
    served: &Served,
    filter: RequestFilter,
    param: &str,
    text: &str,
    special: bool,
) -> Result<Vec<TokenId>, ApiError> {
    let text = &*filtered(filter, param, text)?;
    let most = (served.context as usize).saturating_mul(served.tokenizer.most_bytes());
    if text.len() > most {
        let bytes = text.len();
        let however = format!(
            "your {param} resulted in {bytes} bytes of text, and that many tokens hold {most} at \
             most. Please reduce the length of the {param}."
        );
        return Err(ApiError::context_length(param, served.context, &however));
    }
    Ok(served.tokenizer.encode(text, special)?)
}

/// What `filter` makes of `text`, which stands in the field `param`.
fn filtered<'a>(
    filter: RequestFilter,
    param: &str,
    text: &'a str,
) -> Result<Cow<'a, str>, ApiError> {
    match filter {
        RequestFilter::Off => Ok(text.into()),
        RequestFilter::Mask => Ok(redact::mask(text)),
        RequestFilter::Refuse => match redact::find(text) {
            None => Ok(text.into()),
            Some(kind) => Err(ApiError::filtered(param, kind)),
        },
    }
}

/// Refuses any model but the one that is served. Who names none means that one.
fn check_model(asked: Option<&str>, served: &Served) -> Result<(), ApiError> {
    match asked {
        Some(name) if name != served.name => Err(ApiError::model_not_found(name, &served.name)),
        _ => Ok(()),
    }
}
