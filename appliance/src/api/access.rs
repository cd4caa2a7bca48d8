//! Who may ask what: the guards before the places of the API, and what a client is told who is not let in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Api;
use super::error::ApiError;
use crate::access::{Caller, Refusal, Room};

/// Where a request came from: the other end of its connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// What of the standard's headers a key may come in, as a bearer token, and what it is called by others.
const HEADERS: [&str; 2] = ["x-api-key", "api-key"];

/// The secret that a request brings.
pub(super) fn secret(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, secret) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(secret)
    });
    let named = || HEADERS.iter().find_map(|name| headers.get(*name));
    let secret = bearer.or_else(|| named().map(HeaderValue::as_bytes));
    secret
        .map(<[u8]>::trim_ascii)
        .filter(|secret| !secret.is_empty())
}

/// Lets in who has a key, and counts what asks for work as a request of it.
pub(super) async fn guard(
    State(api): State<Arc<Api>>,
    mut request: Request,
    next: Next,
) -> Response {
    let known = api.context.access.know(secret(request.headers()));
    let entered = match known {
        Ok(caller) if *request.method() == Method::POST => caller
            .clone()
            .enter()
            .map_err(|refusal| (refusal, Some(caller))),
        Ok(caller) => Ok(caller),
        Err(refusal) => Err((refusal, None)),
    };
    let caller = match entered {
        Ok(caller) => caller,
        Err((refusal, caller)) => {
            let path = api.shown(request.uri().path());
            audit(&request, &path, caller.as_ref(), &refusal);
            let mut response = ApiError::from_access(&refusal).into_response();
            if let Some(caller) = caller {
                response.headers_mut().extend(rooms(&caller));
            }
            return response;
        }
    };
    request.extensions_mut().insert(caller.clone());
    let mut response = next.run(request).await;
    response.headers_mut().extend(rooms(&caller));
    response
}

/// One line for whoever watches who is not let in, and where from.
fn audit(request: &Request, path: &str, caller: Option<&Caller>, refusal: &Refusal) {
    let peer = request.extensions().get::<Peer>();
    tracing::warn!(
        audit = "refused",
        key = caller.map(Caller::id),
        reason = refusal.reason(),
        method = %request.method(),
        path,
        peer = peer.map(|peer| tracing::field::display(peer.0)),
        "not let in"
    );
}

/// What is left by the minute, in OpenAI's headers.
fn rooms(caller: &Caller) -> HeaderMap {
    let names = ["requests", "tokens"];
    let told = names.iter().zip(caller.rooms()).filter_map(|(what, room)| {
        let Room {
            limit,
            remaining,
            reset,
        } = room?;
        Some([
            (format!("x-ratelimit-limit-{what}"), limit.to_string()),
            (
                format!("x-ratelimit-remaining-{what}"),
                remaining.to_string(),
            ),
            (format!("x-ratelimit-reset-{what}"), span(reset)),
        ])
    });
    let header = |(name, value): (String, String)| {
        let name = HeaderName::try_from(name).ok()?;
        Some((name, HeaderValue::try_from(value).ok()?))
    };
    told.flatten().filter_map(header).collect()
}

/// A time as OpenAI writes it: `20ms`, `1s`, `6m0s`.
fn span(time: Duration) -> String {
    let milliseconds = time.as_nanos().div_ceil(1_000_000);
    let seconds = milliseconds.div_ceil(1000);
    match seconds {
        _ if milliseconds < 1000 => format!("{milliseconds}ms"),
        ..60 => format!("{seconds}s"),
        _ => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_in_any_of_the_usual_headers() {
        let read = |name: &'static str, value: &'static str| {
            let headers = HeaderMap::from_iter([(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )]);
            secret(&headers).map(|secret| String::from_utf8_lossy(secret).into_owned())
        };
        for (name, value) in [
            ("authorization", "Bearer sk-1"),
            ("authorization", "bearer  sk-1 "),
            ("x-api-key", "sk-1"),
            ("api-key", "sk-1"),
        ] {
            assert_eq!(
                read(name, value).as_deref(),
                Some("sk-1"),
                "{name}: {value}"
            );
        }
        for (name, value) in [
            ("authorization", "Basic sk-1"),
            ("authorization", "Bearer "),
            ("authorization", ""),
            ("x-api-key", ""),
            ("cookie", "sk-1"),
        ] {
            assert_eq!(read(name, value), None, "{name}: {value}");
        }
    }

    #[test]
    fn times_are_written_like_openais() {
        for (milliseconds, written) in [
            (0, "0ms"),
            (20, "20ms"),
            (999, "999ms"),
            (1000, "1s"),
            (1001, "2s"),
            (59_500, "1m0s"),
            (360_000, "6m0s"),
        ] {
            assert_eq!(span(Duration::from_millis(milliseconds)), written);
        }
    }
}
