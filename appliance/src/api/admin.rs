//! What operators see and do, with a key of their own: `/admin/..`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::sync::oneshot;

use super::Api;
use super::access::{Peer, secret};
use super::error::ApiError;

/// Lets through who has the `admin-key`. Without one the places are as good as not there.
pub(super) async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let settings = api.context.settings.now();
    let Some(key) = &settings.admin_key else {
        return ApiError::admin_closed().into_response();
    };
    // Digests are of one length: how long it takes does not tell how long the key is.
    let sent = Sha256::digest(secret(request.headers()).unwrap_or_default());
    let good = bool::from(Sha256::digest(key.reveal()).ct_eq(&sent));
    let peer = request.extensions().get::<Peer>();
    tracing::info!(
        audit = if good { "admin" } else { "refused" },
        method = %request.method(),
        path = &*api.shown(request.uri().path()),
        peer = peer.map(|peer| tracing::field::display(peer.0)),
        "administration"
    );
    match good {
        true => next.run(request).await,
        false => ApiError::bad_key("This place needs the server's admin-key as a bearer token.")
            .into_response(),
    }
}

/// `GET /admin/usage`: what each key has used and may use.
pub(super) async fn usage(State(api): State<Arc<Api>>) -> impl IntoResponse {
    Json(api.context.access.report())
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
