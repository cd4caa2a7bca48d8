//! What an Auto Scaling group and Spot do to an instance, and what it does about it.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use appliance_tests::aws::{Account, Action, Hook, Manner, Transition};
use appliance_tests::neuron::fresh;
use appliance_tests::server::scratch_directory;
use appliance_tests::{Answer, Model, PATIENCE, Server, eventually, within};
use nix::sys::signal::Signal::SIGKILL;
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";

/// Hooks of the group.
const LAUNCH: &str = "appliance-launch";
const TERMINATE: &str = "appliance-terminate";

/// An account whose parameter store holds nothing.
fn account() -> Account {
    account_that(Arc::new(AtomicBool::new(true)))
}

/// The same whose parameter store answers once it is told to.
fn account_that(answers: Arc<AtomicBool>) -> Account {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if !answers.load(Ordering::Relaxed) {
                continue;
            }
            thread::spawn(move || no_parameters(stream));
        }
    });
    Account::open().with_rest(format!("http://{address}"))
}

/// Answers whatever is asked with an empty list.
fn no_parameters(mut stream: std::net::TcpStream) {
    let mut asked: Vec<u8> = Vec::new();
    let mut part = [0; 4096];
    // The body comes with the head, or is not waited for.
    while !asked.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut part) {
            Ok(0) | Err(_) => return,
            Ok(read) => asked.extend(&part[..read]),
        }
    }
    let body = r#"{"Parameters":[]}"#;
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: application/x-amz-json-1.1\r\nconnection: close\r\n";
    let length = body.len();
    write!(stream, "{head}content-length: {length}\r\n\r\n{body}").ok();
}

/// Starts a server on the instance and waits until it listens.
fn start(account: &Account, model: &Model, flags: &[&str]) -> Server {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let state = scratch_directory(&format!("instance-{number}"));
    let state = state.to_str().expect("a path of letters");
    start_in(account, model, &[&["--state-dir", state], flags].concat())
}

fn start_in(account: &Account, model: &Model, flags: &[&str]) -> Server {
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let environment: Vec<(&str, OsString)> = account.environment();
    let plain = r#"exec "$@""#;
    Server::through(plain, Stdio::null(), address, &environment, model, flags)
}

fn hook(name: &str, transition: Transition, seconds: u64) -> Hook {
    Hook {
        name: name.to_owned(),
        transition,
        timeout: Duration::from_secs(seconds),
        default: "ABANDON",
    }
}

fn completed(account: &Account, hook: &str, result: &str) -> bool {
    let action = Action::Completed(hook.to_owned(), result.to_owned());
    account.autoscaling.actions().contains(&action)
}

fn streaming(tokens: u32) -> Value {
    json!({"prompt": "a", "max_tokens": tokens, "temperature": 0, "ignore_eos": true, "stream": true})
}

#[test]
fn a_launching_hook_is_kept_waiting_while_the_model_loads_and_completed_when_it_is_ready() {
    // The start waits for its parameter store, longer than the hook would.
    let answers = Arc::new(AtomicBool::new(false));
    let account = account_that(Arc::clone(&answers));
    account
        .autoscaling
        .add_hook(hook(LAUNCH, Transition::Launching, 3));
    account.autoscaling.launch();
    let mut server = start(&account, &Model::chain(), &[]);
    eventually("heartbeats keep the hook", || {
        account.autoscaling.heartbeats() >= 3
    });
    assert_eq!(account.autoscaling.state(), "Pending:Wait");
    answers.store(true, Ordering::Relaxed);
    server.await_ready();
    eventually("it is in service", || {
        account.autoscaling.state() == "InService"
    });
    assert!(completed(&account, LAUNCH, "CONTINUE"));
    let expired = Action::Expired(LAUNCH.to_owned());
    assert!(!account.autoscaling.actions().contains(&expired));
}

