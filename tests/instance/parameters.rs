//! What the parameter store says, and what the instance does when it says nothing.

use std::ffi::OsString;
use std::path::Path;

use appliance_tests::aws::{Account, INSTANCE, Manner, Moto};
use appliance_tests::server::{appliance_with, scratch_directory};
use appliance_tests::{Model, PATIENCE, Server, eventually};
use nix::sys::signal::Signal::{SIGHUP, SIGKILL, SIGTERM};
use serde_json::{Value, json};

use crate::{ADMIN, COMPLETIONS, completion, name, other, status};

/// An account whose parameter store is moto's.
pub(crate) struct Cloud {
    account: Account,
    pub(crate) moto: Moto,
    state: String,
}

pub(crate) const PATH: &str = "/appliance/test";

impl Cloud {
    /// Elsewhere than under `make test` perhaps `None`, and a word about it.
    pub(crate) fn open(name: &str) -> Option<Self> {
        let account = Account::open();
        let moto = Moto::start(&account.keys)?;
        let account = account.with_rest(moto.url());
        account.imds.tag("appliance:ssm-prefix", PATH);
        let state = scratch_directory(name);
        let cloud = Self {
            account,
            moto,
            state: state.to_str().expect("a path of letters").to_owned(),
        };
        cloud.moto.put_secret(&format!("{PATH}/admin-key"), ADMIN);
        Some(cloud)
    }

    pub(crate) fn set(&self, key: &str, value: &str) {
        self.moto.put_parameter(&format!("{PATH}/{key}"), value);
    }

    pub(crate) fn model(&self, model: &Model) {
        self.set("model", text(&model.path));
    }

    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        self.account.environment()
    }

    /// A server of this instance.
    pub(crate) fn server(&self, flags: &[&str]) -> Server {
        let mut all = vec!["--ssm-interval", "200ms", "--state-dir", &self.state];
        all.extend(flags);
        Server::instance(&self.environment(), &all)
    }

    /// What the instance says of itself.
    fn told(&self) -> Option<Value> {
        let parameter = self
            .moto
            .read_parameter(&format!("{PATH}/status/{INSTANCE}"));
        parameter.map(|text| serde_json::from_str(&text).expect("JSON"))
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of letters")
}

fn await_model(server: &Server, model: &Model) {
    let name = name(model);
    eventually("the model serves", || {
        server.serves().as_deref() == Some(&name)
    });
}

#[test]
fn an_instance_serves_what_its_parameters_name_and_follows_them() {
    let Some(cloud) = Cloud::open("follows") else {
        return;
    };
    let (one, two) = (other("parameter-1"), other("parameter-2"));
    cloud.model(&one);
    // More than one page of them.
    let more = [
        "max-queue",
        "max-queue-tokens",
        "step-tokens",
        "kv-tokens",
        "max-context",
        "max-running",
    ];
    for key in more {
        cloud.set(key, "500");
    }
    for (key, value) in [
        ("step-time", "400ms"),
        ("grace", "9s"),
        ("request-timeout", "5m"),
        ("shed-status", "429"),
    ] {
        cloud.set(key, value);
    }
    let mut server = cloud.server(&[]);
    server.await_ready();
    assert_eq!(server.model, name(&one));
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["max_model_len"], 500, "{models}");
    eventually("its status is written", || {
        cloud
            .told()
            .is_some_and(|told| told["state"] == "ready" && told["model"] == text(&one.path))
    });

    cloud.model(&two);
    await_model(&server, &two);
    eventually("its status says so", || {
        cloud
            .told()
            .is_some_and(|told| told["model"] == text(&two.path) && told["kept"].is_null())
    });
    assert_eq!(status(&server), cloud.told().expect("a status"));

    // The path moves to what nobody can serve, and the instance serves on.
    cloud.set("model", "/no/such/model");
    eventually("why it is not changed is written", || {
        let kept = |told: Value| {
            told["kept"]
                .as_str()
                .is_some_and(|why| why.contains("/no/such/model"))
        };
        cloud.told().is_some_and(kept)
    });
    server.ask(COMPLETIONS, &completion("a", 3));
}

#[test]
fn a_bad_parameter_is_refused_with_all_others_and_told() {
    let Some(cloud) = Cloud::open("refused") else {
        return;
    };
    let (one, two) = (other("refused-1"), other("refused-2"));
    cloud.model(&one);
    let mut server = cloud.server(&[]);
    server.await_ready();
    cloud.set("grace", "a while");
    cloud.model(&two);
    let path = format!("{PATH}/grace");
    eventually("it is told", || {
        let refused = status(&server)["refused"].as_str().map(str::to_owned);
        refused.is_some_and(|why| why.contains(&path) && why.contains("a while"))
    });
    eventually("it is counted", || {
        server.metrics().value("appliance_config_rejected_total") >= 1.0
    });
    assert_eq!(server.serves(), Some(name(&one)));
    let times = server.log().matches("stay in force").count();
    eventually("the store is read a few more times", || {
        cloud.moto.count("GetParametersByPath") > 20
    });
    assert!(
        times <= 2 && server.log().matches("stay in force").count() <= 2,
        "told once"
    );
    cloud.set("grace", "3s");
    await_model(&server, &two);
    assert!(status(&server)["refused"].is_null());

    for (key, value) in [("listen", "0.0.0.0:80"), ("modle", "x")] {
        cloud.set(key, value);
        eventually("it is refused", || status(&server)["refused"].is_string());
        cloud.moto.delete_parameter(&format!("{PATH}/{key}"));
        eventually("it is gone", || status(&server)["refused"].is_null());
    }
    let log = server.log();
    assert!(log.contains("listen is read as the server starts"), "{log}");
    assert!(!log.contains(ADMIN), "secrets are not for logs");
}

