use std::path::Path;
use std::time::Duration;

use clap::{Args as _, Command, FromArgMatches as _};

use super::*;

fn flags(args: &[&str]) -> Flags {
    let command = Flags::augment_args(Command::new("serve"));
    let args = std::iter::once("serve").chain(args.iter().copied());
    Flags::from_arg_matches(&command.try_get_matches_from(args).unwrap()).unwrap()
}

fn environment(variables: &[(&str, &str)]) -> Layer {
    Layer::environment(|name| {
        let (_, text) = variables.iter().find(|(other, _)| *other == name)?;
        Some((*text).to_owned())
    })
}

fn file(text: &str) -> Layer {
    Layer::file(Path::new("a.toml"), text).unwrap()
}

/// Flags have no layer of their own here: the environment stands for whatever is first.
fn error(layer: Layer) -> String {
    Resolved::parse(&Raw::new(&[&layer]))
        .unwrap_err()
        .to_string()
}

#[test]
fn the_first_source_that_has_a_setting_wins() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("a.toml");
    std::fs::write(&config, "grace = \"3s\"\nmax-queue = 3\nmodel = \"m\"").unwrap();
    let config = config.to_str().unwrap();
    let raw = flags(&["--config", config, "--grace", "1s"])
        .resolve()
        .unwrap();
    let settings = Resolved::parse(&raw).unwrap();
    assert_eq!(settings.grace, Duration::from_secs(1));
    assert_eq!(settings.max_queue, 3);
    assert_eq!(settings.max_running.get(), 64);

    let variables = environment(&[("APPLIANCE_MAX_QUEUE", "2"), ("APPLIANCE_GRACE", "")]);
    let raw = Raw::new(&[
        &variables,
        &file("max-queue = 3\ngrace = \"3s\"\nmodel = \"m\""),
    ]);
    let settings = Resolved::parse(&raw).unwrap();
    assert_eq!(settings.max_queue, 2);
    assert_eq!(settings.grace, Duration::from_secs(3), "empty is not set");
}

#[test]
fn a_switch_may_stand_alone() {
    let trusts = |args: &[&str]| {
        let raw = flags(args).resolve().unwrap();
        Resolved::parse(&raw).unwrap().trust_request_chat_template
    };
    assert!(!trusts(&["--model", "m"]));
    assert!(trusts(&["--trust-request-chat-template", "--model", "m"]));
    assert!(!trusts(&[
        "--trust-request-chat-template=false",
        "--model",
        "m"
    ]));
}

#[test]
fn variables_of_others_are_honoured_after_our_own() {
    let token = |variables: &[(&str, &str)]| {
        let all = [variables, &[("APPLIANCE_MODEL", "m")]].concat();
        let settings = Resolved::parse(&Raw::new(&[&environment(&all)])).unwrap();
        settings.hub_token.map(|token| token.reveal().to_owned())
    };
    assert_eq!(token(&[]), None);
    assert_eq!(token(&[("HF_TOKEN", "b")]).as_deref(), Some("b"));
    assert_eq!(
        token(&[("HF_TOKEN", "b"), ("APPLIANCE_HUB_TOKEN", "a")]).as_deref(),
        Some("a")
    );
}

#[test]
fn errors_say_where_and_what_is_allowed() {
    let wrong =
        |name: &str, text: &str| error(environment(&[("APPLIANCE_MODEL", "m"), (name, text)]));
    assert_eq!(
        wrong("APPLIANCE_GRACE", "2 minutes"),
        "APPLIANCE_GRACE: \"2 minutes\" is not a duration like 500ms, 120s, 5m or 1h"
    );
    assert_eq!(
        wrong("APPLIANCE_BACKEND", "gpu"),
        "APPLIANCE_BACKEND: \"gpu\" is not one of auto|neuron|cuda|cpu"
    );
    assert_eq!(
        wrong("HF_TOKEN", "two words"),
        "HF_TOKEN: \"***\" is not a text of visible ASCII letters"
    );
    assert_eq!(
        error(file("model = \"m\"\nmax-running = 0")),
        "max-running in a.toml: \"0\" is not a whole number from 1 to 4294967295"
    );
    assert_eq!(
        error(Layer::default()),
        "model is not set: use --model, APPLIANCE_MODEL, or model in the configuration file"
    );
}

#[test]
fn what_is_no_setting_is_named_with_the_nearest() {
    let unknown = Layer::file(Path::new("a.toml"), "max-que = 3").unwrap_err();
    let expected = "a.toml: there is no setting \"max-que\"; did you mean \"max-queue\"?";
    assert_eq!(unknown.to_string(), expected);
    let table = Layer::file(Path::new("a.toml"), "[listen]\nport = 1").unwrap_err();
    assert!(
        table.to_string().contains("listen is not a text, a number"),
        "{table}"
    );

    let names = [
        "APPLIANCE_PORT",
        "APPLIANCE_MAX_QUEUES",
        "APPLIANCE_CONFIG",
        "HOME",
    ];
    let unknown = Layer::unknown(names.iter().map(ToString::to_string));
    let names: Vec<&str> = unknown.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["APPLIANCE_PORT", "APPLIANCE_MAX_QUEUES"]);
    assert_eq!(unknown[1].1, "APPLIANCE_MAX_QUEUE");
}

