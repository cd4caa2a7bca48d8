//! Server-sent events, to the byte.

use appliance_tests::{Answer, Connection, Model, Request, Server, eventually};
use serde_json::{Value, json};

use crate::{ALPHABET, CHAT, COMPLETIONS, chain, chat, chunks, completion, good, merged};

/// The body of a stream as it is on the wire, framing taken off.
fn raw(target: &str, body: &Value) -> String {
    let server = chain();
    let body = merged(body.clone(), json!({"stream": true}));
    let response = server.post(target, &body);
    assert_eq!(response.status(), 200, "{}", response.text());
    let kind = response.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("text/event-stream"), "{kind}");
    assert_eq!(response.header("cache-control"), Some("no-cache"));
    response.text()
}

#[test]
fn events_are_framed_to_the_byte() {
    let server = chain();
    for (target, body) in [
        (CHAT, chat(server, "hi", json!({}))),
        (
            COMPLETIONS,
            completion(server, "x", json!({"max_tokens": 5})),
        ),
    ] {
        let text = raw(target, &body);
        let events = text
            .strip_suffix("data: [DONE]\n\n")
            .expect("[DONE] ends it, once");
        for event in events.split_terminator("\n\n") {
            let json = event.strip_prefix("data: ").expect("one line of data");
            let value: Value = serde_json::from_str(json).expect("one JSON object");
            assert!(value.is_object());
            assert_eq!(json, value.to_string(), "compact JSON, nothing around it");
        }
        assert!(events.ends_with("\n\n"));
        assert!(!text.contains('\r'));
    }
}

#[test]
fn a_chat_begins_with_the_role_and_ends_empty() {
    let server = chain();
    let body = chat(server, "hi", json!({"max_tokens": 2, "stream": true}));
    let chunks = good(server.stream(CHAT, &body)).chunks();
    let deltas: Vec<_> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0]["delta"])
        .collect();
    let expected = [
        json!({"role": "assistant", "content": ""}),
        json!({"content": "A"}),
        json!({"content": "B"}),
        json!({}),
    ];
    assert_eq!(deltas, expected.iter().collect::<Vec<_>>());
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert!(chunk.get("usage").is_none(), "not asked for: {chunk}");
        let choice = chunk["choices"][0].as_object().unwrap();
        assert_eq!(choice["index"], 0);
        assert_eq!(choice["logprobs"], Value::Null);
    }
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "length");
}

#[test]
fn empty_stream_options_bring_no_usage() {
    let server = chain();
    for options in [json!(null), json!({}), json!({"include_usage": false})] {
        let more = json!({"max_tokens": 2, "stream": true, "stream_options": options});
        let chunks = good(server.stream(CHAT, &chat(server, "hi", more))).chunks();
        assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    }
}

#[test]
fn usage_comes_last_and_alone() {
    let server = chain();
    for (target, body) in [
        (CHAT, chat(server, "hi", json!({"max_tokens": 3}))),
        (
            COMPLETIONS,
            completion(server, "x", json!({"max_tokens": 3})),
        ),
    ] {
        let chunks = chunks(server, target, &body);
        let (last, rest) = chunks.split_last().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["completion_tokens"], 3);
        assert!(last["usage"]["prompt_tokens_details"]["cached_tokens"].is_u64());
        for chunk in rest {
            assert_eq!(chunk.get("usage"), Some(&Value::Null), "{chunk}");
        }
    }
}

#[test]
fn usage_can_come_with_every_chunk() {
    let server = chain();
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let more = json!({"max_tokens": 4, "stream": true, "stream_options": options});
    for (target, body, prompt) in [
        (CHAT, chat(server, "hi", more.clone()), 21),
        (COMPLETIONS, completion(server, "x", more.clone()), 1),
    ] {
        let chunks = good(server.stream(target, &body)).chunks();
        let mut before = 0;
        for chunk in &chunks {
            let usage = &chunk["usage"];
            assert_eq!(usage["prompt_tokens"], prompt, "{chunk}");
            let count = usage["completion_tokens"].as_u64().expect("a count");
            assert!(
                (before..=before + 1).contains(&count),
                "one a token: {chunks:?}"
            );
            assert_eq!(usage["total_tokens"], prompt + count);
            before = count;
        }
        assert_eq!(before, 4);
    }
}

#[test]
fn each_token_is_one_event() {
    let server = chain();
    // Four bytes of a smiley, two of é, three of 你, one point: text comes only with the last of each.
    for prompt in ["a", "."] {
        let body = completion(server, prompt, json!({"max_tokens": 20, "stream": true}));
        let chunks = good(server.stream(COMPLETIONS, &body)).chunks();
        let tokens = chunks
            .iter()
            .filter(|chunk| chunk["choices"][0]["finish_reason"].is_null());
        assert_eq!(tokens.count(), 20, "{chunks:?}");
    }
}

#[test]
fn every_choice_has_its_own_beginning_and_end() {
    let server = chain();
    let body = chat(server, "hi", json!({"n": 4, "max_tokens": 6}));
    let answer = Answer::streamed(&chunks(server, CHAT, &body));
    assert_eq!(answer.choices.len(), 4);
    for choice in &answer.choices {
        assert_eq!(choice.text, "ABCDEF");
        assert_eq!(choice.finish, "length");
    }
    assert_eq!(answer.count("completion_tokens"), 24);
}

#[test]
fn a_connection_serves_one_request_after_another() {
    let server = chain();
    let mut connection = Connection::open(server.address).unwrap();
    let whole = Request::post(CHAT, &chat(server, "hi", json!({})));
    let stream = Request::post(CHAT, &chat(server, "hi", json!({"stream": true})));
    for _ in 0..3 {
        let answer = connection.exchange(&whole).unwrap();
        assert_eq!(answer.json()["choices"][0]["message"]["content"], ALPHABET);
        let answer = connection.exchange(&stream).unwrap();
        assert!(answer.text().ends_with("data: [DONE]\n\n"));
        assert_eq!(
            connection
                .exchange(&Request::get("/health"))
                .unwrap()
                .status(),
            200
        );
    }
}

#[test]
fn a_stream_arrives_as_it_is_made() {
    let server = Server::start(&Model::endless(), &["--max-running", "1"]);
    let mut stream = server.unread(1_000_000);
    let first = stream.next_chunk().unwrap().expect("a chunk");
    assert!(first["choices"][0]["finish_reason"].is_null());
    // The rest is more than fits between the two: it is not made before it can be sent.
    eventually("it runs", || {
        server.metrics().value("vllm:num_requests_running") == 1.0
    });
}
