//! Models that are streamed from S3: the same answers as from a directory, whatever goes wrong on the
//! way; and what cannot be proven or is not what was stored does not serve.

use std::ffi::OsString;
use std::path::PathBuf;

use appliance_tests::aws::{Fault, Keys, Moto, REGION, S3};
use appliance_tests::server::{appliance_with, scratch_directory};
use appliance_tests::{Model, Server};
use serde_json::{Value, json};

/// A store that holds `model` under `bucket/m`, with its manifest.
fn stored(model: &Model) -> S3 {
    let s3 = S3::start();
    let pulled = run(
        &s3,
        &[
            "pull",
            &model.path.to_string_lossy(),
            "--to",
            "s3://bucket/m",
        ],
    );
    assert_eq!(pulled, Ok("s3://bucket/m\n".to_owned()));
    s3
}

/// Runs the binary in the store's account: what it printed, or why it failed.
fn run(s3: &S3, args: &[&str]) -> Result<String, String> {
    let environment = s3.environment();
    let variables: Vec<_> = environment
        .iter()
        .map(|(name, value)| (*name, value.to_str().expect("UTF-8")))
        .collect();
    let ended = appliance_with(&variables, args);
    match ended.code {
        Some(0) => Ok(ended.stdout),
        _ => Err(ended.stderr),
    }
}

/// The model of the store.
fn streamed() -> Model {
    Model {
        path: PathBuf::from("s3://bucket/m"),
    }
}

fn environment(s3: &S3) -> Vec<(&'static str, OsString)> {
    s3.environment().into()
}

/// Why the model of the store does not serve.
fn refused(s3: &S3) -> String {
    run(
        s3,
        &[
            "serve",
            "--model",
            "s3://bucket/m",
            "--listen",
            "127.0.0.1:0",
        ],
    )
    .expect_err("it does not serve")
}

fn answer(server: &Server) -> Value {
    let body = json!({
        "model": server.model, "prompt": "abc", "max_tokens": 16, "temperature": 0, "logprobs": 2,
    });
    server.ask("/v1/completions", &body)["choices"].take()
}

#[test]
fn a_model_of_s3_answers_as_that_of_a_directory() {
    let model = Model::random();
    let here = answer(&Server::start(&model, &[]));
    let s3 = stored(&model);
    assert!(
        s3.keys()
            .contains(&"bucket/m/appliance-manifest.json".to_owned())
    );
    let server = Server::start_with(&environment(&s3), &streamed(), &[]);
    assert_eq!(server.model, "m");
    assert_eq!(answer(&server), here);
    let read = server.metrics().value("appliance_load_bytes_total");
    assert!(read > 0.0, "{read}");
}

#[test]
fn breaks_and_busy_answers_only_take_time() {
    let model = Model::random();
    let s3 = stored(&model);
    let here = answer(&Server::start(&model, &[]));
    let weights = "m/model.safetensors";
    s3.fail(weights, 2, Fault::SlowDown);
    s3.fail(weights, 1, Fault::Internal);
    s3.fail(weights, 2, Fault::Reset(100_000));
    s3.fail(weights, 1, Fault::Reset(0));
    s3.fail(weights, 1, Fault::WrongByte);
    let server = Server::start_with(&environment(&s3), &streamed(), &[]);
    assert_eq!(answer(&server), here);
    // What had come before a break was not asked for again.
    let asked = s3.asked();
    let resumed = asked
        .iter()
        .any(|line| line.contains("model.safetensors bytes=100000-"));
    assert!(resumed, "{asked:?}");
}

#[test]
fn what_is_not_what_was_stored_does_not_serve() {
    let model = Model::random();
    let s3 = stored(&model);
    let weights = "m/model.safetensors";
    let whole = s3
        .object(&format!("bucket/{weights}"))
        .expect("it was stored");
    let mut damaged = whole.to_vec();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    s3.put(&format!("bucket/{weights}"), damaged);
    let why = refused(&s3);
    assert!(
        why.contains("model.safetensors is damaged: the SHA-256"),
        "{why}"
    );
    // Of another length, it is refused before anything is read.
    s3.put(&format!("bucket/{weights}"), whole[..last].to_vec());
    let why = refused(&s3);
    assert!(
        why.contains(&format!("should have {} bytes and has {last}", last + 1)),
        "{why}"
    );
    s3.put(&format!("bucket/{weights}"), whole.to_vec());
    s3.fail(weights, 1, Fault::Reset(1000));
    s3.fail(weights, 1, Fault::Replaced);
    let why = refused(&s3);
    assert!(why.contains("was replaced while it was read"), "{why}");
    s3.fail(weights, 1, Fault::Denied);
    let why = refused(&s3);
    assert!(
        why.contains("s3:GetObject") && why.contains("allow it in the policy"),
        "{why}"
    );
    let why = run(&s3, &["serve", "--model", "s3://bucket/other"]).expect_err("there is none");
    assert!(why.contains("there is no s3://bucket/other"), "{why}");
}

