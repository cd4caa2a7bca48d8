//! What a client is told when a request fails: the one map from errors to status, type and code.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::Refused;
use serde::Serialize;

use crate::access;
use crate::generation::Refusal;
use crate::text::{TemplateError, TextError};

/// A failed request. Its body is OpenAI's: `{"error": {"message", "type", "param", "code"}}`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    /// Seconds after which another try makes sense.
    retry_after: Option<u32>,
}

/// The body of an error, alone or as an event of a stream.
#[derive(Serialize, Debug)]
pub(super) struct ErrorBody<'a> {
    error: ErrorObject<'a>,
}

#[derive(Serialize, Debug)]
struct ErrorObject<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: None,
            param: None,
            message: message.into(),
            retry_after: None,
        }
    }

    fn refused(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", message)
    }

    /// The request makes no sense as a whole.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::refused(StatusCode::BAD_REQUEST, message)
    }

    /// The field `param` makes no sense, or cannot be served.
    pub(super) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::bad_request(message)
        }
    }

    /// The field `param` holds what the server's filter keeps out.
    pub(super) fn filtered(param: &str, kind: access::redact::Kind) -> Self {
        let message = format!(
            "`{param}` holds what looks like {kind}, which this server does not take: leave it out."
        );
        Self {
            code: Some("content_filter"),
            ..Self::invalid(param, message)
        }
    }

    /// The prompt, or the prompt and what it asks for, is more than the model's context. `however`
    /// goes on from "However, "; clients match the beginning of the message.
    pub(super) fn context_length(param: &str, context: u32, however: &str) -> Self {
        let message =
            format!("This model's maximum context length is {context} tokens. However, {however}");
        Self {
            code: Some("context_length_exceeded"),
            ..Self::invalid(param, message)
        }
    }

    /// There is no model of that name.
    pub(super) fn model_not_found(name: &str, served: &str) -> Self {
        let message =
            format!("The model {name:?} does not exist. This server has the model {served:?}.");
        Self {
            code: Some("model_not_found"),
            param: Some("model".into()),
            ..Self::refused(StatusCode::NOT_FOUND, message)
        }
    }

    /// The key of the request is good, but not for this model.
    pub(super) fn forbidden_model(key: &str, model: &str) -> Self {
        let message = format!("The API key {key:?} may not use the model {model:?}.");
        Self {
            param: Some("model".into()),
            ..Self::new(StatusCode::FORBIDDEN, "permission_error", message)
        }
    }

    /// A request that was not let in.
    pub(super) fn from_access(refusal: &access::Refusal) -> Self {
        let over = match refusal {
            access::Refusal::Missing => {
                return Self::bad_key(
                    "This server wants an API key: send the header Authorization: Bearer KEY.",
                );
            }
            access::Refusal::Unknown => return Self::bad_key("The API key is not known here."),
            access::Refusal::Expired(end) => {
                return Self::bad_key(&format!("The API key expired at {end}."));
            }
            access::Refusal::Over(over) => over,
        };
        let kind = match over {
            access::Over::Budget { .. } => "insufficient_quota",
            _ => "rate_limit_exceeded",
        };
        let seconds = |wait: std::time::Duration| wait.as_nanos().div_ceil(1_000_000_000).max(1);
        Self {
            code: Some(kind),
            retry_after: (over.wait()).map(|wait| u32::try_from(seconds(wait)).unwrap_or(u32::MAX)),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                kind,
                format!("For this API key {over}."),
            )
        }
    }

    /// There is nothing at `path`.
    pub(super) fn no_route(path: &str) -> Self {
        let message = format!("There is nothing at {path}. See /openapi.json for what there is.");
        Self::refused(StatusCode::NOT_FOUND, message)
    }

    /// There is something at `path`, but not for `method`.
    pub(super) fn no_method(method: &str, path: &str) -> Self {
        let message =
            format!("{path} does not take {method}. The header Allow says what it takes.");
        Self::refused(StatusCode::METHOD_NOT_ALLOWED, message)
    }

    /// The key is missing or not known here.
    pub(super) fn bad_key(message: &str) -> Self {
        Self {
            code: Some("invalid_api_key"),
            ..Self::refused(StatusCode::UNAUTHORIZED, message)
        }
    }

    /// There is no key for the places of operators.
    pub(super) fn admin_closed() -> Self {
        let message = "This place is closed: set the server's admin-key to open it.";
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    /// The body is larger than `limit` bytes.
    pub(super) fn too_large(limit: u64) -> Self {
        let message = format!(
            "The body is larger than {limit} bytes. Send less, or raise the server's body-limit."
        );
        Self::refused(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// The body came too slowly, or not to its end.
    pub(super) fn cut_off(why: &str) -> Self {
        let message = format!("The body did not arrive whole: {why}.");
        Self::refused(StatusCode::REQUEST_TIMEOUT, message)
    }

    /// The body is not said to be JSON.
    pub(super) fn not_json() -> Self {
        Self::refused(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "The body must be JSON: send the header Content-Type: application/json.",
        )
    }

    /// The server cannot take requests now, for a reason that passes.
    pub(super) fn unavailable(message: impl Into<String>, retry_after: u32) -> Self {
        Self {
            code: Some("overloaded"),
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
        }
    }

    /// Something failed here; the request was fine.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// A request's own code panicked.
    pub(super) fn panicked() -> Self {
        Self::internal("The server made a mistake in this request. Its log says more.")
    }

    /// The request took longer than the server allows.
    pub(super) fn timeout() -> Self {
        Self {
            code: Some("timeout"),
            ..Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "timeout",
                "The request took longer than the server's request-timeout allows. \
                 Ask for fewer tokens, or try when less is waiting.",
            )
        }
    }

    /// A request that the engine or the server did not take on; too much waiting has the status
    /// `shed`.
    pub(super) fn from_refusal(refusal: Refusal, shed: StatusCode, prompt: &str) -> Self {
        let refused = match refusal {
            Refusal::Draining => return Self::unavailable(refusal.to_string(), 5),
            Refusal::Engine(refused) => refused,
        };
        match refused {
            Refused::TooLong {
                prompt: tokens,
                context,
            } => {
                let however = format!("the prompt and its choices need more: it has {tokens}.");
                Self::context_length(prompt, context, &however)
            }
            Refused::Invalid { field, reason } => {
                Self::invalid(field, format!("`{field}`: {reason}"))
            }
            Refused::TooManyRequests { .. } | Refused::TooManyTokens { .. } => Self {
                status: shed,
                ..Self::unavailable(format!("The server is busy: {refused}."), 1)
            },
            Refused::Lost(_) => Self::internal(refused.to_string()),
        }
    }

    /// The body.
    pub(super) fn body(&self) -> ErrorBody<'_> {
        ErrorBody {
            error: ErrorObject {
                message: &self.message,
                r#type: self.kind,
                param: self.param.as_deref(),
                code: self.code,
            },
        }
    }

    /// Writes it to the log if it is the server's fault.
    pub(super) fn log(&self) {
        if self.status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!("{}", self.message);
        }
    }

    /// Whether the same request would fail again: clients retry some statuses unless told.
    fn permanent(&self) -> bool {
        let passing = [
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::INTERNAL_SERVER_ERROR,
        ];
        self.retry_after.is_none() && !passing.contains(&self.status)
    }
}

