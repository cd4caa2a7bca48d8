//! The change of a model, told by the configuration file.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use appliance_tests::server::scratch_file;
use appliance_tests::{Answer, Fake, Model, Request, Server, eventually};
use nix::sys::signal::Signal::{SIGHUP, SIGTERM};
use serde_json::json;

use crate::{ADMIN, COMPLETIONS, completion, name, other, reload, status};

/// A configuration file whose settings a test changes.
struct Config(PathBuf);

impl Config {
    fn new(name: &str, model: &Model, more: &str) -> Self {
        let config = Self(scratch_file(name, ""));
        config.write(model, more);
        config
    }

    /// From now on it names this model, and has these lines more.
    fn write(&self, model: &Model, more: &str) {
        let model = model.path.display();
        let text = format!("model = \"{model}\"\nadmin-key = \"{ADMIN}\"\n{more}\n");
        fs::write(&self.0, text).expect("a file under target");
    }

    /// A server that reads it.
    fn server(&self, environment: &[(&str, std::ffi::OsString)]) -> Server {
        let path = self.0.to_str().expect("a path of letters");
        let mut server = Server::instance(environment, &["--config", path]);
        server.await_ready();
        server
    }
}

/// Waits until the model `name` serves.
fn await_model(server: &Server, name: &str) {
    eventually("the model is changed", || {
        server.serves().as_deref() == Some(name)
    });
}

#[test]
fn under_load_no_request_is_lost_and_none_changes_its_model() {
    let (one, two) = (other("first"), Model::random().copy("second"));
    let config = Config::new("load.toml", &one, "");
    let server = config.server(&[]);
    let mut body = completion("a", 2000);
    body["stream"] = true.into();
    let mut long = server.stream(COMPLETIONS, &body);
    let mut chunks = vec![long.next_chunk().expect("well-formed").expect("a chunk")];

    let done = AtomicBool::new(false);
    let answered: Vec<(usize, usize)> = thread::scope(|scope| {
        let client = || {
            let (mut by_one, mut by_two) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                let answer = server.post(COMPLETIONS, &completion("a", 20));
                assert_eq!(answer.status(), 200, "{}", answer.text());
                let answer = answer.json();
                match answer["model"].as_str().expect("a name") {
                    model if model == name(&one) => {
                        assert_eq!(answer["choices"][0]["text"], "bcdefghijklmnopqrstu");
                        by_one += 1;
                    }
                    model => {
                        assert_eq!(model, name(&two));
                        by_two += 1;
                    }
                }
            }
            (by_one, by_two)
        };
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(client)).collect();
        eventually("the load has begun", || {
            server.metrics().value("vllm:generation_tokens_total") > 100.0
        });
        config.write(&two, "");
        server.signal(SIGHUP);
        await_model(&server, &name(&two));
        eventually("the new model answers", || {
            server.metrics().value("vllm:generation_tokens_total") > 100.0
        });
        done.store(true, Ordering::Relaxed);
        clients
            .into_iter()
            .map(|client| client.join().expect("a client"))
            .collect()
    });
    let by_one: usize = answered.iter().map(|(one, _)| one).sum();
    let by_two: usize = answered.iter().map(|(_, two)| two).sum();
    assert!(by_one > 0 && by_two > 0, "{by_one} {by_two}");

    chunks.extend(long.chunks());
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["model"] == name(&one).as_str())
    );
    let answer = Answer::streamed(&chunks);
    assert_eq!(
        answer.text(),
        &"bcdefghijklmnopqrstuvwxyza".repeat(80)[..2000]
    );
    eventually("the model before is freed", || {
        server.log().contains("is freed")
    });
    let status = status(&server);
    assert_eq!(status["state"], "ready");
    assert_eq!(status["model"], two.path.to_str().expect("of letters"));
    server.signal(SIGTERM);
    assert_eq!(server.exit_code_within(appliance_tests::PATIENCE), 0);
}

#[test]
fn a_model_that_cannot_serve_leaves_the_one_before() {
    let (one, broken) = (other("good"), other("broken"));
    let weights = broken.path.join("model.safetensors");
    let bytes = fs::read(&weights).expect("weights");
    fs::write(&weights, &bytes[..bytes.len() / 2]).expect("a file under target");
    let config = Config::new("broken.toml", &one, "");
    let server = config.server(&[]);
    config.write(&broken, "");
    let (code, answer) = reload(&server);
    assert_eq!((code, &answer["outcome"]), (200, &json!("applied")));
    assert_eq!(answer["changes"], json!(["model"]));
    eventually("it is told", || status(&server)["kept"].is_string());
    let told = status(&server);
    assert!(
        told["kept"]
            .as_str()
            .expect("a reason")
            .contains("model.safetensors"),
        "{told}"
    );
    assert_eq!(told["model"], one.path.to_str().expect("of letters"));
    assert_eq!(server.serves(), Some(name(&one)));
    server.ask(COMPLETIONS, &completion("a", 3));
    eventually("it is counted", || {
        let kept = [("outcome", "kept")];
        server
            .metrics()
            .labelled("appliance_model_swaps_total", &kept)
            == 1.0
    });

    // Who tells the server to read its settings wants it tried again.
    fs::write(&weights, bytes).expect("a file under target");
    let (code, answer) = reload(&server);
    assert_eq!((code, &answer["outcome"]), (200, &json!("unchanged")));
    await_model(&server, &name(&broken));

    // A third that can takes its place: the failed one is not in the way.
    let three = other("third");
    config.write(&three, "");
    server.signal(SIGHUP);
    await_model(&server, &name(&three));
    eventually("nothing is held against it", || {
        status(&server)["kept"].is_null()
    });
}

