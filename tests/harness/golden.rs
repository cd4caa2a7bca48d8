//! The golden files of `tests/golden`: what transformers computes. Their README says what they hold.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::models::{Model, directory, put};

/// A tiny model of a family, and what it computes.
#[derive(Clone, Debug)]
pub struct Family {
    /// The name of its file.
    pub name: String,
    /// What it is asked.
    pub prompt: Vec<u32>,
    /// Places of the prompt, counted from 0, and the logit of every token of the vocabulary there.
    pub logits: Vec<(usize, Vec<f32>)>,
    /// The tokens that follow the prompt.
    pub greedy: Vec<u32>,
    golden: Value,
}

impl Family {
    /// All of them, in the order of their names.
    pub fn all() -> Vec<Self> {
        let folder = goldens().join("families");
        let files = fs::read_dir(&folder).expect("the golden families");
        let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
        paths.sort();
        paths.iter().map(|path| Self::read(path)).collect()
    }

    /// Those whose tokens choose among experts: what a token does there may depend on the others of
    /// its step, if a device makes a mistake.
    pub fn with_experts() -> Vec<Self> {
        let mut all = Self::all();
        all.retain(|family| family.golden["config"]["num_experts_per_tok"].is_number());
        assert!(!all.is_empty(), "families with experts");
        all
    }

    fn read(path: &Path) -> Self {
        let golden = read(path);
        let places = ids(&golden["positions"]).into_iter().map(|at| at as usize);
        let logits = list(&golden["logits"]).iter().map(|row| {
            let row = list(row).iter().map(number);
            row.collect::<Vec<_>>()
        });
        let name = path.file_stem().expect("a file has a name");
        Self {
            name: name.to_string_lossy().into_owned(),
            prompt: ids(&golden["prompt"]),
            logits: places.zip(logits).collect(),
            greedy: ids(&golden["greedy"]),
            golden,
        }
    }

    /// Writes the model, without a tokenizer, under `target`: in one file, or in two with an index.
    pub fn model(&self, sharded: bool) -> Model {
        let kind = if sharded { "-sharded" } else { "" };
        let path = directory(&format!("golden-{}{kind}", self.name));
        let put = |file: &str, bytes: &[u8]| put(&path, file, bytes);
        put("config.json", self.golden["config"].to_string().as_bytes());
        let tensors = object(&self.golden["tensors"]).iter().collect::<Vec<_>>();
        if sharded {
            let (first, second) = tensors.split_at(tensors.len() / 2);
            let mut places = Map::new();
            for (shard, tensors) in [("a.safetensors", first), ("b.safetensors", second)] {
                put(shard, &safetensors(tensors));
                let named = tensors
                    .iter()
                    .map(|(name, _)| ((*name).clone(), shard.into()));
                places.extend(named);
            }
            let index = json!({"metadata": {}, "weight_map": places});
            put("model.safetensors.index.json", index.to_string().as_bytes());
        } else {
            put("model.safetensors", &safetensors(&tensors));
        }
        Model { path }
    }
}

/// A greedy answer of the default model.
#[derive(Clone, Debug)]
pub struct Continuation {
    /// The chat that asked, or null where the prompt is `text`.
    pub messages: Value,
    /// The text that asked, or null where the prompt is a chat.
    pub text: Value,
    /// The prompt's ids.
    pub prompt: Vec<u32>,
    /// The ids that follow.
    pub greedy: Vec<u32>,
    /// How far the logit of each was above the second best.
    pub margins: Vec<f32>,
    /// Their log-probabilities.
    pub logprobs: Vec<f32>,
    /// Their text.
    pub answer: String,
}

impl Continuation {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let goldens = read(&goldens().join("smollm2.json"));
        let goldens = list(&goldens).iter().map(|golden| Self {
            messages: golden["messages"].clone(),
            text: golden["text"].clone(),
            prompt: ids(&golden["prompt"]),
            greedy: ids(&golden["greedy"]),
            margins: list(&golden["margins"]).iter().map(number).collect(),
            logprobs: list(&golden["logprobs"]).iter().map(number).collect(),
            answer: golden["answer"].as_str().expect("a text").to_owned(),
        });
        goldens.collect()
    }
}

/// The file format of safetensors, for tensors whose numbers follow from their names.
fn safetensors(tensors: &[(&String, &Value)]) -> Vec<u8> {
    let mut header = Map::new();
    let mut numbers = Vec::new();
    for (name, shape) in tensors {
        let start = numbers.len();
        let count = ids(shape).iter().product::<u32>() as usize;
        numbers.extend(weights(name).take(count).flat_map(upper_half));
        let entry =
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, numbers.len()]});
        header.insert((*name).clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = (header.len() as u64).to_le_bytes();
    [length.as_slice(), &header, &numbers].concat()
}

/// A number's BF16 bytes; all numbers here are of BF16.
fn upper_half(number: f32) -> [u8; 2] {
    let [_, _, low, high] = number.to_le_bytes();
    [low, high]
}

/// The numbers of the tensor called `name`, without end.
fn weights(name: &str) -> impl Iterator<Item = f32> + use<> {
    let hash = |state: u64, byte: u8| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    let (is_norm, is_embedding) = (name.contains("norm"), name.contains("embed"));
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let [.., top] = (mixed ^ (mixed >> 31)).to_le_bytes();
        let whole = f32::from(top) - 128.0;
        match (is_norm, is_embedding) {
            (true, _) => 1.0 + (whole / 4.0).floor() / 128.0,
            (_, true) => whole / 256.0,
            _ => whole / 512.0,
        }
    })
}

fn goldens() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/golden"))
}

fn read(path: &Path) -> Value {
    let json = fs::read(path).expect("a golden file");
    serde_json::from_slice(&json).expect("a golden file is JSON")
}

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().expect("an object in a golden file")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list in a golden file")
}

fn number(value: &Value) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "goldens are of F32")]
    let number = value.as_f64().expect("a number in a golden file") as f32;
    number
}

fn ids(value: &Value) -> Vec<u32> {
    let id = |value: &Value| u32::try_from(value.as_u64().expect("an id")).expect("32 bits");
    list(value).iter().map(id).collect()
}
