//! The imported default model and the checkpoints of the golden families, as the crate `model` reads
//! them. What a device computes from them: `tests/conformance`.

use std::fs;

use appliance_tests::Model;
use appliance_tests::golden::Family;
use model::{Decoder, Role, Weights};
use serde_json::Value;

const IMPORTED: &str = include_str!("import.json");

#[test]
fn the_imported_model_has_the_tensors_that_an_independent_reader_finds() {
    let Some(model) = Model::smollm2() else {
        return;
    };
    let decoder = Decoder::open(&model.path).expect("a configuration");
    let weights = Weights::open(&model.path, &decoder).expect("a checkpoint");
    let expected: Value = serde_json::from_str(IMPORTED).expect("a golden file");
    let expected = expected.as_object().expect("a golden file");
    assert_eq!(decoder.roles().count(), expected.len());
    for (role, _) in decoder.roles() {
        let tensor = weights.tensor(role).expect("a tensor");
        let sum = checksum(&tensor.bytes).to_string();
        assert_eq!(expected[&role.name()], sum, "{role:?}");
    }
}

/// The sum of each BF16 number's bits times its place, counted from 1.
fn checksum(bytes: &[u8]) -> u64 {
    let (halves, _) = bytes.as_chunks::<2>();
    let halves = (1_u64..).zip(halves);
    halves.fold(0, |sum, (place, half)| {
        let bits = u64::from(u16::from_le_bytes(*half));
        sum.wrapping_add(bits.wrapping_mul(place))
    })
}

#[test]
fn the_imported_model_is_described_as_its_authors_do() {
    let Some(model) = Model::smollm2() else {
        return;
    };
    let decoder = Decoder::open(&model.path).expect("a configuration");
    assert_eq!(
        (decoder.vocabulary, decoder.hidden, decoder.layers),
        (49_152, 576, 30)
    );
    assert_eq!(
        (decoder.attention.heads, decoder.attention.kv_heads),
        (9, 3)
    );
    assert_eq!(
        (decoder.attention.head_size, decoder.attention.rope.theta),
        (64, 100_000.0)
    );
    assert_eq!(
        (decoder.context, decoder.norm_epsilon, decoder.tied_head),
        (8192, 1e-5, true)
    );
}

#[test]
fn every_family_is_the_same_in_one_file_and_in_shards() {
    for family in Family::all() {
        let (whole, sharded) = (family.model(false), family.model(true));
        let decoder = Decoder::open(&whole.path).expect("a configuration");
        let whole = Weights::open(&whole.path, &decoder).expect("a checkpoint");
        let sharded = Weights::open(&sharded.path, &decoder).expect("a checkpoint in shards");
        for role in decoder.roles().map(|(role, _)| role).chain([Role::Head]) {
            let read = |weights: &Weights| weights.tensor(role).expect("a tensor").bytes;
            assert_eq!(read(&whole), read(&sharded), "{}: {role:?}", family.name);
        }
    }
}

#[test]
fn a_family_with_a_tensor_cut_off_is_refused() {
    let family = &Family::all()[0];
    let model = family.model(false).copy("golden-cut");
    let path = model.path.join("model.safetensors");
    let whole = fs::read(&path).expect("a checkpoint");
    fs::write(&path, &whole[..whole.len() - 2]).expect("a shorter checkpoint");
    let decoder = Decoder::open(&model.path).expect("a configuration");
    let error = Weights::open(&model.path, &decoder).expect_err("it is not whole");
    assert!(
        error.to_string().contains("bytes follow the header"),
        "{error}"
    );
}
