//! What a caller may ask, valid once built.

use std::sync::Arc;
use std::time::Duration;

use crate::step::{TokenId, TokenMask};

/// Names one admitted request until its last delivery.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// Who goes first when not all fit: lower runs earlier (vLLM's convention); equals by arrival.
pub type Priority = i32;

/// One request: a prompt and how to go on from it, `choices` times.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompt; never empty.
    pub prompt: Arc<[TokenId]>,
    /// How many continuations to generate (`n`); at least 1. They share the prompt's pages.
    pub choices: u32,
    /// How each token is drawn.
    pub sampling: Sampling,
    /// What ends a continuation.
    pub stop: Stop,
    /// Most likely tokens to report beside each token; `None` reports no log-probabilities.
    pub logprobs: Option<u32>,
    /// The same for the prompt's tokens (`echo` with `logprobs`, `prompt_logprobs`).
    pub prompt_logprobs: Option<u32>,
    /// Tokens that may be produced at all; `None` allows the vocabulary.
    pub constraint: Constraint,
    /// Who goes first.
    pub priority: Priority,
    /// When it must have ended, on the clock of [`Engine::turn`](crate::Engine::turn).
    pub deadline: Option<Duration>,
    /// Keeps its cached prefixes apart from those of other salts (`cache_salt`); 0 is the common
    /// pool.
    pub cache_salt: u64,
}

/// Tokens that may be produced.
#[derive(Clone, Default, Debug)]
pub enum Constraint {
    /// All of the vocabulary.
    #[default]
    Free,
    /// The same set at every position (`allowed_token_ids`).
    Only(Arc<TokenMask>),
}

/// How a token is drawn. The order is vLLM's: bias, penalties, then (unless greedy) temperature,
/// min-p, top-k, top-p.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// 0 is greedy: the most likely token, the lowest id among equals.
    pub temperature: f32,
    /// Keep the k most likely tokens; `None` keeps all.
    pub top_k: Option<u32>,
    /// Keep the smallest set of most likely tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the most likely; 0 keeps all.
    pub min_p: f32,
    /// Penalties for tokens already seen.
    pub penalties: Penalties,
    /// Added to the logits of these tokens; ascending by token, each once.
    pub bias: Arc<[(TokenId, f32)]>,
    /// The draw of token `i` of choice `c` depends on `(seed, c, i)` alone.
    pub seed: u64,
}

/// Penalties for tokens already seen.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Penalties {
    /// Positive logits are divided by it, negative multiplied, for tokens in prompt or output; 1 is
    /// none.
    pub repetition: f32,
    /// Subtracted once for a token in the output; 0 is none.
    pub presence: f32,
    /// Subtracted for each time a token stands in the output; 0 is none.
    pub frequency: f32,
}

impl Penalties {
    /// No penalties.
    pub const NONE: Self = Self {
        repetition: 1.0,
        presence: 0.0,
        frequency: 0.0,
    };
}

/// What ends a continuation.
#[derive(Clone, Debug)]
pub struct Stop {
    /// End at any of these (EOS among them unless it is to be ignored); ascending.
    pub tokens: Arc<[TokenId]>,
    /// Tokens to produce before `tokens` may end it; until then they are not produced at all.
    pub min_tokens: u32,
    /// Tokens to produce at the most; at least 1.
    pub max_tokens: u32,
}

/// Why a continuation ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finish {
    /// It produced this stop token (delivered as its last token).
    Stop(TokenId),
    /// It reached its `max_tokens` or the end of the context.
    Length,
    /// Its deadline passed.
    Deadline,
    /// The device refused it or was lost; the text says why.
    Failed(String),
}

/// How much an engine takes on and how it spends a step. All of it is policy; what the device can
/// do is in [`Profile`](crate::Profile).
#[derive(Clone, PartialEq, Debug)]
pub struct Limits {
    /// Requests that may wait.
    pub queued_requests: u32,
    /// Prompt tokens that may wait, all together.
    pub queued_tokens: u64,
    /// Continuations that may run at once.
    pub running: u32,
    /// Positions of a sequence, prompt and output together.
    pub context: u32,
    /// Tokens of a step at the most, prefill and decode together.
    pub step_tokens: u32,
    /// The time that a step should take at the most while others wait for their next token: prefill
    /// chunks shrink until it is met.
    pub step_time: Duration,
}
