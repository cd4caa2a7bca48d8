use super::*;
use crate::bucket::{Activations, Bucket, Head};
use crate::lower::lower;
use crate::proto::{
    DotDimensionNumbers, GatherDimensionNumbers, HloInstruction, ReplicaGroup,
    ScatterDimensionNumbers,
};
use crate::sketch::{BF16, F32, S32, Sketch, array};

/// Bytes of on-chip memory of the target.
const ON_CHIP: i64 = 28 << 20;

fn cost(module: &HloModule) -> Cost {
    Cost::of(module, Target::Trn2).unwrap()
}

fn multiply(dot: &mut HloInstruction) {
    dot.dot_dimension_numbers = Some(DotDimensionNumbers {
        lhs_contracting_dimensions: vec![1],
        rhs_contracting_dimensions: vec![0],
        ..DotDimensionNumbers::default()
    });
}

/// `x`, of which 64 rows are gathered, times `weight`.
fn product(columns: i64) -> HloModule {
    let mut sketch = Sketch::default();
    sketch.parameter("ints", S32, &[64, 1]);
    sketch.parameter("embedding", BF16, &[1000, 256]);
    sketch.parameter("weight", BF16, &[256, columns]);
    let gather = sketch.add(
        "rows",
        "gather",
        array(BF16, &[64, 256]),
        &["embedding", "ints"],
    );
    gather.gather_slice_sizes = vec![1, 256];
    gather.gather_dimension_numbers = Some(GatherDimensionNumbers {
        offset_dims: vec![1],
        collapsed_slice_dims: vec![0],
        start_index_map: vec![0],
        index_vector_dim: 1,
    });
    let product = array(F32, &[64, columns]);
    multiply(sketch.add("product", "dot", product.clone(), &["rows", "weight"]));
    sketch.add("negative", "negate", product, &["product"]);
    sketch.finish(&[("negative", "negative")])
}

#[test]
fn weights_are_read_whole_and_of_what_is_gathered_the_rows() {
    let cost = cost(&product(512));
    assert_eq!(cost.weights, 2 * 256 * 512 + 2 * 64 * 256);
    assert_eq!(cost.kv, 0);
    // Indices read, results written.
    assert_eq!(cost.other, 4 * 64 + 4 * 64 * 512);
    assert_eq!(cost.flops, 2 * 64 * 256 * 512);
}

#[test]
fn workspace_is_what_lives_at_once_but_results() {
    // Rows, then the product beside them; what is given lies with the caller.
    assert_eq!(cost(&product(512)).workspace, 2 * 64 * 256 + 4 * 64 * 512);
}

#[test]
fn what_does_not_fit_on_the_chip_is_written_and_read() {
    let columns = ON_CHIP / 4 / 64;
    let (fits, spills) = (cost(&product(columns - 256)), cost(&product(columns + 256)));
    let result = |columns: i64| u64::try_from(4 * 64 * columns).unwrap();
    assert_eq!(fits.other, 4 * 64 + result(columns - 256));
    assert_eq!(spills.other, 4 * 64 + 3 * result(columns + 256));
}

#[test]
fn a_product_of_large_matrices_reads_the_larger_more_than_once() {
    let side = 8192;
    let mut sketch = Sketch::default();
    sketch.parameter("left", BF16, &[side, side]);
    sketch.parameter("right", BF16, &[side, 2 * side]);
    let product = array(BF16, &[side, 2 * side]);
    multiply(sketch.add("product", "dot", product, &["left", "right"]));
    let cost = cost(&sketch.finish(&[("product", "product")]));
    // 128 MiB of the smaller in halves of 28 MiB: 10 passes over the larger.
    assert_eq!(cost.weights, (128 << 20) + 10 * (256 << 20));
}

/// A cache of 8 MiB into which four rows are written; `alias` lets it be changed in place.
fn cache(alias: bool) -> HloModule {
    let mut sketch = Sketch::default();
    let assign = sketch.reducer("copy", BF16);
    sketch.parameter("ints", S32, &[4, 1]);
    sketch.parameter("keys.must_alias_input", BF16, &[1 << 16, 64]);
    sketch.parameter("rope.cos", F32, &[4, 64]);
    sketch.add("new", "convert", array(BF16, &[4, 64]), &["rope.cos"]);
    let operands = ["keys.must_alias_input", "ints", "new"];
    let shape = array(BF16, &[1 << 16, 64]);
    let scatter = sketch.add("written", "scatter", shape, &operands);
    scatter.called_computation_ids = vec![assign];
    scatter.scatter_dimension_numbers = Some(ScatterDimensionNumbers {
        update_window_dims: vec![1],
        inserted_window_dims: vec![0],
        scatter_dims_to_operand_dims: vec![0],
        index_vector_dim: 1,
    });
    if alias {
        sketch.alias(0, 1);
    }
    sketch.finish(&[("written", "keys")])
}

