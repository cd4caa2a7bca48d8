//! How long steps take: a prompt of 195 tokens, one decode row, 32 decode rows after as many
//! tokens. On the model in `APPLIANCE_TEST_MODEL`, else on random weights in the shape of
//! SmolLM2-135M.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cpu_backend::{Cpu, Precision, open};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engine::{Backend, Candidates, Demand, PageId, Row, Step, TokenId, Want};
use model::{Decoder, Weights};
use serde_json::{Map, json};

/// Tokens of the prompt.
const PROMPT: u32 = 195;

/// `config.json` of SmolLM2-135M.
const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "rope_theta": 100000, "tie_word_embeddings": true, "vocab_size": 49152}"#;

fn decoder(criterion: &mut Criterion) {
    let scratch = tempfile::tempdir().expect("a directory for temporary files");
    let dir = std::env::var_os("APPLIANCE_TEST_MODEL")
        .map_or_else(|| random(scratch.path()), PathBuf::from);
    let decoder = Decoder::open(&dir).expect("a configuration");
    let weights = Weights::open(&dir, &decoder).expect("weights");
    let demand = Demand {
        context: 2048,
        rows: 32,
        step_tokens: 512,
        kv_tokens: Some(32 * 512),
        cores: None,
    };
    let mut group = criterion.benchmark_group("decoder");
    group.sample_size(10).warm_up_time(Duration::from_secs(1));
    let load = || open(&decoder, &weights, Precision::Bf16, &demand).expect("room for the model");
    group.bench_function("open", |bencher| bencher.iter(load));
    let mut cpu = load();
    group.throughput(Throughput::Elements(PROMPT.into()));
    group.bench_function("prefill 195", |bencher| {
        bencher.iter(|| run(&mut cpu, 1, 0, PROMPT));
    });
    for rows in [1, 4, 32] {
        group.throughput(Throughput::Elements(rows.into()));
        group.bench_function(format!("decode {rows}"), |bencher| {
            bencher.iter(|| run(&mut cpu, rows, PROMPT, 1));
        });
    }
    group.finish();
}

/// Runs a step of `rows` rows of `tokens` tokens each, that ask for the most likely next.
fn run(cpu: &mut Cpu, rows: u32, position: u32, tokens: u32) -> usize {
    let pages = (position + tokens).div_ceil(cpu.profile().page_tokens);
    let all_tokens: Vec<_> = (0..rows * tokens)
        .map(|id| TokenId(id * 37 % 49_152))
        .collect();
    let all_pages: Vec<_> = (0..rows * pages).map(PageId).collect();
    let row = |row| Row {
        tokens: row * tokens..(row + 1) * tokens,
        pages: row * pages..(row + 1) * pages,
        position,
        mask: None,
        want: Want::Candidates { width: 1 },
    };
    let step = Step {
        copies: &[],
        tokens: &all_tokens,
        pages: &all_pages,
        masks: &[],
        rows: &(0..rows).map(row).collect::<Vec<_>>(),
    };
    let ticket = cpu.submit(&step).expect("a valid step");
    let mut out = Candidates::default();
    cpu.collect(ticket, &mut out)
        .expect("a step that was submitted");
    out.len()
}

/// Writes a model of random weights to `dir`, in the shape of [`CONFIG`].
fn random(dir: &Path) -> PathBuf {
    fs::write(dir.join("config.json"), CONFIG).expect("room for a file");
    let decoder = Decoder::open(dir).expect("a configuration");
    let mut header = Map::new();
    let mut values: Vec<u8> = Vec::new();
    let mut state = 0x9e37_79b9_u32;
    for (role, shape) in decoder.roles() {
        let start = values.len();
        for _ in 0..shape.iter().product() {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            // The upper half of a float between 2^-5 and 2^-4, of either sign.
            let bits = (state >> 16 & 0x807f) | 0x3d00;
            values.extend(&bits.to_le_bytes()[..2]);
        }
        let place = [start, values.len()];
        let tensor = json!({"dtype": "BF16", "shape": shape, "data_offsets": place});
        header.insert(role.name(), tensor);
    }
    let header = json!(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(values);
    fs::write(dir.join("model.safetensors"), file).expect("room for a checkpoint");
    dir.to_owned()
}

criterion_group!(benches, decoder);
criterion_main!(benches);