#[test]
fn without_a_model_it_waits_for_one() {
    let Some(cloud) = Cloud::open("waits") else {
        return;
    };
    let mut server = cloud.server(&[]);
    eventually("it says what it waits for", || {
        let health = server.get("/health");
        health.status() == 503 && health.text().contains("model is not set")
    });
    assert_eq!(server.get("/live").status(), 200);
    let refused = server.post(COMPLETIONS, &completion("a", 1));
    assert_eq!(refused.status(), 503);
    assert!(refused.header("retry-after").is_some());
    cloud.set("model", "/no/such/model");
    eventually("it says what is wrong with it", || {
        let health = server.get("/health").text();
        health.contains("waiting") && health.contains("/no/such/model")
    });
    assert_eq!(server.get("/live").status(), 200);
    let one = other("waits-1");
    cloud.model(&one);
    server.await_ready();
    assert_eq!(server.model, name(&one));
    server.signal(SIGTERM);
    assert_eq!(server.exit_code_within(PATIENCE), 0);
}

#[test]
fn while_the_store_is_away_it_serves_on_and_starts_with_what_last_served() {
    let Some(cloud) = Cloud::open("away") else {
        return;
    };
    let (one, two) = (other("away-1"), other("away-2"));
    cloud.model(&one);
    let mut server = cloud.server(&[]);
    server.await_ready();
    for manner in [
        Manner::Fails(500, "InternalServerError"),
        Manner::Fails(400, "ThrottlingException"),
        Manner::Refuses,
    ] {
        let before = server.log().matches("stay in force").count();
        cloud.moto.behave(manner);
        eventually("it is noticed", || {
            server.log().matches("stay in force").count() > before
        });
        server.ask(COMPLETIONS, &completion("a", 3));
    }
    server.signal(SIGKILL);
    eventually("it has gone", || server.ended().is_some());

    let mut server = cloud.server(&[]);
    server.await_ready();
    assert_eq!(server.model, name(&one));
    assert!(
        server.log().contains("with which a model last served"),
        "{}",
        server.log()
    );
    cloud.moto.behave(Manner::Works);
    cloud.model(&two);
    server.signal(SIGHUP);
    await_model(&server, &two);
}

#[test]
fn without_a_permission_it_goes_on_unless_somebody_named_the_path() {
    let Some(cloud) = Cloud::open("denied") else {
        return;
    };
    cloud
        .moto
        .behave(Manner::Fails(400, "AccessDeniedException"));
    let one = other("denied-1");
    // Somebody has, and may keep the keys of clients there.
    let server = cloud.server(&["--model", text(&one.path)]);
    eventually("it waits", || {
        let health = server.get("/health").text();
        health.contains("may not ssm:GetParametersByPath /appliance/test")
            && health.contains("allow it in the role's policy")
    });
    cloud
        .account
        .imds
        .remove("tags/instance/appliance:ssm-prefix");
    let mut server = cloud.server(&["--model", text(&one.path)]);
    server.await_ready();
    let log = server.log();
    assert!(
        log.contains("may not ssm:GetParametersByPath /appliance/default"),
        "{log}"
    );
}

#[test]
fn user_data_may_say_where_the_parameters_are() {
    let Some(cloud) = Cloud::open("user-data") else {
        return;
    };
    let one = other("user-data-1");
    cloud
        .account
        .imds
        .user_data("ssm-prefix = \"/appliance/elsewhere\"\nmax-context = 77\nmax-queue = 5");
    cloud
        .moto
        .put_parameter("/appliance/elsewhere/model", text(&one.path));
    cloud
        .moto
        .put_parameter("/appliance/elsewhere/max-queue", "6");
    let mut server = cloud.server(&[]);
    server.await_ready();
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["max_model_len"], 77, "{models}");

    let environment = cloud.environment();
    let variables: Vec<(&str, &str)> = (environment.iter())
        .map(|(name, value)| (*name, value.to_str().expect("of letters")))
        .collect();
    let shown = appliance_with(&variables, ["serve", "--print-config", "--grace", "4s"]);
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    let line = |name: &str| {
        let line = shown.stdout.lines().find(|line| line.starts_with(name));
        line.expect("a line for each")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(
        line("max-queue "),
        "max-queue = \"6\" # parameter /appliance/elsewhere/max-queue"
    );
    assert_eq!(line("max-context"), "max-context = \"77\" # user data");
    assert_eq!(line("grace"), "grace = \"4s\" # flag");
}

#[test]
fn credentials_that_expire_are_replaced_before_anybody_notices() {
    let Some(cloud) = Cloud::open("credentials") else {
        return;
    };
    let (one, two) = (other("credentials-1"), other("credentials-2"));
    cloud.account.imds.role(Some(60));
    cloud.model(&one);
    let mut server = cloud.server(&[]);
    server.await_ready();
    let path = "iam/security-credentials/";
    let before = cloud
        .account
        .imds
        .asked()
        .iter()
        .filter(|asked| asked.contains(path))
        .count();
    assert!(before > 0, "it has its credentials from the role");
    cloud.account.keys.expire();
    cloud.model(&two);
    await_model(&server, &two);
    assert_eq!(status(&server)["refused"], json!(null));
}
