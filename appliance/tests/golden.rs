//! Tokens and templates as Hugging Face has them: the goldens of tests/golden, which its README explains.

use std::path::Path;

use appliance::text::{Template, TemplateError, TemplateOptions, Tokenizer};
use engine::TokenId;
use serde_json::{Value, json};

fn golden(json: &str) -> Value {
    serde_json::from_str(json).expect("a golden file")
}

fn tokens(ids: &Value) -> Vec<TokenId> {
    let ids = ids.as_array().expect("ids").iter();
    ids.map(|id| TokenId(u32::try_from(id.as_u64().expect("an id")).expect("an id")))
        .collect()
}

/// The tokenizer of the default model, where `make test` has put it.
fn default_model() -> Option<Tokenizer> {
    let Some(dir) = std::env::var_os("APPLIANCE_TEST_MODEL") else {
        eprintln!("skipped: APPLIANCE_TEST_MODEL names no directory; `make test` sets it");
        return None;
    };
    Some(Tokenizer::open(Path::new(&dir)).expect("a tokenizer"))
}

/// Bytes for which the default model has no token, among those that the goldens have: characters that
/// begin with them, beyond U+3FFFF, do not come back.
const LACKING: [u8; 2] = [0xF1, 0xF2];

#[test]
fn texts_have_the_ids_of_hugging_face_and_come_back() {
    let Some(tokenizer) = default_model() else {
        return;
    };
    let golden = golden(include_str!("../../tests/golden/tokenizer.json"));
    for pair in golden["goldens"].as_array().expect("pairs") {
        let (text, ids) = (pair[0].as_str().expect("a text"), tokens(&pair[1]));
        assert_eq!(tokenizer.encode(text, false).expect("ids"), ids, "{text:?}");
        assert!(ids.iter().all(|id| id.0 < tokenizer.vocabulary()));
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|id| tokenizer.token_bytes(*id))
            .collect();
        assert_eq!(
            tokenizer.decode(&ids, false),
            String::from_utf8_lossy(&bytes)
        );
        if !text.bytes().any(|byte| LACKING.contains(&byte)) {
            assert_eq!(bytes, text.as_bytes());
        }
    }
}

#[test]
fn chats_render_as_hugging_face_has_them() {
    let golden = golden(include_str!("../../tests/golden/templates.json"));
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("tokenizer_config.json");
    std::fs::write(config, golden["tokens"].to_string()).expect("a file");
    let model = Template::open(dir.path()).expect("special tokens");
    for case in golden["cases"].as_array().expect("cases") {
        let name = case["template"].as_str().expect("a name");
        let source = golden["templates"][name].as_str().expect("a template");
        let template = model.with_source(source).expect("a template");
        let rendered = template.render(&case["messages"], &options(&case["arguments"]));
        match (case["error"].as_str(), rendered) {
            // Transformers hands parts of contents to templates, we hand them one text.
            (_, Ok(_)) if has_parts(case) => {}
            (None, Ok(rendered)) => assert_eq!(rendered, case["text"], "{name}"),
            (Some(error), Err(TemplateError::Failed { why, .. })) => assert_eq!(why, error),
            (_, rendered) => panic!("{name}: {rendered:?} for {case}"),
        }
    }
}

fn has_parts(case: &Value) -> bool {
    let messages = case["messages"].as_array().expect("messages");
    messages.iter().any(|message| message["content"].is_array())
}

/// The arguments of `apply_chat_template` as ours.
fn options(arguments: &Value) -> TemplateOptions {
    let mut extra = arguments.as_object().expect("arguments").clone();
    let mut flag = |name| extra.remove(name) == Some(json!(true));
    TemplateOptions {
        add_generation_prompt: flag("add_generation_prompt"),
        continue_final_message: flag("continue_final_message"),
        tools: extra.remove("tools"),
        extra,
    }
}