#[test]
fn of_changes_in_a_row_the_last_holds() {
    let models = ["row-1", "row-2", "row-3", "row-4"].map(other);
    let config = Config::new("row.toml", &models[0], "");
    let server = config.server(&[]);
    for model in &models[1..] {
        config.write(model, "");
        assert_eq!(reload(&server).0, 200);
    }
    await_model(&server, &name(&models[3]));
    let (code, answer) = reload(&server);
    assert_eq!((code, &answer["outcome"]), (200, &json!("unchanged")));
    server.ask(COMPLETIONS, &completion("a", 3));
}

#[test]
fn bad_settings_change_nothing_and_are_told() {
    let one = other("settings");
    let config = Config::new("bad.toml", &one, "");
    let server = config.server(&[]);
    let two = other("settings-2");
    config.write(&two, "grace = \"soon\"");
    let (code, answer) = reload(&server);
    assert_eq!((code, &answer["outcome"]), (409, &json!("refused")));
    let why = answer["why"].as_str().expect("a reason");
    assert!(why.contains("\"soon\" is not a duration"), "{why}");
    assert_eq!(status(&server)["refused"], answer["why"]);
    eventually("it is counted", || {
        server.metrics().value("appliance_config_rejected_total") == 1.0
    });
    assert_eq!(server.serves(), Some(name(&one)), "all or nothing");

    config.write(&two, "grace = \"5s\"\nlog-level = \"debug\"");
    assert_eq!(reload(&server).0, 200);
    await_model(&server, &name(&two));
    assert!(status(&server)["refused"].is_null());
    eventually("the log level holds at once", || {
        server.get("/health");
        server.log().contains("DEBUG")
    });
}

#[test]
fn what_fits_only_alone_takes_the_place_after_the_other_has_left() {
    let available = fs::read_to_string("/proc/meminfo").expect("a Linux");
    let line = available
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes: u64 = (line.and_then(|line| line.trim().strip_suffix(" kB")))
        .and_then(|number| number.parse().ok())
        .expect("a number");
    let (one, two) = (other("large-1"), other("large-2"));
    // A position of the chain takes 2 vectors of 64 numbers of 4 bytes for each of 3 KV heads.
    let tokens = kilobytes * 1024 * 6 / 10 / (2 * 4 * 64 * 3);
    let more = format!("kv-tokens = {tokens}");
    let config = Config::new("large.toml", &one, &more);
    let server = config.server(&[]);
    let mut body = completion("a", 1000);
    body["stream"] = true.into();
    let mut long = server.stream(COMPLETIONS, &body);
    let mut chunks = vec![long.next_chunk().expect("well-formed").expect("a chunk")];
    config.write(&two, &more);
    server.signal(SIGHUP);
    chunks.extend(long.chunks());
    assert_eq!(
        Answer::streamed(&chunks).text().len(),
        1000,
        "it finishes where it began"
    );
    await_model(&server, &name(&two));
    assert!(
        server.log().contains("makes room first"),
        "{}",
        server.log()
    );

    // And back to it if the next cannot be opened.
    let broken = other("large-broken");
    fs::write(broken.path.join("model.safetensors"), "no").expect("a file under target");
    config.write(&broken, &more);
    assert_eq!(reload(&server).0, 200);
    eventually("it is told", || status(&server)["kept"].is_string());
    eventually("the model before serves", || {
        server.serves() == Some(name(&two))
    });
}

#[test]
fn a_device_that_holds_one_model_changes_it_too() {
    let Some(fake) = Fake::found() else { return };
    let (one, two) = (other("device-1"), other("device-2"));
    let lines = |model: &Model| {
        let bundles = fake.prepared(model, 1, &[]);
        format!(
            "backend = \"neuron\"\nartifacts = \"{}\"",
            bundles.display()
        )
    };
    let config = Config::new("device.toml", &one, &lines(&one));
    let server = config.server(&fake.environment());
    let mut body = completion("a", 200);
    body["stream"] = true.into();
    let mut long = server.stream(COMPLETIONS, &body);
    let mut chunks = vec![long.next_chunk().expect("well-formed").expect("a chunk")];
    config.write(&two, &lines(&two));
    server.signal(SIGHUP);
    chunks.extend(long.chunks());
    assert_eq!(Answer::streamed(&chunks).text().len(), 200);
    await_model(&server, &name(&two));
    let answer = server.ask(COMPLETIONS, &completion("a", 5));
    assert_eq!(answer["choices"][0]["text"], "bcdef");

    // What would not be opened then either is no reason to make room.
    let before = server.log().matches("makes room first").count();
    config.write(
        &other("device-3"),
        "backend = \"neuron\"\nartifacts = \"/no/bundles\"",
    );
    assert_eq!(reload(&server).0, 200);
    eventually("it is told", || status(&server)["kept"].is_string());
    assert_eq!(server.log().matches("makes room first").count(), before);
    assert_eq!(server.serves(), Some(name(&two)));
}

#[test]
fn places_of_operators_need_their_key() {
    let config = Config::new("key.toml", &other("key"), "");
    let server = config.server(&[]);
    let place = || Request::get("/admin/status");
    assert_eq!(server.exchange(&place()).status(), 401);
    let wrong = place().header("authorization", "Bearer the-operato");
    assert_eq!(server.exchange(&wrong).status(), 401);
    assert_eq!(status(&server)["state"], "ready");
    let open = Server::start(&Model::chain(), &[]);
    let request = Request::post("/admin/reload", &json!({}));
    assert_eq!(open.exchange(&request).status(), 403);
}
