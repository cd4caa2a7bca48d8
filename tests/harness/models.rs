//! Models to serve: tiny ones made here, and the real one.
//!
//! The tiny ones share a tokenizer whose ids 0 to 255 are the bytes themselves, so that a test can
//! say exactly which bytes a token carries.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Map, Value, json};

/// The first id after the bytes: `<|endoftext|>`.
pub const END_OF_TEXT: u32 = 256;
/// `<|im_start|>` opens a message of a chat.
pub const MESSAGE_START: u32 = 257;
/// `<|im_end|>` closes a message and ends an answer.
pub const MESSAGE_END: u32 = 258;
/// Rows of the embedding. The ids from 259 on have no text, like the padding of real checkpoints.
pub const VOCABULARY: u32 = 288;

/// Positions of [`Model::endless`].
pub(crate) const ENDLESS: u32 = 1 << 20;

/// What the template writes for each message: `<|im_start|>role\ncontent<|im_end|>\n`.
const TEMPLATE: &str = "{%- for message in messages -%}
{%- if message['role'] not in ['system', 'developer', 'user', 'assistant', 'tool'] -%}
{{- raise_exception('nobody is called ' ~ message['role']) -}}
{%- endif -%}
{{- '<|im_start|>' ~ message['role'] ~ '\n' ~ message['content'] ~ '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
";

/// A model directory.
#[derive(Clone, Debug)]
pub struct Model {
    /// Where it lies.
    pub path: PathBuf,
}

impl Model {
    /// Follows a chain: the token after `t` is [`next`]`(t)` with a logit of 12, all others
    /// have 0, whatever came before. So every greedy answer and every log-probability is known.
    pub fn chain() -> Self {
        chain("chain", 1, [9, 3], 8192)
    }

    /// The same chain, with room for a prompt that takes longer than any test: each of 36 query
    /// heads looks at every position before. One KV head keeps the pages small, and there are two
    /// layers because in the last nobody needs to look but the last token.
    /// [`Server::hold`](crate::Server::hold) sends it.
    pub fn endless() -> Self {
        chain("endless", 2, [36, 1], ENDLESS)
    }

    /// Has random weights: every token before matters for every token after.
    pub fn random() -> Self {
        let shape = Shape {
            width: 64,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            inner: 128,
            context: 2048,
        };
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let weights = shape.weights(|name, size| {
            if name.contains("norm") {
                return vec![1.0; size];
            }
            // Large enough that the best token is seldom close to the second.
            let scale = if name.contains("embed") { 1.0 } else { 0.35 };
            (0..size).map(|_| scale * unit(&mut state)).collect()
        });
        write("random", &shape, &weights)
    }

    /// SmolLM2-135M-Instruct, from where `make test` put it; elsewhere `None`, and a word about it.
    pub fn smollm2() -> Option<Self> {
        let path = std::env::var_os("APPLIANCE_TEST_MODEL");
        if path.is_none() {
            eprintln!("skipped: APPLIANCE_TEST_MODEL names no directory; `make test` sets it");
        }
        path.map(|path| Self { path: path.into() })
    }

    /// A copy of it that a test may break.
    pub fn copy(&self, name: &str) -> Self {
        let path = directory(name);
        for file in fs::read_dir(&self.path).expect("the model's directory") {
            let file = file.expect("a file of the model").path();
            let name = file.file_name().expect("a file has a name");
            fs::copy(&file, path.join(name)).expect("a copy");
        }
        Self { path }
    }
}

/// Writes a model that follows the chain, whatever its layers, heads and KV heads.
fn chain(name: &str, layers: u32, [heads, kv_heads]: [u32; 2], context: u32) -> Model {
    let width = 24 * 24; // RMS norm turns a one-hot row of this width into 24 at its one place.
    let mut embedding = vec![0.0; (VOCABULARY * width) as usize];
    let mut head = embedding.clone();
    for id in 0..VOCABULARY {
        embedding[(id * width + id) as usize] = 1.0;
        head[(next(id) * width + id) as usize] = 0.5;
    }
    let shape = Shape {
        width,
        layers,
        heads,
        kv_heads,
        inner: 64,
        context,
    };
    let weights = shape.weights(|name, size| match name {
        "model.embed_tokens.weight" => embedding.clone(),
        "lm_head.weight" => head.clone(),
        name if name.contains("norm") => vec![1.0; size],
        _ => vec![0.0; size],
    });
    write(name, &shape, &weights)
}

/// The chain: what follows each token of [`Model::chain`].
///
/// | after | comes |
/// |---|---|
/// | `a` .. `z` | the alphabet, round and round |
/// | `0` .. `9` | the digits, round and round |
/// | `A` .. `Z` | the alphabet, then `<\|im_end\|>` |
/// | `.` | `😀é你.`, round and round |
/// | `~` | two bytes that are no UTF-8 and `~`, round and round |
/// | a line feed (the end of a chat's prompt) | `A` |
/// | any other byte | `a` |
/// | `<\|im_end\|>` and all other ids | `0` |
pub fn next(id: u32) -> u32 {
    /// `😀é你.~` with two stray bytes: no byte twice.
    const ROUNDS: [&[u8]; 2] = ["😀é你.".as_bytes(), b"\xff\xfe~"];
    let Ok(byte) = u8::try_from(id) else {
        return b'0'.into();
    };
    for round in ROUNDS {
        if let Some(at) = round.iter().position(|one| *one == byte) {
            return round[(at + 1) % round.len()].into();
        }
    }
    match byte {
        b'\n' => b'A'.into(),
        b'Z' => MESSAGE_END,
        b'z' => b'a'.into(),
        b'9' => b'0'.into(),
        b'A'..=b'Y' | b'a'..=b'y' | b'0'..=b'8' => id + 1,
        _ => b'a'.into(),
    }
}

/// The sizes of a Llama.
struct Shape {
    width: u32,
    layers: u32,
    heads: u32,
    kv_heads: u32,
    inner: u32,
    context: u32,
}

/// A tensor: its name, its shape and its values.
struct Tensor {
    name: String,
    shape: Vec<u32>,
    values: Vec<f32>,
}

impl Shape {
    /// All tensors, each filled by `fill(name, size)`.
    fn weights(&self, mut fill: impl FnMut(&str, usize) -> Vec<f32>) -> Vec<Tensor> {
        let kv = self.width / self.heads * self.kv_heads;
        let mut shapes = vec![
            (
                "model.embed_tokens.weight".to_owned(),
                vec![VOCABULARY, self.width],
            ),
            ("model.norm.weight".to_owned(), vec![self.width]),
            ("lm_head.weight".to_owned(), vec![VOCABULARY, self.width]),
        ];
        for layer in 0..self.layers {
            let of_layer = [
                ("input_layernorm", vec![self.width]),
                ("post_attention_layernorm", vec![self.width]),
                ("self_attn.q_proj", vec![self.width, self.width]),
                ("self_attn.k_proj", vec![kv, self.width]),
                ("self_attn.v_proj", vec![kv, self.width]),
                ("self_attn.o_proj", vec![self.width, self.width]),
                ("mlp.gate_proj", vec![self.inner, self.width]),
                ("mlp.up_proj", vec![self.inner, self.width]),
                ("mlp.down_proj", vec![self.width, self.inner]),
            ];
            for (name, shape) in of_layer {
                shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        let filled = shapes.into_iter().map(|(name, shape)| {
            let size = shape.iter().product::<u32>() as usize;
            let values = fill(&name, size);
            Tensor {
                name,
                shape,
                values,
            }
        });
        filled.collect()
    }

    fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
            "vocab_size": VOCABULARY,
            "bos_token_id": MESSAGE_START,
            "eos_token_id": MESSAGE_END,
        })
    }
}

/// Writes a model in the Hugging Face layout. Many test binaries may do so at once: they write the
/// same bytes, and each file appears whole.
fn write(name: &str, shape: &Shape, weights: &[Tensor]) -> Model {
    let path = directory(name);
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "model_max_length": shape.context,
        "chat_template": TEMPLATE,
    });
    let generation_config = json!({"bos_token_id": MESSAGE_START, "eos_token_id": MESSAGE_END});
    let files = [
        ("config.json", shape.config().to_string().into_bytes()),
        ("tokenizer.json", tokenizer().to_string().into_bytes()),
        (
            "tokenizer_config.json",
            tokenizer_config.to_string().into_bytes(),
        ),
        (
            "generation_config.json",
            generation_config.to_string().into_bytes(),
        ),
        ("model.safetensors", safetensors(weights)),
    ];
    for (file, bytes) in files {
        put(&path, file, &bytes);
    }
    Model { path }
}

