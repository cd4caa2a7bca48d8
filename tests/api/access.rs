//! Keys: who is let in, what the others are told, and what is counted.

use std::fs;
use std::path::PathBuf;

use appliance_tests::server::{appliance_with, scratch_file};
use appliance_tests::{Model, Request, Response, Server, Stream, appliance, eventually};
use serde_json::{Value, json};

use crate::{COMPLETIONS, completion, good, merged};

/// A key made by the binary itself: the secret, and the line that stores it.
fn new_key(id: &str, flags: &[&str]) -> (String, String) {
    let ended = appliance(["keys", "new", "--id", id].iter().chain(flags));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let mut lines = ended.stdout.lines();
    let (secret, line) = (
        lines.next().expect("a key"),
        lines.next().expect("its line"),
    );
    assert!(secret.starts_with("sk-") && secret.len() == 67, "{secret}");
    assert!(!line.contains(secret), "only its digest is stored");
    (secret.to_owned(), line.to_owned())
}

/// A server with these keys, and `flags`.
fn server(name: &str, lines: &[&str], flags: &[&str]) -> (Server, PathBuf) {
    let file = scratch_file(&format!("{name}.keys"), &lines.join("\n"));
    let keys = ["--keys-file", file.to_str().expect("a path of ASCII")];
    let server = Server::start_with(&[], &Model::chain(), &[&keys, flags].concat());
    (server, file)
}

fn with_key(request: Request, secret: &str) -> Request {
    request.header("authorization", &format!("Bearer {secret}"))
}

fn post(server: &Server, secret: &str, body: &Value) -> Response {
    server.exchange(&with_key(Request::post(COMPLETIONS, body), secret))
}

fn get(server: &Server, target: &str, secret: &str) -> Response {
    server.exchange(&with_key(Request::get(target), secret))
}

fn stream(server: &Server, secret: &str, body: &Value) -> Stream {
    let body = merged(body.clone(), json!({"stream": true}));
    let mut connection = server.connect();
    let request = with_key(Request::post(COMPLETIONS, &body), secret);
    connection
        .send(&request)
        .expect("the server reads the request");
    good(connection.stream().expect("the head of a stream"))
}

/// The body of a completion of `tokens` tokens after a prompt of one.
fn tokens(server: &Server, tokens: u32) -> Value {
    completion(
        server,
        "a",
        json!({"max_tokens": tokens, "ignore_eos": true}),
    )
}

/// What a client is told: status, type, code, and whether another try makes sense.
#[track_caller]
fn refused(response: &Response, status: u16, kind: &str, code: Value, again: bool) {
    assert_eq!(response.status(), status, "{}", response.text());
    let error = response.json()["error"].clone();
    assert_eq!(
        (&error["type"], &error["code"]),
        (&kind.into(), &code),
        "{error}"
    );
    let told = (
        response.header("retry-after").is_some(),
        response.header("x-should-retry"),
    );
    assert_eq!(told, (again, (!again).then_some("false")), "{error}");
}

#[test]
fn without_a_good_key_nothing_but_the_probes_is_open() {
    let (secret, line) = new_key("team-a", &[]);
    let (server, _) = server("closed", &[&line], &[]);
    let body = tokens(&server, 2);
    let places = [
        "/v1/chat/completions",
        "/v1/completions",
        "/tokenize",
        "/detokenize",
    ];
    let (most, last) = secret.split_at(secret.len() - 1);
    let wrong = format!("{most}{}", if last == "0" { "1" } else { "0" });
    for place in places {
        let bare = server.post(place, &body);
        refused(
            &bare,
            401,
            "invalid_request_error",
            "invalid_api_key".into(),
            false,
        );
        let other = server.exchange(&with_key(Request::post(place, &body), &wrong));
        refused(
            &other,
            401,
            "invalid_request_error",
            "invalid_api_key".into(),
            false,
        );
        assert!(
            !other.text().contains(&wrong),
            "a wrong key may be nearly right"
        );
    }
    assert_eq!(server.get("/v1/models").status(), 401);
    assert_eq!(server.get("/v1/models/chain").status(), 401);
    for open in [
        "/health",
        "/live",
        "/ping",
        "/metrics",
        "/version",
        "/",
        "/openapi.json",
    ] {
        assert_eq!(server.get(open).status(), 200, "{open}");
    }
    assert_eq!(post(&server, &secret, &body).status(), 200);
    for header in ["x-api-key", "api-key"] {
        let request = Request::post(COMPLETIONS, &body).header(header, &secret);
        assert_eq!(server.exchange(&request).status(), 200, "{header}");
    }
    let log = server.log();
    assert!(
        log.contains("audit=\"refused\"") && log.contains("reason=\"unknown\""),
        "{log}"
    );
    assert!(
        !log.contains(&secret) && !log.contains(&wrong),
        "keys are in the log"
    );
}

