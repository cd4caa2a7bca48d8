//! The end of a server, asked for by SIGTERM.

use appliance_tests::{Answer, Model, PATIENCE, Request, Server, eventually};
use nix::sys::signal::Signal::{SIGINT, SIGTERM};

use crate::{COMPLETIONS, completion, streaming};

#[test]
fn a_server_with_nothing_to_do_ends_at_once_and_well() {
    for signal in [SIGTERM, SIGINT] {
        let server = Server::start(&Model::chain(), &[]);
        server.signal(signal);
        assert_eq!(server.exit_code_within(PATIENCE), 0);
    }
}

#[test]
fn under_load_no_stream_is_lost() {
    // One is held, so that the server cannot be done before the others have been looked at. The
    // pages are for its prompt and theirs, and of its prompt each step takes little.
    let flags = ["--kv-tokens", "1100000", "--step-time", "1ms"];
    let server = Server::start(&Model::endless(), &flags);
    let held = server.hold();
    let mut streams: Vec<_> = (0..24)
        .map(|_| server.stream(COMPLETIONS, &streaming(&server, "a", 400)))
        .collect();
    let mut chunks: Vec<Vec<_>> = streams
        .iter_mut()
        .map(|stream| vec![stream.next_chunk().expect("well-formed").expect("a chunk")])
        .collect();
    let waiting = completion(&server, "a", 100);
    let mut whole = server.connect();
    whole
        .send(&Request::post(COMPLETIONS, &waiting))
        .expect("the server reads the request");
    eventually("it is taken on, as the others were", || {
        let begun = "vllm:time_to_first_token_seconds_count";
        server.metrics().value(begun) == 25.0
    });

    server.signal(SIGTERM);
    eventually("readiness is off", || server.get("/health").status() == 503);
    assert_eq!(server.get("/live").status(), 200);
    for body in [completion(&server, "a", 1), streaming(&server, "a", 1)] {
        let refused = server.post(COMPLETIONS, &body);
        assert_eq!(refused.status(), 503, "{}", refused.text());
        let wait = refused.header("retry-after").expect("when to try again");
        assert!(wait.parse::<u32>().is_ok(), "{wait}");
        assert_eq!(refused.json()["error"]["code"], "overloaded");
    }
    assert!(server.ended().is_none(), "a stream is not finished yet");

    for (stream, chunks) in streams.into_iter().zip(&mut chunks) {
        chunks.extend(stream.chunks());
        let answer = Answer::streamed(chunks);
        assert_eq!(answer.only().finish, "length");
        assert_eq!(answer.text().len(), 400);
    }
    let whole = whole.response().expect("an answer");
    assert_eq!(Answer::whole(&whole.json()).text().len(), 100);
    drop(held);
    assert_eq!(server.exit_code_within(PATIENCE), 0);
}

#[test]
fn a_second_sigterm_ends_it_now() {
    let server = Server::start(&Model::endless(), &["--grace", "1h", "--max-running", "1"]);
    let _held = server.hold();
    server.signal(SIGTERM);
    eventually("readiness is off", || server.get("/health").status() == 503);
    assert!(server.ended().is_none());
    server.signal(SIGTERM);
    server.exit_code_within(PATIENCE);
}

#[test]
fn after_the_grace_period_it_ends_whoever_runs() {
    let server = Server::start(&Model::endless(), &["--grace", "1s", "--max-running", "1"]);
    let _held = server.hold();
    server.signal(SIGTERM);
    server.exit_code_within(PATIENCE);
}

#[test]
fn idle_connections_do_not_keep_it() {
    let server = Server::start(&Model::chain(), &[]);
    let _never_used = server.connect();
    let mut used = server.connect();
    used.exchange(&Request::get("/health")).expect("an answer");
    let mut begun = server.connect();
    begun
        .write(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n")
        .expect("a write");
    server.signal(SIGTERM);
    assert_eq!(server.exit_code_within(PATIENCE), 0);
}

#[test]
fn the_port_is_free_afterwards() {
    let model = Model::chain();
    let server = Server::start(&model, &[]);
    let _connection = server.connect();
    server.signal(SIGTERM);
    assert_eq!(server.exit_code_within(PATIENCE), 0);
    assert_eq!(Server::start_at(server.address, &model, &[]).model, "chain");
}