impl From<TemplateError> for ApiError {
    fn from(error: TemplateError) -> Self {
        match error {
            TemplateError::Open { .. } => Self::internal(error.to_string()),
            TemplateError::Missing | TemplateError::Failed { .. } | TemplateError::Refused(_) => {
                Self::invalid("messages", error.to_string())
            }
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        match error {
            TextError::Open { .. } => Self::internal(error.to_string()),
            TextError::Encode(_) => Self::bad_request(error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.log();
        let mut response = (self.status, axum::Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.permanent() {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use engine::{Cause, Lost};

    use super::*;

    #[track_caller]
    fn check(error: ApiError, status: u16, body: &str, retry_after: &str, should_retry: &str) {
        assert_eq!(serde_json::to_string(&error.body()).unwrap(), body);
        let response = error.into_response();
        assert_eq!(response.status(), status);
        let header = |name: &str| {
            let value = response.headers().get(name);
            value.map_or("", |value| value.to_str().unwrap())
        };
        assert_eq!(header("retry-after"), retry_after);
        assert_eq!(header("x-should-retry"), should_retry);
    }

    fn refusal(refused: Refused) -> ApiError {
        ApiError::from_refusal(refused.into(), StatusCode::TOO_MANY_REQUESTS, "prompt")
    }

    #[test]
    fn all_four_keys_and_what_to_do_about_retries() {
        check(
            ApiError::invalid("n", "`n` is 0"),
            400,
            r#"{"error":{"message":"`n` is 0","type":"invalid_request_error","param":"n","code":null}}"#,
            "",
            "false",
        );
        check(
            ApiError::unavailable("loading", 2),
            503,
            r#"{"error":{"message":"loading","type":"server_error","param":null,"code":"overloaded"}}"#,
            "2",
            "",
        );
        check(
            refusal(Refused::TooManyRequests { queued: 9 }),
            429,
            r#"{"error":{"message":"The server is busy: 9 requests wait already.","type":"server_error","param":null,"code":"overloaded"}}"#,
            "1",
            "",
        );
        check(
            refusal(Refused::TooLong {
                prompt: 9,
                context: 8,
            }),
            400,
            r#"{"error":{"message":"This model's maximum context length is 8 tokens. However, the prompt and its choices need more: it has 9.","type":"invalid_request_error","param":"prompt","code":"context_length_exceeded"}}"#,
            "",
            "false",
        );
    }

    #[test]
    fn each_refusal_has_a_status() {
        let invalid = Refused::Invalid {
            field: "n",
            reason: "too many".into(),
        };
        let lost = Refused::Lost(Lost(Cause("gone".into())));
        for (refused, status) in [(invalid, 400), (lost, 500)] {
            assert_eq!(refusal(refused).status, status);
        }
        let draining = ApiError::from_refusal(Refusal::Draining, StatusCode::OK, "prompt");
        assert_eq!(draining.status, 503);
        assert_eq!(ApiError::timeout().status, 504);
    }
}
