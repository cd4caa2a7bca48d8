//! Requests that are wrong in every way that dice can think of.

use std::thread;

use appliance_tests::{Connection, Model, PATIENCE, Request, Server};
use serde_json::{Value, json};

use crate::{CHAT, COMPLETIONS, Dice, is_well};

const CLIENTS: u64 = 4;

/// Runs `attack` on four threads, then checks that the server took no harm.
fn survives(attack: impl Fn(&Server, u64) + Sync) {
    let server = Server::start(&Model::chain(), &[]);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (attack, server) = (&attack, &server);
            scope.spawn(move || attack(server, client));
        }
    });
    server.idle_within(PATIENCE);
    is_well(&server);
    let log = server.log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn five_thousand_broken_requests_are_survived() {
    survives(|server, client| {
        let mut dice = Dice(77 + client);
        for number in 0..5000 / CLIENTS {
            let body = well_formed(server, &mut dice);
            let mut bytes = Request::post(TARGETS[dice.below(TARGETS.len())], &body).bytes();
            for _ in 0..=dice.below(4) {
                break_bytes(&mut bytes, &mut dice);
            }
            throw(server, &bytes);
            if number % 250 == 0 {
                is_well(server);
            }
        }
    });
}

#[test]
fn five_thousand_senseless_bodies_are_each_answered() {
    survives(|server, client| {
        let mut dice = Dice(99 + client);
        let mut connection = server.connect();
        for number in 0..5000 / CLIENTS {
            let mut body = well_formed(server, &mut dice);
            for _ in 0..=dice.below(2) {
                break_value(&mut body, &mut dice);
            }
            let target = TARGETS[dice.below(TARGETS.len())];
            let response = connection
                .exchange(&Request::post(target, &body))
                .unwrap_or_else(|error| panic!("{target} {body}: {error}"));
            let status = response.status();
            assert!(
                status == 200 || (400..500).contains(&status),
                "{status} for {body}"
            );
            if status != 200 {
                assert!(response.json()["error"]["message"].is_string(), "{body}");
            }
            if number % 250 == 0 {
                is_well(server);
            }
        }
    });
}

const TARGETS: [&str; 4] = [CHAT, COMPLETIONS, "/tokenize", "/detokenize"];

/// A request that asks for little, with fields of every kind.
fn well_formed(server: &Server, dice: &mut Dice) -> Value {
    json!({
        "model": server.model,
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hi 😀"}]},
        ],
        "prompt": *dice.pick(&["a", "😀", "\u{0}\u{7f}"]),
        "tokens": [1, 2, 3],
        "max_tokens": 1 + dice.below(3),
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 10,
        "n": 1 + dice.below(2),
        "stop": ["x", "yz"],
        "seed": 5,
        "stream": dice.below(2) == 0,
        "stream_options": {"include_usage": true},
        "logit_bias": {"65": 1.5},
        "stop_token_ids": [7],
        "response_format": {"type": "text"},
    })
}

/// Does one thing to the bytes of a request.
fn break_bytes(bytes: &mut Vec<u8>, dice: &mut Dice) {
    if bytes.is_empty() {
        return;
    }
    let at = dice.below(bytes.len());
    let to = (at + 1 + dice.below(40)).min(bytes.len());
    match dice.below(7) {
        0 => bytes[at] ^= 1 << dice.below(8),
        1 => bytes[at] = *dice.pick(b"\0\r\n:\"{}[],\xff 9"),
        2 => drop(bytes.drain(at..to)),
        3 => bytes.truncate(at),
        4 => bytes.extend_from_within(at..to),
        5 => {
            let piece = *dice.pick(&PIECES);
            bytes.splice(at..at, piece.iter().copied());
        }
        _ => {
            let copied = bytes[at..to].to_vec();
            let other = dice.below(bytes.len());
            bytes.splice(other..other, copied);
        }
    }
}

/// What parsers of HTTP and JSON have stumbled over.
const PIECES: [&[u8]; 12] = [
    b"\r\n\r\n",
    b"\r\ntransfer-encoding: chunked\r\n",
    b"\r\ncontent-length: 99999999999999999999\r\n",
    b"\r\ncontent-length: -1\r\n",
    b"\r\nexpect: 100-continue\r\n",
    b"\r\nupgrade: h2c\r\nconnection: upgrade, http2-settings\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"%00%2e%2e%2f",
    b"\\ud800",
    b"1e400",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"\xf0\x9f\x98",
];

/// Sends bytes and reads what comes, if anything does: the connection may be closed at any time.
fn throw(server: &Server, bytes: &[u8]) {
    let mut connection = Connection::open(server.address).expect("the server accepts");
    if connection.write(bytes).is_ok()
        && connection.finish_writing().is_ok()
        && let Ok(head) = connection.head()
    {
        assert_ne!(head.status, 500, "{}", String::from_utf8_lossy(bytes));
    }
}

/// Replaces, removes or doubles something in a body.
fn break_value(value: &mut Value, dice: &mut Dice) {
    match value {
        Value::Object(fields) if !fields.is_empty() && dice.below(8) != 0 => {
            let key = fields
                .keys()
                .nth(dice.below(fields.len()))
                .expect("in range")
                .clone();
            match dice.below(4) {
                0 => drop(fields.remove(&key)),
                1 => drop(fields.insert(key + "\u{0}", strange(dice))),
                _ => break_value(&mut fields[&key], dice),
            }
        }
        Value::Array(items) if !items.is_empty() && dice.below(4) != 0 => {
            let at = dice.below(items.len());
            match dice.below(3) {
                0 => drop(items.remove(at)),
                1 => items.push(strange(dice)),
                _ => break_value(&mut items[at], dice),
            }
        }
        other => *other = strange(dice),
    }
}

/// A value that nobody expects. None of them asks for many tokens.
fn strange(dice: &mut Dice) -> Value {
    let deep = (0..100).fold(json!(0), |inner, _| json!([inner]));
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(-0.0),
        json!(1e308),
        json!(5e-324),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("\u{0}\u{feff}\u{202e}\u{10ffff}"),
        json!("{{ 7 * 7 }}{% for x in y %}"),
        json!("a".repeat(5000)),
        json!([]),
        json!({}),
        json!([null, [], {}]),
        json!({"type": "json_object"}),
        json!({"": {"": ""}}),
        deep,
    ];
    dice.pick(&values).clone()
}