#[test]
fn an_instance_that_cannot_serve_is_given_up_with_the_reason() {
    let account = account();
    account.autoscaling.hook(LAUNCH, Transition::Launching);
    account.autoscaling.launch();
    let gone = Model {
        path: fresh("no-model-for-an-instance"),
    };
    let server = start(&account, &gone, &[]);
    eventually("it is given up", || completed(&account, LAUNCH, "ABANDON"));
    assert!(
        server
            .log()
            .contains("the instance is given up: cannot serve"),
        "{}",
        server.log()
    );
    assert_eq!(account.autoscaling.state(), "Terminated");
}

#[test]
fn scaling_in_loses_no_stream_and_completes_the_hook_last() {
    let account = account();
    account
        .autoscaling
        .add_hook(hook(TERMINATE, Transition::Terminating, 30));
    account.autoscaling.launch();
    let flags = [
        "--deregistration-delay",
        "6s",
        "--kv-tokens",
        "1100000",
        "--step-time",
        "1ms",
    ];
    let mut server = start(&account, &Model::endless(), &flags);
    server.await_ready();
    server.model = "endless".to_owned();
    // Held, so that the drain cannot be over before it was looked at.
    let held = server.hold();
    let streams: Vec<_> = (0..12)
        .map(|_| server.stream(COMPLETIONS, &streaming(300)))
        .collect();
    account.autoscaling.terminate();
    eventually("readiness is off", || server.get("/health").status() == 503);
    assert!(server.get("/health").text().contains("taken away"));
    // The load balancer has not noticed yet.
    let late = server.stream(COMPLETIONS, &streaming(50));
    eventually("nothing new is taken on", || {
        let body = json!({"prompt": "a", "max_tokens": 1});
        server.post(COMPLETIONS, &body).status() == 503
    });
    assert!(
        !completed(&account, TERMINATE, "CONTINUE"),
        "it has not drained yet"
    );
    assert!(account.autoscaling.heartbeats() > 0);
    for (stream, tokens) in streams
        .into_iter()
        .map(|stream| (stream, 300))
        .chain([(late, 50)])
    {
        let answer = Answer::streamed(&stream.chunks());
        assert_eq!(answer.only().finish, "length");
        assert_eq!(answer.text().len(), tokens);
    }
    drop(held);
    assert_eq!(server.exit_code_within(PATIENCE), 0);
    assert!(completed(&account, TERMINATE, "CONTINUE"));
    assert_eq!(account.autoscaling.state(), "Terminated");
}

#[test]
fn a_spot_notice_lets_streams_finish_and_cuts_what_would_outlast_it() {
    let account = account();
    account.autoscaling.launch();
    let flags = [
        "--grace",
        "1h",
        "--kv-tokens",
        "1100000",
        "--step-time",
        "1ms",
    ];
    let mut server = start(&account, &Model::endless(), &flags);
    server.await_ready();
    server.model = "endless".to_owned();
    let _held = server.hold();
    let streams: Vec<_> = (0..12)
        .map(|_| server.stream(COMPLETIONS, &streaming(300)))
        .collect();
    account.imds.spot_notice(25);
    eventually("readiness is off", || server.get("/health").status() == 503);
    for stream in streams {
        let answer = Answer::streamed(&stream.chunks());
        assert_eq!(answer.only().finish, "length");
    }
    // 25 s, less what is kept for the end; a machine that others use too gets some more.
    assert_eq!(server.exit_code_within(Duration::from_secs(60)), 0);
    assert!(
        server.log().contains("Spot takes the instance away"),
        "{}",
        server.log()
    );
}

#[test]
fn in_a_warm_pool_it_is_ready_and_does_not_claim_to_serve() {
    let account = account();
    account.autoscaling.hook(LAUNCH, Transition::Launching);
    account.autoscaling.launch_warm("Warmed:Running");
    let server = start(&account, &Model::chain(), &[]);
    eventually("the hook lets it into the pool", || {
        account.autoscaling.state() == "Warmed:Running"
    });
    let health = server.get("/health");
    assert_eq!(
        (health.status(), health.json()["status"].clone()),
        (503, json!("warm"))
    );
    let body = json!({"prompt": "a", "max_tokens": 1});
    let refused = server.post(COMPLETIONS, &body);
    assert_eq!(refused.status(), 503);
    assert!(refused.text().contains("warm pool"), "{}", refused.text());
    assert_eq!(server.get("/live").status(), 200);
    account.autoscaling.wake();
    eventually("it serves", || server.get("/health").status() == 200);
    eventually("the hook lets it serve", || {
        account.autoscaling.state() == "InService"
    });
    let asked = account.autoscaling.actions().into_iter();
    let twice = asked
        .filter(|action| matches!(action, Action::Completed(..)))
        .count();
    assert_eq!(twice, 2);
    assert_eq!(server.post(COMPLETIONS, &body).status(), 200);
}

