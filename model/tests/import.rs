//! GGUF files become directories that the rest of the crate reads, whole or not at all.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod tiny;

use std::fs;
use std::path::Path;

use model::gguf::{ImportError, import};
use model::{Decoder, GenerationDefaults, LayerRole, Role, RopeScaling, Weights};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tiny::{Gguf, Value};

struct Imported {
    folder: TempDir,
}

impl Imported {
    fn of(gguf: &Gguf) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("model.gguf");
        fs::write(&file, gguf.bytes()).unwrap();
        import(&file, &folder.path().join("model"), |_| {}).unwrap();
        Self { folder }
    }

    fn dir(&self) -> std::path::PathBuf {
        self.folder.path().join("model")
    }

    fn json(&self, name: &str) -> Json {
        serde_json::from_slice(&fs::read(self.dir().join(name)).unwrap()).unwrap()
    }

    /// The first number of each row of a matrix, or each number of a vector.
    fn rows(&self, role: Role) -> Vec<f32> {
        let decoder = Decoder::open(&self.dir()).unwrap();
        let weights = Weights::open(&self.dir(), &decoder).unwrap();
        let tensor = weights.tensor(role).unwrap();
        let columns = tensor.shape.get(1).copied().unwrap_or(1);
        let firsts = tensor.bytes.chunks_exact(columns * 2);
        let widen = |row: &[u8]| f32::from_le_bytes([0, 0, row[0], row[1]]);
        firsts.map(widen).collect()
    }
}

/// Why the file is refused; nothing must be left of it.
fn refused(gguf: &Gguf) -> String {
    refused_bytes(&gguf.bytes())
}

fn refused_bytes(bytes: &[u8]) -> String {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("model.gguf");
    fs::write(&file, bytes).unwrap();
    let error = import(&file, &folder.path().join("model"), |_| {}).unwrap_err();
    assert_eq!(names(folder.path()), ["model.gguf"], "{error}");
    let ImportError::Refused { why, .. } = error else {
        panic!("{error}");
    };
    why.to_string()
}

fn names(dir: &Path) -> Vec<String> {
    let files = fs::read_dir(dir).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names = names.collect::<Vec<_>>();
    names.sort();
    names
}

/// A Llama with one key changed.
fn with(key: &str, value: Value) -> Gguf {
    let mut gguf = Gguf::llama();
    gguf.set(key, value);
    gguf
}

#[test]
fn a_llama_becomes_a_directory_of_five_files() {
    let imported = Imported::of(&Gguf::llama());
    let expected = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names(&imported.dir()), expected);
    assert_eq!(names(imported.folder.path()), ["model", "model.gguf"]);
    let decoder = Decoder::open(&imported.dir()).unwrap();
    assert_eq!((decoder.vocabulary, decoder.layers), (6, 1));
    assert_eq!(decoder.norm_epsilon, 1e-5);
    assert!(decoder.tied_head && !decoder.attention.input_bias);
    let defaults = GenerationDefaults::open(&imported.dir()).unwrap();
    assert_eq!((defaults.bos, defaults.eos), (Some(4), vec![5]));
    let config = imported.json("tokenizer_config.json");
    assert_eq!(config["chat_template"], "{{ messages }}");
    assert_eq!(
        (&config["bos_token"], &config["eos_token"]),
        (&json!("<|s|>"), &json!("<|e|>"))
    );
}

#[test]
fn progress_ends_at_the_total() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("model.gguf");
    let mut gguf = Gguf::llama();
    gguf.vector("rope_freqs.weight", &[1.0; 8]);
    fs::write(&file, gguf.bytes()).unwrap();
    let mut seen = Vec::new();
    import(&file, &folder.path().join("model"), |progress| {
        seen.push(progress)
    })
    .unwrap();
    assert!(seen.is_sorted_by_key(|progress| progress.done));
    let last = seen.last().unwrap();
    assert_eq!(last.done, last.total);
}

