//! What the modules of two models of eight billion weights cost, from the modules themselves: bytes
//! that a decode step moves beside the least it must, and operations and workspace of a prefill of
//! 8192 tokens. How bytes are counted is said in `graph::Cost`; nothing is measured.
//!
//! `cargo bench -p graph --bench bytes -- 8` lowers with attention in tiles of at most 8 MiB instead
//! of the usual ones; `--json FILE` writes the figures to a file as well.

use std::error::Error;

use graph::{
    Activations, Bucket, Cost, Form, Head, Ideal, KvFormat, Target, Tiles, WeightFormat, check,
    lower_in_tiles,
};
use model::Decoder;
use serde_json::{Value, json};

/// Sizes of Llama-3-8B, as its public `config.json` has them.
const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "tie_word_embeddings": false, "vocab_size": 128256}"#;

/// Sizes of Qwen3-8B, as its public `config.json` has them.
const QWEN: &str = r#"{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
    "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 12288,
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "tie_word_embeddings": false, "vocab_size": 151936,
    "attention_bias": false}"#;

const TARGET: Target = Target::Trn2;
const RANKS: u32 = 4;
const PAGE_TOKENS: u32 = 32;
/// The most a decode step may move: this much of the least.
const MOST: f64 = 1.15;
/// Tokens of a prefill, and of each of its chunks.
const PREFILL: [u32; 2] = [8192, 2048];

fn form(context: u32, rows: u32) -> Form {
    Form {
        ranks: RANKS,
        weights: WeightFormat::Bf16,
        activations: Activations::Bf16,
        kv: KvFormat::Bf16,
        fp8_max: TARGET.facts().fp8_max,
        page_tokens: PAGE_TOKENS,
        pages: 1 + rows * (context.div_ceil(PAGE_TOKENS) + 1),
        context: context + PAGE_TOKENS,
        candidates: 64,
    }
}

/// The usual tiles, or those of as many MiB as the command line says.
fn tiles() -> Tiles {
    let usual = Tiles::default();
    let asked = std::env::args().find_map(|word| word.parse::<u64>().ok());
    Tiles {
        bytes: asked.map_or(usual.bytes, |mib| mib << 20),
        ..usual
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    println!(
        "one rank of {RANKS} on {TARGET}, BF16, pages of {PAGE_TOKENS} positions, tiles of {} MiB\n",
        tiles().bytes >> 20
    );
    println!("decode: MB that a step moves, and the least it must (weights + KV)");
    println!(
        "{:<12}{:>6}{:>9}{:>10}{:>9}{:>9}{:>10}{:>10}{:>8}",
        "model", "rows", "context", "weights", "KV", "other", "all", "least", "of it"
    );
    let mut worst = 0.0_f64;
    let mut figures = Vec::new();
    for (name, config) in [("Llama-3-8B", LLAMA), ("Qwen3-8B", QWEN)] {
        let decoder = Decoder::parse(config.as_bytes())?;
        for rows in [1, 16, 64] {
            for context in [1024, 8192] {
                let (part, figure) = decode(name, &decoder, rows, context)?;
                worst = worst.max(part);
                figures.push(figure);
            }
        }
    }
    let verdict = if worst <= MOST {
        "within"
    } else {
        "NOT within"
    };
    println!("worst {worst:.3}: {verdict} the target of {MOST}\n");
    let [tokens, chunk] = PREFILL;
    println!("prefill of {tokens} tokens in chunks of {chunk}");
    println!(
        "{:<12}{:>9}{:>12}{:>12}{:>16}",
        "model", "before", "TFLOP", "GB moved", "workspace MiB"
    );
    for (name, config) in [("Llama-3-8B", LLAMA), ("Qwen3-8B", QWEN)] {
        figures.push(prefill(name, &Decoder::parse(config.as_bytes())?)?);
    }
    if let Some(file) = std::env::args().skip_while(|word| word != "--json").nth(1) {
        std::fs::write(file, serde_json::to_string_pretty(&figures)? + "\n")?;
    }
    Ok(())
}

/// Prints a decode step, and gives what part of the least it moves, with its figures.
fn decode(
    name: &str,
    decoder: &Decoder,
    rows: u32,
    context: u32,
) -> Result<(f64, Value), Box<dyn Error>> {
    let form = form(context, rows);
    let bucket = Bucket::Step {
        rows,
        tokens: 1,
        pages: context.div_ceil(PAGE_TOKENS),
        head: Head::Last,
    };
    let module = lower_in_tiles(decoder, &form, bucket, &tiles())?;
    let cost = Cost::of(&module.proto, TARGET)?;
    let ideal = Ideal::of(decoder, &form, rows, context)?;
    let part = cost.bytes() as f64 / ideal.bytes() as f64;
    let mega = |bytes: u64| bytes as f64 / 1e6;
    println!(
        "{name:<12}{rows:>6}{context:>9}{:>10.1}{:>9.1}{:>9.1}{:>10.1}{:>10.1}{part:>8.3}",
        mega(cost.weights),
        mega(cost.kv),
        mega(cost.other),
        mega(cost.bytes()),
        mega(ideal.bytes()),
    );
    if let Err(refusal) = check(&module.proto, TARGET) {
        println!("{refusal}");
    }
    let figures = json!({
        "model": name, "rows": rows, "context": context, "weights": cost.weights, "kv": cost.kv,
        "other": cost.other, "bytes": cost.bytes(), "least": ideal.bytes(), "of_least": part,
    });
    Ok((part, figures))
}

/// Prints each chunk of a prefill and their sum, and gives the figures of that.
fn prefill(name: &str, decoder: &Decoder) -> Result<Value, Box<dyn Error>> {
    let [tokens, chunk] = PREFILL;
    let form = form(tokens, 1);
    let mut sum = Cost::default();
    for before in (0..tokens).step_by(chunk as usize) {
        let bucket = Bucket::Step {
            rows: 1,
            tokens: chunk,
            pages: before / PAGE_TOKENS,
            head: Head::Last,
        };
        let module = lower_in_tiles(decoder, &form, bucket, &tiles())?;
        let cost = Cost::of(&module.proto, TARGET)?;
        line(name, &before.to_string(), &cost);
        sum.weights += cost.weights;
        sum.kv += cost.kv;
        sum.other += cost.other;
        sum.flops += cost.flops;
        sum.workspace = sum.workspace.max(cost.workspace);
    }
    line(name, "all", &sum);
    Ok(json!({
        "model": name, "prefill": tokens, "chunk": chunk, "flops": sum.flops,
        "bytes": sum.bytes(), "workspace": sum.workspace,
    }))
}

fn line(name: &str, before: &str, cost: &Cost) {
    println!(
        "{name:<12}{before:>9}{:>12.2}{:>12.2}{:>16.1}",
        cost.flops as f64 / 1e12,
        cost.bytes() as f64 / 1e9,
        cost.workspace as f64 / f64::from(1 << 20),
    );
}
