//! `POST /v1/completions`.

use serde_json::{Value, json};

use crate::{COMPLETIONS, both, bytes, chain, completion, whole};

#[test]
fn an_answer_has_the_shape_of_openai() {
    let server = chain();
    let answer = server.ask(
        COMPLETIONS,
        &completion(server, "hello x", json!({"max_tokens": 5})),
    );
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["model"], server.model.as_str());
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "yzabc");
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["finish_reason"], "length");
    assert!(choice.as_object().unwrap().contains_key("logprobs"));
    assert_eq!(answer["usage"]["prompt_tokens"], 7);
    assert_eq!(answer["usage"]["completion_tokens"], 5);
    assert_eq!(answer["usage"]["total_tokens"], 12);
}

#[test]
fn sixteen_tokens_unless_asked_otherwise() {
    let answer = both(chain(), COMPLETIONS, &completion(chain(), "9", json!({})));
    assert_eq!(answer.text(), "0123456789012345");
}

#[test]
fn a_prompt_may_be_text_or_ids_one_or_many() {
    let server = chain();
    let check = |prompt: Value, expected: &[&str]| {
        let answer = both(
            server,
            COMPLETIONS,
            &completion(server, prompt, json!({"max_tokens": 3})),
        );
        let texts: Vec<&str> = answer.choices.iter().map(|choice| &*choice.text).collect();
        assert_eq!(texts, expected);
        answer
    };
    check(json!("a"), &["bcd"]);
    check(json!(["a"]), &["bcd"]);
    let many = check(json!(["a", "hk", "3"]), &["bcd", "lmn", "456"]);
    assert_eq!(many.count("prompt_tokens"), 4);
    assert_eq!(many.count("completion_tokens"), 9);
    check(json!(bytes("qa")), &["bcd"]);
    check(json!([bytes("qa"), bytes("7")]), &["bcd", "890"]);
}

#[test]
fn choices_of_many_prompts_are_numbered_through() {
    let server = chain();
    let body = completion(server, json!(["a", "3"]), json!({"max_tokens": 2, "n": 2}));
    let answer = both(server, COMPLETIONS, &body);
    let texts: Vec<&str> = answer.choices.iter().map(|choice| &*choice.text).collect();
    assert_eq!(texts, ["bc", "bc", "45", "45"]);
    assert_eq!(answer.count("completion_tokens"), 8);
    assert_eq!(answer.count("prompt_tokens"), 2);
}

#[test]
fn echo_gives_the_prompt_first() {
    let server = chain();
    let body = completion(server, "hello", json!({"max_tokens": 3, "echo": true}));
    assert_eq!(both(server, COMPLETIONS, &body).text(), "hellopqr");
    let ids = completion(
        server,
        json!(bytes("hello")),
        json!({"max_tokens": 3, "echo": true}),
    );
    assert_eq!(whole(server, COMPLETIONS, &ids).text(), "hellopqr");
}

#[test]
fn token_ids_are_given_when_asked_for() {
    let server = chain();
    let body = completion(
        server,
        "hi",
        json!({"max_tokens": 3, "return_token_ids": true}),
    );
    let answer = server.ask(COMPLETIONS, &body);
    assert_eq!(answer["choices"][0]["token_ids"], json!(bytes("jkl")));
    assert_eq!(answer["choices"][0]["prompt_token_ids"], json!(bytes("hi")));
    assert_eq!(
        both(server, COMPLETIONS, &body).only().token_ids,
        bytes("jkl")
    );
}

#[test]
fn suffix_is_refused_by_name() {
    let server = chain();
    let response = server.post(
        COMPLETIONS,
        &completion(server, "a", json!({"suffix": "z"})),
    );
    assert_eq!(response.status(), 400, "{}", response.text());
    assert_eq!(response.json()["error"]["param"], "suffix");
}

#[test]
fn ids_beyond_the_vocabulary_are_refused() {
    let server = chain();
    for prompt in [json!([5, 288]), json!([5, 4_000_000_000_u64]), json!([-1])] {
        let response = server.post(COMPLETIONS, &completion(server, prompt, json!({})));
        assert_eq!(response.status(), 400, "{}", response.text());
        assert_eq!(response.json()["error"]["param"], "prompt");
    }
}

#[test]
fn stop_token_ids_end_an_answer() {
    let server = chain();
    let body = completion(
        server,
        "a",
        json!({"max_tokens": 20, "stop_token_ids": [101, 103]}),
    );
    let answer = both(server, COMPLETIONS, &body);
    assert!(answer.text().starts_with("bcd"), "{answer:?}");
    assert_eq!(answer.only().finish, "stop");
    assert_eq!(answer.only().stop_reason, 101);
    assert_eq!(answer.count("completion_tokens"), 4);
}
