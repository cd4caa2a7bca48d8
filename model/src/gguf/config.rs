//! A GGUF's metadata -> `config.json` and `generation_config.json`.

use serde_json::{Map, Value, json};

use super::container::{Container, Stored};
use super::keys::{KeyError, Keys, required};
use crate::decoder::{Rope, RopeScaling};

/// What GGUF calls an architecture and what Hugging Face does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Architecture {
    name: &'static str,
    class: &'static str,
    /// Whether the rows of Q and K are in the order of interleaved rotation: llama.cpp's converter
    /// moves them for this architecture, and the import moves them back.
    pub(super) interleaved: bool,
}

const ARCHITECTURES: [Architecture; 3] = [
    Architecture {
        name: "llama",
        class: "LlamaForCausalLM",
        interleaved: true,
    },
    Architecture {
        name: "qwen2",
        class: "Qwen2ForCausalLM",
        interleaved: false,
    },
    Architecture {
        name: "qwen3",
        class: "Qwen3ForCausalLM",
        interleaved: false,
    },
];

/// The keys of an architecture that are read, or that say what the tensors say too. Any other may
/// change what is computed, so it is refused.
const KNOWN: [&str; 16] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "vocab_size",
];

/// A tensor of divisors of the rotary frequencies: what llama.cpp makes of Llama 3's scaling.
pub(super) const FREQUENCIES: &str = "rope_freqs.weight";

/// The architecture of the model; `general.architecture` names it.
pub(super) fn architecture(keys: Keys<'_>) -> Result<Architecture, KeyError> {
    const KEY: &str = "general.architecture";
    let name = required(KEY, keys.text(KEY)?)?;
    let known = ARCHITECTURES.iter().find(|known| known.name == name);
    known.copied().ok_or_else(|| {
        let supported = ARCHITECTURES.map(|known| known.name).join(", ");
        keys.unsupported(KEY, &supported)
    })
}

