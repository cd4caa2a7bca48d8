//! One request and its answer: what is read of the one, and what is counted of the other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::MatchedPath;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::header::EXPECT;
use hyper::service::Service as _;
use hyper::{Method, Request};

use super::Shared;
use super::body::{Arriving, Outgoing};
use super::connection::Waiting;
use crate::api::access::Peer;

/// How long the rest of a body that is not wanted is read and thrown away.
const THROWING_AWAY: Duration = Duration::from_secs(10);

/// How much of it, in body limits.
const THROWN_AWAY: u64 = 4;

/// Answers a request.
pub(super) async fn answer(
    shared: &Shared,
    peer: SocketAddr,
    waiting: Arc<Waiting>,
    request: Request<Incoming>,
) -> Response {
    let start = Instant::now();
    let method = request.method().clone();
    let answering = waiting.begin();
    let work = (method == Method::POST).then(|| shared.work.clone());
    let awaits_word = request.headers().contains_key(EXPECT);
    let (head, body) = request.into_parts();
    let (body, door) = Arriving::new(body, shared.limits.idle, work);
    let mut request = Request::from_parts(head, Body::new(body));
    request.extensions_mut().insert(Peer(peer));
    let mut response = match shared.router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    if !awaits_word {
        door.throw_away(
            shared.limits.body * THROWN_AWAY,
            THROWING_AWAY.min(shared.limits.idle),
        )
        .await;
    }
    let handler = response.extensions_mut().remove::<MatchedPath>();
    shared.metrics.answered(
        handler.as_ref().map_or("none", MatchedPath::as_str),
        name(&method),
        response.status().as_u16(),
        start.elapsed(),
    );
    response.map(|body| Body::new(Outgoing::new(body, answering, door.work())))
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
