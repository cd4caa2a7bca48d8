use super::*;
use crate::bucket::{Activations, Head};
use crate::sketch::{BF16, F32, Sketch, array};

/// Sizes of Llama-3-8B.
const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "tie_word_embeddings": false, "vocab_size": 128256}"#;

fn llama() -> Decoder {
    Decoder::parse(LLAMA.as_bytes()).unwrap()
}

fn form(ranks: u32, pages: u32) -> Form {
    Form {
        ranks,
        weights: WeightFormat::Bf16,
        activations: Activations::Bf16,
        kv: KvFormat::Bf16,
        fp8_max: 240,
        page_tokens: 32,
        pages,
        context: 8192,
        candidates: 64,
    }
}

fn decode(rows: u32) -> Bucket {
    Bucket::Step {
        rows,
        tokens: 1,
        pages: 32,
        head: Head::Last,
    }
}

fn memory(form: &Form) -> Memory {
    let modules = [(decode(4), Footprint::default())];
    Memory::of_footprints(&llama(), form, &modules).unwrap()
}

#[test]
fn weights_and_kv_are_what_the_ports_take() {
    let parts = *memory(&form(4, 1025)).parts();
    // Eight billion weights of two bytes among four, 64 norms of 4096 and one of F32 on each.
    let layer = 4096 * (32 + 2 * 8) * 128 + 4096 * 4096 + 3 * 4096 * 14336;
    let matrices = 2 * (32 * layer + 2 * 4096 * 128_256) / 4;
    assert_eq!(parts.weights, matrices + 65 * 4 * 4096);
    // Keys and values, 32 layers, 1025 pages of 32, 2 heads of 128, two bytes.
    assert_eq!(parts.kv, 2 * 32 * 1025 * 32 * 2 * 128 * 2);
    // Tables once; ints, masks and candidates twice.
    let tables = 2 * 8192 * 64 * 4 + 4;
    let step = 4 * (4 * 4 + 4 * 32 + 4) + 4 * 4 * 128_256 / 4 / 32 + 4 * 4 * 130;
    assert_eq!(parts.ports, tables + 2 * step);
}

#[test]
fn modules_share_weights_kv_and_scratchpad_but_not_code_and_rings() {
    let footprint = Footprint {
        ports: 0,
        workspace: 65 << 20,
        instructions: 1000,
        descriptors: 500,
    };
    let small = Footprint {
        workspace: 1,
        ..footprint
    };
    let of = |modules: &[(Bucket, Footprint)]| {
        let memory = Memory::of_footprints(&llama(), &form(4, 1025), modules);
        *memory.unwrap().parts()
    };
    let one = of(&[(decode(4), footprint)]);
    let two = of(&[(decode(4), footprint), (decode(8), small)]);
    assert_eq!((one.weights, one.kv), (two.weights, two.kv));
    assert_eq!((one.scratchpad, two.scratchpad), (128 << 20, 128 << 20));
    assert_eq!((one.code, two.code), (64_000, 128_000));
    assert_eq!((one.rings, two.rings), (16_000, 32_000));
    assert!(two.ports > one.ports);
}

#[test]
fn collectives_cost_more_the_more_ranks_there_are() {
    assert_eq!(collectives(1), 0);
    assert_eq!(collectives(2), 80_000_000);
    assert_eq!(collectives(32), 500_000_000);
    assert_eq!(collectives(64), 500_000_000);
    assert!(collectives(8) > collectives(4));
}

