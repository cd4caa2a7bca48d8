//! Bundles in a bucket: prepared into it, fetched from it by whoever serves, and prepared on boot where
//! that is wanted.

use std::ffi::OsString;
use std::path::PathBuf;

use appliance_tests::aws::S3;
use appliance_tests::server::{appliance_with, scratch_directory};
use appliance_tests::{Fake, Model, Server};
use serde_json::json;

const STORE: &str = "s3://bucket/compiled";

/// What is prepared: few and small modules.
const FORM: [&str; 20] = [
    "--target",
    "trn2",
    "--tp",
    "1",
    "--max-context",
    "256",
    "--max-running",
    "4",
    "--page-tokens",
    "16",
    "--kv-pages",
    "257",
    "--context-pages",
    "16",
    "--decode-rows",
    "4",
    "--prefill-tokens",
    "64",
    "--candidates",
    "8",
];

/// The variables of a host that has nothing yet: of the device, the bucket and an empty home.
fn host(fake: &Fake, s3: &S3, name: &str) -> Vec<(&'static str, OsString)> {
    let mut environment = fake.environment();
    environment.extend(s3.environment());
    environment.push(("XDG_CACHE_HOME", scratch_directory(name).into()));
    environment
}

fn answer(server: &Server) -> serde_json::Value {
    let body = json!({"model": server.model, "prompt": "abc", "max_tokens": 4, "temperature": 0});
    server.ask("/v1/completions", &body)["choices"].take()
}

#[test]
fn a_bundle_is_prepared_into_a_bucket_and_served_from_it() {
    let Some(fake) = Fake::found() else {
        return;
    };
    let (model, s3) = (Model::random(), S3::start());
    let environment = host(&fake, &s3, "objects-prepare");
    let variables: Vec<_> = environment
        .iter()
        .map(|(name, value)| (*name, value.to_str().expect("UTF-8")))
        .collect();
    let (path, compiler) = (
        model.path.to_string_lossy(),
        fake.compiler().to_string_lossy(),
    );
    let mut args = vec!["prepare", "--backend", "neuron", "--model", &path];
    args.extend(["--compiler", &compiler, "--artifacts", STORE]);
    args.extend(FORM);
    let ended = appliance_with(&variables, args);
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert!(
        ended.stdout.contains("--artifacts s3://bucket/compiled"),
        "{}",
        ended.stdout
    );
    let mut puts = s3
        .asked()
        .into_iter()
        .filter(|line| line.starts_with("PUT"));
    let last = puts.next_back().expect("a bundle was stored");
    assert!(last.ends_with("/manifest.json"), "{last} marks it as whole");

    // Another host, with the weights in the bucket too.
    s3.put_files("bucket/m", &model.path);
    let streamed = Model {
        path: PathBuf::from("s3://bucket/m"),
    };
    let flags = ["--backend", "neuron", "--artifacts", STORE];
    let environment = host(&fake, &s3, "objects-serve");
    let server = Server::start_with(&environment, &streamed, &flags);
    answer(&server);
    let gets = |s3: &S3| {
        let asked = s3.asked();
        asked
            .iter()
            .filter(|line| line.starts_with("GET") && line.contains(".neff"))
            .count()
    };
    let first = gets(&s3);
    assert!(first > 0);
    drop(server);
    // The same host again has its copies; a bundle that is damaged in the bucket is not taken.
    drop(Server::start_with(&environment, &streamed, &flags));
    assert_eq!(gets(&s3), first);
    let neff = s3.keys().into_iter().find(|key| key.ends_with(".neff"));
    s3.put(&neff.expect("a NEFF"), "damaged");
    let environment = host(&fake, &s3, "objects-damaged");
    let why = refused(&environment, &[]);
    assert!(why.contains("is damaged: its SHA-256 is"), "{why}");
}

#[test]
fn what_is_not_prepared_is_refused_with_the_command_or_prepared_on_boot() {
    let Some(fake) = Fake::found() else {
        return;
    };
    let s3 = S3::start();
    s3.put_files("bucket/m", &Model::random().path);
    let environment = host(&fake, &s3, "objects-absent");
    let why = refused(&environment, &[]);
    assert!(
        why.contains("s3://bucket/compiled holds no bundle"),
        "{why}"
    );
    assert!(
        why.contains("to make one: appliance prepare --backend neuron --model s3://bucket/m"),
        "{why}"
    );
    assert!(why.contains("--artifacts s3://bucket/compiled"), "{why}");
    // There is no compiler on PATH: that is said, and which command failed.
    let why = refused(&environment, &["--prepare-on-boot"]);
    assert!(
        why.contains("prepare-on-boot: appliance prepare --backend neuron"),
        "{why}"
    );
    let bin = scratch_directory("objects-bin");
    let compiler = bin.join("neuronx-cc");
    std::os::unix::fs::symlink(fake.compiler(), &compiler).expect("a link");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut environment = environment;
    environment.push(("PATH", format!("{}:{path}", bin.display()).into()));
    let streamed = Model {
        path: PathBuf::from("s3://bucket/m"),
    };
    let mut flags = vec!["--prepare-on-boot"];
    flags.extend(SERVE);
    let server = Server::start_with(&environment, &streamed, &flags);
    answer(&server);
    assert!(
        s3.keys().iter().any(|key| key.ends_with("/manifest.json")),
        "{:?}",
        s3.keys()
    );
}

const SERVE: [&str; 8] = [
    "--backend",
    "neuron",
    "--artifacts",
    STORE,
    "--max-context",
    "256",
    "--max-running",
    "4",
];

/// Why the model of the bucket does not serve.
fn refused(environment: &[(&'static str, OsString)], flags: &[&str]) -> String {
    let variables: Vec<_> = environment
        .iter()
        .map(|(name, value)| (*name, value.to_str().expect("UTF-8")))
        .collect();
    let mut args = vec![
        "serve",
        "--model",
        "s3://bucket/m",
        "--listen",
        "127.0.0.1:0",
    ];
    args.extend(SERVE);
    args.extend(flags);
    let ended = appliance_with(&variables, args);
    assert_ne!(ended.code, Some(0), "{}", ended.stderr);
    ended.stderr
}
