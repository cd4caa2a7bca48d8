//! What operators and load balancers ask. Nothing here touches the model.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use serde::Serialize;

use super::Api;
use crate::health::Phase;

/// How the server is.
#[derive(Serialize, Debug)]
pub(super) struct Status {
    status: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
}

fn status(code: StatusCode, status: &'static str, detail: String) -> impl IntoResponse {
    (code, Json(Status { status, detail }))
}

/// `/health`, `/ping`: whether to send requests here.
pub(super) async fn health(State(api): State<Arc<Api>>) -> impl IntoResponse {
    let down = StatusCode::SERVICE_UNAVAILABLE;
    let health = &api.context.health;
    match health.phase() {
        Phase::Ready(_) if !health.live() => status(
            down,
            "stalled",
            "no step of the device has ended for too long".into(),
        ),
        Phase::Ready(_) if health.is_leaving() => status(
            down,
            "draining",
            "the instance is about to be taken away".into(),
        ),
        Phase::Warm(_) => status(down, "warm", "the instance waits in a warm pool".into()),
        Phase::Ready(_) => status(StatusCode::OK, "ready", String::new()),
        Phase::Loading(what) => status(down, "loading", what),
        Phase::Draining(_) => status(down, "draining", String::new()),
        Phase::Waiting(why) => status(down, "waiting", why),
        Phase::Failed(why) => status(down, "failed", why),
    }
}

/// `/live`: whether the process makes progress, or must be started again.
pub(super) async fn live(State(api): State<Arc<Api>>) -> impl IntoResponse {
    match api.context.health.live() {
        true => status(StatusCode::OK, "live", String::new()),
        false => status(StatusCode::SERVICE_UNAVAILABLE, "stuck", String::new()),
    }
}

/// `/version`.
pub(super) async fn version() -> impl IntoResponse {
    #[derive(Serialize)]
    struct Version {
        version: &'static str,
    }
    Json(Version {
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// `/metrics`, in Prometheus' text format.
pub(super) async fn metrics(State(api): State<Arc<Api>>) -> impl IntoResponse {
    let form = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, form)], api.context.metrics.render())
}

/// `/`: a page to try the model.
pub(super) async fn page() -> impl IntoResponse {
    Html(include_str!("../page.html"))
}