#[test]
fn the_rows_of_a_llamas_q_and_k_move_back() {
    let imported = Imported::of(&Gguf::llama());
    // Heads of 16 rows: the converter took rows 0, 8, 1, 9, .. of each.
    let evens_then_odds = |head: u8| {
        let rows = (0..8)
            .map(|row| row * 2)
            .chain((0..8).map(|row| row * 2 + 1));
        rows.map(move |row| f32::from(head * 16 + row))
    };
    let q = evens_then_odds(0)
        .chain(evens_then_odds(1))
        .collect::<Vec<_>>();
    let k = evens_then_odds(0).collect::<Vec<_>>();
    let in_order = |rows: u8| (0..rows).map(f32::from).collect::<Vec<_>>();
    assert_eq!(imported.rows(Role::Layer(0, LayerRole::Query)), q);
    assert_eq!(imported.rows(Role::Layer(0, LayerRole::Key)), k);
    assert_eq!(
        imported.rows(Role::Layer(0, LayerRole::Value)),
        in_order(16)
    );
    assert_eq!(imported.rows(Role::Embedding), in_order(6));
}

#[test]
fn the_biases_of_a_llama_move_with_their_rows() {
    let mut gguf = Gguf::llama();
    let numbers = (0_u8..32).map(f32::from).collect::<Vec<_>>();
    for (name, length) in [("q", 32), ("k", 16), ("v", 16), ("output", 32)] {
        gguf.vector(&format!("blk.0.attn_{name}.bias"), &numbers[..length]);
    }
    let imported = Imported::of(&gguf);
    let q = imported.rows(Role::Layer(0, LayerRole::QueryBias));
    assert_eq!(q, imported.rows(Role::Layer(0, LayerRole::Query)));
    assert_eq!(
        imported.rows(Role::Layer(0, LayerRole::OutputBias)),
        numbers
    );
}

#[test]
fn a_qwen2_keeps_its_rows_and_composes_its_text() {
    let mut gguf = Gguf::of("qwen2");
    gguf.set("tokenizer.ggml.pre", Value::Text("qwen2"));
    for (name, length) in [("q", 32), ("k", 16), ("v", 16)] {
        gguf.vector(&format!("blk.0.attn_{name}.bias"), &[0.5; 32][..length]);
    }
    let imported = Imported::of(&gguf);
    let in_order = (0_u8..32).map(f32::from).collect::<Vec<_>>();
    assert_eq!(imported.rows(Role::Layer(0, LayerRole::Query)), in_order);
    assert!(Decoder::open(&imported.dir()).unwrap().attention.input_bias);
    let tokenizer = imported.json("tokenizer.json");
    assert_eq!(tokenizer["normalizer"], json!({"type": "NFC"}));
    let regex = &tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"];
    assert!(regex.as_str().unwrap().contains(r"|\p{N}| ?"));
}

#[test]
fn the_tokenizer_keeps_vocabulary_merges_and_special_tokens() {
    let mut gguf = Gguf::llama();
    gguf.matrix("token_embd.weight", 7, 32);
    let spelt = Value::Texts(vec!["a", "b", "ab", "<tool>", "<|s|>", "<|e|>", "[PAD]"]);
    gguf.set("tokenizer.ggml.tokens", spelt);
    gguf.set(
        "tokenizer.ggml.token_type",
        Value::I32s(vec![1, 1, 1, 4, 3, 3, 5]),
    );
    let tokenizer = Imported::of(&gguf).json("tokenizer.json");
    let vocabulary = json!({"a": 0, "b": 1, "ab": 2, "<tool>": 3, "<|s|>": 4, "<|e|>": 5});
    assert_eq!(tokenizer["model"]["vocab"], vocabulary);
    assert_eq!(tokenizer["model"]["merges"], json!([["a", "b"]]));
    assert_eq!(tokenizer["post_processor"], Json::Null);
    let added = tokenizer["added_tokens"].as_array().unwrap();
    let added = added
        .iter()
        .map(|token| (token["id"].clone(), token["special"].clone()));
    let expected = [(3, false), (4, true), (5, true)];
    let expected = expected.map(|(id, special)| (json!(id), json!(special)));
    assert_eq!(added.collect::<Vec<_>>(), expected);
}

#[test]
fn bos_goes_first_where_the_file_or_its_tokenizer_says() {
    let first = |gguf: &Gguf| {
        let tokenizer = Imported::of(gguf).json("tokenizer.json");
        tokenizer["post_processor"]["single"][0]["SpecialToken"]["id"].clone()
    };
    assert_eq!(first(&Gguf::llama()), Json::Null);
    let asked = with("tokenizer.ggml.add_bos_token", Value::Bool(true));
    assert_eq!(first(&asked), "<|s|>");
    let mut llama3 = with("tokenizer.ggml.pre", Value::Text("llama-bpe"));
    assert_eq!(first(&llama3), "<|s|>");
    llama3.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
    assert_eq!(first(&llama3), Json::Null);
}

