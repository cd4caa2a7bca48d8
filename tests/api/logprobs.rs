//! Log-probabilities. The chain's are known: its next token has a logit of 12, all 287 others 0.

use serde_json::{Value, json};

use crate::{CHAT, COMPLETIONS, both, bytes, chain, chat, completion, random, whole};

/// Of the chain's next token, and of any other: `12 - ln(e^12 + 287)` and `-ln(e^12 + 287)`.
const NEXT: f64 = -0.00176;
const OTHER: f64 = -12.00176;

fn near(value: &Value, expected: f64) {
    let value = value
        .as_f64()
        .unwrap_or_else(|| panic!("a number, not {value}"));
    // BF16 has three decimal digits.
    assert!((value - expected).abs() < 0.08, "{value} for {expected}");
}

#[test]
fn a_chat_has_one_entry_a_token() {
    let server = chain();
    let body = chat(
        server,
        "hi",
        json!({"max_tokens": 3, "logprobs": true, "top_logprobs": 2}),
    );
    let answer = both(server, CHAT, &body);
    let logprobs = &answer.only().logprobs;
    assert!(logprobs.as_object().unwrap().contains_key("refusal"));
    let content = logprobs["content"].as_array().expect("content");
    assert_eq!(content.len(), 3);
    for (entry, letter) in content.iter().zip(["A", "B", "C"]) {
        assert_eq!(entry["token"], letter);
        assert_eq!(entry["bytes"], json!(bytes(letter)));
        near(&entry["logprob"], NEXT);
        let top = entry["top_logprobs"].as_array().expect("top_logprobs");
        assert_eq!(top.len(), 2);
        assert_eq!(top[0]["token"], letter);
        assert_eq!(top[0]["bytes"], json!(bytes(letter)));
        near(&top[0]["logprob"], NEXT);
        near(&top[1]["logprob"], OTHER);
    }
}

#[test]
fn without_top_logprobs_the_list_is_empty() {
    let server = chain();
    let body = chat(server, "hi", json!({"max_tokens": 1, "logprobs": true}));
    let answer = both(server, CHAT, &body);
    assert_eq!(
        answer.only().logprobs["content"][0]["top_logprobs"],
        json!([])
    );
}

#[test]
fn a_token_that_is_part_of_a_character_gives_its_bytes() {
    let server = chain();
    let more = json!({"max_tokens": 2, "logprobs": 0, "temperature": 0});
    let answer = both(server, COMPLETIONS, &completion(server, ".", more));
    assert_eq!(
        answer.only().logprobs["tokens"].as_array().unwrap().len(),
        2
    );

    // A chat that is biased to the first two bytes of é.
    let bias = json!({"195": 100.0});
    let more = json!({"max_tokens": 1, "logprobs": true, "logit_bias": bias});
    let answer = whole(server, CHAT, &chat(server, "hi", more));
    assert_eq!(answer.only().logprobs["content"][0]["bytes"], json!([195]));
}

#[test]
fn the_end_token_has_an_entry_too() {
    let server = chain();
    let body = chat(server, "hi", json!({"logprobs": true, "top_logprobs": 1}));
    let answer = both(server, CHAT, &body);
    let content = answer.only().logprobs["content"].as_array().unwrap();
    assert_eq!(content.len() as u64, answer.count("completion_tokens"));
}

#[test]
fn a_completion_has_four_lists() {
    let server = chain();
    let body = completion(server, "a", json!({"max_tokens": 4, "logprobs": 2}));
    let answer = both(server, COMPLETIONS, &body);
    let logprobs = &answer.only().logprobs;
    assert_eq!(logprobs["tokens"], json!(["b", "c", "d", "e"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3]));
    for (token, top) in [("b", 0), ("e", 3)] {
        near(&logprobs["token_logprobs"][top], NEXT);
        let top = logprobs["top_logprobs"][top].as_object().expect("a map");
        assert_eq!(top.len(), 2);
        near(&top[token], NEXT);
    }
}

#[test]
fn an_echoed_prompt_is_scored_from_its_second_token_on() {
    let server = chain();
    let more = json!({"max_tokens": 2, "logprobs": 1, "echo": true});
    let answer = both(server, COMPLETIONS, &completion(server, "abx", more));
    assert_eq!(answer.text(), "abxyz");
    let logprobs = &answer.only().logprobs;
    assert_eq!(logprobs["tokens"], json!(["a", "b", "x", "y", "z"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3, 4]));
    let token = logprobs["token_logprobs"].as_array().unwrap();
    assert_eq!(token[0], Value::Null);
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    near(&token[1], NEXT);
    near(&token[2], OTHER);
    near(&token[3], NEXT);
}

#[test]
fn a_prompt_can_be_scored_without_an_answer_to_it() {
    let server = chain();
    let more = json!({"max_tokens": 0, "logprobs": 1, "echo": true});
    let answer = whole(server, COMPLETIONS, &completion(server, "abx", more));
    assert_eq!(answer.text(), "abx");
    assert_eq!(answer.only().logprobs["tokens"], json!(["a", "b", "x"]));
    assert_eq!(answer.count("completion_tokens"), 0);
}

#[test]
fn they_are_probabilities() {
    let server = random();
    let more = json!({"max_tokens": 8, "logprobs": true, "top_logprobs": 20, "ignore_eos": true});
    let answer = whole(server, CHAT, &chat(server, "hi", more));
    for entry in answer.only().logprobs["content"].as_array().unwrap() {
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 20);
        let values: Vec<f64> = top
            .iter()
            .map(|one| one["logprob"].as_f64().unwrap())
            .collect();
        assert!(values.is_sorted_by(|a, b| a >= b), "{values:?}");
        assert!(
            values.iter().map(|value| value.exp()).sum::<f64>() < 1.0001,
            "{values:?}"
        );
        // Greedy: the token is the best.
        assert_eq!(entry["logprob"].as_f64().unwrap(), values[0]);
    }
}

#[test]
fn what_cannot_be_given_is_refused() {
    let server = chain();
    for (target, body, param) in [
        (
            CHAT,
            chat(server, "hi", json!({"logprobs": true, "top_logprobs": 21})),
            "top_logprobs",
        ),
        (
            CHAT,
            chat(server, "hi", json!({"top_logprobs": 2})),
            "top_logprobs",
        ),
        (
            COMPLETIONS,
            completion(server, "a", json!({"logprobs": -1})),
            "logprobs",
        ),
        (
            COMPLETIONS,
            completion(server, "a", json!({"logprobs": 1000})),
            "logprobs",
        ),
    ] {
        let response = server.post(target, &body);
        assert_eq!(response.status(), 400, "{body}: {}", response.text());
        assert_eq!(response.json()["error"]["param"], param, "{body}");
    }
}
