//! The command line: help, settings, exit codes.

use std::fs;

use appliance_tests::server::{appliance_with, scratch_file};
use appliance_tests::{Model, appliance};

/// Exit code of a bad configuration (`EX_USAGE` of sysexits.h).
const USAGE: Option<i32> = Some(64);

#[test]
fn every_verb_explains_itself_with_an_example() {
    for verb in [
        &["--help"][..],
        &["serve", "--help"],
        &["import", "--help"],
        &["pull", "--help"],
        &["prepare", "--help"],
        &["graph", "--help"],
        &["doctor", "--help"],
    ] {
        let help = appliance(verb);
        assert_eq!(help.code, Some(0), "{verb:?}: {}", help.stderr);
        assert!(help.stdout.contains("Example"), "{verb:?}: {}", help.stdout);
        assert!(help.stderr.is_empty());
    }
    let version = appliance(["--version"]);
    assert_eq!(version.code, Some(0));
    assert_eq!(
        version.stdout.trim(),
        format!("appliance {}", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn a_bad_command_line_ends_with_64_and_says_what_is_wrong() {
    for (args, told) in [
        (&["serve"][..], "model"),
        (&["serve", "--nonsense"], "--nonsense"),
        (&["no-such-verb"], "no-such-verb"),
        (
            &["serve", "--model", "x", "--max-queue", "many"],
            "--max-queue",
        ),
        (
            &["serve", "--model", "x", "--max-running", "0"],
            "--max-running",
        ),
        (
            &["serve", "--model", "x", "--listen", "nowhere"],
            "--listen",
        ),
        (&["serve", "--model", "x", "--grace", "soon"], "--grace"),
        (
            &["serve", "--model", "x", "--backend", "abacus"],
            "--backend",
        ),
        (
            &[
                "serve",
                "--model",
                "x",
                "--backend",
                "cpu",
                "--dtype",
                "fp8",
            ],
            "fp8",
        ),
        (
            &["serve", "--model", "x", "--config", "no/such/file"],
            "no/such/file",
        ),
        (&["import"], "import"),
    ] {
        let ended = appliance(args);
        assert_eq!(
            ended.code, USAGE,
            "{args:?}: {}{}",
            ended.stdout, ended.stderr
        );
        assert!(ended.stderr.contains(told), "{args:?}: {}", ended.stderr);
        assert!(
            !ended.stderr.contains("panicked"),
            "{args:?}: {}",
            ended.stderr
        );
    }
}

#[test]
fn settings_say_where_they_come_from() {
    let file = scratch_file(
        "settings.toml",
        "max-queue = 7\ngrace = \"5s\"\nstep-tokens = 99\n",
    );
    let file = file.to_str().unwrap();
    let ended = appliance_with(
        &[
            ("APPLIANCE_GRACE", "6s"),
            ("APPLIANCE_STEP_TOKENS", "98"),
            ("APPLIANCE_MODEL", "m"),
        ],
        [
            "serve",
            "--print-config",
            "--config",
            file,
            "--step-tokens",
            "97",
        ],
    );
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let line = |name: &str| {
        let start = format!("{name} = ");
        let line = ended.stdout.lines().find(|line| line.starts_with(&start));
        line.unwrap_or_else(|| panic!("no {name} in {}", ended.stdout))
            .to_owned()
    };
    for (name, value, origin) in [
        ("step-tokens", "97", "flag"),
        ("grace", "6s", "APPLIANCE_GRACE"),
        ("max-queue", "7", "settings.toml"),
        ("max-running", "64", "default"),
    ] {
        let line = line(name);
        assert!(line.contains(value) && line.contains(origin), "{line}");
    }
    // What is printed is a configuration file.
    let printed = scratch_file("printed.toml", &ended.stdout);
    let again = appliance([
        "serve",
        "--print-config",
        "--config",
        printed.to_str().unwrap(),
    ]);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(
        again.stdout.contains("step-tokens = \"97\""),
        "{}",
        again.stdout
    );
}

#[test]
fn a_secret_is_not_printed() {
    let variables = [
        ("APPLIANCE_HUB_TOKEN", "hf_verysecret"),
        ("APPLIANCE_MODEL", "m"),
    ];
    let ended = appliance_with(&variables, ["serve", "--print-config"]);
    assert_eq!(ended.code, Some(0));
    assert!(!format!("{}{}", ended.stdout, ended.stderr).contains("verysecret"));
}

#[test]
fn a_key_that_is_no_setting_is_refused_with_the_nearest() {
    let file = scratch_file("typo.toml", "max-qeue = 7\n");
    let ended = appliance(["serve", "--model", "m", "--config", file.to_str().unwrap()]);
    assert_eq!(ended.code, USAGE, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("max-qeue") && ended.stderr.contains("max-queue"),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_port_that_is_taken_is_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let model = Model::chain();
    let model = model.path.to_str().unwrap();
    let ended = appliance(["serve", "--model", model, "--listen", &address]);
    assert!(ended.code.is_some_and(|code| code != 0), "{ended:?}");
    assert!(ended.stderr.contains(&address), "{}", ended.stderr);
}

#[test]
fn importing_what_is_no_gguf_is_told() {
    let file = scratch_file("no.gguf", "GGUX and then nothing");
    let into = file.with_file_name("imported");
    fs::remove_dir_all(&into).ok();
    let ended = appliance(["import", file.to_str().unwrap(), into.to_str().unwrap()]);
    assert!(ended.code.is_some_and(|code| code != 0), "{ended:?}");
    assert!(ended.stderr.contains("no.gguf"), "{}", ended.stderr);
    assert!(!into.join("config.json").exists());
}
