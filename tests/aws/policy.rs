//! The policy that we ship for the role of an instance: all that the server asks for, and nothing that
//! it could do without. moto holds the server to it for parameters and S3, and checks signatures; our
//! own fakes for the rest. Actions are held, resources and conditions are not: nothing here evaluates
//! them as IAM does.

use std::collections::BTreeSet;

use appliance_tests::aws::{Account, Keys, Moto, Transition};
use appliance_tests::server::appliance_with;
use appliance_tests::{Model, PATIENCE, Server, eventually, within};
use serde_json::{Value, json};

const SHIPPED: &str = include_str!("../../ami/deploy/policy.json");

/// Where the settings of these tests are.
const PREFIX: &str = "/appliance/test";

fn shipped() -> Value {
    serde_json::from_str(SHIPPED).expect("a policy is JSON")
}

fn statements(policy: &Value) -> &[Value] {
    policy["Statement"].as_array().expect("statements")
}

/// The actions that a policy allows.
fn actions(policy: &Value) -> BTreeSet<String> {
    let actions = statements(policy).iter().flat_map(|statement| {
        let one = statement["Action"].as_str().into_iter();
        let many = statement["Action"].as_array().into_iter().flatten();
        one.chain(many.filter_map(Value::as_str))
    });
    actions.map(str::to_owned).collect()
}

/// The policy as moto reads it, which knows no resources and no conditions; `without` one statement.
fn for_moto(without: Option<&str>) -> Value {
    let all = shipped();
    let kept = statements(&all)
        .iter()
        .filter(|statement| statement["Sid"].as_str() != without);
    let kept = kept.map(|statement| {
        let (sid, action) = (&statement["Sid"], &statement["Action"]);
        json!({"Sid": sid, "Effect": "Allow", "Action": action, "Resource": "*"})
    });
    json!({"Version": "2012-10-17", "Statement": kept.collect::<Vec<_>>()})
}

/// An account whose instance may do what the policy says, without one of its statements, with a model
/// in S3 and settings that name it; and the moto that it leads to.
fn account(without: Option<&str>) -> Option<(Account, Moto)> {
    let keys = Keys::default();
    let moto = Moto::start(&keys)?;
    moto.bucket("models");
    let environment = Account::open()
        .with_key()
        .with_rest(moto.url())
        .environment();
    let variables: Vec<_> = environment
        .iter()
        .map(|(name, value)| (*name, value.to_str().expect("UTF-8")))
        .collect();
    let path = Model::chain().path;
    let pulled = appliance_with(
        &variables,
        ["pull", &path.to_string_lossy(), "--to", "s3://models/chain"],
    );
    assert_eq!(pulled.code, Some(0), "{}", pulled.stderr);
    moto.put_parameter(&format!("{PREFIX}/model"), "s3://models/chain");
    moto.put_secret(
        &format!("{PREFIX}/admin-key"),
        "a-key-that-nobody-guesses-so-soon",
    );
    let policy = for_moto(without);
    let key = moto.user("instance", &policy);
    moto.enforce();
    let account = Account::open().with_key_of(key).with_rest(moto.url());
    account.keys.allow_only(actions(&policy));
    account.imds.tag("appliance:ssm-prefix", PREFIX);
    account.autoscaling.hook("launching", Transition::Launching);
    account
        .autoscaling
        .hook("terminating", Transition::Terminating);
    account.autoscaling.launch();
    Some((account, moto))
}

fn start(account: &Account) -> Server {
    Server::instance(&account.environment(), &["--cloudwatch-interval", "200ms"])
}

#[test]
fn an_instance_needs_no_more_than_the_policy() {
    let Some((account, moto)) = account(None) else {
        return;
    };
    let server = start(&account);
    eventually("it serves", || server.serves().is_some());
    assert_eq!(server.serves().as_deref(), Some("chain"));
    eventually("CloudWatch is told", || {
        !account.cloudwatch.calls().is_empty()
    });
    eventually("the status is written", || moto.count("PutParameter") > 1);
    let state = |state| account.autoscaling.state() == state;
    eventually("the launch is completed", || state("InService"));
    account.autoscaling.terminate();
    assert_eq!(server.exit_code_within(PATIENCE), 0, "{}", server.log());
    assert!(state("Terminated"), "{}", server.log());
    let log = server.log();
    for told in ["may not", "AccessDenied", "denied"] {
        assert!(!log.contains(told), "{log}");
    }
    let allowed = actions(&shipped());
    for asked in account.autoscaling.asked() {
        assert!(allowed.contains(&format!("autoscaling:{asked}")), "{asked}");
    }
}

/// Without a statement of the policy, the log says which action is missing.
fn missing(sid: &str, told: &[&str]) {
    let Some((account, _moto)) = account(Some(sid)) else {
        return;
    };
    let server = start(&account);
    within(PATIENCE, "the log says what is missing", || {
        let log = server.log();
        told.iter().all(|told| log.contains(told))
    });
}

#[test]
fn settings_that_may_not_be_read_are_told() {
    missing("ReadSettings", &["may not ssm:GetParametersByPath"]);
}

#[test]
fn a_status_that_may_not_be_written_is_told() {
    missing("WriteStatus", &["may not ssm:PutParameter"]);
}

#[test]
fn a_bucket_that_may_not_be_listed_is_told() {
    missing("ListModels", &["s3:ListBucket"]);
}

#[test]
fn objects_that_may_not_be_read_are_told() {
    missing("ReadModels", &["s3:GetObject"]);
}

#[test]
fn metrics_that_may_not_be_told_are_told() {
    missing("TellCloudWatch", &["may not cloudwatch:PutMetricData"]);
}

#[test]
fn a_hook_that_may_not_be_completed_is_told() {
    missing(
        "FollowLifecycle",
        &["may not autoscaling:CompleteLifecycleAction"],
    );
}

#[test]
fn hooks_that_may_not_be_found_are_told() {
    missing(
        "FindLifecycleHooks",
        &["may not autoscaling:DescribeLifecycleHooks"],
    );
}

#[test]
fn each_statement_allows_little() {
    let policy = shipped();
    for statement in statements(&policy) {
        let sid = statement["Sid"].as_str().expect("each has a name");
        assert_eq!(statement["Effect"], "Allow", "{sid}");
        let everything = statement["Resource"] == "*";
        let describes = sid == "FindLifecycleHooks";
        assert!(
            !everything || describes || statement["Condition"].is_object(),
            "{sid} is for everything and bound by nothing"
        );
    }
    for action in actions(&policy) {
        assert!(!action.contains('*'), "{action}");
    }
    let told = &statements(&policy)[5];
    assert_eq!(
        told["Condition"]["StringEquals"]["cloudwatch:namespace"],
        "Appliance"
    );
}

#[test]
fn who_signs_with_another_secret_is_not_let_in() {
    let Some((account, _moto)) = account(None) else {
        return;
    };
    let mut environment = account.environment();
    environment.push(("AWS_SECRET_ACCESS_KEY", "another".into()));
    let server = Server::instance(&environment, &[]);
    eventually("the log says why", || {
        server.log().contains("InvalidSignatureException")
    });
}
