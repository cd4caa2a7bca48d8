//! `POST /tokenize` and `/detokenize`: text and its token ids, in vLLM's shapes.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use engine::TokenId;

use super::body::{Asked, Fields, fields};
use super::conversation::Conversation;
use super::error::ApiError;
use super::field::{Objects, TokenIds};
use super::{Api, check_model};
use crate::config::Resolved;
use crate::served::Served;

fields! {
    /// What becomes tokens: a prompt, or messages as a chat has them.
    TokenizeFields {
        /// The model's name; the model that is served if absent.
        model: String,
        /// A text. Without it, messages.
        prompt: String,
        /// Whether the tokenizer adds its own tokens, such as BOS. Default: true for a prompt, false for messages, whose template does.
        add_special_tokens: bool,
        /// Tell the text of each token too.
        return_token_strs: bool,
        /// Tools for the chat template.
        tools: Objects,
    }
}

fields! {
    /// Tokens to be read.
    DetokenizeFields {
        /// The model's name; the model that is served if absent.
        model: String,
        /// Their ids.
        tokens: TokenIds<1_000_000>,
    }
}

/// A text as tokens.
#[derive(Serialize, Debug)]
pub(super) struct Tokens {
    count: usize,
    max_model_len: u32,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

/// Tokens as a text.
#[derive(Serialize, Debug)]
pub(super) struct Text {
    prompt: String,
}

/// Text to tokens.
pub(super) async fn tokenize(
    State(api): State<Arc<Api>>,
    Asked { served, body, .. }: Asked,
) -> Result<Json<Tokens>, ApiError> {
    let settings = api.context.settings.now();
    api.text_work(move || Ok(Json(Tokens::parse(&body, &served, &settings)?)))
        .await
}

/// Tokens to text.
pub(super) async fn detokenize(
    State(api): State<Arc<Api>>,
    Asked { served, body, .. }: Asked,
) -> Result<Json<Text>, ApiError> {
    api.text_work(move || Ok(Json(Text::parse(&body, &served)?)))
        .await
}

impl Tokens {
    fn parse(body: &[u8], served: &Served, settings: &Resolved) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let taken = TokenizeFields::take(&mut fields)?;
        check_model(taken.model.as_deref(), served)?;
        let (param, text, special) = match taken.prompt {
            Some(prompt) => ("prompt", prompt, true),
            None => {
                let trust = settings.trust_request_chat_template;
                let conversation = Conversation::parse(&mut fields, taken.tools, trust)?;
                ("messages", conversation.render(served)?, false)
            }
        };
        let special = taken.add_special_tokens.unwrap_or(special);
        let tokens = super::encode(served, settings.request_filter, param, &text, special)?;
        let text = |token: &TokenId| served.tokenizer.token_text(*token);
        Ok(Self {
            count: tokens.len(),
            max_model_len: served.context,
            token_strs: (taken.return_token_strs == Some(true))
                .then(|| tokens.iter().map(text).collect()),
            tokens: tokens.iter().map(|token| token.0).collect(),
        })
    }
}

impl Text {
    fn parse(body: &[u8], served: &Served) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let taken = DetokenizeFields::take(&mut fields)?;
        check_model(taken.model.as_deref(), served)?;
        let missing = || ApiError::invalid("tokens", "`tokens` is missing.");
        let TokenIds(ids) = taken.tokens.ok_or_else(missing)?;
        super::facts(served).known("tokens", ids.iter().copied())?;
        let tokens: Vec<TokenId> = ids.into_iter().map(TokenId).collect();
        Ok(Self {
            prompt: served.tokenizer.decode(&tokens, false),
        })
    }
}
