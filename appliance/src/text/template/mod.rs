//! A model's chat template: messages to the one text that the model was trained on.
//!
//! Templates are Jinja as transformers runs it (`apply_chat_template`), so they see Python's methods and
//! its way to write JSON. They come with the model or, if the operator allows it, with a request: steps and
//! output are bounded.

mod json;
mod messages;
mod program;
mod python;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use self::messages::Chat;
use self::program::Programs;
use super::tokenizer_config::TokenizerConfig;

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
pub struct Template {
    programs: Programs,
    /// The model's special tokens by role (`bos_token`), which templates see as variables.
    special: Map<String, Value>,
}

/// The program that renders unless another is asked for.
const DEFAULT: &str = "default";
/// The program that renders requests with tools, where there is one.
const TOOLS: &str = "tool_use";

impl Template {
    /// Reads the template of the model in `dir`: `chat_template` in tokenizer_config.json (a string, or
    /// the one named `default`), or the file chat_template.jinja, which wins. A model without one opens
    /// too: each [`render`](Self::render) then says [`TemplateError::Missing`].
    pub fn open(dir: &Path) -> Result<Self, TemplateError> {
        let wrong = |path: PathBuf, why: String| TemplateError::Open {
            path: path.display().to_string(),
            why,
        };
        let config = TokenizerConfig::open(dir).map_err(|(path, why)| wrong(path, why))?;
        let file = dir.join("chat_template.jinja");
        let (path, sources) = match std::fs::read_to_string(&file) {
            Ok(source) => (file, vec![(DEFAULT.to_owned(), source)]),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                (dir.join("tokenizer_config.json"), sources(&config))
            }
            Err(error) => return Err(wrong(file, error.to_string())),
        };
        let programs =
            Programs::compile(sources).map_err(|error| wrong(path, error.to_string()))?;
        let special = config.special_tokens();
        let special = special.map(|(role, token)| (role.to_owned(), token.into()));
        Ok(Self {
            programs,
            special: special.collect(),
        })
    }

    /// This model's special tokens with another template (a request's `chat_template`): the name of one of
    /// the model's own, or the text of one.
    pub fn with_source(&self, source: &str) -> Result<Self, TemplateError> {
        let own = self.programs.source(source);
        let source = own.unwrap_or_else(|| source.to_owned());
        Ok(Self {
            programs: Programs::compile(vec![(DEFAULT.to_owned(), source)])?,
            special: self.special.clone(),
        })
    }

    /// Renders `messages`, a JSON array of objects with `role` and `content`. Content that is an array of
    /// text parts is given to the template as one text, a line a part.
    pub fn render(
        &self,
        messages: &Value,
        options: &TemplateOptions,
    ) -> Result<String, TemplateError> {
        let name = self.choose(options)?;
        let chat = Chat::parse(messages, options)?;
        let mut variables = self.special.clone();
        variables.insert("documents".to_owned(), Value::Null);
        variables.extend(options.extra.clone());
        let tools = options.tools.clone().unwrap_or_default();
        variables.insert("tools".to_owned(), tools);
        let begin = options.add_generation_prompt;
        variables.insert("add_generation_prompt".to_owned(), begin.into());
        variables.insert("messages".to_owned(), chat.messages());
        chat.end(self.programs.run(name, &variables)?)
    }

    /// The name of the program for such a request.
    fn choose(&self, options: &TemplateOptions) -> Result<&'static str, TemplateError> {
        if options.tools.is_some() && self.programs.has(TOOLS) {
            return Ok(TOOLS);
        }
        if self.programs.has(DEFAULT) {
            return Ok(DEFAULT);
        }
        let names = self.programs.names();
        if names.is_empty() {
            return Err(TemplateError::Missing);
        }
        Err(TemplateError::Refused(format!(
            "this model has several chat templates and none is called {DEFAULT}: name one in \
             chat_template: {}",
            names.join(", ")
        )))
    }
}

/// The templates in tokenizer_config.json: one, or a list of `name` and `template`.
fn sources(config: &TokenizerConfig) -> Vec<(String, String)> {
    match config.field("chat_template") {
        Some(Value::String(source)) => vec![(DEFAULT.to_owned(), source.clone())],
        Some(Value::Array(named)) => named.iter().filter_map(named_source).collect(),
        _ => Vec::new(),
    }
}

fn named_source(entry: &Value) -> Option<(String, String)> {
    let text = |key: &str| Some(entry.get(key)?.as_str()?.to_owned());
    Some((text("name")?, text("template")?))
}

#[cfg(test)]
mod tests;