/// Builds `config.json`. `divisors` are the numbers of the tensor [`FREQUENCIES`].
pub(super) fn config(
    gguf: &Container,
    architecture: Architecture,
    divisors: Option<&[f32]>,
) -> Result<Map<String, Value>, KeyError> {
    let keys = Keys(&gguf.values);
    let prefix = format!("{}.", architecture.name);
    refuse_unknown(keys, &prefix)?;
    let key = |name: &str| format!("{prefix}{name}");
    let whole = |name: &str| required(&key(name), keys.whole(&key(name))?);
    let heads = whole("attention.head_count")?;
    let kv_heads = keys
        .whole(&key("attention.head_count_kv"))?
        .unwrap_or(heads);
    let hidden = whole("embedding_length")?;
    let head_size = head_size(keys, &prefix, hidden, heads)?;
    let epsilon = key("attention.layer_norm_rms_epsilon");
    let theta = keys.number(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    let context = whole("context_length")?;
    let divided = divisors.map(|divisors| Divided {
        divisors,
        theta: narrow(theta),
        head_size,
    });
    let mut config = json!({
        "architectures": [architecture.class],
        "model_type": architecture.name,
        "dtype": "bfloat16",
        "vocab_size": rows(gguf.tensors.get("token_embd.weight")),
        "hidden_size": hidden,
        "intermediate_size": whole("feed_forward_length")?,
        "num_hidden_layers": whole("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_size,
        "hidden_act": "silu",
        "rms_norm_eps": required(&epsilon, keys.number(&epsilon)?)?,
        "max_position_embeddings": context,
        "rope_theta": theta,
        "rope_scaling": scaling(keys, &prefix, context, divided.as_ref())?,
        "tie_word_embeddings": !gguf.tensors.contains_key("output.weight"),
        "attention_bias": gguf.tensors.contains_key("blk.0.attn_q.bias"),
        "mlp_bias": gguf.tensors.contains_key("blk.0.ffn_up.bias"),
        "use_cache": true,
    });
    let object = config
        .as_object_mut()
        .map(std::mem::take)
        .unwrap_or_default();
    Ok(object.into_iter().chain(tokens(keys)?).collect())
}

fn refuse_unknown(keys: Keys<'_>, prefix: &str) -> Result<(), KeyError> {
    let unknown = |key: &&str| !KNOWN.contains(&&key[prefix.len()..]);
    match keys.under(prefix).find(unknown) {
        None => Ok(()),
        Some(key) => Err(keys.unsupported(key, "models without it")),
    }
}

/// The width of a head: all of them alike, and rotated whole.
fn head_size(keys: Keys<'_>, prefix: &str, hidden: u32, heads: u32) -> Result<u32, KeyError> {
    let whole = |name: &str| keys.whole(&format!("{prefix}{name}"));
    let derived = hidden.checked_div(heads).unwrap_or_default();
    let head_size = whole("attention.key_length")?.unwrap_or(derived);
    for name in ["attention.value_length", "rope.dimension_count"] {
        if whole(name)?.is_some_and(|size| size != head_size) {
            let supported = format!("the size of a head, {head_size}");
            return Err(keys.unsupported(&format!("{prefix}{name}"), &supported));
        }
    }
    Ok(head_size)
}

fn rows(embedding: Option<&Stored>) -> usize {
    embedding.map_or(0, |tensor| tensor.shape[0])
}

/// Rotary frequencies as llama.cpp keeps those of Llama 3: unscaled, with a divisor for each.
struct Divided<'a> {
    divisors: &'a [f32],
    theta: f32,
    head_size: u32,
}

fn scaling(
    keys: Keys<'_>,
    prefix: &str,
    context: u32,
    divided: Option<&Divided<'_>>,
) -> Result<Value, KeyError> {
    let key = |name: &str| format!("{prefix}rope.scaling.{name}");
    let kind = keys.text(&key("type"))?.unwrap_or("none");
    let factor = || required(&key("factor"), keys.number(&key("factor"))?);
    if let Some(divided) = divided {
        return match kind {
            "none" => divided.llama3().ok_or_else(|| KeyError::Unsupported {
                key: FREQUENCIES.into(),
                found: "a list of divisors".into(),
                supported: "those of Llama 3 (low_freq_factor 1, high_freq_factor 4, \
                            original_max_position_embeddings 8192)"
                    .into(),
            }),
            _ => Err(keys.unsupported(&key("type"), &format!("none beside {FREQUENCIES}"))),
        };
    }
    match kind {
        "none" => Ok(Value::Null),
        "linear" => Ok(json!({"rope_type": "linear", "factor": factor()?})),
        "yarn" => {
            let original = keys.whole(&key("original_context_length"))?;
            Ok(json!({
                "rope_type": "yarn",
                "factor": factor()?,
                "original_max_position_embeddings": original.unwrap_or(context),
            }))
        }
        _ => Err(keys.unsupported(&key("type"), "none, linear, yarn")),
    }
}

impl Divided<'_> {
    /// The scaling of Llama 3 that has these divisors. All releases (3.1, 3.2, 3.3) differ in the
    /// factor only, which is the largest divisor.
    fn llama3(&self) -> Option<Value> {
        const LOW: f32 = 1.0;
        const HIGH: f32 = 4.0;
        const ORIGINAL: u32 = 8192;
        if self.divisors.len() != self.head_size as usize / 2 {
            return None;
        }
        let frequencies = |scaling| {
            let theta = self.theta;
            Rope { theta, scaling }.frequencies(self.head_size).0
        };
        let factor = self.divisors.iter().copied().fold(0.0, f32::max);
        let plain = frequencies(RopeScaling::None);
        let scaled = frequencies(RopeScaling::Llama3 {
            factor,
            low: LOW,
            high: HIGH,
            original: ORIGINAL,
        });
        // The converter computed in F32, in an order of its own.
        let close = |((plain, scaled), divisor): ((&f32, &f32), &f32)| {
            (plain / scaled - divisor).abs() <= 1e-4 * divisor
        };
        let same = plain.iter().zip(&scaled).zip(self.divisors).all(close);
        same.then(|| {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": LOW,
                "high_freq_factor": HIGH,
                "original_max_position_embeddings": ORIGINAL,
            })
        })
    }
}

/// Builds `generation_config.json`: special tokens, and how the makers would sample.
pub(super) fn generation(keys: Keys<'_>) -> Result<Map<String, Value>, KeyError> {
    let mut generation = tokens(keys)?;
    for (key, field) in [
        ("general.sampling.temp", "temperature"),
        ("general.sampling.top_p", "top_p"),
        ("general.sampling.min_p", "min_p"),
        ("general.sampling.penalty_repeat", "repetition_penalty"),
    ] {
        if let Some(number) = keys.number(key)? {
            generation.insert(field.into(), number.into());
        }
    }
    if let Some(count) = keys.whole("general.sampling.top_k")? {
        generation.insert("top_k".into(), count.into());
    }
    Ok(generation)
}

/// The ids that begin, end and pad a text. The end of a turn ends an answer too.
fn tokens(keys: Keys<'_>) -> Result<Map<String, Value>, KeyError> {
    let id = |name: &str| keys.whole(&format!("tokenizer.ggml.{name}_token_id"));
    let mut ends = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ends.extend(id(name)?.filter(|id| !ends.contains(id)));
    }
    let ends = match ends.as_slice() {
        [] => None,
        [end] => Some(json!(end)),
        ends => Some(json!(ends)),
    };
    let fields = [
        ("bos_token_id", id("bos")?.map(Value::from)),
        ("eos_token_id", ends),
        ("pad_token_id", id("padding")?.map(Value::from)),
    ];
    let present = fields
        .into_iter()
        .filter_map(|(field, value)| Some((field.into(), value?)));
    Ok(present.collect())
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "as Decoder::parse reads it"
)]
fn narrow(number: f64) -> f32 {
    number as f32
}
