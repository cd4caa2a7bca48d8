//! A decoder whose steps are as large as a real one's on the host's side: the vocabulary and the heads
//! of Llama-3-8B, and tables of pages as long; small matrices, as nothing is computed.

use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use engine::Demand;
use graph::{Activations, KvFormat, Target, WeightFormat};
use model::Decoder;
use neuron_backend::artifact::{Identity, Store};
use neuron_backend::compile::Settings;
use neuron_backend::plan::Wish;
use neuron_backend::{Request, prepare as prepare_bundle};
use serde_json::{Map, Value, json};

/// What the stand-in pretends to be: 32 cores.
pub(crate) const INSTANCE: &str = "trn1.32xlarge";
/// Rows of a step.
pub(crate) const ROWS: u32 = 64;
/// Positions of a page.
pub(crate) const PAGE_TOKENS: u32 = 32;
/// Positions that rows read, of the two modules that are measured.
pub(crate) const CONTEXTS: [u32; 2] = [1024, 8192];

const HIDDEN: u32 = 512;
const LAYERS: u32 = 2;
const HEADS: u32 = 32;
const KV_HEADS: u32 = 8;
const INNER: u32 = 1024;
const VOCABULARY: u32 = 128_256;

/// What a model of it is to be able to.
pub(crate) fn demand() -> Demand {
    Demand {
        context: CONTEXTS[1],
        rows: ROWS,
        step_tokens: 32,
        kv_tokens: None,
        cores: None,
    }
}

/// Writes its configuration and its weights, which are all 0, into `directory`.
pub(crate) fn write(directory: &Path) -> Result<Decoder, Box<dyn Error>> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": CONTEXTS[1],
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": false,
        "vocab_size": VOCABULARY,
    });
    fs::write(directory.join("config.json"), config.to_string())?;
    weights(&directory.join("model.safetensors"))?;
    Ok(Decoder::open(directory)?)
}

/// A file of safetensors whose values are a hole: they read as 0.
fn weights(path: &Path) -> std::io::Result<()> {
    let kv = HIDDEN / HEADS * KV_HEADS;
    let mut shapes = vec![
        ("model.embed_tokens".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm".to_owned(), vec![HIDDEN]),
        ("lm_head".to_owned(), vec![VOCABULARY, HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let of_layer = [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![kv, HIDDEN]),
            ("self_attn.v_proj", vec![kv, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INNER, HIDDEN]),
            ("mlp.up_proj", vec![INNER, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INNER]),
        ];
        for (name, shape) in of_layer {
            shapes.push((format!("model.layers.{layer}.{name}"), shape));
        }
    }
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in shapes {
        let start = end;
        end += 2 * shape.iter().map(|size| u64::from(*size)).product::<u64>();
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(format!("{name}.weight"), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    file.set_len(8 + header.len() as u64 + end)
}

/// Compiles its modules for so many ranks, as far as they are not there.
pub(crate) fn prepare(
    directory: &Path,
    decoder: &Decoder,
    ranks: u32,
    compiler: &Path,
) -> Result<(), Box<dyn Error>> {
    let stop = AtomicBool::new(false);
    let request = Request {
        decoder,
        identity: Identity {
            source: "the bench".to_owned(),
            revision: None,
            config: String::new(),
            weights: String::new(),
        },
        wish: wish(ranks),
        store: Store::new(bundles(directory, ranks)),
        settings: Settings {
            program: compiler.into(),
            ..Settings::default()
        },
        command: "cargo bench -p neuron-backend --bench step".to_owned(),
        stop: &stop,
    };
    prepare_bundle(&request, &mut |_| ())?;
    Ok(())
}

/// Where those modules are.
pub(crate) fn bundles(directory: &Path, ranks: u32) -> std::path::PathBuf {
    directory.join(format!("bundles-{ranks}"))
}

fn wish(ranks: u32) -> Wish {
    Wish {
        target: Target::Trn1,
        lnc: None,
        ranks,
        weights: WeightFormat::Bf16,
        activations: Activations::Bf16,
        kv: KvFormat::Bf16,
        demand: demand(),
        candidates: Some(64),
        page_tokens: Some(PAGE_TOKENS),
        kv_pages: Some(ROWS * CONTEXTS[1] / PAGE_TOKENS),
        decode_rows: Some(vec![ROWS]),
        prefill_tokens: Some(vec![32]),
        context_pages: Some(CONTEXTS.map(|context| context / PAGE_TOKENS).into()),
        embeddings: false,
    }
}
