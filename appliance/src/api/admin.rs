//! What operators see and do, with a key of their own: `/admin/..`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use subtle::ConstantTimeEq as _;
use tokio::sync::oneshot;

use super::Api;
use super::error::ApiError;

/// What the paths of operators begin with.
pub(super) const PLACES: &str = "/admin/";

/// Lets through who has the `admin-key`. Without one the places are as good as not there.
pub(super) async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let settings = api.context.settings.now();
    let Some(key) = &settings.admin_key else {
        return ApiError::admin_closed().into_response();
    };
    let sent = request.headers().get(header::AUTHORIZATION);
    let sent = sent.and_then(|sent| sent.as_bytes().strip_prefix(b"Bearer "));
    match sent {
        Some(sent) if bool::from(sent.ct_eq(key.reveal().as_bytes())) => next.run(request).await,
        _ => ApiError::bad_key("This place needs the server's admin-key as a bearer token.")
            .into_response(),
    }
}

/// `GET /admin/status`: what the server says of itself.
pub(super) async fn status(State(api): State<Arc<Api>>) -> impl IntoResponse {
    Json(api.context.control.board.now())
}

/// What came of reading the settings anew.
#[derive(Serialize, Debug)]
struct Reloaded {
    /// `applied` if something changed, `unchanged` or `refused`.
    outcome: &'static str,
    /// The settings that changed. Where the model has to change for them it does so from now on:
    /// `/admin/status` tells how far it is.
    changes: Vec<&'static str>,
    /// Why they are refused; those before stay in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// `POST /admin/reload`: reads the settings anew, at once.
pub(super) async fn reload(State(api): State<Arc<Api>>) -> Response {
    let (reply, outcome) = oneshot::channel();
    let asked = api.context.control.ask.send(reply).await;
    let Ok(outcome) = (match asked {
        Ok(()) => outcome.await.map_err(drop),
        Err(_) => Err(()),
    }) else {
        return ApiError::unavailable("The settings are not read any more.", 30).into_response();
    };
    let (code, reloaded) = match outcome {
        Ok(changes) => {
            let outcome = if changes.is_empty() {
                "unchanged"
            } else {
                "applied"
            };
            let why = None;
            (
                StatusCode::OK,
                Reloaded {
                    outcome,
                    changes,
                    why,
                },
            )
        }
        Err(why) => {
            let (outcome, changes, why) = ("refused", Vec::new(), Some(why));
            (
                StatusCode::CONFLICT,
                Reloaded {
                    outcome,
                    changes,
                    why,
                },
            )
        }
    };
    (code, Json(reloaded)).into_response()
}
