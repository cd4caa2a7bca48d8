//! Requests that take too long.

use appliance_tests::{Model, PATIENCE, Server};
use serde_json::Value;

use crate::{COMPLETIONS, streaming};

fn timed_out(error: &Value) {
    assert_eq!(error["type"], "timeout", "{error}");
    assert!(error["message"].as_str().expect("a message").len() > 10);
}

#[test]
fn a_request_that_waits_too_long_is_told() {
    let flags = ["--max-running", "1", "--request-timeout", "2s"];
    let server = Server::start(&Model::endless(), &flags);
    let _holding = server.hold();
    // The place is free again when the first has timed out, and this one is about to.
    let response = server.post(COMPLETIONS, &server.endless());
    match response.status() {
        504 | 408 => timed_out(&response.json()["error"]),
        status => panic!("{status}: {}", response.text()),
    }
    server.idle_within(PATIENCE);
}

#[test]
fn a_stream_that_takes_too_long_ends_with_an_error_and_done() {
    let flags = ["--max-running", "1", "--request-timeout", "1s"];
    let server = Server::start(&Model::endless(), &flags);
    let stream = server.stream(COMPLETIONS, &streaming(&server, "a", 1_000_000));
    // `chunks` fails unless [DONE] is the last.
    let chunks = stream.chunks();
    timed_out(&chunks.last().expect("a chunk")["error"]);
    server.idle_within(PATIENCE);
}
