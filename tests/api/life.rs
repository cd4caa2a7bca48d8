//! What is not generation: health, models, version, the description and the page.

use appliance_tests::{Model, Request, Server};
use serde_json::json;

use crate::{CHAT, chain, chat};

#[test]
fn a_ready_server_says_so() {
    for target in ["/health", "/live", "/ping"] {
        assert_eq!(chain().get(target).status(), 200, "{target}");
    }
    let version = chain().get("/version").json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_model_is_listed() {
    let server = chain();
    let list = server.get("/v1/models").json();
    assert_eq!(list["object"], "list");
    let [model] = &list["data"].as_array().unwrap()[..] else {
        panic!("one model: {list}")
    };
    assert_eq!(model["id"], "chain");
    assert_eq!(model["object"], "model");
    assert!(model["created"].is_u64());
    assert!(model["owned_by"].is_string());
    assert_eq!(model["max_model_len"], 8192);
    assert_eq!(&server.get("/v1/models/chain").json(), model);
}

#[test]
fn a_name_may_have_slashes() {
    let name = "acme/chain-1:latest";
    let server = Server::start(&Model::chain(), &["--served-model-name", name]);
    assert_eq!(server.model, name);
    for target in [
        "/v1/models/acme/chain-1:latest",
        "/v1/models/acme%2Fchain-1%3Alatest",
    ] {
        let response = server.get(target);
        assert_eq!(response.status(), 200, "{target}: {}", response.text());
        assert_eq!(response.json()["id"], name);
    }
    let answer = server.ask(CHAT, &chat(&server, "hi", json!({})));
    assert_eq!(answer["model"], name);
}

#[test]
fn a_request_id_is_echoed_or_made() {
    let server = chain();
    let body = chat(server, "hi", json!({"max_tokens": 1}));
    let named = Request::post(CHAT, &body).header("x-request-id", "mine-42");
    assert_eq!(
        server.exchange(&named).header("x-request-id"),
        Some("mine-42")
    );
    let id = |target: &str| server.get(target).header("x-request-id").map(str::to_owned);
    for target in ["/health", "/v1/models", "/nowhere"] {
        let (first, second) = (id(target).expect("an id"), id(target).expect("an id"));
        assert!(!first.is_empty());
        assert_ne!(first, second);
    }
    let stream = chat(server, "hi", json!({"max_tokens": 1, "stream": true}));
    assert!(
        server
            .stream(CHAT, &stream)
            .head
            .header("x-request-id")
            .is_some()
    );
}

#[test]
fn a_request_id_cannot_carry_anything_it_likes() {
    let server = chain();
    let long = "x".repeat(5000);
    let request = Request::get("/health").header("x-request-id", &long);
    let response = server.exchange(&request);
    assert_eq!(response.status(), 200);
    assert!(response.header("x-request-id").unwrap().len() < 1000);
}

#[test]
fn the_description_lists_every_place() {
    let response = chain().get("/openapi.json");
    assert_eq!(response.status(), 200);
    let description = response.json();
    assert!(description["openapi"].as_str().unwrap().starts_with("3."));
    let paths = description["paths"].as_object().unwrap();
    for place in [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/tokenize",
        "/detokenize",
        "/health",
        "/live",
        "/ping",
        "/version",
        "/metrics",
    ] {
        assert!(paths.contains_key(place), "{place} is not described");
    }
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let response = chain().get("/");
    assert_eq!(response.status(), 200);
    assert!(
        response
            .header("content-type")
            .unwrap()
            .starts_with("text/html")
    );
    let page = response.text();
    assert!(page.contains("/v1/chat/completions"));
    for foreign in [
        "src=\"http",
        "@import",
        "<link rel=\"stylesheet\"",
        "src=\"//",
    ] {
        assert!(!page.contains(foreign), "{foreign}");
    }
}

#[test]
fn head_is_answered_without_a_body() {
    let mut connection = chain().connect();
    connection.send(&Request::new("HEAD", "/health")).unwrap();
    assert_eq!(connection.head().unwrap().status, 200);
}