#[test]
fn a_key_sees_and_uses_the_models_that_it_may() {
    let (ours, first) = new_key("ours", &["--model", "chain"]);
    let (other, second) = new_key("other", &["--model", "another"]);
    let (server, _) = server("models", &[&first, &second], &[]);
    let listed = |secret: &str| get(&server, "/v1/models", secret).json()["data"].clone();
    assert_eq!(listed(&ours)[0]["id"], "chain");
    assert_eq!(listed(&other), json!([]));
    let body = tokens(&server, 2);
    assert_eq!(post(&server, &ours, &body).status(), 200);
    refused(
        &post(&server, &other, &body),
        403,
        "permission_error",
        Value::Null,
        false,
    );
    let unknown = merged(body, json!({"model": "unknown"}));
    let response = post(&server, &ours, &unknown);
    refused(
        &response,
        404,
        "invalid_request_error",
        "model_not_found".into(),
        false,
    );
}

#[test]
fn limits_by_the_minute_are_told_in_openais_headers() {
    let (secret, line) = new_key(
        "limited",
        &["--requests-per-minute", "3", "--tokens-per-minute", "100"],
    );
    let (server, _) = server("limited", &[&line], &[]);
    let first = post(&server, &secret, &tokens(&server, 9));
    assert_eq!(first.status(), 200);
    assert_eq!(first.header("x-ratelimit-limit-requests"), Some("3"));
    assert_eq!(first.header("x-ratelimit-remaining-requests"), Some("2"));
    assert_eq!(first.header("x-ratelimit-limit-tokens"), Some("100"));
    // What was taken and not used has come back: a prompt of one token, and nine.
    let left = first
        .header("x-ratelimit-remaining-tokens")
        .expect("a header");
    assert!(
        (90..=92).contains(&left.parse::<u32>().expect("a number")),
        "{left}"
    );
    let reset = first.header("x-ratelimit-reset-tokens").expect("a header");
    assert!(reset.ends_with('s'), "{reset}");
    // A minute has no room for it now; when it is full it has.
    let large = post(&server, &secret, &tokens(&server, 2000));
    refused(
        &large,
        429,
        "rate_limit_exceeded",
        "rate_limit_exceeded".into(),
        true,
    );
    let wait: u32 = large
        .header("retry-after")
        .expect("a header")
        .parse()
        .expect("seconds");
    assert!((1..=7).contains(&wait), "{wait}");
    // No minute has room for its prompt.
    let prompt = completion(&server, "a".repeat(101), json!({"max_tokens": 1}));
    let huge = post(&server, &secret, &prompt);
    refused(
        &huge,
        429,
        "rate_limit_exceeded",
        "rate_limit_exceeded".into(),
        false,
    );
    let fourth = post(&server, &secret, &tokens(&server, 1));
    refused(
        &fourth,
        429,
        "rate_limit_exceeded",
        "rate_limit_exceeded".into(),
        true,
    );
    assert_eq!(fourth.header("x-ratelimit-remaining-requests"), Some("0"));
}

#[test]
fn a_place_is_free_when_a_stream_ends_or_its_client_leaves() {
    let (secret, line) = new_key("narrow", &["--concurrent", "1"]);
    let (server, _) = server("narrow", &[&line], &[]);
    let open = stream(&server, &secret, &tokens(&server, 7000));
    let second = post(&server, &secret, &tokens(&server, 1));
    refused(
        &second,
        429,
        "rate_limit_exceeded",
        "rate_limit_exceeded".into(),
        true,
    );
    drop(open);
    eventually("the place is free", || {
        post(&server, &secret, &tokens(&server, 1)).status() == 200
    });
}

