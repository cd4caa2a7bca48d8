//! A ledger whose server is killed.

use std::fs;
use std::path::Path;

use appliance_tests::server::scratch_file;
use appliance_tests::{Model, PATIENCE, Request, Server, appliance, eventually};
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
use serde_json::Value;

use crate::{COMPLETIONS, completion, streaming};

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
