//! Under systemd, of which every byte passes a real socket.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use appliance_tests::neuron::fresh;
use appliance_tests::server::scratch_file;
use appliance_tests::{Fake, Model, PATIENCE, Server, Systemd, eventually, within};
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
use serde_json::json;

/// Any port of this machine.
fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

#[test]
fn systemd_is_told_of_each_phase_and_of_readiness_only_after_the_self_test() {
    let systemd = Systemd::new(None);
    let mut server = systemd.start(anywhere(), &Model::chain(), &[]);
    systemd.hears("READY=1", PATIENCE);
    assert!(
        server.log().contains("self-test passed"),
        "{}",
        server.log()
    );
    server.await_ready();
    let lines = systemd.lines();
    let at = |line: &str| lines.iter().position(|other| other.starts_with(line));
    let (loading, more) = (at("STATUS=the model"), at("EXTEND_TIMEOUT_USEC=20000000"));
    let (kept, ready) = (at("FDSTORE=1"), at("READY=1"));
    assert!(
        kept < loading && loading < ready && more < ready,
        "{lines:?}"
    );
    assert_eq!(systemd.kept(), ["http"]);
    systemd.hears("STATUS=serving chain", PATIENCE);
    server.signal(SIGTERM);
    systemd.hears("STOPPING=1", PATIENCE);
    assert_eq!(server.exit_code_within(PATIENCE), 0);
    systemd.hears("STATUS=drained", PATIENCE);
    assert!(systemd.times("WATCHDOG").is_empty(), "nobody asked");
}

#[test]
fn who_cannot_serve_says_why_and_is_never_ready() {
    let systemd = Systemd::new(None);
    let broken = Model::random().copy("without-weights");
    std::fs::remove_file(broken.path.join("model.safetensors")).expect("its weights");
    let server = systemd.start(anywhere(), &broken, &[]);
    server.exit_code_within(PATIENCE);
    systemd.hears("STATUS=cannot serve", PATIENCE);
    assert!(systemd.times("READY=1").is_empty());
}

/// Asks until told to stop. Counts what came of it: answers, and connections that were refused.
fn ask(address: SocketAddr, stop: &AtomicBool, answered: &AtomicUsize, refused: &AtomicUsize) {
    while !stop.load(Ordering::Relaxed) {
        let asked = TcpStream::connect(address).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.starts_with("HTTP/1.1 200"))
        });
        match asked {
            Ok(true) => answered.fetch_add(1, Ordering::Relaxed),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                refused.fetch_add(1, Ordering::Relaxed)
            }
            // Those that it had accepted as it was killed.
            Ok(false) | Err(_) => 0,
        };
    }
}

#[test]
fn a_restart_refuses_no_connection() {
    let (model, systemd) = (Model::chain(), Systemd::new(None));
    let mut server = systemd.start(anywhere(), &model, &[]);
    server.await_ready();
    let address = server.address;
    let (stop, answered, refused) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| ask(address, &stop, &answered, &refused));
        }
        for signal in [SIGKILL, SIGTERM] {
            let before = answered.load(Ordering::Relaxed);
            eventually("clients are answered", || {
                answered.load(Ordering::Relaxed) > before + 20
            });
            server.signal(signal);
            server.exit_code_within(PATIENCE);
            systemd.forget();
            server = systemd.start(address, &model, &[]);
            assert_eq!(server.address, address);
            server.await_ready();
            assert!(
                server.log().contains("took back the socket"),
                "{}",
                server.log()
            );
        }
        let before = answered.load(Ordering::Relaxed);
        eventually("clients are answered again", || {
            answered.load(Ordering::Relaxed) > before + 20
        });
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(refused.into_inner(), 0);
    assert_eq!(systemd.kept(), ["http"], "it is kept once");
}

#[test]
fn another_address_is_bound_anew_and_the_old_socket_let_go() {
    let (model, systemd) = (Model::chain(), Systemd::new(None));
    let server = systemd.start(anywhere(), &model, &[]);
    let before = server.address;
    drop(server);
    let elsewhere = SocketAddr::from(([127, 0, 0, 2], 0));
    let server = systemd.start(elsewhere, &model, &[]);
    assert_eq!(server.address.ip(), elsewhere.ip());
    assert_ne!(server.address, before);
    eventually("one socket is kept, the new one", || {
        systemd.kept() == ["http"]
    });
    eventually("the old one is closed", || {
        TcpStream::connect(before).is_err()
    });
}

