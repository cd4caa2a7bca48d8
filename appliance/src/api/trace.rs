//! What surrounds every request: its id, its log line, and the net under its panics.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use tracing::Instrument as _;

use super::Api;
use super::error::ApiError;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// The longest id of a client that is taken over.
const LONGEST: usize = 128;

/// A request that arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Arrival {
    /// Names it in the log, in the answer's `id` and in the header `x-request-id`.
    pub(super) id: String,
    /// When: what it waits is counted from here.
    pub(super) at: Instant,
}

impl Arrival {
    /// The client's, if it is harmless in logs and JSON; else a new one.
    fn new(headers: &HeaderMap, api: &Api) -> Self {
        let theirs = headers.get(HEADER).and_then(|id| id.to_str().ok());
        let plain = |letter: u8| letter.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&letter);
        let harmless = |id: &&str| !id.is_empty() && id.len() <= LONGEST && id.bytes().all(plain);
        let made = || format!("{:016x}{:016x}", api.draw(), api.draw());
        Self {
            id: theirs.filter(harmless).map_or_else(made, str::to_owned),
            at: Instant::now(),
        }
    }
}

/// Gives a request its id, logs how it was answered, and turns its panic into its own 500.
pub(super) async fn around(
    State(api): State<Arc<Api>>,
    mut request: Request,
    next: Next,
) -> Response {
    let arrival = Arrival::new(request.headers(), &api);
    let span = tracing::info_span!("request", id = arrival.id);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    request.extensions_mut().insert(arrival.clone());
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind();
    let answer = answer.instrument(span.clone()).await;
    let mut response = answer.unwrap_or_else(|_| ApiError::panicked().into_response());
    let name = HeaderValue::from_str(&arrival.id).expect("an id is visible ASCII");
    response.headers_mut().insert(HEADER, name);
    span.in_scope(|| log(&method, &path, &response, arrival.at));
    response
}

/// One line a request, without anything that was said in it. Probes come too often to be told.
fn log(method: &Method, path: &str, response: &Response, since: Instant) {
    let status = response.status().as_u16();
    let seconds = since.elapsed().as_secs_f32();
    match *method {
        Method::POST => tracing::info!(%method, path, status, seconds, "answered"),
        _ => tracing::debug!(%method, path, status, seconds, "answered"),
    }
}