#[test]
fn shown_settings_are_a_file_without_secrets() {
    let variables = environment(&[("HF_TOKEN", "hf_secret"), ("APPLIANCE_GRACE", "9s")]);
    let shown = Raw::new(&[&variables, &file("max-queue = 3")]).to_string();
    assert!(!shown.contains("hf_secret"), "{shown}");
    let line = |name: &str| {
        let line = shown.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        line("hub-token"),
        "hub-token = \"***\" # environment HF_TOKEN"
    );
    assert_eq!(
        line("grace"),
        "grace = \"9s\" # environment APPLIANCE_GRACE"
    );
    assert_eq!(line("max-queue "), "max-queue = \"3\" # file a.toml");
    assert_eq!(line("listen"), "listen = \"127.0.0.1:8000\" # default");
    assert_eq!(line("model"), "model = \"\" # default, but it must be set");
    assert_eq!(shown.lines().count(), SETTINGS.len());
    file(&shown);
}

#[test]
fn every_setting_has_one_name_and_help() {
    let help = Flags::augment_args(Command::new("serve"))
        .render_long_help()
        .to_string();
    for setting in SETTINGS {
        assert!(
            help.contains(&format!("--{}", setting.name)),
            "{}",
            setting.name
        );
        assert!(setting.help.trim().ends_with('.'), "{}", setting.name);
        let other = SETTINGS.iter().filter(|other| other.name == setting.name);
        assert_eq!(other.count(), 1, "{}", setting.name);
    }
}

fn parameters(named: &[(&str, &str)]) -> Result<Layer, ConfigError> {
    let named = named
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Layer::parameters("/appliance/test", &named.collect())
}

#[test]
fn parameters_are_settings_by_name_unless_it_is_too_late_for_them() {
    let layer = parameters(&[("max-queue", " 7\n"), ("model", "m")]).unwrap();
    let raw = Raw::new(&[&environment(&[("APPLIANCE_MODEL", "n")]), &layer]);
    let settings = Resolved::parse(&raw).unwrap();
    assert_eq!(settings.max_queue, 7);
    assert_eq!(
        settings.source().unwrap().to_string(),
        "n",
        "variables are stronger"
    );
    assert!(
        raw.to_string()
            .contains("# parameter /appliance/test/max-queue"),
        "{raw}"
    );
    let bad = parameters(&[("grace", "soon"), ("model", "m")]).unwrap();
    assert_eq!(
        error(bad),
        "/appliance/test/grace: \"soon\" is not a duration like 500ms, 120s, 5m or 1h"
    );
    let early = parameters(&[("listen", "0.0.0.0:80")])
        .unwrap_err()
        .to_string();
    assert!(
        early.starts_with("/appliance/test/listen: listen is read as the server starts"),
        "{early}"
    );
    let unknown = parameters(&[("modle", "m")]).unwrap_err().to_string();
    assert_eq!(
        unknown,
        "/appliance/test: there is no setting \"modle\"; did you mean \"model\"?"
    );
}

#[test]
fn user_data_is_settings_unless_it_is_for_cloud_init() {
    let layer = Layer::user_data("# ours\nmodel = \"m\"\nssm-prefix = \"/appliance/a\"").unwrap();
    let settings = Resolved::parse(&Raw::new(&[&layer])).unwrap();
    assert_eq!(settings.ssm_prefix.unwrap().as_str(), "/appliance/a");
    for theirs in [
        "#!/bin/sh\n",
        "#cloud-config\na: b",
        "Content-Type: multipart/mixed",
        "",
    ] {
        let layer = Layer::user_data(theirs).unwrap();
        assert_eq!(layer.value("model"), None, "{theirs}");
    }
    let wrong = Layer::user_data("modle = 1").unwrap_err().to_string();
    assert!(
        wrong.starts_with("the user data: there is no setting"),
        "{wrong}"
    );
}

#[test]
fn paths_of_parameters_are_held_to_their_rules() {
    for good in ["/appliance/default", "/a", "/a.b/c-d_e"] {
        assert!(ParameterPath::parse(good).is_some(), "{good}");
    }
    for bad in ["", "/", "a/b", "/a/", "//a", "/a b", &"/a".repeat(14)] {
        assert!(ParameterPath::parse(bad).is_none(), "{bad}");
    }
}

#[test]
fn changes_are_told_by_what_they_ask_for() {
    let raw = |text: &str| Raw::new(&[&file(text)]);
    let (one, other) = (
        raw("model = \"a\"\ngrace = \"1s\""),
        raw("model = \"b\"\ngrace = \"2s\""),
    );
    assert_eq!(one.changes(&other, Scope::Model), ["model"]);
    assert_eq!(one.changes(&other, Scope::Live), ["grace"]);
    assert!(one.changes(&one, Scope::Model).is_empty());
}

#[test]
fn keys_of_clients_may_stand_in_a_parameter_each() {
    use crate::access::keys::{Key, Keys};

    let [a, b, c] = ["a", "b", "c"].map(|id| Key::new(id, id).to_string());
    let named = [
        ("keys/a", a.as_str()),
        ("keys/b", &b),
        ("keys", &c),
        ("model", "m"),
    ];
    let raw = Raw::new(&[&parameters(&named).unwrap()]);
    let settings = Resolved::parse(&raw).unwrap();
    let keys = Keys::parse(settings.keys.as_ref().unwrap().reveal()).unwrap();
    let ids: Vec<&str> = keys.iter().map(|key| key.id.as_str()).collect();
    assert_eq!(ids, ["c", "a", "b"]);
    assert!(raw.to_string().contains("keys = \"***\""), "{raw}");
    let named = [("keys/a", "{\"id\":\"a\"}"), ("model", "m")];
    let told = error(parameters(&named).unwrap());
    assert!(
        told.contains("keys: line 1") && told.contains("sha256"),
        "{told}"
    );
}
