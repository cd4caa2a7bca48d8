//! What a model must prove before it serves.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use appliance_tests::neuron::fresh;
use appliance_tests::{Ended, Model, Server, appliance};
use serde_json::{Value, json};

/// A server whose state is kept in `state`.
fn start(model: &Model, state: &Path) -> Server {
    let state = state.to_str().expect("paths of tests are text");
    Server::start(model, &["--state-dir", state])
}

/// Serving `model` comes to nothing.
fn refused(model: &Model, state: &Path) -> Ended {
    let ended = appliance([
        OsString::from("serve"),
        "--listen".into(),
        "127.0.0.1:0".into(),
        "--model".into(),
        model.path.clone().into(),
        "--state-dir".into(),
        state.into(),
    ]);
    assert_eq!(ended.code, Some(64), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("the self-test failed"),
        "{}",
        ended.stderr
    );
    ended
}

/// The one file of answers in a state directory.
fn kept(state: &Path) -> PathBuf {
    let mut files = fs::read_dir(state.join("golden")).expect("a directory of answers");
    let file = files
        .next()
        .expect("a file of answers")
        .expect("an entry")
        .path();
    assert!(files.next().is_none(), "one model, one file");
    file
}

/// Changes the weights of a model in place, which stay as long and as old as they were.
fn change(model: &Model, change: impl FnOnce(&Value, &mut [u8])) {
    let path = model.path.join("model.safetensors");
    let written = fs::metadata(&path)
        .expect("weights")
        .modified()
        .expect("a time");
    let mut bytes = fs::read(&path).expect("weights");
    let (length, rest) = bytes.split_at_mut(8);
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes"));
    let (header, values) = rest.split_at_mut(usize::try_from(length).expect("it is in memory"));
    let header = serde_json::from_slice(header).expect("a header");
    change(&header, values);
    fs::write(&path, &bytes).expect("room for weights");
    let file = fs::File::options()
        .write(true)
        .open(&path)
        .expect("weights");
    file.set_modified(written).expect("a time that can be set");
}

/// Where a tensor's values are.
fn range(header: &Value, name: &str) -> std::ops::Range<usize> {
    let offset = |at: usize| {
        let offset = header[name]["data_offsets"][at]
            .as_u64()
            .expect("an offset");
        usize::try_from(offset).expect("it is in memory")
    };
    offset(0)..offset(1)
}

#[test]
fn a_model_is_held_to_what_it_answered_at_its_first_start() {
    let (model, state) = (Model::random().copy("golden-held"), fresh("golden-held"));
    let first = start(&model, &state);
    assert!(
        first.log().contains("later starts are held to them"),
        "{}",
        first.log()
    );
    drop(first);
    let file = kept(&state);
    let second = start(&model, &state);
    assert!(
        second.log().contains("tokens after 4 prompts are those of"),
        "{}",
        second.log()
    );
    drop(second);
    // The same file, other numbers in it: what a bad disk or a bad device would make of them.
    change(&model, |header, values| {
        values[range(header, "model.layers.1.mlp.down_proj.weight")].fill(0);
    });
    let ended = refused(&model, &state);
    for word in ["prompt", "expected", "got", file.to_str().expect("a text")] {
        assert!(ended.stderr.contains(word), "{word} in {}", ended.stderr);
    }
    // Whoever removes the answers says that it is meant.
    fs::remove_file(&file).expect("a file of answers");
    start(&model, &state);
}

#[test]
fn every_kind_of_damage_is_found() {
    type Damage = fn(&Value, &mut [u8]);
    let damages: [(&str, Damage); 4] = [
        ("two layers changed places", |header, values| {
            let (one, other) = (
                range(header, "model.layers.0.self_attn.q_proj.weight"),
                range(header, "model.layers.1.self_attn.q_proj.weight"),
            );
            for (a, b) in one.zip(other) {
                values.swap(a, b);
            }
        }),
        ("no norm", |header, values| {
            values[range(header, "model.layers.0.input_layernorm.weight")].fill(0);
        }),
        ("a sign too many", |header, values| {
            let value = values[range(header, "model.layers.0.self_attn.v_proj.weight")].iter_mut();
            value.skip(1).step_by(2).for_each(|high| *high ^= 0x80);
        }),
        (
            "no head: every token as likely as every other",
            |header, values| {
                values[range(header, "lm_head.weight")].fill(0);
            },
        ),
    ];
    for (number, (what, damage)) in damages.into_iter().enumerate() {
        let name = format!("golden-damage-{number}");
        let (model, state) = (Model::random().copy(&name), fresh(&name));
        start(&model, &state);
        change(&model, damage);
        let ended = refused(&model, &state);
        assert!(
            ended.stderr.contains("answers are from"),
            "{what}: {}",
            ended.stderr
        );
    }
}

#[test]
fn what_is_always_the_same_is_no_model_even_if_nobody_knows_better() {
    let model = Model::random().copy("golden-constant");
    change(&model, |header, values| {
        values[range(header, "lm_head.weight")].fill(0);
    });
    let ended = refused(&model, &fresh("golden-constant"));
    assert!(
        ended
            .stderr
            .contains("every answer to every prompt is the same token"),
        "{}",
        ended.stderr
    );
}

#[test]
fn answers_in_the_models_own_directory_come_first() {
    let (model, state) = (Model::chain().copy("golden-own"), fresh("golden-own"));
    let own = model.path.join("appliance-golden.json");
    // After an `a` comes a `b` with a logit of 12 over 287 others of 0.
    let logprob = -(287.0 * (-12.0_f64).exp()).ln_1p();
    let write = |tokens: [u32; 3]| {
        let logprobs = [logprob; 3];
        let case = json!({"prompt": [97], "tokens": tokens, "logprobs": logprobs});
        let text = json!({"format": 1, "made_by": "hand", "cases": [case]});
        fs::write(&own, text.to_string()).expect("room for a file");
    };
    write([98, 99, 100]);
    let server = start(&model, &state);
    assert!(server.log().contains("those of hand"), "{}", server.log());
    drop(server);
    write([98, 99, 101]);
    let ended = refused(&model, &state);
    let told = "prompt 0 (1 tokens), answer token 2: expected 101";
    assert!(ended.stderr.contains(told), "{}", ended.stderr);
    // What is no such file is said to be none, and does not keep the model from serving.
    fs::write(&own, "{}").expect("room for a file");
    let server = start(&model, &state);
    assert!(
        server.log().contains("golden answers that cannot be used"),
        "{}",
        server.log()
    );
}

#[test]
fn another_tokenizer_is_found() {
    let (model, state) = (
        Model::random().copy("golden-tokenizer"),
        fresh("golden-tokenizer"),
    );
    start(&model, &state);
    let path = model.path.join("tokenizer.json");
    let written = fs::metadata(&path)
        .expect("a tokenizer")
        .modified()
        .expect("a time");
    let text = fs::read_to_string(&path).expect("a tokenizer");
    // Two letters change their ids: the file stays as long as it was.
    let swapped = text
        .replace("\"e\":101", "\"e\":!")
        .replace("\"t\":116", "\"t\":101");
    fs::write(&path, swapped.replace("\"e\":!", "\"e\":116")).expect("room for a file");
    let file = fs::File::options()
        .write(true)
        .open(&path)
        .expect("a tokenizer");
    file.set_modified(written).expect("a time that can be set");
    let ended = refused(&model, &state);
    assert!(
        ended.stderr.contains("the tokenizer makes other tokens"),
        "{}",
        ended.stderr
    );
}
