//! What comes out of the engine.

use crate::request::{Finish, RequestId};
use crate::step::TokenId;

/// One thing that happened to one continuation of one request.
#[derive(Clone, PartialEq, Debug)]
pub struct Delivery {
    /// Which request.
    pub request: RequestId,
    /// Which of its continuations, from 0.
    pub choice: u32,
    /// What happened.
    pub event: Event,
}

/// What happened. For each choice: `Started` once unless it ended in the queue, `Prompt` once if
/// asked for (choice 0 only, before its first token), `Token` for each token, `Finished` last,
/// exactly once, whatever came before.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// It left the queue: its first rows are in a step. Not repeated after a preemption.
    Started {
        /// Prompt tokens whose KV was found in the prefix cache.
        cached_tokens: u32,
    },
    /// The prompt's tokens after the first, scored.
    Prompt(Vec<Scored>),
    /// A token was produced.
    Token(Scored),
    /// It ended; nothing follows.
    Finished(Finish),
}

/// A token and, if asked for, how likely it was: the model's own log-probabilities, before bias,
/// penalties and temperature.
#[derive(Clone, PartialEq, Debug)]
pub struct Scored {
    /// The token.
    pub token: TokenId,
    /// Its log-probability; `None` unless log-probabilities were asked for.
    pub logprob: Option<f32>,
    /// The most likely tokens at this place, best first, as many as asked for.
    pub top: Vec<(TokenId, f32)>,
}
