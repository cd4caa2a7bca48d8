//! Asks a served model as a client would: greedy, with log-probabilities.

use std::sync::Arc;
use std::time::Instant;

use engine::{Constraint, Penalties, Refused, Request, Sampling, Scored, Stop, TokenId};
use futures_util::future::join_all;

use super::SelfTestError;
use crate::generation::{Ask, OURS, Piece, Reason, Refusal};
use crate::served::Served;

/// Tokens of an answer: the first comes out of a prefill, the others of decode steps.
pub(super) const TOKENS: u32 = 8;

/// The most likely tokens asked for beside each: among them a right one is looked for that rounding has
/// made second.
const TOP: u32 = 8;

/// What the model answers to each of `prompts`, which run beside each other as far as there is room.
pub(super) async fn all(
    served: &Served,
    prompts: &[&[u32]],
    tokens: u32,
) -> Result<Vec<Vec<Scored>>, SelfTestError> {
    let answers = prompts.iter().map(|prompt| answer(served, prompt, tokens));
    let answers = join_all(answers).await;
    let mut all = Vec::new();
    for (first, prompt) in answers.into_iter().zip(prompts) {
        all.push(match first {
            // The queue is shorter than the list of prompts: one by one, then.
            Err(Unanswered::Full) => answered(answer(served, prompt, tokens).await)?,
            other => answered(other)?,
        });
    }
    Ok(all)
}

/// Why a prompt has no answer.
enum Unanswered {
    /// Too much is waiting.
    Full,
    /// This.
    Why(String),
}

fn answered(answer: Result<Vec<Scored>, Unanswered>) -> Result<Vec<Scored>, SelfTestError> {
    answer.map_err(|unanswered| {
        SelfTestError::Silent(match unanswered {
            Unanswered::Full => "the queue is full".to_owned(),
            Unanswered::Why(why) => why,
        })
    })
}

async fn answer(served: &Served, prompt: &[u32], tokens: u32) -> Result<Vec<Scored>, Unanswered> {
    let top = TOP.min(served.candidates);
    let ask = Ask {
        arrived: Instant::now(),
        request: request(prompt, tokens, Some(top)),
        stops: Vec::new(),
        include_stop: false,
        skip_special: true,
    };
    let mut generation = (served.generator.start(ask).await).map_err(|refusal| match refusal {
        Refusal::Engine(Refused::TooManyRequests { .. } | Refused::TooManyTokens { .. }) => {
            Unanswered::Full
        }
        other => Unanswered::Why(other.to_string()),
    })?;
    let mut tokens = Vec::new();
    while let Some(piece) = generation.next().await {
        match piece {
            Piece::Token { scored, .. } => tokens.push(scored),
            Piece::Finished {
                reason: Reason::Failed(why),
                ..
            } => return Err(Unanswered::Why(why)),
            _ => {}
        }
    }
    match tokens.is_empty() {
        true => Err(Unanswered::Why("the model produced no token".to_owned())),
        false => Ok(tokens),
    }
}

/// Asks for the most likely tokens after `prompt`, whether or not they end a text.
pub(super) fn request(prompt: &[u32], tokens: u32, logprobs: Option<u32>) -> Request {
    Request {
        prompt: prompt.iter().copied().map(TokenId).collect(),
        choices: 1,
        sampling: Sampling {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            penalties: Penalties::NONE,
            bias: Arc::default(),
            seed: 0,
        },
        stop: Stop {
            tokens: Arc::default(),
            min_tokens: 0,
            max_tokens: tokens,
        },
        logprobs,
        prompt_logprobs: None,
        constraint: Constraint::Free,
        priority: 0,
        deadline: None,
        cache_salt: OURS,
    }
}