#[test]
fn without_a_manifest_it_serves_and_says_what_is_not_proven() {
    let model = Model::chain();
    let s3 = S3::start();
    s3.put_files("bucket/m", &model.path);
    let server = Server::start_with(&environment(&s3), &streamed(), &[]);
    answer(&server);
    assert!(
        server.log().contains("there is no appliance-manifest.json"),
        "{}",
        server.log()
    );
}

#[test]
fn a_store_that_heeds_no_ranges_is_refused() {
    let model = Model::chain();
    let s3 = S3::start();
    s3.put_files("bucket/m", &model.path);
    s3.fail("m/model.safetensors", 1, Fault::Whole);
    let why = refused(&s3);
    assert!(
        why.contains("asked for bytes 0-7/") && why.contains("answers with all bytes"),
        "{why}"
    );
}

#[test]
fn a_cache_serves_the_next_start_and_is_verified() {
    let model = Model::random();
    let s3 = stored(&model);
    let here = answer(&Server::start(&model, &[]));
    let cache = scratch_directory("weights-cache");
    let flags = ["--weights-cache", cache.to_str().expect("UTF-8")];
    let gets = || {
        let asked = s3.asked();
        asked
            .iter()
            .filter(|line| line.starts_with("GET bucket/m/model.safetensors"))
            .count()
    };
    let start = || answer(&Server::start_with(&environment(&s3), &streamed(), &flags));
    assert_eq!(start(), here);
    let first = gets();
    assert!(first > 0);
    assert_eq!(start(), here);
    assert_eq!(
        gets(),
        first,
        "the second start reads nothing of the weights"
    );
    for block in std::fs::read_dir(&cache).expect("the cache") {
        std::fs::write(block.expect("a block").path(), [7; 1000]).expect("a block can be torn");
    }
    assert_eq!(start(), here);
    assert!(gets() > first, "torn blocks are fetched again");
}

#[test]
fn a_model_of_s3_is_pulled_into_a_directory() {
    let model = Model::random();
    let s3 = stored(&model);
    let to = scratch_directory("pulled").join("m");
    let pulled = run(
        &s3,
        &["pull", "s3://bucket/m", "--to", &to.to_string_lossy()],
    );
    assert!(pulled.is_ok(), "{pulled:?}");
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let (there, here) = (
            std::fs::read(model.path.join(name)),
            std::fs::read(to.join(name)),
        );
        assert!(there.expect("a file") == here.expect("a file"), "{name}");
    }
    let why = run(&s3, &["pull", "s3://bucket/m"]).expect_err("it needs a place");
    assert!(why.contains("--to"), "{why}");
}

#[test]
fn a_large_model_goes_into_a_bucket_in_parts_and_is_streamed_out_of_it() {
    let keys = Keys::default();
    let (Some(moto), Some(model)) = (Moto::start(&keys), Model::smollm2()) else {
        return;
    };
    moto.bucket("models");
    let environment: Vec<(&str, OsString)> = vec![
        ("AWS_ENDPOINT_URL_S3", moto.url().into()),
        ("AWS_REGION", REGION.into()),
        ("AWS_ACCESS_KEY_ID", "TEST".into()),
        ("AWS_SECRET_ACCESS_KEY", "TEST".into()),
    ];
    let variables: Vec<_> = environment
        .iter()
        .map(|(name, value)| (*name, value.to_str().expect("UTF-8")))
        .collect();
    let path = model.path.to_string_lossy();
    moto.fail_next(1, 503, "SlowDown");
    let ended = appliance_with(&variables, ["pull", &path, "--to", "s3://models/smollm2"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let asked = moto.asked();
    let parts = asked
        .iter()
        .filter(|line| *line == "PUT /models/smollm2/model.safetensors");
    assert!(
        parts.count() > 10,
        "269 MB go in parts of 16 MiB: {asked:?}"
    );
    let here = answer(&Server::start(&model, &[]));
    let streamed = Model {
        path: PathBuf::from("s3://models/smollm2"),
    };
    let server = Server::start_with(&environment, &streamed, &[]);
    assert_eq!(answer(&server), here);
}
