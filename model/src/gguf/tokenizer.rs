//! A GGUF's tokenizer -> `tokenizer.json` and `tokenizer_config.json`.
//!
//! GGUF keeps vocabulary and merges whole, but names the pre-tokenizer only: its rules are those
//! of the models that the name stands for, as their own `tokenizer.json` has them.

use serde_json::{Map, Value, json};

use super::keys::{KeyError, Keys, required};

/// What a name of `tokenizer.ggml.pre` stands for.
#[derive(Clone, Copy)]
struct PreTokenizer {
    names: &'static [&'static str],
    rules: Rules,
    /// Unicode normal form C first.
    composes: bool,
    /// A word that is a token is not built by merges.
    ignores_merges: bool,
    /// Whether BOS goes first where the file does not say.
    begins: bool,
}

/// How text is cut into words.
#[derive(Clone, Copy)]
enum Rules {
    /// As GPT-2's byte level does.
    Gpt2,
    /// The same after each digit stands alone.
    Digits,
    /// By a regular expression.
    Split(&'static str),
}

/// Llama 3's words: digits in threes. Qwen's differ in this only.
const THREE_DIGITS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const ONE_DIGIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const PRE_TOKENIZERS: [PreTokenizer; 4] = [
    PreTokenizer {
        names: &["gpt-2"],
        rules: Rules::Gpt2,
        composes: false,
        ignores_merges: false,
        begins: false,
    },
    PreTokenizer {
        names: &["smollm"],
        rules: Rules::Digits,
        composes: false,
        ignores_merges: false,
        begins: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        rules: Rules::Split(THREE_DIGITS),
        composes: false,
        ignores_merges: true,
        begins: true,
    },
    PreTokenizer {
        names: &["qwen2"],
        rules: Rules::Split(ONE_DIGIT),
        composes: true,
        ignores_merges: false,
        begins: false,
    },
];

/// Why a tokenizer cannot be rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A key is missing or its value not supported.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// Two ids have the same spelling.
    #[error("token {second} is spelt {spelling:?} as token {first} is")]
    Repeated {
        /// The earlier id.
        first: u64,
        /// The later id.
        second: usize,
        /// Their spelling.
        spelling: String,
    },
    /// A merge does not join two tokens to a third.
    #[error("merge {place}, {merge:?}, does not join two tokens of the vocabulary to a third")]
    Merge {
        /// Its place, from 0.
        place: usize,
        /// As the file has it.
        merge: String,
    },
    /// There are tokens without a row of the embedding.
    #[error("it has {length} tokens, but `token_embd.weight` has {rows} rows")]
    Rows {
        /// Tokens of the vocabulary.
        length: usize,
        /// Rows of the embedding.
        rows: u32,
    },
    /// A special token's id is beyond the vocabulary.
    #[error("the key `{key}` is {id}, but the vocabulary has {length} tokens")]
    Beyond {
        /// The key.
        key: String,
        /// The id.
        id: u32,
        /// Tokens of the vocabulary.
        length: usize,
    },
}

// `enum llama_token_type`.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const PRE: &str = "tokenizer.ggml.pre";

/// Builds `tokenizer.json`. `rows` are those of the embedding.
pub(super) fn tokenizer(keys: Keys<'_>, rows: u32) -> Result<Value, TokenizerError> {
    refuse_unsupported(keys)?;
    let pre = pre_tokenizer(keys)?;
    let tokens = required(TOKENS, keys.texts(TOKENS)?)?;
    let types = required(TYPES, keys.wholes(TYPES)?)?;
    if types.len() != tokens.len() {
        let expected = format!("one for each of {} tokens", tokens.len());
        return Err(keys.invalid(TYPES, &expected).into());
    }
    if tokens.len() > rows as usize {
        let length = tokens.len();
        return Err(TokenizerError::Rows { length, rows });
    }
    let vocabulary = vocabulary(tokens, types)?;
    let normalizer = pre.composes.then(|| json!({"type": "NFC"}));
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added(tokens, types),
        "normalizer": normalizer,
        "pre_tokenizer": pre.rules.json(),
        "post_processor": frame(keys, pre, tokens)?,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre.ignores_merges,
            "merges": merges(keys, &vocabulary)?,
            "vocab": vocabulary,
        },
    }))
}

fn refuse_unsupported(keys: Keys<'_>) -> Result<(), KeyError> {
    const MODEL: &str = "tokenizer.ggml.model";
    if required(MODEL, keys.text(MODEL)?)? != "gpt2" {
        return Err(keys.unsupported(MODEL, "gpt2 (byte-level BPE)"));
    }
    for (key, flag) in [
        ("tokenizer.ggml.add_space_prefix", false),
        ("tokenizer.ggml.remove_extra_whitespaces", false),
        ("tokenizer.ggml.add_sep_token", false),
    ] {
        if keys.flag(key)?.is_some_and(|found| found != flag) {
            return Err(keys.unsupported(key, &flag.to_string()));
        }
    }
    Ok(())
}

fn pre_tokenizer(keys: Keys<'_>) -> Result<PreTokenizer, KeyError> {
    let supported = || PRE_TOKENIZERS.map(|pre| pre.names.join(", ")).join(", ");
    let name = required(PRE, keys.text(PRE)?)?;
    let known = PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&name));
    known
        .copied()
        .ok_or_else(|| keys.unsupported(PRE, &supported()))
}

