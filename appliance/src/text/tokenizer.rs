//! A model's tokenizer: text to ids and back, exactly as Hugging Face does it.

use std::path::Path;

use engine::TokenId;

use super::Detokenizer;

/// Why a tokenizer cannot be opened or a text not encoded.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The model's folder has no usable tokenizer.
    #[error("cannot open the tokenizer {path}: {why}")]
    Open {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// This text has no encoding.
    #[error("cannot encode the text: {0}")]
    Encode(String),
}

/// A model's tokenizer. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Tokenizer {}

impl Tokenizer {
    /// Opens `tokenizer.json` in the folder of a model.
    pub fn open(_dir: &Path) -> Result<Self, TextError> {
        Ok(Self {})
    }

    /// The ids of `text`; with `add_special` also those that the model wants around it (BOS).
    /// Takes milliseconds for long texts: not for the event loop.
    pub fn encode(&self, _text: &str, _add_special: bool) -> Result<Vec<TokenId>, TextError> {
        Ok(Vec::new())
    }

    /// The exact bytes that a token stands for, a part of a character perhaps; none for an unknown id.
    pub fn token_bytes(&self, _token: TokenId) -> Vec<u8> {
        Vec::new()
    }

    /// The text of one token by itself, U+FFFD for bytes that are no character.
    pub fn token_text(&self, token: TokenId) -> String {
        String::from_utf8_lossy(&self.token_bytes(token)).into_owned()
    }

    /// The text of `tokens`, without special tokens if `skip_special`. Unknown ids are ignored.
    pub fn decode(&self, _tokens: &[TokenId], _skip_special: bool) -> String {
        String::new()
    }

    /// The same, a token at a time.
    pub fn detokenizer(&self, _skip_special: bool) -> Detokenizer {
        Detokenizer {}
    }

    /// How many ids there are: all ids are below it.
    pub fn vocabulary(&self) -> u32 {
        0
    }

    /// The id of a token by its exact spelling in the vocabulary, such as `<|im_end|>`.
    pub fn token_id(&self, _spelling: &str) -> Option<TokenId> {
        None
    }
}