#[test]
fn the_end_of_a_turn_ends_an_answer() {
    let gguf = with("tokenizer.ggml.eot_token_id", Value::U32(4));
    let defaults = GenerationDefaults::open(&Imported::of(&gguf).dir()).unwrap();
    assert_eq!(defaults.eos, [5, 4]);
}

#[test]
fn the_scaling_of_llama_3_is_found_from_its_divisors() {
    let scaled = model::Rope {
        theta: 500_000.0,
        scaling: RopeScaling::Llama3 {
            factor: 32.0,
            low: 1.0,
            high: 4.0,
            original: 8192,
        },
    };
    let plain = model::Rope {
        theta: 500_000.0,
        scaling: RopeScaling::None,
    };
    let (scaled_by, _) = scaled.frequencies(16);
    let divisors = plain.frequencies(16).0.into_iter().zip(scaled_by);
    let divisors = divisors
        .map(|(plain, scaled)| plain / scaled)
        .collect::<Vec<_>>();
    let mut gguf = with("llama.rope.freq_base", Value::F32(500_000.0));
    gguf.vector("rope_freqs.weight", &divisors);
    let decoder = Decoder::open(&Imported::of(&gguf).dir()).unwrap();
    assert_eq!(decoder.attention.rope, scaled);
    gguf.vector(
        "rope_freqs.weight",
        &[1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 7.0, 8.0],
    );
    assert!(refused(&gguf).starts_with("the key `rope_freqs.weight` is a list of divisors"));
    gguf.vector("rope_freqs.weight", &[8.0; 4]);
    assert!(refused(&gguf).starts_with("the key `rope_freqs.weight` is a list of divisors"));
}

#[test]
fn linear_and_yarn_scaling_keep_their_values() {
    let mut gguf = with("llama.rope.scaling.type", Value::Text("linear"));
    gguf.set("llama.rope.scaling.factor", Value::F32(4.0));
    let rope = |gguf: &Gguf| {
        let decoder = Decoder::open(&Imported::of(gguf).dir()).unwrap();
        decoder.attention.rope.scaling
    };
    assert_eq!(rope(&gguf), RopeScaling::Linear { factor: 4.0 });
    gguf.set("llama.rope.scaling.type", Value::Text("yarn"));
    gguf.set("llama.rope.scaling.original_context_length", Value::U32(32));
    assert!(matches!(
        rope(&gguf),
        RopeScaling::Yarn {
            factor: 4.0,
            original: 32,
            ..
        }
    ));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let check = |key: &str, value: Value, message: &str| {
        let why = refused(&with(key, value));
        assert!(why.contains(message), "{why}");
    };
    check(
        "general.architecture",
        Value::Text("gemma3"),
        "`general.architecture` is \"gemma3\", which is not supported; supported: llama, qwen2, qwen3",
    );
    check(
        "llama.expert_count",
        Value::U32(8),
        "`llama.expert_count` is 8, which is not supported",
    );
    check(
        "llama.rope.scaling.type",
        Value::Text("longrope"),
        "`llama.rope.scaling.type` is \"longrope\", which is not supported; supported: none, linear, yarn",
    );
    check(
        "tokenizer.ggml.model",
        Value::Text("llama"),
        "`tokenizer.ggml.model` is \"llama\", which is not supported; supported: gpt2",
    );
    check(
        "tokenizer.ggml.pre",
        Value::Text("default"),
        "`tokenizer.ggml.pre` is \"default\", which is not supported; supported: gpt-2, smollm,",
    );
    check(
        "llama.attention.head_count",
        Value::I32s(vec![2]),
        "`llama.attention.head_count` is a list of 1 whole numbers, but must be a whole number",
    );
    check(
        "llama.attention.head_count",
        Value::U32(0),
        "`num_attention_heads` is 0",
    );
    check(
        "llama.rope.dimension_count",
        Value::U32(8),
        "supported: the size of a head, 16",
    );
}

