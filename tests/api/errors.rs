//! Errors: the status, the body and the code that clients branch on.

use appliance_tests::{Model, Request, Response, Server};
use serde_json::{Map, Value, json};

use crate::{CHAT, COMPLETIONS, chain, chat, completion};

/// The error object, held to its shape.
fn error(response: &Response) -> Value {
    let body = response.json();
    let error = body["error"]
        .as_object()
        .unwrap_or_else(|| panic!("an error, not {body}"));
    assert_eq!(body.as_object().map(Map::len), Some(1), "{body}");
    let keys: Vec<&str> = error.keys().map(String::as_str).collect();
    for key in ["message", "type", "param", "code"] {
        assert!(keys.contains(&key), "{key} is missing: {body}");
    }
    let message = error["message"].as_str().expect("a message");
    assert!(message.len() > 10, "{message}");
    for key in ["param", "code"] {
        assert!(error[key].is_null() || error[key].is_string(), "{body}");
    }
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert!(response.header("x-request-id").is_some());
    body["error"].clone()
}

/// Checks that a request is refused with 400 and that the error names `param`.
fn refused(target: &str, body: &Value, param: &str) {
    let response = chain().post(target, body);
    assert_eq!(response.status(), 400, "{body}: {}", response.text());
    let error = error(&response);
    assert_eq!(error["type"], "invalid_request_error");
    assert_eq!(error["code"], Value::Null, "{error}");
    assert_eq!(error["param"], param, "{body}: {error}");
}

#[test]
fn a_body_that_is_no_json_is_a_400() {
    for body in [
        "",
        "{",
        "[]",
        "null",
        "\"text\"",
        "{\"model\": }",
        "{\"model\": \"\\ud800\"}",
        "\u{feff}{}",
    ] {
        for target in [CHAT, COMPLETIONS, "/tokenize", "/detokenize"] {
            let request = Request::new("POST", target)
                .header("content-type", "application/json")
                .body(body);
            let response = chain().exchange(&request);
            assert_eq!(
                response.status(),
                400,
                "{target} {body:?}: {}",
                response.text()
            );
            assert_eq!(error(&response)["type"], "invalid_request_error");
        }
    }
    let invalid = Request::new("POST", CHAT)
        .header("content-type", "application/json")
        .body(b"{\"model\": \"\xff\xfe\"}".as_slice());
    assert_eq!(chain().exchange(&invalid).status(), 400);
}

#[test]
fn a_bad_field_of_a_chat_is_named() {
    let server = chain();
    for (field, values) in [
        (
            "temperature",
            [json!(-0.1), json!(2.5), json!("hot")].as_slice(),
        ),
        ("top_p", &[json!(0), json!(1.1), json!(-1)]),
        ("min_p", &[json!(-0.5), json!(1.5)]),
        ("top_k", &[json!(-7), json!("many")]),
        ("n", &[json!(0), json!(-1), json!(1.5), json!(100_000)]),
        ("max_tokens", &[json!(-1), json!("ten"), json!(0.5)]),
        ("max_completion_tokens", &[json!(0), json!(-3)]),
        ("presence_penalty", &[json!(2.5), json!(-2.5)]),
        ("frequency_penalty", &[json!(3), json!("x")]),
        ("repetition_penalty", &[json!(0), json!(-1)]),
        ("seed", &[json!("seven"), json!(1.5)]),
        (
            "logit_bias",
            &[
                json!({"a": 1}),
                json!({"5": 101}),
                json!([1]),
                json!({"100000": 1}),
            ],
        ),
        ("stop", &[json!(5), json!([5]), json!({"a": "b"})]),
        ("stop_token_ids", &[json!("x"), json!([-1])]),
        ("stream", &[json!("yes"), json!(1)]),
        ("stream_options", &[json!("yes")]),
        (
            "messages",
            &[json!([]), json!("hi"), json!([5]), json!(null)],
        ),
        ("model", &[json!(5)]),
    ] {
        for value in values {
            let mut body = chat(server, "hi", json!({}));
            body[field] = value.clone();
            refused(CHAT, &body, field);
        }
    }
}

#[test]
fn a_bad_field_of_a_completion_is_named() {
    let server = chain();
    for (field, value) in [
        ("temperature", json!(-1)),
        ("max_tokens", json!(-1)),
        ("n", json!(0)),
        ("prompt", json!(null)),
        ("prompt", json!({})),
        ("prompt", json!([])),
        ("prompt", json!([["a"], 5])),
        ("prompt", json!(["a", 5])),
        ("echo", json!("yes")),
        ("best_of", json!(0)),
    ] {
        let mut body = completion(server, "a", json!({}));
        body[field] = value.clone();
        refused(COMPLETIONS, &body, field);
    }
}

#[test]
fn a_missing_field_is_named() {
    let server = chain();
    refused(CHAT, &json!({"model": server.model}), "messages");
    refused(COMPLETIONS, &json!({"model": server.model}), "prompt");
}

