//! What tests of the dialects share: a tokenizer of letters, and requests that ran.

use axum::response::Response;
use engine::{Scored, TokenId};
use futures_util::stream::{self, StreamExt as _};
use serde_json::{Value, json};

use super::body::Fields;
use super::manner::Manner;
use super::params::Params;
use super::run::Run;
use crate::generation::{Piece, Reason};
use crate::text::Tokenizer;

/// The letters a, b, c are the tokens 0, 1, 2.
pub(super) fn tokenizer() -> Tokenizer {
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "post_processor": null, "pre_tokenizer": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}, "merges": []},
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    Tokenizer::open(dir.path()).unwrap()
}

/// How a request with `fields` is to be told.
pub(super) fn manner(fields: &str) -> Manner {
    let params = Params::parse(&mut Fields::parse(fields.as_bytes()).unwrap()).unwrap();
    Manner::of(&params, "m".into(), tokenizer(), None)
}

/// A request of one prompt of two tokens that went like this.
pub(super) fn run(pieces: &[Piece], choices: u32) -> Run {
    Run::of(vec![stream::iter(pieces.to_vec()).boxed()], choices, 2)
}

pub(super) fn started(choice: u32) -> Piece {
    Piece::Started {
        choice,
        cached_tokens: 1,
    }
}

pub(super) fn token(choice: u32, text: &str, token: u32) -> Piece {
    Piece::Token {
        choice,
        text: text.into(),
        scored: scored(token),
    }
}

/// A token with a log-probability of -0.5, and two likely ones.
pub(super) fn scored(token: u32) -> Scored {
    Scored {
        token: TokenId(token),
        logprob: Some(-0.5),
        top: vec![(TokenId(token), -0.5), (TokenId(2), f32::NEG_INFINITY)],
    }
}

pub(super) fn finished(choice: u32, text: &str, reason: Reason) -> Piece {
    Piece::Finished {
        choice,
        text: text.into(),
        reason,
    }
}

/// The body of an answer.
pub(super) async fn body(response: Response) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX)
        .await
        .unwrap();
    String::from_utf8(bytes.into()).unwrap()
}

/// The JSON of an answer, without what differs each time.
pub(super) async fn whole(response: Response) -> Value {
    let mut value: Value = serde_json::from_str(&body(response).await).unwrap();
    assert!(
        value
            .as_object_mut()
            .unwrap()
            .remove("created")
            .unwrap()
            .is_u64()
    );
    value
}

/// What differs each time in a stream, made equal.
pub(super) async fn events(response: Response) -> Vec<String> {
    let body = body(response).await;
    let events = body.split_terminator("\n\n").map(|event| {
        let event = event.strip_prefix("data: ").unwrap();
        match (event.find(",\"created\":"), event.find(",\"model\":")) {
            (Some(from), Some(to)) => format!("{}{}", &event[..from], &event[to..]),
            _ => event.to_owned(),
        }
    });
    events.collect()
}