#[test]
fn what_fits_fits() {
    let memory = memory(&form(4, 1025));
    memory.fit(Target::Trn2, 2).unwrap();
    memory.fit(Target::Trn1, 1).unwrap();
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    // 15 GB of weights on a core of 16 GiB.
    let refusal = memory(&form(1, 1025)).fit(Target::Trn1, 1).unwrap_err();
    assert!(refusal.parts.tensors() > refusal.tensor_memory);
    let ranks = |advice: &Advice| matches!(advice, Advice::Ranks { ranks: 2, .. });
    let fp8 = |advice: &Advice| {
        let weights = WeightFormat::Fp8;
        matches!(advice, Advice::Weights { weights: found, .. } if *found == weights)
    };
    assert!(refusal.advice.iter().any(ranks), "{refusal}");
    assert!(refusal.advice.iter().any(fp8), "{refusal}");
    let pages = |advice: &Advice| matches!(advice, Advice::Pages { .. });
    assert!(!refusal.advice.iter().any(pages), "{refusal}");
    let text = refusal.to_string();
    for word in [
        "trn1",
        "16.00 GiB",
        "2 ranks",
        "fp8 weights",
        "int8 weights",
    ] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn the_pages_that_are_advised_fit_and_no_more_do() {
    let refusal = memory(&form(4, 400_000)).fit(Target::Trn2, 2).unwrap_err();
    let Some(&Advice::Pages { pages, positions }) = refusal.advice.first() else {
        panic!("{refusal}")
    };
    assert_eq!(positions, u64::from(pages - 1) * 32);
    memory(&form(4, pages)).fit(Target::Trn2, 2).unwrap();
    memory(&form(4, pages + 1))
        .fit(Target::Trn2, 2)
        .unwrap_err();
}

#[test]
fn ranks_that_are_advised_fit_and_fewer_do_not() {
    let refusal = memory(&form(1, 20_000)).fit(Target::Trn2, 2).unwrap_err();
    let ranks = refusal.advice.iter().find_map(|advice| match advice {
        Advice::Ranks { ranks, .. } => Some(*ranks),
        _ => None,
    });
    let ranks = ranks.unwrap_or_else(|| panic!("{refusal}"));
    memory(&form(ranks, 20_000)).fit(Target::Trn2, 2).unwrap();
    assert!(
        memory(&form(ranks / 2, 20_000))
            .fit(Target::Trn2, 2)
            .is_err()
    );
}

#[test]
fn where_no_single_change_would_do_that_is_said() {
    let mut decoder = llama();
    decoder.hidden *= 16;
    let modules = [(decode(4), Footprint::default())];
    let memory = Memory::of_footprints(&decoder, &form(1, 1 << 20), &modules).unwrap();
    let refusal = memory.fit(Target::Trn1, 1).unwrap_err();
    assert_eq!(refusal.advice, []);
    assert!(
        refusal.to_string().contains("no single change"),
        "{refusal}"
    );
}

#[test]
fn a_table_names_every_part() {
    let text = memory(&form(4, 1025)).to_string();
    let words = [
        "4 ranks",
        "1 modules",
        "weights",
        "KV",
        "1025 pages of 32 positions",
    ];
    for word in words.into_iter().chain(["DMA rings", "total", "GiB"]) {
        assert!(text.contains(word), "{text}");
    }
    assert!(text.lines().all(|line| line == line.trim_end()));
}

#[test]
fn lowered_buckets_have_workspace_code_and_rings() {
    let mut decoder = llama();
    decoder.layers = 2;
    let buckets = [decode(4), Bucket::Copy { pairs: 8 }];
    let parts = *Memory::of(&decoder, &form(4, 1025), &buckets)
        .unwrap()
        .parts();
    assert!(parts.scratchpad > 0 && parts.code > 0 && parts.rings > 0);
    assert!(parts.overhead() > 0 && parts.total() == parts.tensors() + parts.overhead());
    let refused = Memory::of(&decoder, &form(3, 1025), &buckets).unwrap_err();
    assert!(refused.to_string().contains("3 ranks"), "{refused}");
}

#[test]
fn a_footprint_counts_ports_that_share_memory_once() {
    let mut sketch = Sketch::default();
    sketch.parameter("keys.must_alias_input", BF16, &[128, 64]);
    sketch.parameter("x", F32, &[128]);
    sketch.add(
        "kept",
        "copy",
        array(BF16, &[128, 64]),
        &["keys.must_alias_input"],
    );
    sketch.add("negative", "negate", array(F32, &[128]), &["x"]);
    sketch.alias(0, 0);
    let module = sketch.finish(&[("kept", "keys"), ("negative", "negative")]);
    let footprint = Footprint::of(&module).unwrap();
    assert_eq!(footprint.ports, 2 * 128 * 64 + 2 * 4 * 128);
}

#[test]
fn instructions_and_descriptors_grow_with_what_is_multiplied() {
    let of = |tokens| {
        let mut decoder = llama();
        decoder.layers = 2;
        let bucket = Bucket::Step {
            rows: 1,
            tokens,
            pages: 0,
            head: Head::Last,
        };
        let module = lower(&decoder, &form(4, 1025), bucket).unwrap();
        Footprint::of(&module.proto).unwrap()
    };
    let (one, many) = (of(512), of(4096));
    assert!(many.instructions > 4 * one.instructions);
    assert!(one.instructions > 1000 && many.instructions < 1_000_000);
    assert!(one.descriptors > 100_000, "{one:?}");
}