#[test]
fn what_was_used_is_counted_and_a_spent_budget_refuses() {
    let (secret, line) = new_key("poor", &["--project", "demo", "--budget-per-day", "0.001"]);
    let ledger = scratch_file("poor.ledger", "");
    let prices = ["--price-input", "1", "--price-output", "10"];
    let admin = [
        "--admin-key",
        "root-secret",
        "--ledger",
        ledger.to_str().unwrap(),
    ];
    let (server, _) = server("poor", &[&line], &[prices, admin].concat());
    assert_eq!(post(&server, &secret, &tokens(&server, 50)).status(), 200);
    drop(stream(&server, &secret, &tokens(&server, 40)).chunks());
    // 2 tokens in, 90 out: 902 of 1000 millionths of a dollar.
    let third = post(&server, &secret, &tokens(&server, 10));
    refused(
        &third,
        429,
        "insufficient_quota",
        "insufficient_quota".into(),
        false,
    );
    assert!(third.text().contains("0.000098"), "{}", third.text());
    assert_eq!(post(&server, &secret, &tokens(&server, 9)).status(), 200);

    let usage = get(&server, "/admin/usage", "root-secret");
    assert_eq!(usage.status(), 200, "{}", usage.text());
    let usage = usage.json();
    let poor = usage["keys"].as_array().expect("keys").iter();
    let poor = poor
        .clone()
        .find(|key| key["id"] == "poor")
        .expect("the key");
    assert_eq!(
        (&poor["project"], &poor["running"]),
        (&"demo".into(), &0.into()),
        "{poor}"
    );
    assert_eq!(
        usage["projects"]["demo"]["day"], poor["usage"]["day"],
        "{usage}"
    );
    let day = &poor["usage"]["day"];
    assert_eq!(
        (&day["requests"], &day["output_tokens"]),
        (&3.into(), &99.into()),
        "{poor}"
    );
    assert_eq!(day["cost"], 0.000_993, "{poor}");

    let labels = [("key", "poor"), ("project", "demo")];
    eventually("the metrics have all three", || {
        let metrics = server.metrics();
        let counts = metrics.all("appliance_key_requests_total");
        counts.into_iter().any(|count| count.value == 3.0)
    });
    let metrics = server.metrics();
    assert_eq!(
        metrics.labelled("appliance_key_requests_total", &labels),
        3.0
    );
    let output = [labels[0], labels[1], ("kind", "output")];
    assert_eq!(
        metrics.labelled("appliance_key_tokens_total", &output),
        99.0
    );
    let budget = [labels[0], labels[1], ("reason", "budget")];
    assert_eq!(
        metrics.labelled("appliance_key_refused_total", &budget),
        1.0
    );

    eventually("three lines are written", || {
        fs::read_to_string(&ledger)
            .expect("a ledger")
            .lines()
            .count()
            == 3
    });
    let text = fs::read_to_string(&ledger).expect("a ledger");
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).expect("JSON");
    assert_eq!(
        (&last["key"], &last["finish"]),
        (&"poor".into(), &"length".into()),
        "{last}"
    );
    assert_eq!(
        (&last["input_tokens"], &last["output_tokens"]),
        (&1.into(), &9.into()),
        "{last}"
    );
    assert_eq!(last["cost"], 0.000_091, "{last}");
    assert!(
        last["first_token_seconds"].as_f64() <= last["seconds"].as_f64(),
        "{last}"
    );
}

#[test]
fn a_stream_whose_client_leaves_is_paid_as_far_as_it_came() {
    let (secret, line) = new_key("leaver", &[]);
    let admin = ["--admin-key", "root-secret", "--price-output", "1"];
    let (server, _) = server("leaver", &[&line], &admin);
    let mut open = stream(&server, &secret, &tokens(&server, 8000));
    for _ in 0..5 {
        open.next_chunk().expect("a chunk");
    }
    drop(open);
    let used = || {
        let usage = get(&server, "/admin/usage", "root-secret").json();
        let keys = usage["keys"].as_array().expect("keys").clone();
        let leaver = keys.into_iter().find(|key| key["id"] == "leaver");
        leaver.expect("the key")["usage"]["total"].clone()
    };
    eventually("it is counted", || used()["requests"] == 1);
    let output = used()["output_tokens"].as_u64().expect("a number");
    assert!((5..8000).contains(&output), "{output}");
}

#[test]
fn keys_change_while_requests_run() {
    let (first, line) = new_key("first", &["--requests-per-minute", "5"]);
    let (second, other) = new_key("second", &[]);
    let (server, file) = server("changing", &[&line], &[]);
    let mut open = stream(&server, &first, &tokens(&server, 8000));
    open.next_chunk().expect("a chunk");
    assert_eq!(get(&server, "/v1/models", &second).status(), 401);
    fs::write(&file, format!("{line}\n{other}\n")).expect("the file of keys");
    eventually("the new key is known", || {
        get(&server, "/v1/models", &second).status() == 200
    });
    // What was used is not forgotten.
    let used = post(&server, &first, &tokens(&server, 1));
    assert_eq!(used.header("x-ratelimit-remaining-requests"), Some("3"));
    // What is no good changes nothing.
    fs::write(&file, "{\"id\": \"first\"").expect("the file of keys");
    eventually("it is told", || {
        server.log().contains("the keys of before stay")
    });
    assert_eq!(get(&server, "/v1/models", &first).status(), 200);
    fs::write(&file, &other).expect("the file of keys");
    eventually("the old key is gone", || {
        get(&server, "/v1/models", &first).status() == 401
    });
    open.next_chunk()
        .expect("the stream that began with it goes on");
}

