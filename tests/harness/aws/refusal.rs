//! How AWS refuses: one meaning, in the words of the protocol that was asked in.

use super::cbor;
use super::front::{Asked, Reply};

/// A refusal, before it is put into words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// 400, 403, ..
    pub status: u16,
    /// `AccessDenied`, `ValidationError`, ..
    pub code: &'static str,
    /// What people read.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            status,
            code,
            message,
        }
    }
}

/// The refusal as the protocol of the request has it.
pub fn refused(asked: &Asked, refusal: &Refusal) -> Reply {
    let Refusal {
        status,
        code,
        message,
    } = refusal;
    if asked.header("smithy-protocol") == Some("rpc-v2-cbor") {
        let fault = if *status < 500 { "Sender" } else { "Receiver" };
        let body = cbor::text_map(&[("__type", code), ("message", message)]);
        return Reply::new(*status, "application/cbor", body)
            .header("smithy-protocol", "rpc-v2-cbor")
            .header("x-amzn-query-error", format!("{code};{fault}"));
    }
    if asked.header("x-amz-target").is_some() {
        let body = serde_json::json!({"__type": code, "message": message});
        return Reply::new(*status, "application/x-amz-json-1.1", body.to_string());
    }
    let message = escaped(message);
    let form = asked.fields().iter().any(|(name, _)| name == "Action");
    let body = if form {
        format!(
            "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code>\
             <Message>{message}</Message></Error><RequestId>0</RequestId></ErrorResponse>"
        )
    } else {
        format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>")
    };
    Reply::new(*status, "text/xml", body)
}

/// Text as it stands in XML.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
