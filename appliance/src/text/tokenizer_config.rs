//! `tokenizer_config.json`: special tokens by role, and the chat template.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// What tokenizer_config.json says; nothing if there is none.
#[derive(Clone, Default, Debug)]
pub(super) struct TokenizerConfig {
    fields: Map<String, Value>,
}

impl TokenizerConfig {
    /// Reads the file in the folder of a model; the error is its path and what is wrong with it.
    pub(super) fn open(dir: &Path) -> Result<Self, (PathBuf, String)> {
        let path = dir.join("tokenizer_config.json");
        let json = match std::fs::read(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err((path, error.to_string())),
        };
        serde_json::from_slice(&json)
            .map(Self::new)
            .map_err(|error| (path, error.to_string()))
    }

    pub(super) fn new(fields: Map<String, Value>) -> Self {
        Self { fields }
    }

    /// The text of a field.
    pub(super) fn field(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// All roles of special tokens (`bos_token`, `eos_token`, ..) with the token that has it.
    pub(super) fn special_tokens(&self) -> impl Iterator<Item = (&str, &str)> {
        let tokens = self
            .fields
            .iter()
            .filter(|(name, _)| name.ends_with("_token"));
        tokens.filter_map(|(name, value)| Some((name.as_str(), token(value)?)))
    }

    /// Whether it, and not the post-processor of tokenizer.json, decides what is added around a text.
    pub(super) fn says_what_to_add(&self) -> bool {
        ["add_bos_token", "add_eos_token"]
            .iter()
            .any(|name| self.fields.contains_key(*name))
    }

    /// The token to put before a text.
    pub(super) fn added_bos(&self) -> Option<&str> {
        self.added("add_bos_token", "bos_token")
    }

    /// The token to put after a text.
    pub(super) fn added_eos(&self) -> Option<&str> {
        self.added("add_eos_token", "eos_token")
    }

    fn added(&self, flag: &str, role: &str) -> Option<&str> {
        let wanted = self.field(flag).and_then(Value::as_bool).unwrap_or(false);
        wanted.then(|| token(self.field(role)?)).flatten()
    }
}

/// A special token: its text, or an object with that as `content`.
fn token(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}