#[test]
fn a_tokenizer_that_contradicts_itself_is_refused() {
    let check = |key: &str, value: Value, message: &str| {
        let why = refused(&with(&format!("tokenizer.ggml.{key}"), value));
        assert_eq!(why, format!("its tokenizer: {message}"));
    };
    check(
        "tokens",
        Value::Texts(vec!["a", "b", "ab", "a", "<|s|>", "<|e|>"]),
        "token 3 is spelt \"a\" as token 0 is",
    );
    for merge in ["a c", "b a", "ab", "a  b"] {
        check(
            "merges",
            Value::Texts(vec!["a b", merge]),
            &format!("merge 1, {merge:?}, does not join two tokens of the vocabulary to a third"),
        );
    }
    check(
        "eos_token_id",
        Value::U32(6),
        "the key `tokenizer.ggml.eos_token_id` is 6, but the vocabulary has 6 tokens",
    );
    let mut gguf = Gguf::llama();
    gguf.matrix("token_embd.weight", 5, 32);
    let why = "its tokenizer: it has 6 tokens, but `token_embd.weight` has 5 rows";
    assert_eq!(refused(&gguf), why);
    check(
        "token_type",
        Value::I32s(vec![1]),
        "the key `tokenizer.ggml.token_type` is a list of 1 whole numbers, but must be one for \
         each of 6 tokens",
    );
}

#[test]
fn tensors_that_are_not_the_models_are_refused() {
    let mut gguf = Gguf::llama();
    gguf.matrix("blk.0.attn_q.weight", 16, 32);
    let why = "tensor `blk.0.attn_q.weight` has shape [16, 32], but the metadata make it [32, 32]";
    assert_eq!(refused(&gguf), why);
    gguf.tensors
        .retain(|tensor| tensor.name != "blk.0.attn_q.weight");
    let why = "tensor `blk.0.attn_q.weight` of shape [32, 32] is missing";
    assert_eq!(refused(&gguf), why);
    let mut gguf = Gguf::llama();
    gguf.matrix("blk.0.ffn_gate_exps.weight", 16, 32);
    assert!(refused(&gguf).starts_with("tensor `blk.0.ffn_gate_exps.weight` is not supported"));
    let mut gguf = Gguf::llama();
    gguf.tensor("output.weight", vec![256, 6], 10, vec![0; 6 * 84]);
    let why = "tensor `output.weight` is stored as Q2_K; supported: F32, F16, BF16, Q8_0,";
    assert!(refused(&gguf).starts_with(why));
    gguf.tensor("output.weight", vec![33, 6], 8, vec![0; 6 * 34]);
    let why = "tensor `output.weight` has the sizes [33, 6], which make no tensor of Q8_0";
    assert_eq!(refused(&gguf), why);
    gguf.tensor("output.weight", vec![u64::MAX, 2], 0, vec![]);
    assert!(refused(&gguf).starts_with("tensor `output.weight` has the sizes"));
}

#[test]
fn broken_containers_are_refused() {
    let whole = Gguf::llama().bytes();
    assert_eq!(refused_bytes(b""), "it does not begin with `GGUF`");
    assert_eq!(refused_bytes(b"GGML"), "it does not begin with `GGUF`");
    let version = "it is GGUF of version 1; supported are little-endian files of versions 2 and 3";
    assert_eq!(refused_bytes(b"GGUF\x01\0\0\0"), version);
    let head = refused_bytes(&whole[..100]);
    assert!(head.starts_with("it ends at byte 100, within "), "{head}");
    let cut = refused_bytes(&whole[..whole.len() - 1]);
    assert!(
        cut.ends_with("the file is not whole, download it again"),
        "{cut}"
    );
    let mut gguf = Gguf::llama();
    gguf.keys.push(gguf.keys[0].clone());
    assert_eq!(refused(&gguf), "`general.architecture` occurs twice");
    let mut gguf = Gguf::llama();
    gguf.tensors.push(gguf.tensors[0].clone());
    assert_eq!(refused(&gguf), "`token_embd.weight` occurs twice");
    let alignment = refused(&with("general.alignment", Value::U32(33)));
    assert!(
        alignment.starts_with("`general.alignment` is 33, but must be"),
        "{alignment}"
    );
}

#[test]
fn a_directory_with_something_in_it_is_left_alone() {
    let folder = TempDir::new().unwrap();
    let (file, dir) = (
        folder.path().join("model.gguf"),
        folder.path().join("model"),
    );
    fs::write(&file, Gguf::llama().bytes()).unwrap();
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("mine"), "").unwrap();
    let error = import(&file, &dir, |_| {}).unwrap_err().to_string();
    let expected = format!(
        "{} is not empty: remove it or name another directory",
        dir.display()
    );
    assert_eq!(error, expected);
    fs::remove_file(dir.join("mine")).unwrap();
    import(&file, &dir, |_| {}).unwrap();
    assert!(Decoder::open(&dir).is_ok());
}