/// Writes a file that appears whole, whichever tests and threads write it at once.
pub(crate) fn put(directory: &Path, file: &str, bytes: &[u8]) {
    static WRITTEN: AtomicU32 = AtomicU32::new(0);
    let (process, number) = (std::process::id(), WRITTEN.fetch_add(1, Ordering::Relaxed));
    // Not beside it: whoever copies the directory would find it, and then not.
    let parts = scratch().join("parts");
    fs::create_dir_all(&parts).expect("a directory under target");
    let part = parts.join(format!("{file}.{process}.{number}"));
    fs::write(&part, bytes).expect("room for a tiny model");
    fs::rename(&part, directory.join(file)).expect("a rename within target");
}

/// `target/tmp/models/NAME`, made if missing.
pub(crate) fn directory(name: &str) -> PathBuf {
    directory_in("models", name)
}

/// `target/tmp/KIND/NAME`, made if missing.
pub(crate) fn directory_in(kind: &str, name: &str) -> PathBuf {
    let path = scratch().join(kind).join(name);
    fs::create_dir_all(&path).expect("a directory under target");
    path
}

/// `target/tmp`, from where this test binary lies (`target/PROFILE/deps/api-..`).
pub(crate) fn scratch() -> PathBuf {
    target().join("../tmp")
}