/// Ids by spelling, without those that only fill the embedding up.
fn vocabulary(tokens: &[String], types: &[i64]) -> Result<Map<String, Value>, TokenizerError> {
    let mut vocabulary = Map::with_capacity(tokens.len());
    for (id, (spelling, kind)) in tokens.iter().zip(types).enumerate() {
        if *kind == UNUSED {
            continue;
        }
        if let Some(first) = vocabulary.insert(spelling.clone(), id.into()) {
            return Err(TokenizerError::Repeated {
                first: first.as_u64().unwrap_or_default(),
                second: id,
                spelling: spelling.clone(),
            });
        }
    }
    Ok(vocabulary)
}

/// The tokens that are found in a text before it is cut into words.
fn added(tokens: &[String], types: &[i64]) -> Vec<Value> {
    let added = tokens.iter().zip(types).enumerate();
    let added = added.filter(|(_, (_, kind))| [CONTROL, USER_DEFINED].contains(kind));
    let json = added.map(|(id, (spelling, kind))| {
        json!({
            "id": id,
            "content": spelling,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": *kind == CONTROL,
        })
    });
    json.collect()
}

/// The merges as pairs, each checked to join two tokens to a third.
fn merges(
    keys: Keys<'_>,
    vocabulary: &Map<String, Value>,
) -> Result<Vec<[String; 2]>, TokenizerError> {
    let merges = required(MERGES, keys.texts(MERGES)?)?;
    let pair = |(place, merge): (usize, &String)| {
        let known = |token: &str| vocabulary.contains_key(token);
        let (left, right) = merge.split_once(' ').unwrap_or((merge, ""));
        // The parts hold no space of their own: byte-level BPE spells it otherwise.
        if known(left) && known(right) && known(&format!("{left}{right}")) {
            Ok([left.to_owned(), right.to_owned()])
        } else {
            let merge = merge.clone();
            Err(TokenizerError::Merge { place, merge })
        }
    };
    merges.iter().enumerate().map(pair).collect()
}

impl Rules {
    fn json(self) -> Value {
        let steps = match self {
            Rules::Gpt2 => return byte_level(true),
            Rules::Digits => [
                json!({"type": "Digits", "individual_digits": true}),
                byte_level(true),
            ],
            Rules::Split(regex) => [
                json!({
                    "type": "Split",
                    "pattern": {"Regex": regex},
                    "behavior": "Isolated",
                    "invert": false,
                }),
                byte_level(false),
            ],
        };
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

/// Bytes spelt as letters; with `cuts` also GPT-2's cutting into words.
fn byte_level(cuts: bool) -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": true,
        "use_regex": cuts,
    })
}

/// The post-processor that puts BOS before a text and EOS behind it, as the file asks.
fn frame(keys: Keys<'_>, pre: PreTokenizer, tokens: &[String]) -> Result<Value, TokenizerError> {
    let begins = keys.flag("tokenizer.ggml.add_bos_token")?;
    let ends = keys.flag("tokenizer.ggml.add_eos_token")?;
    let first = special(keys, tokens, "bos")?.filter(|_| begins.unwrap_or(pre.begins));
    let last = special(keys, tokens, "eos")?.filter(|_| ends.unwrap_or(false));
    if first.is_none() && last.is_none() {
        return Ok(Value::Null);
    }
    let token = |(_, spelling): &(u32, &str), sequence: u32| json!({"SpecialToken": {"id": spelling, "type_id": sequence}});
    let sequence = |name: &str, number: u32| {
        let text = json!({"Sequence": {"id": name, "type_id": number}});
        let first = first.iter().map(|special| token(special, number));
        let last = last.iter().map(|special| token(special, number));
        first.chain([text]).chain(last).collect::<Vec<_>>()
    };
    let described = first.iter().chain(&last).map(|(id, spelling)| {
        let described = json!({"id": spelling, "ids": [id], "tokens": [spelling]});
        ((*spelling).to_owned(), described)
    });
    let pair = [sequence("A", 0), sequence("B", 1)].concat();
    Ok(json!({
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": pair,
        "special_tokens": described.collect::<Map<_, _>>(),
    }))
}

/// Builds `tokenizer_config.json`. `context` is how many tokens the model takes.
pub(super) fn tokenizer_config(
    keys: Keys<'_>,
    context: &Value,
) -> Result<Map<String, Value>, TokenizerError> {
    let tokens = required(TOKENS, keys.texts(TOKENS)?)?;
    let mut config = Map::new();
    for (name, field) in [
        ("bos", "bos_token"),
        ("eos", "eos_token"),
        ("padding", "pad_token"),
        ("unknown", "unk_token"),
    ] {
        if let Some((_, spelling)) = special(keys, tokens, name)? {
            config.insert(field.into(), spelling.into());
        }
    }
    if let Some(template) = keys.text("tokenizer.chat_template")? {
        config.insert("chat_template".into(), template.into());
    }
    for (field, value) in [
        ("tokenizer_class", json!("PreTrainedTokenizerFast")),
        ("model_max_length", context.clone()),
        ("clean_up_tokenization_spaces", json!(false)),
    ] {
        config.insert(field.into(), value);
    }
    Ok(config)
}

/// The special token with this role: its id and spelling.
fn special<'a>(
    keys: Keys<'_>,
    tokens: &'a [String],
    name: &str,
) -> Result<Option<(u32, &'a str)>, TokenizerError> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(id) = keys.whole(&key)? else {
        return Ok(None);
    };
    match tokens.get(id as usize) {
        Some(spelling) => Ok(Some((id, spelling))),
        None => Err(TokenizerError::Beyond {
            key,
            id,
            length: tokens.len(),
        }),
    }
}
