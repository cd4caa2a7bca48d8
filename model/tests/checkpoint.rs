//! Safetensors in one file and in shards: what is found, and what is refused by name.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod tiny;

use std::fs;

use model::{CheckpointError, Decoder, LayerRole, Role, Weights};
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;
use tiny::TENSORS;

fn opened(files: &[(&str, &[u8])]) -> (TempDir, Result<Weights, CheckpointError>) {
    let folder = TempDir::new().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let decoder = Decoder::parse(tiny::CONFIG.as_bytes()).unwrap();
    let weights = Weights::open(folder.path(), &decoder);
    (folder, weights)
}

/// Why these files are refused, `DIR` standing for where they are.
fn refused(files: &[(&str, &[u8])]) -> String {
    let (folder, weights) = opened(files);
    let message = weights.unwrap_err().to_string();
    message.replace(&folder.path().display().to_string(), "DIR")
}

fn refused_single(bytes: &[u8]) -> String {
    let message = refused(&[("model.safetensors", bytes)]);
    let inside = message.strip_prefix("DIR/model.safetensors is not a safetensors file: ");
    inside.map_or(message.clone(), str::to_owned)
}

const INDEX: &str = "model.safetensors.index.json";

/// A shard's name and its tensors.
type Shard<'a> = (&'a str, &'a [(&'a str, &'a [usize])]);