#[test]
fn a_message_that_cannot_be_is_refused() {
    let server = chain();
    for message in [
        json!({"content": "no role"}),
        json!({"role": 5, "content": "x"}),
        json!({"role": "user"}),
        json!({"role": "user", "content": 5}),
        json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}),
        json!({"role": "user", "content": [{"type": "no_such_type"}]}),
    ] {
        let body = json!({"model": server.model, "messages": [message]});
        let response = server.post(CHAT, &body);
        assert_eq!(response.status(), 400, "{body}: {}", response.text());
        let error = error(&response);
        let param = error["param"].as_str().unwrap_or_default();
        assert!(param.starts_with("messages"), "{body}: {error}");
    }
}

#[test]
fn a_refusal_of_the_template_is_told() {
    let server = chain();
    let body = json!({"model": server.model, "messages": [{"role": "nobody", "content": "x"}]});
    let response = server.post(CHAT, &body);
    assert_eq!(response.status(), 400, "{}", response.text());
    let error = error(&response);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("nobody is called nobody"), "{error}");
    assert!(message.contains("line 3"), "{error}");
}

#[test]
fn an_unknown_model_is_a_404() {
    let server = chain();
    for target in [CHAT, COMPLETIONS] {
        let mut body = chat(server, "hi", json!({"prompt": "a"}));
        body["model"] = json!("no/such/model");
        let response = server.post(target, &body);
        assert_eq!(response.status(), 404, "{}", response.text());
        let error = error(&response);
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(error["code"], "model_not_found");
        assert_eq!(error["param"], "model");
        assert!(error["message"].as_str().unwrap().contains("no/such/model"));
    }
    let response = server.get("/v1/models/no/such/model");
    assert_eq!(response.status(), 404);
    assert_eq!(error(&response)["code"], "model_not_found");
}

#[test]
fn a_prompt_that_is_too_long_says_so() {
    let server = chain();
    let long = "x".repeat(9000);
    for (target, body, param) in [
        (CHAT, chat(server, &long, json!({})), "messages"),
        (
            COMPLETIONS,
            completion(server, long.as_str(), json!({})),
            "prompt",
        ),
        (
            COMPLETIONS,
            completion(server, "a", json!({"max_tokens": 8192})),
            "max_tokens",
        ),
    ] {
        for stream in [false, true] {
            let mut body = body.clone();
            body["stream"] = stream.into();
            let response = server.post(target, &body);
            assert_eq!(response.status(), 400, "{}", response.text());
            let error = error(&response);
            assert_eq!(error["code"], "context_length_exceeded", "{error}");
            assert_eq!(error["type"], "invalid_request_error");
            let named = error["param"].as_str().unwrap_or_default();
            // OpenAI names the messages whatever made it too long.
            assert!(
                named == param || named == "messages" || named == "prompt",
                "{error}"
            );
            let message = error["message"].as_str().unwrap();
            let start = "This model's maximum context length is 8192 tokens. However, ";
            assert!(message.starts_with(start), "{message}");
        }
    }
}

#[test]
fn an_empty_prompt_is_refused() {
    refused(COMPLETIONS, &completion(chain(), "", json!({})), "prompt");
    refused(
        COMPLETIONS,
        &completion(chain(), json!([[]]), json!({})),
        "prompt",
    );
}

#[test]
fn a_body_that_is_too_large_is_a_413() {
    let server = Server::start(&Model::chain(), &["--body-limit", "64KiB"]);
    let body = chat(&server, &"x".repeat(70_000), json!({}));
    let response = server.post(CHAT, &body);
    assert_eq!(response.status(), 413, "{}", response.text());
    error(&response);
    // The same in chunks, whose size nobody says beforehand.
    let text = body.to_string();
    let mut connection = server.connect();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
        text.len()
    );
    connection.write(head.as_bytes()).unwrap();
    // The server may close before it has read it all.
    connection.write(text.as_bytes()).ok();
    connection.write(b"\r\n0\r\n\r\n").ok();
    assert_eq!(connection.response().expect("an answer").status(), 413);
    assert_eq!(server.get("/health").status(), 200);
}

#[test]
fn unknown_places_and_methods_are_errors_of_the_same_shape() {
    let server = chain();
    let response = server.get("/v1/no/such/place");
    assert_eq!(response.status(), 404);
    error(&response);
    let response = server.get(CHAT);
    assert_eq!(response.status(), 405);
    error(&response);
    assert!(
        response
            .header("allow")
            .unwrap_or_default()
            .contains("POST")
    );
}

#[test]
fn what_is_permanently_wrong_need_not_be_tried_again() {
    let response = chain().post(CHAT, &json!({"model": "x"}));
    assert_eq!(response.header("x-should-retry"), Some("false"));
}
