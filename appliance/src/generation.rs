//! The story of one request: from its tokens to the pieces of its answer.

use std::time::Instant;

use engine::{Refused, Request, Scored, TokenId};

/// What a caller asks of the model, parsed: token ids for the engine, and what concerns text.
#[derive(Clone, Debug)]
pub struct Ask {
    /// When the request arrived: what it waits and takes is counted from here.
    pub arrived: Instant,
    /// For the engine. Its deadline is set by [`Generator::start`].
    pub request: Request,
    /// Texts that end a continuation.
    pub stops: Vec<String>,
    /// Whether the stop string that ended it is part of the text.
    pub include_stop: bool,
    /// Whether special tokens are left out of the text.
    pub skip_special: bool,
}

/// Starts generations on the model that is served. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Generator {}

impl Generator {
    /// Hands `ask` to the engine and waits until it is admitted or refused.
    pub async fn start(&self, ask: Ask) -> Result<Generation, Refusal> {
        let _ = ask;
        Err(Refusal::Draining)
    }
}

/// Why a request was not taken on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The engine refused it: too long, not valid, or too much is waiting.
    #[error(transparent)]
    Engine(#[from] Refused),
    /// The server is about to end.
    #[error("the server is shutting down")]
    Draining,
}

/// One request in flight. Dropping it is the one and only cancel: its pages are free within a step.
#[derive(Debug)]
pub struct Generation {}

impl Generation {
    /// The next thing that happened; `None` after every choice has finished, or if the server ended.
    pub async fn next(&mut self) -> Option<Piece> {
        None
    }
}

/// One thing that happened to one choice of a request.
#[derive(Clone, PartialEq, Debug)]
pub enum Piece {
    /// A choice left the queue.
    Started {
        /// Which choice, from 0.
        choice: u32,
        /// Prompt tokens found in the prefix cache.
        cached_tokens: u32,
    },
    /// The prompt's tokens after the first, scored; once, before all tokens, if asked for.
    Prompt(Vec<Scored>),
    /// A token was produced, one piece each.
    Token {
        /// Which choice.
        choice: u32,
        /// Text that can be sent now: whole UTF-8, no beginning of a stop string; often the token's,
        /// sometimes empty, sometimes that of several tokens.
        text: String,
        /// The token.
        scored: Scored,
    },
    /// A choice ended; nothing of it follows.
    Finished {
        /// Which choice.
        choice: u32,
        /// Text that had been held back.
        text: String,
        /// Why.
        reason: Reason,
    },
}

/// Why a choice ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The end-of-sequence token.
    Eos,
    /// A stop token of the request (`stop_token_ids`).
    StopToken(TokenId),
    /// A stop string of the request.
    StopText(String),
    /// `max_tokens` or the end of the context.
    Length,
    /// It took longer than the server allows.
    Deadline,
    /// The device failed it; the text says why.
    Failed(String),
}
