//! Models that cannot be served: the server ends at once and says what is wrong with which file.

use std::fs;

use appliance_tests::server::appliance_with;
use appliance_tests::{Model, appliance};
use serde_json::{Value, json};

/// Serves a copy of a good model after `spoil` was at it; what it says must contain all of `told`.
fn refuses(name: &str, spoil: impl FnOnce(&Model), told: &[&str]) {
    let model = Model::chain().copy(name);
    spoil(&model);
    let path = model.path.to_str().expect("a path of ASCII");
    let ended = appliance(["serve", "--model", path, "--listen", "127.0.0.1:0"]);
    assert!(ended.code.is_some_and(|code| code != 0), "{ended:?}");
    let said = format!("{}{}", ended.stdout, ended.stderr);
    for word in told {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// Changes a file of JSON.
fn edit(model: &Model, file: &str, change: impl FnOnce(&mut Value)) {
    let path = model.path.join(file);
    let bytes = fs::read(&path).expect("a file of the model");
    let mut value = serde_json::from_slice(&bytes).expect("JSON");
    change(&mut value);
    fs::write(path, value.to_string()).expect("a file of the copy");
}

fn remove(model: &Model, file: &str) {
    fs::remove_file(model.path.join(file)).expect("a file of the copy");
}

#[test]
fn a_directory_that_is_not_there() {
    let ended = appliance([
        "serve",
        "--model",
        "no/such/model",
        "--listen",
        "127.0.0.1:0",
    ]);
    assert!(ended.code.is_some_and(|code| code != 0), "{ended:?}");
    assert!(ended.stderr.contains("no/such/model"), "{}", ended.stderr);
}

#[test]
fn a_missing_file_is_named() {
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let name = format!("without-{file}");
        refuses(&name, |model| remove(model, file), &[file]);
    }
}

#[test]
fn an_unknown_architecture_is_named_with_those_that_are_known() {
    let spoil = |model: &Model| {
        edit(model, "config.json", |config| {
            config["architectures"] = json!(["Transfloptimus"]);
            config["model_type"] = json!("transfloptimus");
        });
    };
    refuses(
        "unknown-architecture",
        spoil,
        &["Transfloptimus", "LlamaForCausalLM"],
    );
}

#[test]
fn a_field_that_is_not_supported_is_named() {
    let spoil = |model: &Model| {
        edit(model, "config.json", |config| {
            config["hidden_act"] = json!("relu6")
        });
    };
    refuses("unknown-activation", spoil, &["hidden_act", "relu6"]);
    let spoil = |model: &Model| {
        edit(model, "config.json", |config| {
            config["rope_scaling"] = json!({"rope_type": "spiral", "factor": 2.0});
        });
    };
    refuses("unknown-rope", spoil, &["rope_scaling", "spiral"]);
}

#[test]
fn sizes_that_do_not_fit_the_weights_are_refused() {
    let spoil = |model: &Model| {
        edit(model, "config.json", |config| {
            config["intermediate_size"] = json!(65)
        });
    };
    refuses("wrong-size", spoil, &["mlp"]);
    let spoil = |model: &Model| {
        edit(model, "config.json", |config| {
            config["num_hidden_layers"] = json!(2)
        });
    };
    refuses("one-layer-short", spoil, &["model.layers.1."]);
    let spoil = |model: &Model| {
        edit(model, "config.json", |config| {
            config["hidden_size"] = json!(4_000_000_000_u64)
        });
    };
    refuses("huge-size", spoil, &["hidden_size"]);
}

#[test]
fn weights_that_are_cut_off_are_refused() {
    for keep in [0, 7, 100, 50_000] {
        let spoil = |model: &Model| {
            let file = model.path.join("model.safetensors");
            let bytes = fs::read(&file).unwrap();
            fs::write(file, &bytes[..keep]).unwrap();
        };
        refuses(&format!("cut-at-{keep}"), spoil, &["model.safetensors"]);
    }
}

#[test]
fn a_header_that_lies_is_refused() {
    let lie = |name: &str, from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let spoil = |model: &Model| {
            let file = model.path.join("model.safetensors");
            let mut bytes = fs::read(&file).unwrap();
            let at = bytes
                .windows(from.len())
                .position(|window| window == from.as_bytes());
            let at = at.expect("the header has it");
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
            fs::write(file, bytes).unwrap();
        };
        refuses(name, spoil, &["model.safetensors"]);
    };
    lie("lying-dtype", "\"BF16\"", "\"BF99\"");
    lie("lying-shape", "[288,576]", "[999,576]");
    lie(
        "lying-offset",
        "\"data_offsets\":[0,",
        "\"data_offsets\":[9,",
    );
    lie("lying-json", "{\"", "{{");
    let spoil = |model: &Model| {
        let file = model.path.join("model.safetensors");
        let mut bytes = fs::read(&file).unwrap();
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        fs::write(file, bytes).unwrap();
    };
    refuses("lying-length", spoil, &["model.safetensors"]);
}

#[test]
fn a_tokenizer_that_cannot_be_read_is_refused() {
    let spoil = |model: &Model| fs::write(model.path.join("tokenizer.json"), "{\"a\":").unwrap();
    refuses("bad-tokenizer", spoil, &["tokenizer.json"]);
}

#[test]
fn a_template_that_cannot_be_parsed_is_refused() {
    let spoil = |model: &Model| {
        edit(model, "tokenizer_config.json", |config| {
            config["chat_template"] = json!("{% for message in messages %}\n{% endif %}");
        });
    };
    refuses("bad-template", spoil, &["template", "line 2"]);
}

#[test]
fn a_hub_that_cannot_be_reached_is_told() {
    // A port that is listened on by nobody.
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .unwrap();
    let endpoint = format!("http://{address}");
    let cache = Model::chain().copy("empty-cache").path;
    let cache = cache.to_str().unwrap();
    let ended = appliance_with(
        &[
            ("APPLIANCE_HUB_ENDPOINT", &endpoint),
            ("APPLIANCE_CACHE_DIR", cache),
        ],
        [
            "serve",
            "--model",
            "hf://acme/nothing",
            "--listen",
            "127.0.0.1:0",
        ],
    );
    assert!(ended.code.is_some_and(|code| code != 0), "{ended:?}");
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(
        said.contains("acme/nothing") && said.contains(&endpoint),
        "{said}"
    );
}