#[test]
fn a_socket_unit_decides_where_it_listens() {
    let systemd = Systemd::new(None);
    let socket = TcpListener::bind(anywhere()).expect("a free port");
    let address = socket.local_addr().expect("its address");
    let mut server = systemd.activate(socket, &Model::chain(), &[]);
    assert_eq!(server.address, address);
    server.await_ready();
}

#[test]
fn the_watchdog_is_fed_by_work_and_by_an_idle_device_that_answers() {
    let watchdog = Duration::from_secs(2);
    let systemd = Systemd::new(Some(watchdog));
    let mut server = systemd.start(anywhere(), &Model::chain(), &[]);
    server.await_ready();
    let fed = |times| {
        eventually("the watchdog is fed", || {
            systemd.times("WATCHDOG=1").len() >= times
        });
    };
    fed(3);
    let measured = server.metrics();
    for counted in [
        "vllm:time_to_first_token_seconds_count",
        "vllm:prompt_tokens_total",
    ] {
        let value = measured.value(counted);
        assert!(
            value < 1.0,
            "our own questions are not measured: {counted} {value}"
        );
    }
    let all: Vec<_> = (0..8)
        .map(|_| {
            let body =
                json!({"prompt": "a", "max_tokens": 2000, "ignore_eos": true, "stream": true});
            server.stream("/v1/completions", &body)
        })
        .collect();
    systemd.forget();
    fed(3);
    drop(all);
}

#[test]
fn a_frozen_device_is_seen_within_seconds_and_starves_the_watchdog() {
    let Some(fake) = Fake::found() else { return };
    let faults = scratch_file("faults-frozen", "");
    let fake = fake
        .with("FAKE_NRT_FAULTS", &faults)
        .with("FAKE_NRT_LATENCY_US", "2000");
    let model = Model::random();
    let store = fake.prepared(&model, 1, &["--max-context", "256"]);
    let systemd = Systemd::new(Some(Duration::from_secs(4)));
    let store = store.to_str().expect("paths of tests are text");
    let flags = [
        "--backend",
        "neuron",
        "--artifacts",
        store,
        "--max-context",
        "256",
    ];
    let flags = [
        &flags[..],
        &["--device-timeout", "10m", "--self-test", "token"],
    ]
    .concat();
    let environment: Vec<_> = fake.environment();
    let mut server = systemd.start_with(&environment, anywhere(), &model, &flags);
    server.await_ready();
    eventually("the watchdog is fed", || {
        !systemd.times("WATCHDOG=1").is_empty()
    });
    std::fs::write(&faults, "execute hang").expect("a file under target");
    let body = json!({"prompt": "a", "max_tokens": 20, "stream": true});
    let mut asked = server.connect();
    asked
        .send(&appliance_tests::Request::post("/v1/completions", &body))
        .expect("the server reads the request");
    within(Duration::from_secs(60), "health falls", || {
        server.get("/health").status() == 503
    });
    assert!(server.get("/health").text().contains("stalled"));
    systemd.forget();
    // Two intervals in which nobody may feed it.
    thread::sleep(Duration::from_secs(8));
    assert!(systemd.times("WATCHDOG=1").is_empty());
    server.signal(SIGKILL);
}

#[test]
fn lines_for_the_journal_have_their_priority_in_front() {
    // The log is a file here: it says that it is the journal.
    const JOURNAL: &str = r#"export JOURNAL_STREAM="$(stat -L -c %d:%i /proc/$$/fd/2)"; exec "$@""#;
    let model = Model::chain();
    let mut server = Server::through(JOURNAL, Stdio::null(), anywhere(), &[], &model, &[]);
    server.await_ready();
    let log = server.log();
    assert!(
        log.lines()
            .all(|line| line.starts_with("<6>") || line.starts_with("<4>")),
        "{log}"
    );
    assert!(log.contains("<6> INFO ready"), "{log}");
    let gone = Model {
        path: fresh("no-model"),
    };
    let server = Server::through(JOURNAL, Stdio::null(), anywhere(), &[], &gone, &[]);
    server.exit_code_within(PATIENCE);
    assert!(
        server.log().contains("<3>appliance: cannot serve"),
        "{}",
        server.log()
    );
}
