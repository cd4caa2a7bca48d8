//! More requests than there is room for.

use appliance_tests::{Model, PATIENCE, Request, Response, Server, eventually};
use serde_json::Value;

use crate::{COMPLETIONS, completion, is_well, streaming};

/// A refusal that a client can act on.
fn refused(response: &Response) {
    assert_eq!(response.status(), 503, "{}", response.text());
    let wait = response.header("retry-after").expect("when to try again");
    assert!(
        wait.parse::<u32>().is_ok_and(|seconds| seconds > 0),
        "{wait}"
    );
    let error = &response.json()["error"];
    assert_eq!(error["type"], "server_error");
    assert_eq!(error["code"], "overloaded");
    assert_eq!(error["param"], Value::Null);
}

#[test]
fn a_burst_of_1280_leaves_health_answering() {
    let server = Server::start(&Model::chain(), &["--max-running", "16"]);
    let request = Request::post(COMPLETIONS, &completion(&server, "some prompt a", 8));
    let mut clients = Vec::new();
    for number in 0..1280 {
        let mut client = server.connect();
        client.send(&request).expect("the server reads the request");
        clients.push(client);
        if number % 64 == 0 {
            assert_eq!(server.get("/health").status(), 200);
            server.metrics();
        }
    }
    let mut served = 0;
    for (number, mut client) in clients.into_iter().enumerate() {
        let response = client.response().expect("an answer");
        match response.status() {
            200 => {
                assert_eq!(response.json()["choices"][0]["text"], "bcdefghi");
                served += 1;
            }
            _ => refused(&response),
        }
        if number % 64 == 0 {
            assert_eq!(server.get("/health").status(), 200);
        }
    }
    assert!(
        served >= 1024,
        "the queue alone holds 1024, {served} were served"
    );
    server.idle_within(PATIENCE);
    is_well(&server);
}

#[test]
fn a_full_queue_is_told_at_once() {
    let server = Server::start(
        &Model::endless(),
        &["--max-running", "1", "--max-queue", "2"],
    );
    let holding = server.hold();
    let mut waiting: Vec<_> = (0..2)
        .map(|_| {
            let mut client = server.connect();
            let request = Request::post(COMPLETIONS, &completion(&server, "a", 3));
            client.send(&request).expect("the server reads the request");
            client
        })
        .collect();
    eventually("two wait", || {
        server.metrics().value("vllm:num_requests_waiting") == 2.0
    });
    refused(&server.post(COMPLETIONS, &completion(&server, "a", 3)));
    refused(&server.post(COMPLETIONS, &streaming(&server, "a", 3)));
    eventually("both refusals are counted", || {
        let reason = [("reason", "max_num_queued_reqs")];
        server
            .metrics()
            .labelled("vllm:admission_rejections_total", &reason)
            == 2.0
    });
    // A full queue is no illness.
    assert_eq!(server.get("/health").status(), 200);
    drop(holding);
    for client in &mut waiting {
        let answer = client.response().expect("an answer");
        assert_eq!(answer.json()["choices"][0]["text"], "bcd");
    }
    is_well(&server);
}

#[test]
fn the_tokens_that_wait_are_bounded_too() {
    let flags = ["--max-running", "1", "--max-queue-tokens", "1000"];
    let server = Server::start(&Model::endless(), &flags);
    let holding = server.hold();
    let long = "x".repeat(800);
    let mut waiting = server.connect();
    let request = Request::post(COMPLETIONS, &completion(&server, &long, 3));
    waiting
        .send(&request)
        .expect("the server reads the request");
    eventually("it waits", || {
        server.metrics().value("vllm:num_requests_waiting") == 1.0
    });
    refused(&server.post(COMPLETIONS, &completion(&server, &long, 3)));
    eventually("the refusal is counted", || {
        let reason = [("reason", "max_num_queued_tokens")];
        server
            .metrics()
            .labelled("vllm:admission_rejections_total", &reason)
            == 1.0
    });
    drop(holding);
    let answer = waiting.response().expect("an answer");
    assert_eq!(answer.json()["choices"][0]["text"], "yza");
}

#[test]
fn the_status_of_a_refusal_is_a_setting() {
    let flags = [
        "--max-running",
        "1",
        "--max-queue",
        "0",
        "--shed-status",
        "429",
    ];
    let server = Server::start(&Model::endless(), &flags);
    // With room for none to wait, one that could run at once still does.
    is_well(&server);
    let _holding = server.hold();
    let response = server.post(COMPLETIONS, &completion(&server, "a", 3));
    assert_eq!(response.status(), 429, "{}", response.text());
    assert!(response.header("retry-after").is_some());
}

#[test]
fn more_connections_than_allowed_wait_their_turn() {
    let server = Server::start(&Model::chain(), &["--max-connections", "8"]);
    let mut idle: Vec<_> = (0..8).map(|_| server.connect()).collect();
    for connection in &mut idle {
        let response = connection.exchange(&Request::get("/live"));
        assert_eq!(response.expect("an answer").status(), 200);
    }
    let mut ninth = server.connect();
    ninth
        .send(&Request::get("/live"))
        .expect("the kernel takes it");
    idle.pop();
    assert_eq!(ninth.response().expect("an answer").status(), 200);
}
