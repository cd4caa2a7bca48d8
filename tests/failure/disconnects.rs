//! Clients that go away.

use appliance_tests::{Model, PATIENCE, Request, Server, eventually};

use crate::{COMPLETIONS, Dice, completion, is_well, streaming};

#[test]
fn a_storm_of_500_disconnects_ends_with_no_page_used() {
    let server = Server::start(&Model::chain(), &[]);
    let mut dice = Dice(500);
    let mut clients: Vec<_> = (0..500)
        .map(|client| {
            let prompt = "x".repeat(1 + dice.below(300));
            let body = if client % 3 == 0 {
                completion(&server, &prompt, 2000)
            } else {
                streaming(&server, &prompt, 2000)
            };
            let mut connection = server.connect();
            connection
                .send(&Request::post(COMPLETIONS, &body))
                .expect("the server reads the request");
            (client, connection)
        })
        .collect();
    eventually("many run", || {
        server.metrics().value("vllm:num_requests_running") > 10.0
    });
    // They leave in any order: waiting, in their prompt, in mid-stream.
    while !clients.is_empty() {
        let (client, connection) = clients.swap_remove(dice.below(clients.len()));
        if client % 50 == 1 && client % 3 != 0 {
            let mut stream = connection.stream().expect("a stream");
            stream.event().expect("an event");
        }
    }
    server.idle_within(PATIENCE);
    is_well(&server);
    server.idle_within(PATIENCE);
}

#[test]
fn whoever_waits_and_leaves_is_never_run() {
    let server = Server::start(&Model::endless(), &["--max-running", "1"]);
    let holding = server.hold();
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let mut client = server.connect();
            let request = Request::post(COMPLETIONS, &streaming(&server, "b", 4000));
            client.send(&request).expect("the server reads the request");
            client
        })
        .collect();
    eventually("all wait", || {
        server.metrics().value("vllm:num_requests_waiting") == 20.0
    });
    drop(waiting);
    eventually("none waits", || {
        server.metrics().value("vllm:num_requests_waiting") == 0.0
    });
    assert_eq!(server.metrics().value("vllm:num_requests_running"), 1.0);
    drop(holding);
    server.idle_within(PATIENCE);
}

#[test]
fn files_are_closed_when_clients_have_gone() {
    let server = Server::start(&Model::chain(), &[]);
    is_well(&server);
    let before = server.open_files();
    for _ in 0..200 {
        let mut connection = server.connect();
        connection
            .send(&Request::post(COMPLETIONS, &streaming(&server, "a", 50)))
            .expect("the server reads the request");
    }
    eventually("all sockets are closed", || {
        server.open_files() <= before + 2
    });
}