/// An index of these shards.
fn index(shards: &[Shard<'_>]) -> Vec<u8> {
    let places = shards.iter().flat_map(|(shard, tensors)| {
        let places = tensors.iter();
        places.map(move |(name, _)| ((*name).to_owned(), json!(shard)))
    });
    let places = places.collect::<serde_json::Map<_, _>>();
    json!({"metadata": {"total_size": 1}, "weight_map": places})
        .to_string()
        .into_bytes()
}

#[test]
fn one_file_is_read_by_role() {
    let (_folder, weights) = opened(&[("model.safetensors", &tiny::safetensors(&TENSORS))]);
    let weights = weights.unwrap();
    let value = weights.tensor(Role::Layer(0, LayerRole::Value)).unwrap();
    assert_eq!(value.shape, [16, 32]);
    assert_eq!(value.bytes, [5; 16 * 32 * 2]);
    assert_eq!(
        weights.tensor(Role::Head).unwrap().bytes,
        weights.tensor(Role::Embedding).unwrap().bytes
    );
}

#[test]
fn shards_are_read_as_one() {
    let (one, two) = TENSORS.split_at(4);
    let index = index(&[("a.safetensors", one), ("b.safetensors", two)]);
    let (_folder, weights) = opened(&[
        (INDEX, &index),
        ("a.safetensors", &tiny::safetensors(one)),
        ("b.safetensors", &tiny::safetensors(two)),
    ]);
    let weights = weights.unwrap();
    assert_eq!(weights.tensor(Role::FinalNorm).unwrap().bytes, [1; 64]);
    assert_eq!(
        weights
            .tensor(Role::Layer(0, LayerRole::Key))
            .unwrap()
            .bytes,
        [0; 16 * 32 * 2]
    );
    assert_eq!(
        weights
            .tensor(Role::Layer(0, LayerRole::Down))
            .unwrap()
            .bytes,
        [6; 32 * 64 * 2]
    );
}

#[test]
fn shards_that_are_not_as_the_index_says_are_refused() {
    let (one, two) = TENSORS.split_at(4);
    let shards = [("a.safetensors", one), ("b.safetensors", two)];
    let (a, b) = (tiny::safetensors(one), tiny::safetensors(two));
    let whole = index(&shards);
    let missing = refused(&[(INDEX, &whole), ("a.safetensors", &a)]);
    assert!(
        missing.starts_with("cannot read DIR/b.safetensors: "),
        "{missing}"
    );
    let swapped = index(&[("a.safetensors", two), ("b.safetensors", one)]);
    let files = [("a.safetensors", a.as_slice()), ("b.safetensors", &b)];
    let misplaced = refused(&[&[(INDEX, swapped.as_slice())], files.as_slice()].concat());
    assert!(
        misplaced.ends_with(", where the index says it is"),
        "{misplaced}"
    );
    let files = [("a.safetensors", a.as_slice()), ("b.safetensors", &a)];
    let repeated = refused(&[&[(INDEX, whole.as_slice())], files.as_slice()].concat());
    assert!(
        repeated.ends_with(" and in another shard too"),
        "{repeated}"
    );
    for outside in [
        "../a.safetensors",
        "/a.safetensors",
        "sub/a.safetensors",
        "..",
        "",
    ] {
        let index = index(&[(outside, one)]);
        let message = refused(&[(INDEX, &index), ("a.safetensors", &a)]);
        let expected = format!(
            "DIR/{INDEX} is no index of shards: shard `{outside}` is not the name of a file beside it"
        );
        assert_eq!(message, expected);
    }
    let broken = refused(&[(INDEX, b"{\"weight_map\": 3}")]);
    assert!(
        broken.starts_with(&format!("DIR/{INDEX} is no index of shards: ")),
        "{broken}"
    );
    assert_eq!(
        refused(&[]),
        format!("DIR holds neither model.safetensors nor {INDEX}")
    );
}

#[test]
fn lengths_offsets_and_overlaps_are_checked() {
    assert_eq!(
        refused_single(b"abc"),
        "it has 3 bytes, fewer than the 8 of a header's length"
    );
    let long = refused_single(&100_u64.to_le_bytes());
    assert_eq!(
        long,
        "its header is said to have 100 bytes, but the file has 8 and the limit is 100000000"
    );
    let endless = refused_single(&u64::MAX.to_le_bytes());
    assert!(endless.contains("18446744073709551615 bytes"), "{endless}");
    let one = |shape: &str, start: u64, end: u64| {
        format!(r#"{{"t":{{"dtype":"BF16","shape":{shape},"data_offsets":[{start},{end}]}}}}"#)
    };
    let two = |first: [u64; 2], second: [u64; 2]| {
        let tensor = |offsets: [u64; 2]| json!({"dtype": "BF16", "shape": [(offsets[1] - offsets[0]) / 2], "data_offsets": offsets});
        json!({"t": tensor(first), "u": tensor(second)}).to_string()
    };
    let numbers = [0; 16];
    let fits = |header: &str| tiny::with_header(header, &numbers);
    // All are as they should be but for the tensors that the decoder needs.
    let sound = refused_single(&fits(&two([0, 8], [8, 16])));
    assert_eq!(
        sound,
        "tensor `model.embed_tokens.weight` of shape [6, 32] is missing"
    );
    for header in [
        one("[7]", 0, 16),
        one("[8]", 16, 0),
        one("[8]", 2, 18),
        one("[4294967296,4294967296,4294967296]", 0, 16),
        two([0, 10], [8, 16]),
        two([0, 6], [8, 16]),
        "[]".into(),
        "{".into(),
    ] {
        let message = refused(&[("model.safetensors", &fits(&header))]);
        let expected = "DIR/model.safetensors is not a safetensors file: ";
        assert!(message.starts_with(expected), "{header}: {message}");
    }
    let short = refused_single(&tiny::with_header(&one("[9]", 0, 18), &numbers));
    assert_eq!(
        short,
        "its tensors have 18 bytes, but 16 bytes follow the header"
    );
    let padded = refused_single(&tiny::with_header(&one("[7]", 0, 14), &numbers));
    assert_eq!(
        padded,
        "its tensors have 14 bytes, but 16 bytes follow the header"
    );
}

#[test]
fn tensors_that_are_not_the_models_are_refused_by_name() {
    let single = |tensors: &[(&str, &[usize])]| refused_single(&tiny::safetensors(tensors));
    let mut tensors = TENSORS;
    tensors[3].1 = &[16, 32];
    let message = "tensor `model.layers.0.self_attn.q_proj.weight` has shape [16, 32], but \
                   config.json makes it [32, 32]";
    assert_eq!(single(&tensors), message);
    let message = "tensor `model.layers.0.mlp.down_proj.weight` of shape [32, 64] is missing";
    assert_eq!(single(&TENSORS[..10]), message);
    let biased = [
        &TENSORS[..],
        &[("model.layers.0.self_attn.q_proj.bias", &[32])],
    ]
    .concat();
    let message = "tensor `model.layers.0.self_attn.q_proj.bias` is in the checkpoint, but \
                   config.json describes a model without it";
    assert_eq!(single(&biased), message);
    let whole = String::from_utf8_lossy(&tiny::safetensors(&TENSORS)).replace("BF16", "I16 ");
    let message = refused_single(whole.replace("\"I16 \"", " \"I16\"").as_bytes());
    let expected = "tensor `model.embed_tokens.weight` is stored as I16; supported are F32, F16 \
                    and BF16";
    assert_eq!(message, expected);
}

/// A decoder with two experts, and the tensors of its MLP under the names of either family.
fn mixture(names: [&str; 4]) -> (Decoder, Vec<(String, Vec<usize>)>) {
    let mut config: serde_json::Map<_, _> = serde_json::from_str(tiny::CONFIG).unwrap();
    config.insert("architectures".into(), json!(["MixtralForCausalLM"]));
    config.insert("num_local_experts".into(), json!(2));
    config.insert("num_experts_per_tok".into(), json!(1));
    let decoder = Decoder::parse(json!(config).to_string().as_bytes()).unwrap();
    let [router, gate, up, down] = names;
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut tensors: Vec<_> = (TENSORS.iter())
        .filter(|(name, _)| !name.contains(".mlp."))
        .map(|(name, shape)| ((*name).to_owned(), shape.to_vec()))
        .collect();
    tensors.push((layer(router), vec![2, 32]));
    for expert in ["0", "1"] {
        for (name, shape) in [(gate, [64, 32]), (up, [64, 32]), (down, [32, 64])] {
            tensors.push((layer(&name.replace('N', expert)), shape.to_vec()));
        }
    }
    (decoder, tensors)
}

/// What becomes of a checkpoint with these tensors.
fn opened_as(
    decoder: &Decoder,
    tensors: &[(String, Vec<usize>)],
) -> (TempDir, Result<Weights, CheckpointError>) {
    let borrowed: Vec<_> = (tensors.iter())
        .map(|(name, shape)| (name.as_str(), &shape[..]))
        .collect();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(path, tiny::safetensors(&borrowed)).unwrap();
    let weights = Weights::open(folder.path(), decoder);
    (folder, weights)
}

const MIXTRAL: [&str; 4] = [
    "block_sparse_moe.gate",
    "block_sparse_moe.experts.N.w1",
    "block_sparse_moe.experts.N.w3",
    "block_sparse_moe.experts.N.w2",
];

const QWEN: [&str; 4] = [
    "mlp.gate",
    "mlp.experts.N.gate_proj",
    "mlp.experts.N.up_proj",
    "mlp.experts.N.down_proj",
];

#[test]
fn experts_are_found_under_the_names_of_either_family() {
    for names in [MIXTRAL, QWEN] {
        let (decoder, tensors) = mixture(names);
        let (_folder, weights) = opened_as(&decoder, &tensors);
        let weights = weights.unwrap();
        let layer = |role| weights.tensor(Role::Layer(0, role)).unwrap();
        assert_eq!(layer(LayerRole::Router).shape, [2, 32]);
        // The tensors are filled with their places.
        let places = [
            LayerRole::ExpertGate,
            LayerRole::ExpertUp,
            LayerRole::ExpertDown,
        ]
        .map(|role| layer(role(1)).bytes[0]);
        let first = u8::try_from(tensors.len() - 3).unwrap();
        assert_eq!(places, [first, first + 1, first + 2]);
        let (_folder, weights) = opened_as(&decoder, &tensors[..tensors.len() - 1]);
        let missing = names[3].replace('N', "1");
        let message =
            format!("tensor `model.layers.0.{missing}.weight` of shape [32, 64] is missing");
        assert_eq!(weights.unwrap_err().to_string(), message);
    }
}

#[test]
fn experts_in_one_tensor_or_too_many_are_refused() {
    let refused = |name: &str, shape: &[usize]| {
        let (decoder, mut tensors) = mixture(QWEN);
        tensors.push((format!("model.layers.0.{name}"), shape.to_vec()));
        let (_folder, weights) = opened_as(&decoder, &tensors);
        weights.unwrap_err().to_string()
    };
    let message = refused("mlp.experts.gate_up_proj", &[2, 128, 32]);
    assert!(
        message.contains("holds all experts of a layer"),
        "{message}"
    );
    assert!(message.contains("save_pretrained"), "{message}");
    for denied in ["mlp.experts.2.up_proj.weight", "mlp.up_proj.weight"] {
        let message = refused(denied, &[64, 32]);
        let expected = format!("tensor `model.layers.0.{denied}` is in the checkpoint, but");
        assert!(message.starts_with(&expected), "{message}");
    }
    // Nor has a dense model any.
    let tensors = [
        &TENSORS[..],
        &[("model.layers.0.mlp.gate.weight", &[2, 32])],
    ]
    .concat();
    let message = refused_single(&tiny::safetensors(&tensors));
    assert!(
        message.contains("describes a model without it"),
        "{message}"
    );
}

proptest! {
    /// Whatever a header says, it is accepted or refused.
    #[test]
    fn any_header_is_accepted_or_refused(
        shape in prop::collection::vec(prop_oneof![0..5_u64, any::<u64>()], 0..4),
        offsets in prop::array::uniform2(prop_oneof![0..40_u64, any::<u64>()]),
        dtype in prop::sample::select(vec!["BF16", "F32", "F64", "F4", "BOOL", "Q4", ""]),
        numbers in 0..40_usize,
    ) {
        let header = json!({"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets}});
        let file = tiny::with_header(&header.to_string(), &vec![0; numbers]);
        let accepted = model::parsers::safetensors(&file);
        prop_assert!(accepted.is_err() || offsets[1] == numbers as u64);
    }

    /// So it is with any bytes.
    #[test]
    fn any_bytes_are_accepted_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for (_, parse) in model::parsers::ALL {
            let _ = parse(&bytes);
        }
    }
}
