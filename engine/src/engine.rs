//! The loop: `admit`, `cancel`, `turn`.

use std::time::Duration;

use crate::backend::{Backend, Cause};
use crate::delivery::Delivery;
use crate::request::{Limits, Request, RequestId};

/// Serves many requests on one device.
#[derive(Debug)]
pub struct Engine<B> {
    backend: B,
}

/// What a turn did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// Nothing is in flight and nothing can run: the next turn waits for work, a resume or a
    /// deadline.
    Idle,
    /// A step landed or was launched: turn again.
    Ran,
}

/// Why a request was not admitted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// The prompt leaves no room for a token, or its continuations do not fit the device's pages.
    #[error("a prompt of {prompt} tokens does not fit a context of {context}")]
    TooLong {
        /// Tokens of the prompt.
        prompt: u32,
        /// Positions a sequence may have.
        context: u32,
    },
    /// A value that cannot be served, named.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field of [`Request`].
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// `queued_requests` wait already.
    #[error("{queued} requests wait already")]
    TooManyRequests {
        /// How many wait.
        queued: u32,
    },
    /// `queued_tokens` wait already.
    #[error("{queued} prompt tokens wait already")]
    TooManyTokens {
        /// How many wait.
        queued: u64,
    },
    /// The engine has ended.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// The device is lost: every request has had its `Finished`, and the engine has ended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the device is lost: {0}")]
pub struct Lost(pub Cause);

/// How the engine stands, for metrics: gauges of now and counts since the start.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct Stats {
    /// Continuations that have left the queue and not ended.
    pub running: u32,
    /// Requests that have not left the queue.
    pub waiting: u32,
    /// Prompt tokens of those.
    pub waiting_tokens: u64,
    /// KV pages on the device.
    pub pages: u32,
    /// Pages that some continuation holds (cached pages that nobody holds count as free).
    pub pages_used: u32,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Those found.
    pub prefix_hits: u64,
    /// Continuations put back to be computed again.
    pub preemptions: u64,
    /// Prompt (and recomputed) tokens run.
    pub prefill_tokens: u64,
    /// Tokens produced.
    pub decode_tokens: u64,
    /// Steps landed.
    pub steps: u64,
    /// Tokens that steps were padded with.
    pub padding_tokens: u64,
}

impl<B: Backend> Engine<B> {
    /// An engine on an opened device. `secret` keys the prefix cache's hashes, so that nobody
    /// outside can make two prefixes collide.
    pub fn new(backend: B, limits: Limits, secret: [u8; 16]) -> Self {
        let _ = (limits, secret);
        Self { backend }
    }

    /// Takes on a request, or says why not. What follows comes out of [`turn`](Self::turn).
    pub fn admit(&mut self, request: Request, now: Duration) -> Result<RequestId, Refused> {
        let _ = (request, now, &self.backend);
        unimplemented!("lands with the engine")
    }

    /// Ends a request without further deliveries. Unknown and ended ones are ignored.
    pub fn cancel(&mut self, request: RequestId) {
        let _ = request;
    }

    /// Ends one continuation of a request without further deliveries of it (a stop string was met);
    /// the others go on. Unknown and ended ones are ignored.
    pub fn cancel_choice(&mut self, request: RequestId, choice: u32) {
        let _ = (request, choice);
    }

    /// Keeps a request's continuations out of further steps, because its reader is slow; they keep
    /// their pages while nobody needs them.
    pub fn pause(&mut self, request: RequestId) {
        let _ = request;
    }

    /// Undoes [`pause`](Self::pause).
    pub fn resume(&mut self, request: RequestId) {
        let _ = request;
    }

    /// Runs one turn: lands the oldest step in flight, then launches as many as the device will
    /// hold. `now` is the time since an origin of the caller's choice, the same for all calls.
    pub fn turn(&mut self, now: Duration, out: &mut Vec<Delivery>) -> Result<Turn, Lost> {
        let _ = (now, out);
        unimplemented!("lands with the engine")
    }

    /// The earliest deadline of all requests: when an idle engine wants its next turn.
    pub fn next_deadline(&self) -> Option<Duration> {
        None
    }

    /// How the engine stands.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }
}
