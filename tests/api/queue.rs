//! What a client sees while its request waits.

use appliance_tests::{Answer, Event, Model, Request, Server};
use serde_json::json;

use crate::{CHAT, COMPLETIONS, chat, completion, good};

#[test]
fn a_waiting_stream_is_kept_alive_by_comments() {
    let server = Server::start(&Model::endless(), &["--max-running", "1"]);
    let holding = server.hold();
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
    let body = completion(&server, "a", json!({"max_tokens": 200}));
    let mut clients: Vec<_> = (0..6).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(&Request::post(COMPLETIONS, &body)).unwrap();
    }
    for client in &mut clients {
        let answer = Answer::whole(&client.response().unwrap().json());
        assert_eq!(answer.text().len(), 200);
    }
}
