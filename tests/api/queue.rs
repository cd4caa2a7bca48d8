//! What a client sees while its request waits.

use appliance_tests::{Event, Model, Server};
use serde_json::json;

use crate::{CHAT, COMPLETIONS, chat, completion, good};

#[test]
fn a_waiting_stream_is_kept_alive_by_comments() {
    let server = Server::start(&Model::chain(), &["--max-running", "1"]);
    let more = json!({"max_tokens": 8000, "logprobs": 5, "stream": true});
    // Not read, so it holds the one place for as long as it likes.
    let holding = good(server.stream(COMPLETIONS, &completion(&server, "a", more)));
    let mut waiting = good(server.stream(CHAT, &chat(&server, "hi", json!({"stream": true}))));
    let (event, _) = waiting.event().unwrap().expect("an event");
    assert!(matches!(event, Event::Comment(_)), "{event:?}");
    drop(holding);
    let chunks = waiting.chunks();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
}

#[test]
fn who_waits_gets_a_place_when_one_is_free() {
    let server = Server::start(&Model::chain(), &["--max-running", "1"]);
    let body = completion(&server, "a", json!({"max_tokens": 200, "stream": true}));
    let streams: Vec<_> = (0..6)
        .map(|_| good(server.stream(COMPLETIONS, &body)))
        .collect();
    for stream in streams {
        assert_eq!(stream.chunks().len(), 201);
    }
}
