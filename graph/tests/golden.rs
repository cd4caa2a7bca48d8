//! Modules of two tiny models as text, so that a change of the lowering is seen in review.
//!
//! `BLESS=1 cargo test -p graph --test golden` writes the texts anew.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use graph::{Activations, Bucket, Form, Head, KvFormat, Target, WeightFormat, check, lower, text};
use model::Decoder;

/// Grouped-query attention and a head of its own, among two ranks, in BF16.
const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
    "vocab_size": 128}"#;

/// Normed heads and a tied head, on one rank, weights and cache in FP8.
const QWEN3: &str = r#"{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
    "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "tie_word_embeddings": true, "vocab_size": 100, "attention_bias": false}"#;

const DECODE: Bucket = Bucket::Step {
    rows: 2,
    tokens: 1,
    pages: 2,
    head: Head::Last,
};

const PREFILL: Bucket = Bucket::Step {
    rows: 1,
    tokens: 16,
    pages: 1,
    head: Head::Last,
};

fn form(ranks: u32, weights: WeightFormat, kv: KvFormat) -> Form {
    Form {
        ranks,
        weights,
        activations: Activations::Bf16,
        kv,
        fp8_max: 240,
        page_tokens: 16,
        pages: 5,
        context: 64,
        candidates: 4,
    }
}

/// Compares the text of a module with the one that was reviewed.
fn is_golden(name: &str, config: &str, form: &Form, bucket: Bucket) -> Result<(), Box<dyn Error>> {
    let decoder = Decoder::parse(config.as_bytes())?;
    let module = lower(&decoder, form, bucket)?.proto;
    for target in [Target::Trn1, Target::Trn2] {
        check(&module, target)?;
    }
    let written = text(&module);
    let path = golden(name);
    if env::var_os("BLESS").is_some() {
        fs::write(&path, &written)?;
    }
    let reviewed = fs::read_to_string(&path).unwrap_or_default();
    let difference = (reviewed.lines().zip(written.lines()))
        .find(|(reviewed, written)| reviewed != written)
        .map_or("one is longer".to_owned(), |(reviewed, written)| {
            format!("reviewed: {reviewed}\n written: {written}")
        });
    assert!(
        reviewed == written,
        "the module is another than {}\n{difference}\nIf that is meant, write it anew with \
         BLESS=1 cargo test -p graph --test golden",
        path.display()
    );
    Ok(())
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden/graph")
        .join(format!("{name}.hlo.txt"))
}

#[test]
fn llama_among_two_ranks_decodes_as_reviewed() -> Result<(), Box<dyn Error>> {
    let form = form(2, WeightFormat::Bf16, KvFormat::Bf16);
    is_golden("llama-decode", LLAMA, &form, DECODE)
}

#[test]
fn llama_among_two_ranks_prefills_as_reviewed() -> Result<(), Box<dyn Error>> {
    let form = form(2, WeightFormat::Bf16, KvFormat::Bf16);
    is_golden("llama-prefill", LLAMA, &form, PREFILL)
}

#[test]
fn qwen3_in_fp8_decodes_as_reviewed() -> Result<(), Box<dyn Error>> {
    let form = form(1, WeightFormat::Fp8, KvFormat::Fp8);
    is_golden("qwen3-decode", QWEN3, &form, DECODE)
}

#[test]
fn qwen3_in_fp8_prefills_as_reviewed() -> Result<(), Box<dyn Error>> {
    let form = form(1, WeightFormat::Fp8, KvFormat::Fp8);
    is_golden("qwen3-prefill", QWEN3, &form, PREFILL)
}
