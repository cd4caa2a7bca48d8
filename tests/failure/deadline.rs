//! Requests that take too long.

use appliance_tests::{Model, PATIENCE, Request, Server};
use serde_json::Value;

use crate::{COMPLETIONS, completion, is_well, streaming};

fn timed_out(error: &Value) {
    assert_eq!(error["type"], "timeout", "{error}");
    assert!(error["message"].as_str().expect("a message").len() > 10);
}

#[test]
fn a_request_that_waits_too_long_is_told() {
    let flags = ["--max-running", "1", "--request-timeout", "2s"];
    let server = Server::start(&Model::chain(), &flags);
    let holding = server.hold();
    let response = server.post(COMPLETIONS, &completion(&server, "a", 8000));
    // The place is free again when the first has timed out; then this one is too late as well, or
    // it has had too little time for 8000 tokens.
    match response.status() {
        504 | 408 => timed_out(&response.json()["error"]),
        status => panic!("{status}: {}", response.text()),
    }
    drop(holding);
    server.idle_within(PATIENCE);
    is_well(&server);
}

#[test]
fn a_stream_that_takes_too_long_ends_with_an_error_and_done() {
    let server = Server::start(&Model::chain(), &["--request-timeout", "1s"]);
    let mut connection = server.connect().narrow().expect("a small buffer");
    let mut body = streaming(&server, "a", 8000);
    body["logprobs"] = 5.into();
    connection
        .send(&Request::post(COMPLETIONS, &body))
        .expect("the server reads the request");
    let stream = connection.stream().expect("a stream");
    std::thread::sleep(std::time::Duration::from_secs(2));
    // `chunks` fails unless [DONE] is the last.
    let chunks = stream.chunks();
    let last = chunks.last().expect("a chunk");
    if last.get("error").is_some() {
        timed_out(&last["error"]);
    } else {
        // All 8000 tokens found room in the buffers within the second: a fast machine.
        assert_eq!(chunks.len(), 8001, "{last}");
    }
    server.idle_within(PATIENCE);
    is_well(&server);
}
