//! Memory: bounded by settings, not by what clients do.

use std::thread;

use appliance_tests::{Model, Request, Server};
use serde_json::json;

use crate::{COMPLETIONS, Dice, is_well};

const MIB: u64 = 1 << 20;

#[test]
fn a_body_of_80_mb_is_refused_and_not_held() {
    let server = Server::start(&Model::chain(), &[]);
    is_well(&server);
    let before = server.resident_bytes();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n\
                content-type: application/json\r\n";
    let chunk = vec![b'x'; 1 << 20];
    for chunked in [false, true] {
        let mut connection = server.connect();
        let length = if chunked {
            "transfer-encoding: chunked\r\n\r\n".to_owned()
        } else {
            format!("content-length: {}\r\n\r\n", 80 * MIB)
        };
        connection
            .write(format!("{head}{length}").as_bytes())
            .expect("a write");
        // The server may say no and close before it has read it all.
        for _ in 0..80 {
            let size = if chunked { "100000\r\n" } else { "" };
            let end: &[u8] = if chunked { b"\r\n" } else { b"" };
            let sent = connection
                .write(size.as_bytes())
                .and_then(|()| connection.write(&chunk))
                .and_then(|()| connection.write(end));
            if sent.is_err() {
                break;
            }
        }
        match connection.response() {
            Ok(response) => assert_eq!(response.status(), 413, "{}", response.text()),
            Err(error) => assert!(!chunked, "no answer: {error}"),
        }
        is_well(&server);
        let grown = server.resident_bytes().saturating_sub(before);
        assert!(grown < 72 * MIB, "{} MiB", grown / MIB);
    }
}

#[test]
fn ten_thousand_requests_leave_it_as_large_as_two_thousand() {
    // A cache that is full long before the first two thousand are served.
    let server = Server::start(
        &Model::random(),
        &["--kv-tokens", "8192", "--max-context", "512"],
    );
    requests(&server, 2000, 1);
    let before = server.resident_bytes();
    requests(&server, 8000, 2);
    let after = server.resident_bytes();
    let grown = after.saturating_sub(before);
    // Allocators round up; a leak of 1 KiB a request would show as 8 MiB.
    assert!(grown < 6 * MIB, "from {before} to {after} bytes");
    server.idle_within(appliance_tests::PATIENCE);
}

/// Sends `count` requests of all kinds from four clients.
fn requests(server: &Server, count: usize, seed: u64) {
    thread::scope(|scope| {
        for client in 0..4_u64 {
            scope.spawn(move || {
                let mut dice = Dice(1 + client + 4 * seed);
                let mut connection = server.connect();
                for number in 0..count / 4 {
                    let body = json!({
                        "model": server.model,
                        "prompt": "x y z ".repeat(1 + dice.below(20)) + &number.to_string(),
                        "max_tokens": 1 + dice.below(4),
                        "stream": dice.below(2) == 0,
                        "logprobs": dice.below(3),
                        "stop": "zz",
                        "n": 1 + dice.below(2),
                        "user": format!("{client}-{number}"),
                    });
                    let request = Request::post(COMPLETIONS, &body);
                    let response = connection.exchange(&request).expect("an answer");
                    assert_eq!(response.status(), 200, "{}", response.text());
                }
            });
        }
    });
}
