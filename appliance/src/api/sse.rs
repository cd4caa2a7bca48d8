//! Answers as server-sent events: one JSON object an event, one event a token, `[DONE]` at the end.
//!
//! There is no `id:` anywhere: openai-python remembers the last id, and then takes the next comment
//! for an event without data.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{self, StreamExt};
use serde::Serialize;
use tokio::time::timeout;

use super::error::ApiError;
use super::run::{Part, Run};
use super::usage::Usage;

/// How long a stream may be silent: load balancers close what says nothing for a minute.
const SILENCE: Duration = Duration::from_secs(10);
const PING: &[u8] = b": ping\n\n";
const DONE: &[u8] = b"data: [DONE]\n\n";

/// What a dialect sends for each part of an answer.
pub(super) trait Chunks: Send + 'static {
    /// Writes the events of `part`, none perhaps.
    fn write(&mut self, part: Part, events: &mut Events);
}

/// Which chunks tell the tokens so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum UsageIn {
    /// None.
    Nothing,
    /// One at the end without choices; `usage` is null in the others.
    TheEnd,
    /// Each, and one at the end without choices.
    Each,
}

/// What all chunks of an answer have in common.
#[derive(Serialize, Debug)]
pub(super) struct Head<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
}

/// Events, written one after the other.
#[derive(Debug)]
pub(super) struct Events {
    out: BytesMut,
    /// `data: ` and the beginning of every chunk, up to its choices.
    prefix: Vec<u8>,
    /// A field of the first chunk alone, with its comma.
    first: Vec<u8>,
    usage_in: UsageIn,
    usage: Usage,
}

impl Events {
    /// Events that begin with `head`.
    pub(super) fn new(head: &Head<'_>, usage_in: UsageIn) -> Self {
        let mut prefix = b"data: ".to_vec();
        json(&mut prefix, head);
        prefix.pop();
        prefix.extend_from_slice(b",\"choices\":[");
        Self {
            out: BytesMut::new(),
            prefix,
            first: Vec::new(),
            usage_in,
            usage: Usage::default(),
        }
    }

    /// Has the first chunk say `name` too.
    pub(super) fn say_first(&mut self, name: &str, value: &impl Serialize) {
        self.first = format!(",\"{name}\":").into_bytes();
        json(&mut self.first, value);
    }

    /// Writes a chunk with one choice.
    pub(super) fn chunk(&mut self, choice: &impl Serialize) {
        self.out.put_slice(&self.prefix);
        json((&mut self.out).writer(), choice);
        self.out.put_u8(b']');
        self.out.put_slice(&std::mem::take(&mut self.first));
        match self.usage_in {
            UsageIn::Nothing => {}
            UsageIn::TheEnd => self.out.put_slice(b",\"usage\":null"),
            UsageIn::Each => self.put_usage(),
        }
        self.out.put_slice(b"}\n\n");
    }

    /// Writes what comes after all choices have ended.
    fn end(&mut self) {
        if self.usage_in != UsageIn::Nothing {
            self.out.put_slice(&self.prefix);
            self.out.put_u8(b']');
            self.put_usage();
            self.out.put_slice(b"}\n\n");
        }
        self.out.put_slice(DONE);
    }

    fn put_usage(&mut self) {
        self.out.put_slice(b",\"usage\":");
        json((&mut self.out).writer(), &self.usage);
    }
}

/// Writes JSON to memory.
fn json(out: impl std::io::Write, value: &impl Serialize) {
    serde_json::to_writer(out, value).expect("chunks have text keys, and memory takes all");
}

/// An error as the end of a stream.
fn failure(error: &ApiError) -> Bytes {
    error.log();
    let mut out = b"data: ".to_vec();
    json(&mut out, &error.body());
    out.extend_from_slice(b"\n\n");
    out.extend_from_slice(DONE);
    out.into()
}

/// A stream that has not ended.
struct Live<C> {
    run: Run,
    chunks: C,
    events: Events,
}

/// Answers with what comes of `run`, as events.
pub(super) fn answer(run: Run, chunks: impl Chunks, events: Events) -> Response {
    let live = Live {
        run,
        chunks,
        events,
    };
    let frames = stream::unfold(Some(live), |live| async { Some(frame(live?).await) });
    // What panics in one stream ends that stream.
    let frames = AssertUnwindSafe(frames).catch_unwind().map(|frame| {
        let panicked = |_| failure(&ApiError::panicked());
        Ok::<_, Infallible>(frame.unwrap_or_else(panicked))
    });
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // For nginx and what is built on it, which else collect a stream before they send it.
        (
            HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ];
    (headers, Body::from_stream(frames)).into_response()
}

/// The next bytes of a stream, and what is left of it.
async fn frame<C: Chunks>(mut live: Live<C>) -> (Bytes, Option<Live<C>>) {
    while live.events.out.is_empty() {
        let part = match timeout(SILENCE, live.run.next()).await {
            Err(_silence) => return (Bytes::from_static(PING), Some(live)),
            Ok(part) => part,
        };
        live.events.usage = live.run.usage();
        match part {
            Err(error) => return (failure(&error), None),
            Ok(Some(part)) => live.chunks.write(part, &mut live.events),
            Ok(None) => {
                live.events.end();
                return (live.events.out.freeze(), None);
            }
        }
    }
    (live.events.out.split().freeze(), Some(live))
}