/// `target/PROFILE`.
pub(crate) fn target() -> PathBuf {
    let this = std::env::current_exe().expect("the path of this test binary");
    let deps = this.parent().expect("a test binary lies in a directory");
    deps.parent().map_or(deps.into(), Path::to_owned)
}

/// A byte-level BPE without merges: each byte is a token, its id the byte.
fn tokenizer() -> Value {
    let vocabulary: Map<String, Value> = (0..=255)
        .map(|byte| (char_of(byte).to_string(), byte.into()))
        .collect();
    let special = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        })
    };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [
            special(END_OF_TEXT, "<|endoftext|>"),
            special(MESSAGE_START, "<|im_start|>"),
            special(MESSAGE_END, "<|im_end|>"),
        ],
        "normalizer": null,
        "pre_tokenizer": byte_level(),
        "post_processor": null,
        "decoder": byte_level(),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocabulary, "merges": [],
        },
    })
}

fn byte_level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})
}

/// The character that byte-level BPE writes for a byte: itself if it prints, else one from U+0100 on,
/// in the order of the bytes (openai/gpt-2, `encoder.py`, `bytes_to_unicode`).
fn char_of(byte: u8) -> char {
    let prints = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if prints(byte) {
        return byte.into();
    }
    let before = (0..byte).filter(|other| !prints(*other)).count();
    let code = u32::try_from(0x100 + before).expect("fewer than 256");
    char::from_u32(code).expect("a letter of Latin Extended")
}

/// The file format of safetensors: the header's length, the header, the values in BF16.
fn safetensors(weights: &[Tensor]) -> Vec<u8> {
    let mut header = Map::new();
    let mut values = Vec::new();
    for tensor in weights {
        let start = values.len();
        values.extend(tensor.values.iter().flat_map(|value| bf16(*value)));
        let entry =
            json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, values.len()]});
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.append(&mut header);
    file.append(&mut values);
    file
}

/// The upper half of a float: what is cut off does not matter for weights made up here.
fn bf16(value: f32) -> [u8; 2] {
    let bytes = value.to_le_bytes();
    [bytes[2], bytes[3]]
}

/// The next of a series of numbers between -1 and 1 (xorshift64).
fn unit(state: &mut u64) -> f32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    #[expect(clippy::cast_precision_loss, reason = "24 bits fit a float exactly")]
    let fraction = (*state >> 40) as f32 / (1 << 23) as f32;
    fraction - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(start: u32, count: usize) -> Vec<u32> {
        std::iter::successors(Some(next(start)), |id| Some(next(*id)))
            .take(count)
            .collect()
    }

    #[test]
    fn the_chain_is_as_its_table_says() {
        let check = |start: u8, text: &[u8]| {
            let expected: Vec<u32> = text.iter().map(|byte| (*byte).into()).collect();
            assert_eq!(follow(start.into(), text.len()), expected);
        };
        check(b'x', b"yzabc");
        check(b'8', b"9012");
        check(b'.', "😀é你.😀".as_bytes());
        check(b'~', b"\xff\xfe~\xff");
        check(b'\n', b"ABC");
        check(b'?', b"abc");
        assert_eq!(follow(b'Y'.into(), 3), [90, MESSAGE_END, 48]);
    }

    #[test]
    fn bytes_have_the_characters_of_gpt2() {
        assert_eq!(char_of(b'!'), '!');
        assert_eq!(char_of(b' '), 'Ġ');
        assert_eq!(char_of(b'\n'), 'Ċ');
        assert_eq!(char_of(0xad), 'Ń');
        assert_eq!(char_of(0xff), 'ÿ');
    }
}
