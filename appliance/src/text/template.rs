//! A model's chat template: messages to the one text that the model was trained on.

use std::path::Path;

use serde_json::{Map, Value};

/// Why messages could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The model has no chat template.
    #[error(
        "this model has no chat template: use /v1/completions, or add chat_template.jinja to its folder"
    )]
    Missing,
    /// The folder's tokenizer_config.json or template cannot be read.
    #[error("cannot open the chat template {path}: {why}")]
    Open {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The template is not valid, or failed while rendering.
    #[error("chat template, line {line}: {why}")]
    Failed {
        /// The line of the template, from 1.
        line: usize,
        /// What it said: the text of `raise_exception`, or what is wrong.
        why: String,
    },
    /// The request asks for what cannot be done with these messages.
    #[error("{0}")]
    Refused(String),
}

/// How to render.
#[derive(Clone, Default, Debug)]
pub struct TemplateOptions {
    /// End with the beginning of the assistant's turn.
    pub add_generation_prompt: bool,
    /// End inside the last message, for the model to go on with it.
    pub continue_final_message: bool,
    /// The request's `tools`.
    pub tools: Option<Value>,
    /// Further variables for the template (`chat_template_kwargs`).
    pub extra: Map<String, Value>,
}

/// A model's chat template, ready to render.
#[derive(Debug)]
pub struct Template {}

impl Template {
    /// Reads the template of the model in `dir`: `chat_template` in tokenizer_config.json (a string, or
    /// the one named `default`), or the file chat_template.jinja, which wins. A model without one opens
    /// too: each [`render`](Self::render) then says [`TemplateError::Missing`].
    pub fn open(_dir: &Path) -> Result<Self, TemplateError> {
        Ok(Self {})
    }

    /// This model's special tokens with another template (a request's `chat_template`).
    pub fn with_source(&self, _source: &str) -> Result<Self, TemplateError> {
        Ok(Self {})
    }

    /// Renders `messages`, a JSON array of objects with `role` and `content`.
    pub fn render(
        &self,
        _messages: &Value,
        _options: &TemplateOptions,
    ) -> Result<String, TemplateError> {
        Err(TemplateError::Missing)
    }
}