#[test]
fn a_rebalance_notice_turns_readiness_off_and_nothing_else() {
    let account = account();
    account.autoscaling.launch();
    let (state, other) = (
        scratch_directory("rebalance"),
        scratch_directory("rebalance-ignored"),
    );
    let text = |path: &std::path::Path| path.to_str().expect("letters").to_owned();
    let mut drains = start_in(&account, &Model::chain(), &["--state-dir", &text(&state)]);
    let ignored = ["--state-dir", &text(&other), "--rebalance", "ignore"];
    let mut ignores = start_in(&account, &Model::chain(), &ignored);
    drains.await_ready();
    ignores.await_ready();
    account.imds.rebalance();
    eventually("readiness is off", || drains.get("/health").status() == 503);
    eventually("the other has heard too", || {
        ignores.log().contains("rebalance=\"ignore\"")
    });
    assert_eq!(ignores.get("/health").status(), 200);
    let body = json!({"prompt": "a", "max_tokens": 1});
    assert_eq!(
        drains.post(COMPLETIONS, &body).status(),
        200,
        "who asks is served"
    );
    account.autoscaling.terminate();
    assert_eq!(drains.exit_code_within(PATIENCE), 0);
}

#[test]
fn starts_that_end_badly_again_and_again_make_the_instance_unhealthy() {
    let account = account();
    account.autoscaling.launch();
    let state = scratch_directory("bad-starts");
    let state = state.to_str().expect("letters");
    for bad in 0..3 {
        assert_eq!(account.autoscaling.health(), "Healthy", "after {bad}");
        let mut server = start_in(&account, &Model::chain(), &["--state-dir", state]);
        server.await_ready();
        server.signal(SIGKILL);
        server.exit_code_within(PATIENCE);
    }
    let server = start_in(&account, &Model::chain(), &["--state-dir", state]);
    eventually("it is reported", || {
        account.autoscaling.health() == "Unhealthy"
    });
    assert!(
        server
            .log()
            .contains("ended badly 3 times within ten minutes"),
        "{}",
        server.log()
    );
    server.signal(SIGKILL);
    server.exit_code_within(PATIENCE);
    let mut server = start_in(&account, &Model::chain(), &["--state-dir", state]);
    server.await_ready();
    let told = account.autoscaling.actions().into_iter();
    assert_eq!(
        told.filter(|action| matches!(action, Action::Health(_)))
            .count(),
        1,
        "once"
    );
}

#[test]
fn what_the_account_does_not_give_is_said_once_and_the_server_runs_on() {
    let account = account();
    account.autoscaling.hook(LAUNCH, Transition::Launching);
    account.autoscaling.launch();
    account
        .autoscaling
        .behave(Manner::Fails(403, "AccessDenied"));
    let mut server = start(&account, &Model::chain(), &[]);
    server.await_ready();
    eventually("it is said", || {
        server.log().contains("autoscaling:DescribeLifecycleHooks")
    });
    account.imds.behave(Manner::Refuses);
    eventually("it is said", || {
        server
            .log()
            .contains("the instance metadata service does not answer")
    });
    let body = json!({"prompt": "a", "max_tokens": 1});
    assert_eq!(server.post(COMPLETIONS, &body).status(), 200);
    account.imds.behave(Manner::Works);
    within(Duration::from_secs(60), "it is seen again", || {
        server
            .log()
            .contains("the instance metadata service answers again")
    });
    let said = server
        .log()
        .matches("notices of the instance's end cannot be seen")
        .count();
    assert_eq!(said, 1, "{}", server.log());
}