#[test]
fn a_key_that_has_ended_is_told_when() {
    let (secret, line) = new_key("old", &["--expires", "2026-01-31T00:00:00Z"]);
    let (server, _) = server("old", &[&line], &[]);
    let response = get(&server, "/v1/models", &secret);
    refused(
        &response,
        401,
        "invalid_request_error",
        "invalid_api_key".into(),
        false,
    );
    assert!(
        response.text().contains("2026-01-31"),
        "{}",
        response.text()
    );
}

#[test]
fn caches_of_projects_are_kept_apart_if_asked() {
    let (one, first) = new_key("one", &["--project", "p"]);
    let (two, second) = new_key("two", &["--project", "p"]);
    let (three, third) = new_key("three", &["--project", "q"]);
    let (server, _) = server(
        "apart",
        &[&first, &second, &third],
        &["--isolate-cache", "project"],
    );
    let body = completion(&server, "a".repeat(600), json!({"max_tokens": 1}));
    let cached = |secret: &str| {
        let usage = post(&server, secret, &body).json()["usage"].clone();
        usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .expect("a number")
    };
    assert_eq!(cached(&one), 0);
    assert!(cached(&two) > 0);
    assert_eq!(cached(&three), 0);
    assert!(cached(&three) > 0);
}

#[test]
fn what_is_for_administrators_needs_their_key() {
    let (secret, line) = new_key("user", &[]);
    let (closed, _) = server("no-admin", &[&line], &[]);
    assert_eq!(get(&closed, "/admin/usage", &secret).status(), 403);
    let (open, _) = server("admin", &[&line], &["--admin-key", "root-secret"]);
    for wrong in ["", "root-secre", &secret] {
        assert_eq!(get(&open, "/admin/usage", wrong).status(), 401);
    }
    assert_eq!(get(&open, "/admin/usage", "root-secret").status(), 200);
    assert_eq!(
        get(&open, "/v1/models", "root-secret").status(),
        401,
        "it is no key of a client"
    );
    assert!(open.log().contains("audit=\"admin\""), "{}", open.log());
}

#[test]
fn bad_keys_end_the_start_with_their_line() {
    let model = Model::chain().path;
    let model = model.to_str().expect("a path of ASCII");
    let serve = ["serve", "--model", model, "--listen", "127.0.0.1:0"];
    let secret = "{\"id\":\"a\",\"sha256\":\"not-a-digest\",\"modles\":[\"m\"]}";
    let ended = appliance_with(&[("APPLIANCE_KEYS", secret)], serve);
    assert_eq!(ended.code, Some(64), "{ended:?}");
    assert!(
        ended.stderr.contains("line 1") && ended.stderr.contains("\"models\""),
        "{ended:?}"
    );
    assert!(!ended.stderr.contains("not-a-digest"), "{ended:?}");
    let (_, line) = new_key("shown", &[]);
    let shown = appliance_with(&[("APPLIANCE_KEYS", &line)], ["serve", "--print-config"]);
    assert!(shown.stdout.contains("keys = \"***\""), "{shown:?}");
}

#[test]
fn what_looks_private_is_masked_or_refused_if_asked() {
    let text = "a@mail.example.com AKIAIOSFODNN7EXAMPLE";
    let ids: Vec<u64> = text.bytes().map(u64::from).collect();
    let start = |filter: &str| Server::start(&Model::chain(), &["--request-filter", filter]);
    let echoed = |server: &Server, prompt: Value| {
        let body = completion(server, prompt, json!({"max_tokens": 0, "echo": true}));
        server.post(COMPLETIONS, &body)
    };
    let masking = start("mask");
    for prompt in [json!(text), json!(ids)] {
        let answer = echoed(&masking, prompt).json();
        assert_eq!(
            answer["choices"][0]["text"], "[email] [aws-key]",
            "{answer}"
        );
    }
    let untouched = echoed(&masking, json!([97, 255, 98])).json();
    assert_eq!(untouched["usage"]["prompt_tokens"], 3, "{untouched}");
    let refusing = start("refuse");
    for prompt in [json!(text), json!(ids)] {
        let response = echoed(&refusing, prompt);
        refused(
            &response,
            400,
            "invalid_request_error",
            "content_filter".into(),
            false,
        );
        assert!(
            response.text().contains("an e-mail address"),
            "{}",
            response.text()
        );
    }
    let chat = json!({"messages": [{"role": "user", "content": "+49 30 1234567"}]});
    assert_eq!(refusing.post("/v1/chat/completions", &chat).status(), 400);
    assert_eq!(
        echoed(&refusing, json!("nothing of that kind")).status(),
        200
    );
}
