//! `POST /v1/chat/completions`.

use std::time::{SystemTime, UNIX_EPOCH};

use appliance_tests::models::MESSAGE_END;
use serde_json::{Value, json};

use crate::{ALPHABET, CHAT, both, bytes, chain, chat, chunks, merged, whole};

/// What the template makes of one user message `hi`, and the opening of the answer.
const PROMPT: &str = "?user\nhi?\n?assistant\n";

#[test]
fn an_answer_has_the_shape_of_openai() {
    let server = chain();
    let mut answer = server.ask(CHAT, &chat(server, "hi", json!({})));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert!(answer["created"].as_u64().unwrap().abs_diff(now.as_secs()) < 600);
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], server.model.as_str());
    let choice = answer["choices"][0].take();
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["logprobs"], Value::Null);
    assert!(choice.as_object().unwrap().contains_key("logprobs"));
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["content"], ALPHABET);
    let usage = &answer["usage"];
    assert_eq!(usage["prompt_tokens"], PROMPT.len());
    assert_eq!(usage["completion_tokens"], 27, "the end token counts");
    assert_eq!(usage["total_tokens"], PROMPT.len() + 27);
    assert!(usage["prompt_tokens_details"]["cached_tokens"].is_u64());
}

#[test]
fn max_tokens_ends_an_answer_by_length() {
    let server = chain();
    for limit in [
        json!({"max_tokens": 5}),
        json!({"max_completion_tokens": 5}),
        json!({"max_tokens": 9, "max_completion_tokens": 5}),
    ] {
        let answer = both(server, CHAT, &chat(server, "hi", limit));
        assert_eq!(answer.text(), "ABCDE");
        assert_eq!(answer.only().finish, "length");
        assert_eq!(answer.count("completion_tokens"), 5);
    }
}

#[test]
fn the_chat_template_of_the_model_is_applied() {
    let server = chain();
    let body = json!({
        "model": server.model,
        "messages": [
            {"role": "system", "content": "be"},
            {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
            {"role": "assistant", "content": "yes"},
            {"role": "developer", "content": "x"},
            {"role": "user", "content": "?"},
        ],
        "max_tokens": 1,
        "temperature": 0,
        "return_token_ids": true,
    });
    let answer = server.ask(CHAT, &body);
    let text = "\u{1}system\nbe\u{2}\n\u{1}user\nh\ni\u{2}\n\u{1}assistant\nyes\u{2}\n\
                \u{1}system\nx\u{2}\n\u{1}user\n?\u{2}\n\u{1}assistant\n";
    let ids: Vec<u64> = bytes(text)
        .into_iter()
        .map(|id| if id < 3 { 256 + id } else { id })
        .collect();
    assert_eq!(answer["prompt_token_ids"], json!(ids));
    assert_eq!(answer["choices"][0]["token_ids"], json!(bytes("A")));
}

#[test]
fn token_ids_are_given_when_asked_for() {
    let server = chain();
    let body = chat(server, "hi", json!({"return_token_ids": true}));
    let answer = both(server, CHAT, &body);
    let mut ids = bytes(ALPHABET);
    ids.push(MESSAGE_END.into());
    assert_eq!(answer.only().token_ids, ids);
    let first = &chunks(server, CHAT, &body)[0];
    let prompt = first["prompt_token_ids"]
        .as_array()
        .expect("in the first chunk");
    assert_eq!(prompt.len(), PROMPT.len());

    let plain = server.ask(CHAT, &chat(server, "hi", json!({})));
    assert!(plain["choices"][0]["token_ids"].is_null());
    assert!(plain["prompt_token_ids"].is_null());
}

#[test]
fn ignore_eos_and_min_tokens_go_past_the_end() {
    let server = chain();
    let past = json!({"ignore_eos": true, "max_tokens": 30});
    let answer = both(server, CHAT, &chat(server, "hi", past));
    // After the end token, which has no text, the chain counts.
    assert_eq!(answer.text(), format!("{ALPHABET}012"));
    assert_eq!(answer.only().finish, "length");
    assert_eq!(answer.count("completion_tokens"), 30);

    let least = json!({"min_tokens": 40, "max_tokens": 60, "return_token_ids": true});
    let answer = both(server, CHAT, &chat(server, "hi", least));
    assert!(answer.count("completion_tokens") >= 40, "{answer:?}");
    let ids = &answer.only().token_ids;
    assert!(!ids[..40].contains(&u64::from(MESSAGE_END)), "{ids:?}");
}

#[test]
fn the_default_length_is_what_the_context_leaves() {
    let server = chain();
    // The chain never ends a row of small letters, so only the context ends it.
    let long = "x".repeat(8192 - 19 - 40);
    let body = merged(chat(server, &long, json!({})), json!({"ignore_eos": true}));
    let answer = whole(server, CHAT, &body);
    assert_eq!(answer.only().finish, "length");
    assert_eq!(answer.count("total_tokens"), 8192);
}

#[test]
fn fields_that_mean_nothing_here_are_taken_without_a_word() {
    let server = chain();
    let extra = json!({
        "user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto",
        "parallel_tool_calls": true, "no_such_field": [1, {"two": 3}], "n": 1, "stop": null,
        "logit_bias": null, "stream": false, "stream_options": {"include_usage": true},
        "presence_penalty": null, "response_format": {"type": "text"}, "seed": null,
    });
    let answer = whole(server, CHAT, &chat(server, "hi", extra));
    assert_eq!(answer.text(), ALPHABET);
}

#[test]
fn a_meaningful_field_that_is_ignored_is_named() {
    let server = chain();
    let plain = server.post(CHAT, &chat(server, "hi", json!({"max_tokens": 1})));
    assert_eq!(plain.header("x-appliance-ignored"), None);
    let body = chat(
        server,
        "hi",
        json!({"max_tokens": 1, "kv_transfer_params": {"a": 1}}),
    );
    let response = server.post(CHAT, &body);
    assert_eq!(response.status(), 200, "{}", response.text());
    let named = response.header("x-appliance-ignored").expect("the header");
    assert!(named.contains("kv_transfer_params"), "{named}");
}

#[test]
fn several_choices_are_told_apart() {
    let server = chain();
    let body = chat(server, "hi", json!({"n": 3, "max_tokens": 4}));
    let answer = both(server, CHAT, &body);
    assert_eq!(answer.choices.len(), 3);
    assert!(answer.choices.iter().all(|choice| choice.text == "ABCD"));
    assert_eq!(answer.count("completion_tokens"), 12);
    assert_eq!(answer.count("prompt_tokens"), PROMPT.len() as u64);
}

#[test]
fn the_end_of_the_last_message_can_be_left_open() {
    let server = chain();
    let body = json!({
        "model": server.model,
        "messages": [{"role": "user", "content": "hi"}],
        "add_generation_prompt": false,
        "max_tokens": 3,
        "temperature": 0,
        "return_token_ids": true,
    });
    let answer = server.ask(CHAT, &body);
    let ids = answer["prompt_token_ids"].as_array().unwrap();
    assert_eq!(ids.len(), "?user\nhi?\n".len());
}
