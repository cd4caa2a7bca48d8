//! How many tokens a request took.

use serde::Serialize;

use crate::access::Tokens;

/// The tokens of a request so far, all prompts and choices together.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Debug)]
pub(super) struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
}

/// Always there, so that clients need not ask whether nothing was cached or nothing is known.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Debug)]
struct PromptDetails {
    cached_tokens: u64,
}

impl Usage {
    /// Writes it to the log, with how many choices had not ended.
    pub(super) fn log(&self, unfinished: u32) {
        let Self {
            prompt_tokens,
            completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens },
            ..
        } = *self;
        tracing::info!(
            prompt_tokens,
            cached_tokens,
            completion_tokens,
            unfinished,
            "ran"
        );
    }

    /// What is to be paid for.
    pub(super) fn tokens(&self) -> Tokens {
        Tokens {
            input: self.prompt_tokens,
            cached: self.prompt_tokens_details.cached_tokens,
            output: self.completion_tokens,
        }
    }

    /// Before the first token.
    pub(super) fn of_prompts(tokens: u64) -> Self {
        Self {
            prompt_tokens: tokens,
            total_tokens: tokens,
            ..Self::default()
        }
    }

    /// A token was produced.
    pub(super) fn produced(&mut self) {
        self.completion_tokens += 1;
        self.total_tokens += 1;
    }

    /// A prompt began to run, with this many of its tokens in the prefix cache.
    pub(super) fn cached(&mut self, tokens: u32) {
        self.prompt_tokens_details.cached_tokens += u64::from(tokens);
    }
}
