//! A model's tokenizer: text to ids and back, exactly as Hugging Face does it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use engine::TokenId;
use serde_json::Value;

use super::Detokenizer;
use super::spelling::{Piece, Spelling};
use super::tokenizer_config::TokenizerConfig;

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
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    tokenizer: tokenizers::Tokenizer,
    spelling: Spelling,
    vocabulary: u32,
    most_bytes: usize,
    /// What is added around a text, where that is not for tokenizer.json to say.
    around: Option<Around>,
}

/// The tokens that a model wants around a text.
struct Around {
    before: Option<TokenId>,
    after: Option<TokenId>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("spelling", &self.shared.spelling)
            .field("vocabulary", &self.shared.vocabulary)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Opens `tokenizer.json` in the folder of a model. If tokenizer_config.json there has `add_bos_token`
    /// or `add_eos_token`, they decide what `add_special` adds, as in transformers.
    pub fn open(dir: &Path) -> Result<Self, TextError> {
        let path = dir.join("tokenizer.json");
        let wrong = |why: String| TextError::Open {
            path: path.display().to_string(),
            why,
        };
        let json = std::fs::read(&path).map_err(|error| wrong(absent(dir, &error)))?;
        let config = TokenizerConfig::open(dir).map_err(|(path, why)| TextError::Open {
            path: path.display().to_string(),
            why,
        })?;
        Self::parse(&json, &config).map_err(wrong)
    }

    pub(super) fn parse(json: &[u8], config: &TokenizerConfig) -> Result<Self, String> {
        let mut tokenizer =
            tokenizers::Tokenizer::from_bytes(json).map_err(|error| error.to_string())?;
        let decoder = serde_json::to_value(tokenizer.get_decoder());
        let spelling = Spelling::parse(&decoder.unwrap_or(Value::Null))?;
        // What the file says of these is how the tokenizer was trained: a server never cuts or pads.
        let untruncated = tokenizer.with_truncation(None).map(drop);
        untruncated.map_err(|error| error.to_string())?;
        tokenizer.with_padding(None);
        let around = config
            .says_what_to_add()
            .then(|| around(&tokenizer, config));
        let spellings = tokenizer.get_vocab(true);
        let vocabulary = (spellings.values().max()).map_or(0, |last| last.saturating_add(1));
        // A spelling writes a byte as a letter of one or two bytes, or as itself.
        let most_bytes = spellings.keys().map(String::len).max().unwrap_or(0);
        Ok(Self {
            shared: Arc::new(Shared {
                tokenizer,
                spelling,
                vocabulary,
                most_bytes,
                around: around.transpose()?,
            }),
        })
    }

    /// The ids of `text`; with `add_special` also those that the model wants around it (BOS).
    /// Takes milliseconds for long texts: not for the event loop.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, TextError> {
        let encode = |special| {
            let encoding = self.shared.tokenizer.encode_fast(text, special);
            encoding.map_err(|error| TextError::Encode(error.to_string()))
        };
        match &self.shared.around {
            Some(around) if add_special => {
                let encoding = encode(false)?;
                let text = encoding.get_ids().iter().copied().map(TokenId);
                Ok(around
                    .before
                    .into_iter()
                    .chain(text)
                    .chain(around.after)
                    .collect())
            }
            _ => Ok(encode(add_special)?
                .get_ids()
                .iter()
                .copied()
                .map(TokenId)
                .collect()),
        }
    }

    /// No token stands for more bytes of text than this: a text of `n` bytes has at least
    /// `n / most_bytes` tokens.
    pub fn most_bytes(&self) -> usize {
        self.shared.most_bytes
    }

    /// The exact bytes that a token stands for, a part of a character perhaps; none for an unknown id.
    pub fn token_bytes(&self, token: TokenId) -> Vec<u8> {
        let Some(token) = self.spelled(token, false) else {
            return Vec::new();
        };
        match self.shared.spelling.piece(token, false) {
            Piece::Bytes(bytes) => bytes,
            Piece::Text(text) => text.into_bytes(),
        }
    }

    /// The text of one token by itself, U+FFFD for bytes that are no character.
    pub fn token_text(&self, token: TokenId) -> String {
        String::from_utf8_lossy(&self.token_bytes(token)).into_owned()
    }

    /// The text of `tokens`, without special tokens if `skip_special`. Unknown ids are ignored.
    ///
    /// Hugging Face gives the same but for one case: of byte tokens (`<0xE2>`) that make no UTF-8 it
    /// replaces also those beside them that make whole characters.
    pub fn decode(&self, tokens: &[TokenId], skip_special: bool) -> String {
        let mut detokenizer = self.detokenizer(skip_special);
        let pieces = tokens.iter().map(|token| detokenizer.push(*token));
        let text: String = pieces.collect();
        text + &detokenizer.finish()
    }

    /// The same, a token at a time.
    pub fn detokenizer(&self, skip_special: bool) -> Detokenizer {
        Detokenizer::new(self.clone(), skip_special)
    }

    /// How many ids there are: all ids are below it.
    pub fn vocabulary(&self) -> u32 {
        self.shared.vocabulary
    }

    /// The id of a token by its exact spelling in the vocabulary, such as `<|im_end|>`.
    pub fn token_id(&self, spelling: &str) -> Option<TokenId> {
        self.shared.tokenizer.token_to_id(spelling).map(TokenId)
    }

    /// The spelling of a token, unless it is unknown or special and `skip_special`.
    pub(super) fn spelled(&self, token: TokenId, skip_special: bool) -> Option<String> {
        let tokenizer = &self.shared.tokenizer;
        let spelled = tokenizer.id_to_token(token.0)?;
        let special = || tokenizer.get_added_vocabulary().is_special_token(&spelled);
        (!(skip_special && special())).then_some(spelled)
    }

    pub(super) fn spelling(&self) -> &Spelling {
        &self.shared.spelling
    }
}

