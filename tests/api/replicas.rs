//! Several copies of the model behind one address.

use appliance_tests::{Model, Request, Server, eventually};
use serde_json::{Value, json};

use crate::{COMPLETIONS, completion};

/// Each with one place, and none to wait in.
fn pair() -> Server {
    let flags = ["--replicas", "2", "--max-running", "1", "--max-queue", "0"];
    Server::start(&Model::endless(), &flags)
}

/// A prompt of 300 tokens that no other letter's begins like.
fn ask(server: &Server, letter: &str) -> Value {
    completion(server, letter.repeat(300), json!({"max_tokens": 1}))
}

fn cached(answer: &Value) -> u64 {
    let details = &answer["usage"]["prompt_tokens_details"];
    details["cached_tokens"].as_u64().expect("a count")
}

#[test]
fn who_finds_one_busy_is_served_by_the_other_and_refused_by_both() {
    let server = pair();
    let first = server.hold();
    server.ask(COMPLETIONS, &ask(&server, "a"));
    let second = server.hold();
    eventually("both are busy", || {
        server.metrics().value("vllm:num_requests_running") == 2.0
    });
    let refused = server.post(COMPLETIONS, &ask(&server, "a"));
    assert_eq!(refused.status(), 503, "{}", refused.text());
    drop((first, second));
    eventually("both are free", || {
        server.metrics().value("vllm:num_requests_running") == 0.0
    });
    server.ask(COMPLETIONS, &ask(&server, "a"));
}

#[test]
fn a_prompt_goes_where_its_beginning_is_cached() {
    let server = pair();
    // The first replica is busy, so the prompt goes to the second, and there again when both are free.
    let holding = server.hold();
    assert_eq!(cached(&server.ask(COMPLETIONS, &ask(&server, "a"))), 0);
    drop(holding);
    eventually("both are free", || {
        server.metrics().value("vllm:num_requests_running") == 0.0
    });
    assert!(cached(&server.ask(COMPLETIONS, &ask(&server, "a"))) >= 256);
    assert_eq!(cached(&server.ask(COMPLETIONS, &ask(&server, "b"))), 0);
    assert!(cached(&server.ask(COMPLETIONS, &ask(&server, "a"))) >= 256);
}

#[test]
fn pages_and_requests_of_all_replicas_are_counted_together() {
    let server = pair();
    let holding = server.hold();
    let mut other = server.connect();
    let request = Request::post(COMPLETIONS, &server.endless());
    other.send(&request).expect("the server reads the request");
    eventually("both run", || {
        server.metrics().value("vllm:num_requests_running") == 2.0
    });
    assert!(server.metrics().value("vllm:kv_cache_usage_perc") > 0.0);
    drop((holding, other));
    server.idle_within(appliance_tests::PATIENCE);
}
