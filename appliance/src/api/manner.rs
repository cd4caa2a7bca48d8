//! How an answer is to be told: whole or as events, with or without usage, ids and names.

use std::time::SystemTime;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use engine::{Scored, TokenId};

use super::logprobs::Names;
use super::params::Params;
use super::sse::{Events, Head, UsageIn};
use crate::served::Served;
use crate::text::Tokenizer;

/// How an answer is to be told.
#[derive(Debug)]
pub(super) struct Manner {
    pub(super) stream: bool,
    pub(super) return_token_ids: bool,
    pub(super) names: Names,
    model: String,
    usage_in: UsageIn,
    /// Seconds since the epoch.
    created: u64,
    /// For the header that names fields without effect.
    ignored: Option<HeaderValue>,
}

impl Manner {
    /// As `params` want it. `ignored` names fields that had no effect.
    pub(super) fn new(params: &Params, served: &Served, ignored: Option<HeaderValue>) -> Self {
        let model = served.name.clone();
        Self::of(params, model, served.tokenizer.clone(), ignored)
    }

    pub(super) fn of(
        params: &Params,
        model: String,
        tokenizer: Tokenizer,
        ignored: Option<HeaderValue>,
    ) -> Self {
        let options = params.stream_options.unwrap_or_default();
        let usage_in = match (options.include_usage, options.continuous_usage_stats) {
            (Some(true), Some(true)) => UsageIn::Each,
            (Some(true), _) => UsageIn::TheEnd,
            _ => UsageIn::Nothing,
        };
        Self {
            stream: params.stream(),
            return_token_ids: params.return_token_ids.unwrap_or(false),
            names: Names {
                tokenizer,
                by_id: params.return_tokens_as_token_ids.unwrap_or(false),
            },
            model,
            usage_in,
            created: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            ignored,
        }
    }

    /// What every part of the answer says.
    pub(super) fn head<'a>(&'a self, id: &'a str, object: &'static str) -> Head<'a> {
        Head {
            id,
            object,
            created: self.created,
            model: &self.model,
        }
    }

    /// An empty stream of events that say `head`.
    pub(super) fn events(&self, head: &Head<'_>) -> Events {
        Events::new(head, self.usage_in)
    }

    /// Headers for the answer: the names of fields without effect.
    pub(super) fn headers(&self) -> HeaderMap {
        let name = HeaderName::from_static("x-appliance-ignored");
        self.ignored
            .iter()
            .map(|ignored| (name.clone(), ignored.clone()))
            .collect()
    }

    /// The ids of `tokens`, if they were asked for.
    pub(super) fn ids(&self, tokens: &[TokenId]) -> Option<Vec<u32>> {
        self.return_token_ids
            .then(|| tokens.iter().map(|token| token.0).collect())
    }

    /// The same of scored tokens.
    pub(super) fn scored_ids(&self, scored: &[Scored]) -> Option<Vec<u32>> {
        self.return_token_ids
            .then(|| scored.iter().map(|scored| scored.token.0).collect())
    }
}
