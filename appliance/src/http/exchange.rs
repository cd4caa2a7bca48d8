//! One request and its answer: a panic as a 500, and what is counted.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::MatchedPath;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, EXPECT, HeaderValue};
use hyper::service::Service as _;
use hyper::{Method, Request, StatusCode};

use super::Shared;
use super::body::{Arriving, Outgoing};
use super::connection::Waiting;

/// How long the rest of a body that is not wanted is read and thrown away.
const THROWING_AWAY: Duration = Duration::from_secs(10);

/// How much of it, in body limits.
const THROWN_AWAY: u64 = 4;

/// Answers a request, whatever happens.
pub(super) async fn answer(
    shared: &Shared,
    waiting: Arc<Waiting>,
    request: Request<Incoming>,
) -> Response {
    let start = Instant::now();
    let method = request.method().clone();
    let answering = waiting.begin();
    let work = (method == Method::POST).then(|| shared.work.enter());
    let awaits_word = request.headers().contains_key(EXPECT);
    let (head, body) = request.into_parts();
    let (body, rest) = Arriving::new(body, shared.limits.idle);
    let mut response = route(shared, Request::from_parts(head, Body::new(body))).await;
    if !awaits_word {
        rest.throw_away(shared.limits.body * THROWN_AWAY, THROWING_AWAY)
            .await;
    }
    let handler = response.extensions_mut().remove::<MatchedPath>();
    shared.metrics.answered(
        handler.as_ref().map_or("none", MatchedPath::as_str),
        name(&method),
        response.status().as_u16(),
        start.elapsed(),
    );
    response.map(|body| Body::new(Outgoing::new(body, answering, work)))
}

/// The router's answer; a panic in it is this request's 500.
async fn route(shared: &Shared, request: Request<Body>) -> Response {
    let mut answer = pin!(shared.router.call(request));
    let caught = poll_fn(
        |cx| match catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(cx))) {
            Ok(polled) => polled.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        },
    );
    match caught.await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_panic) => panicked(),
    }
}

/// A 500 in OpenAI's shape. The log has said where and why.
fn panicked() -> Response {
    const BODY: &str = r#"{"error":{"message":"The server made a mistake on this request.","type":"server_error","param":null,"code":null}}"#;
    let mut response = Response::new(Body::from(BODY));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// A method as a label: clients can invent others.
fn name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Lets each answer say which route it came from.
pub(super) fn with_routes_named(router: Router) -> Router {
    router.layer(from_fn(
        |path: Option<MatchedPath>, request: axum::extract::Request, next: Next| async move {
            let mut response = next.run(request).await;
            if let Some(path) = path {
                response.extensions_mut().insert(path);
            }
            response
        },
    ))
}