#[test]
fn a_write_in_place_moves_what_is_written_and_another_the_whole() {
    let in_place = cost(&cache(true));
    assert_eq!(in_place.kv, 2 * 4 * 64);
    assert_eq!(in_place.other, 4 * 4 + 4 * 4 * 64);
    let copied = cost(&cache(false));
    assert!(copied.bytes() >= 2 * (8 << 20), "{copied:?}");
}

#[test]
fn a_collective_reads_and_writes_device_memory() {
    let mut sketch = Sketch::default();
    let sum = sketch.reducer("add", F32);
    sketch.parameter("rank", F32, &[128]);
    let all = sketch.add("all", "all-reduce", array(F32, &[128]), &["rank"]);
    all.called_computation_ids = vec![sum];
    all.replica_groups = vec![ReplicaGroup {
        replica_ids: vec![0, 1],
    }];
    let cost = cost(&sketch.finish(&[("all", "all")]));
    assert_eq!(cost.other, 4 * 128 + 2 * 4 * 128);
}

#[test]
fn a_module_that_leads_nowhere_is_refused() {
    let mut module = product(512);
    module.entry_computation_id = 9;
    let refusal = Cost::of(&module, Target::Trn2).unwrap_err().to_string();
    assert!(
        refusal.contains("no computation with the id 9"),
        "{refusal}"
    );
}

const CONFIG: &str = r#"{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
    "hidden_act": "silu", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "tie_word_embeddings": false, "vocab_size": 4096, "attention_bias": false}"#;

fn form(ranks: u32) -> Form {
    Form {
        ranks,
        weights: WeightFormat::Bf16,
        activations: Activations::Bf16,
        kv: KvFormat::Bf16,
        fp8_max: 240,
        page_tokens: 32,
        pages: 1025,
        context: 1056,
        candidates: 64,
    }
}

#[test]
fn a_decode_step_reads_its_weights_and_keys_once() {
    let decoder = Decoder::parse(CONFIG.as_bytes()).unwrap();
    for ranks in [1, 2, 4] {
        for weights in [WeightFormat::Bf16, WeightFormat::Fp8, WeightFormat::Int8] {
            for kv in [KvFormat::Bf16, KvFormat::Fp8] {
                let form = Form {
                    weights,
                    kv,
                    ..form(ranks)
                };
                let bucket = Bucket::Step {
                    rows: 8,
                    tokens: 1,
                    pages: 32,
                    head: Head::Last,
                };
                let module = lower(&decoder, &form, bucket).unwrap();
                let cost = cost(&module.proto);
                let ideal = Ideal::of(&decoder, &form, 8, 1024).unwrap();
                let near = |is: u64, least: u64| is >= least && is - least <= least / 50;
                assert!(near(cost.weights, ideal.weights), "{cost:?} {ideal:?}");
                assert!(near(cost.kv, ideal.kv), "{cost:?} {ideal:?}");
            }
        }
    }
}

#[test]
fn a_prefill_multiplies_every_token_with_every_weight() {
    let decoder = Decoder::parse(CONFIG.as_bytes()).unwrap();
    let bucket = |tokens| Bucket::Step {
        rows: 1,
        tokens,
        pages: 0,
        head: Head::Embedding,
    };
    let flops = |tokens| {
        let module = lower(&decoder, &form(1), bucket(tokens)).unwrap();
        cost(&module.proto).flops
    };
    // Of a layer: query, key and value; output; gate and up; down.
    let input = 512 * (512 + 2 * 256);
    let rest = 512 * 512 + 512 * 2048 + 1024 * 512;
    // In the last layer, of two, only the last token goes on from keys and values.
    let linear = 2 * ((input + rest) * 256 + input * 256 + rest);
    let attention = 2 * 2 * 8 * 64 * 256 * (256 + 1);
    assert_eq!(flops(256), linear + attention);
}
