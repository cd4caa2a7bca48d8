//! A ledger whose server is killed.

use std::fs;
use std::path::Path;

use appliance_tests::server::scratch_file;
use appliance_tests::{Model, PATIENCE, Request, Server, appliance, eventually};
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
use serde_json::Value;

use crate::{COMPLETIONS, Dice, completion, streaming};

/// A key that may spend `budget` dollars a day, and the line that stores it.
fn key(budget: &str) -> (String, String) {
    let ended = appliance(["keys", "new", "--id", "payer", "--budget-per-day", budget]);
    let mut lines = ended.stdout.lines().map(str::to_owned);
    (
        lines.next().expect("a key"),
        lines.next().expect("its line"),
    )
}

/// A server with that key, which takes a millionth of a dollar for a token of an answer.
fn server(keys: &Path, ledger: &Path) -> Server {
    let [keys, ledger] = [keys, ledger].map(|path| path.to_str().expect("a path of ASCII"));
    let flags = [
        "--keys-file",
        keys,
        "--ledger",
        ledger,
        "--price-output",
        "1",
        "--admin-key",
        "root",
    ];
    Server::start(&Model::chain(), &flags)
}

fn with_key(request: Request, secret: &str) -> Request {
    request.header("authorization", &format!("Bearer {secret}"))
}

/// Has `tokens` tokens produced; the status.
fn ask(server: &Server, secret: &str, tokens: u32) -> u16 {
    let request = Request::post(COMPLETIONS, &completion(server, "a", tokens));
    server.exchange(&with_key(request, secret)).status()
}

/// What the key has used, as the server says.
fn usage(server: &Server) -> Value {
    let usage = server
        .exchange(&with_key(Request::get("/admin/usage"), "root"))
        .json();
    let keys = usage["keys"].as_array().expect("keys").clone();
    let payer = keys
        .into_iter()
        .find(|key| key["id"] == "payer")
        .expect("the key");
    payer["usage"]["total"].clone()
}

fn lines(ledger: &Path) -> Vec<Value> {
    let text = fs::read_to_string(ledger).unwrap_or_default();
    // The last may be half written.
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

#[test]
fn who_is_killed_loses_the_last_second_and_no_budget_begins_anew() {
    let (secret, line) = key("0.001");
    let keys = scratch_file("killed.keys", &line);
    let ledger = scratch_file("killed.ledger", "");
    let first = server(&keys, &ledger);
    for _ in 0..9 {
        assert_eq!(ask(&first, &secret, 100), 200);
    }
    eventually("nine lines are written", || lines(&ledger).len() == 9);
    // One is under way, and lost: it was not paid.
    let mut open = first.connect();
    let body = streaming(&first, "a", 50);
    open.send(&with_key(Request::post(COMPLETIONS, &body), &secret))
        .expect("the server reads");
    first.signal(SIGKILL);
    assert_eq!(first.exit_code_within(PATIENCE), -9);
    // What a kill in the middle of a write leaves.
    let mut text = fs::read(&ledger).expect("the ledger");
    text.extend_from_slice(b"{\"kind\":\"request\",\"time\":\"2026-");
    fs::write(&ledger, text).expect("the ledger");

    let second = server(&keys, &ledger);
    let used = usage(&second);
    let spent = used["output_tokens"].as_u64().expect("a number");
    assert!((900..=950).contains(&spent), "{used}");
    assert_eq!(ask(&second, &secret, 101), 429, "the budget has less left");
    assert_eq!(ask(&second, &secret, 50), 200);
    second.signal(SIGTERM);
    assert_eq!(second.exit_code_within(PATIENCE), 0);
    // Whoever drains writes all.
    let last = lines(&ledger).pop().expect("a line");
    assert_eq!(last["output_tokens"], 50, "{last}");
}

/// The sum of a field over the lines of a ledger.
fn sum(lines: &[Value], field: &str) -> u64 {
    let fields = lines.iter().map(|line| line[field].as_u64());
    fields.map(|count| count.expect("a number")).sum()
}

#[test]
fn a_storm_of_clients_that_leave_is_accounted_for_to_the_token() {
    let (secret, line) = key("1000");
    let keys = scratch_file("storm.keys", &line);
    let ledger = scratch_file("storm.ledger", "");
    let server = server(&keys, &ledger);
    let body = streaming(&server, "ab", 400);
    std::thread::scope(|scope| {
        for client in 0..8 {
            let (server, secret, body) = (&server, &secret, &body);
            scope.spawn(move || {
                let mut dice = Dice(0x9e37_79b9_7f4a_7c15 + client);
                for _ in 0..25 {
                    let mut connection = server.connect();
                    let request = with_key(Request::post(COMPLETIONS, body), secret);
                    connection.send(&request).expect("the server reads");
                    // Some leave at once, some in the middle, some stay to the end.
                    let Some(chunks) = dice.below(40).checked_sub(10) else {
                        continue;
                    };
                    let mut stream = connection.stream().expect("a head");
                    assert_eq!(stream.head.status, 200);
                    match chunks {
                        0..25 => (0..chunks).for_each(|_| {
                            stream.next_chunk().expect("a chunk");
                        }),
                        _ => drop(stream.chunks()),
                    }
                }
            });
        }
    });
    server.idle_within(PATIENCE);
    let labels = [("key", "payer"), ("project", "default")];
    eventually("nothing runs for the key", || {
        server.metrics().labelled("appliance_key_running", &labels) == 0.0
    });
    server.signal(SIGTERM);
    assert_eq!(server.exit_code_within(PATIENCE), 0);
    let lines = lines(&ledger);
    let again = self::server(&keys, &ledger);
    let used = usage(&again);
    assert_eq!(used["requests"], lines.len(), "{used}");
    for field in ["input_tokens", "cached_tokens", "output_tokens"] {
        assert_eq!(used[field], sum(&lines, field), "{field}: {used}");
    }
    assert!(lines.iter().any(|line| line["finish"] == "aborted"));
    let whole = lines.iter().filter(|line| line["finish"] == "length");
    assert!(whole.clone().count() >= 10, "some stay to the end");
    for line in whole {
        assert_eq!(
            (&line["input_tokens"], &line["output_tokens"]),
            (&2.into(), &400.into())
        );
    }
    // A millionth of a dollar for each token of an answer.
    let cost = used["cost"].as_f64().expect("a number");
    let tokens = used["output_tokens"].as_u64().expect("a number");
    assert_eq!(
        (cost * 1e6).round(),
        f64::from(u32::try_from(tokens).expect("few")),
        "{used}"
    );
}