/// What `config` wants around a text.
fn around(tokenizer: &tokenizers::Tokenizer, config: &TokenizerConfig) -> Result<Around, String> {
    let id = |token: Option<&str>| {
        let id = |token| {
            let unknown = || format!("tokenizer_config.json adds {token:?}, which is no token");
            let id = tokenizer.token_to_id(token).ok_or_else(unknown)?;
            Ok::<_, String>(TokenId(id))
        };
        token.map(id).transpose()
    };
    Ok(Around {
        before: id(config.added_bos())?,
        after: id(config.added_eos())?,
    })
}

/// Why there is no tokenizer.json to read.
fn absent(dir: &Path, error: &std::io::Error) -> String {
    if error.kind() == std::io::ErrorKind::NotFound && dir.join("tokenizer.model").exists() {
        return "there is only tokenizer.model: save the tokenizer once with transformers \
                (AutoTokenizer.from_pretrained(..).save_pretrained(..)), which writes it"
            .to_owned();
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The ids of "b", which is 2, in a model whose tokenizer.json puts `<s>`, which is 0, before a text.
    fn ids(config: Value) -> Result<Vec<u32>, String> {
        let special = |id: u32, content: &str| {
            json!({
                "id": id, "content": content, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false,
            })
        };
        let post = json!({
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        });
        let json = json!({
            "added_tokens": [special(0, "<s>"), special(1, "</s>")],
            "post_processor": post,
            "decoder": {"type": "Fuse"},
            "truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0},
            "model": {"type": "BPE", "vocab": {"<s>": 0, "</s>": 1, "b": 2}, "merges": []},
        });
        let config = TokenizerConfig::new(config.as_object().unwrap().clone());
        let tokenizer = Tokenizer::parse(json.to_string().as_bytes(), &config)?;
        assert_eq!(tokenizer.vocabulary(), 3);
        assert_eq!(tokenizer.encode("bb", false).unwrap(), [TokenId(2); 2]);
        let ids = tokenizer
            .encode("b", true)
            .map_err(|error| error.to_string())?;
        Ok(ids.into_iter().map(|id| id.0).collect())
    }

    #[test]
    fn what_is_added_is_for_tokenizer_config_to_say_if_it_does() {
        let roles = |before: bool, after: bool| {
            json!({
                "bos_token": "<s>", "eos_token": {"content": "</s>"},
                "add_bos_token": before, "add_eos_token": after,
            })
        };
        assert_eq!(ids(json!({"bos_token": "<s>"})), Ok(vec![0, 2]));
        assert_eq!(ids(roles(true, false)), Ok(vec![0, 2]));
        assert_eq!(ids(roles(false, false)), Ok(vec![2]));
        assert_eq!(ids(roles(true, true)), Ok(vec![0, 2, 1]));
        let unknown = ids(json!({"bos_token": "<b>", "add_bos_token": true})).unwrap_err();
        assert!(
            unknown.contains("adds \"<b>\", which is no token"),
            "{unknown}"
        );
    }

    #[test]
    fn a_folder_without_a_tokenizer_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = Tokenizer::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json: No such file"), "{error}");
        std::fs::write(dir.path().join("tokenizer.model"), "").unwrap();
        let error = Tokenizer::open(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("save the tokenizer once with transformers"),
            "{error}"
        );
    }
}
