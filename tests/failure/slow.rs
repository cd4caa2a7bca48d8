//! Clients that are slow, at reading or at writing.

use std::time::Duration;

use appliance_tests::{Connection, Model, PATIENCE, Request, Server};
use serde_json::json;

use crate::{CHAT, COMPLETIONS, completion, is_well};

#[test]
fn clients_that_never_read_hold_up_nobody_else() {
    let server = Server::start(&Model::chain(), &[]);
    let silent: Vec<_> = (0..24).map(|_| server.unread(8000)).collect();
    for _ in 0..10 {
        is_well(&server);
        let answer = server.ask(COMPLETIONS, &completion(&server, "a", 64));
        assert_eq!(answer["usage"]["completion_tokens"], 64);
    }
    drop(silent);
    server.idle_within(PATIENCE);
}

#[test]
fn what_a_slow_reader_has_not_read_is_not_kept_in_memory() {
    let server = Server::start(&Model::chain(), &[]);
    is_well(&server);
    let before = server.resident_bytes();
    let silent: Vec<_> = (0..40).map(|_| server.unread(8000)).collect();
    std::thread::sleep(Duration::from_secs(2));
    is_well(&server);
    let grown = server.resident_bytes().saturating_sub(before);
    // Pages of the KV cache are touched for the first time as well: 40 sequences of 8000 tokens
    // of this model would take 40 * 8000 * 768 bytes, so the bound is that and a little.
    assert!(grown < 320 << 20, "{} MiB", grown >> 20);
    drop(silent);
    server.idle_within(PATIENCE);
}

#[test]
fn a_slow_reader_gets_all_of_it() {
    let server = Server::start(&Model::chain(), &[]);
    let mut slow = server.unread(3000);
    let mut text = String::new();
    let mut count = 0;
    while let Some(chunk) = slow.next_chunk().expect("a well-formed stream") {
        text += chunk["choices"][0]["text"].as_str().expect("text");
        count += 1;
        if count % 1000 == 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let alphabet = "bcdefghijklmnopqrstuvwxyza".repeat(400);
    assert_eq!(text, alphabet[..3000]);
}

#[test]
fn clients_that_write_a_byte_at_a_time_hold_up_nobody_else() {
    let server = Server::start(&Model::chain(), &[]);
    let body = json!({"model": server.model, "messages": [{"role": "user", "content": "hi"}]});
    let bytes = Request::post(CHAT, &body).bytes();
    let mut slow: Vec<(usize, Connection)> = (0..50).map(|n| (n * 3, server.connect())).collect();
    // Each begins at another place of the request: in the head or in the body.
    for (sent, connection) in &mut slow {
        connection.write(&bytes[..*sent]).expect("a write");
    }
    for _ in 0..5 {
        for (sent, connection) in &mut slow {
            connection.write(&bytes[*sent..=*sent]).expect("a write");
            *sent += 1;
        }
        is_well(&server);
        std::thread::sleep(Duration::from_secs(1));
    }
    // Whoever comes to an end after all is answered.
    for (sent, mut connection) in slow.into_iter().take(3) {
        connection.write(&bytes[sent..]).expect("a write");
        assert_eq!(connection.response().expect("an answer").status(), 200);
    }
    is_well(&server);
}

#[test]
fn a_client_that_stops_writing_is_let_go() {
    let server = Server::start(&Model::chain(), &["--idle-timeout", "1s"]);
    for begun in [
        &b""[..],
        b"POST /v1/chat/completions HT",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
          content-length: 500\r\n\r\n{\"model\":",
    ] {
        let mut connection = server.connect();
        connection.write(begun).expect("a write");
        let told = String::from_utf8_lossy(&connection.rest().expect("closed")).into_owned();
        assert!(
            told.is_empty() || told.starts_with("HTTP/1.1 408"),
            "{told}"
        );
    }
    is_well(&server);
}
