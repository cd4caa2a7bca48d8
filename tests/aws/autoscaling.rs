//! The fake Auto Scaling holds an instance as the real one does.

use std::time::Duration;

use appliance_tests::aws::{Account, Action, GROUP, Hook, INSTANCE, Key, Manner, Transition};
use appliance_tests::{Request, Response, eventually};

use crate::exchange;

/// A request of the SDK's kind, signed with `key` at the account's time. The signature is none: the
/// fake looks at who and when.
fn signed(account: &Account, key: &Key, form: &str) -> Request {
    let time = account
        .keys
        .clock
        .now()
        .strftime("%Y%m%dT%H%M%SZ")
        .to_string();
    let credential = format!("{}/20261124/us-west-2/autoscaling/aws4_request", key.id);
    let mut request = Request::new("POST", "/")
        .header("content-type", "application/x-www-form-urlencoded")
        .header(
            "authorization",
            &format!("AWS4-HMAC-SHA256 Credential={credential}"),
        )
        .header("x-amz-date", &time);
    if let Some(token) = &key.token {
        request = request.header("x-amz-security-token", token);
    }
    request.body(format!("{form}&Version=2011-01-01"))
}

fn ask(account: &Account, form: &str) -> Response {
    let key = account.keys.issue();
    exchange(&account.autoscaling.url(), &signed(account, &key, form))
}

fn complete(account: &Account, hook: &str, result: &str) -> Response {
    ask(
        account,
        &format!(
            "Action=CompleteLifecycleAction&LifecycleHookName={hook}&AutoScalingGroupName={GROUP}\
             &LifecycleActionResult={result}&InstanceId={INSTANCE}"
        ),
    )
}

fn heartbeat(account: &Account, hook: &str) -> Response {
    ask(
        account,
        &format!(
            "Action=RecordLifecycleActionHeartbeat&LifecycleHookName={hook}\
             &AutoScalingGroupName={GROUP}&InstanceId={INSTANCE}"
        ),
    )
}

#[track_caller]
fn refused(response: &Response, status: u16, code: &str) {
    let text = response.text();
    assert_eq!(response.status(), status, "{text}");
    assert!(text.contains(&format!("<Code>{code}</Code>")), "{text}");
}

#[test]
fn a_hook_holds_an_instance_until_it_is_completed() {
    let account = Account::open();
    account.autoscaling.hook("launch", Transition::Launching);
    account.autoscaling.hook("end", Transition::Terminating);
    refused(
        &complete(&account, "launch", "CONTINUE"),
        400,
        "ValidationError",
    );
    account.autoscaling.launch();
    assert_eq!(account.autoscaling.state(), "Pending:Wait");
    refused(
        &complete(&account, "other", "CONTINUE"),
        400,
        "ValidationError",
    );
    refused(
        &complete(&account, "launch", "PERHAPS"),
        400,
        "ValidationError",
    );
    assert_eq!(heartbeat(&account, "launch").status(), 200);
    assert_eq!(complete(&account, "launch", "CONTINUE").status(), 200);
    assert_eq!(account.autoscaling.state(), "InService");
    refused(
        &complete(&account, "launch", "CONTINUE"),
        400,
        "ValidationError",
    );
    account.autoscaling.terminate();
    assert_eq!(account.autoscaling.state(), "Terminating:Wait");
    assert_eq!(complete(&account, "end", "CONTINUE").status(), 200);
    assert_eq!(account.autoscaling.state(), "Terminated");
    let completed = |hook: &str| Action::Completed(hook.into(), "CONTINUE".into());
    let actions = [
        completed("launch"),
        Action::Heartbeat("launch".into()),
        completed("end"),
    ];
    assert_eq!(account.autoscaling.heartbeats(), 1);
    for action in actions {
        assert!(
            account.autoscaling.actions().contains(&action),
            "{action:?}"
        );
    }
}

#[test]
fn all_hooks_must_let_go_and_one_can_abandon() {
    let account = Account::open();
    account.autoscaling.hook("one", Transition::Launching);
    account.autoscaling.hook("other", Transition::Launching);
    account.autoscaling.launch();
    complete(&account, "one", "CONTINUE");
    assert_eq!(account.autoscaling.state(), "Pending:Wait");
    complete(&account, "other", "ABANDON");
    assert_eq!(account.autoscaling.state(), "Terminated");
}

#[test]
fn a_hook_without_heartbeats_does_what_it_does_by_default() {
    let account = Account::open();
    account.autoscaling.add_hook(Hook {
        name: "launch".into(),
        transition: Transition::Launching,
        timeout: Duration::from_millis(50),
        default: "ABANDON",
    });
    account.autoscaling.launch();
    eventually("it expires", || account.autoscaling.state() == "Terminated");
    assert_eq!(
        account.autoscaling.actions(),
        [Action::Expired("launch".into())]
    );
}

#[test]
fn a_warm_pool_is_left_past_the_hook_again() {
    let account = Account::open();
    account.autoscaling.hook("launch", Transition::Launching);
    account.autoscaling.launch_warm("Warmed:Running");
    assert_eq!(account.autoscaling.state(), "Warmed:Pending:Wait");
    complete(&account, "launch", "CONTINUE");
    assert_eq!(account.autoscaling.state(), "Warmed:Running");
    account.autoscaling.wake();
    assert_eq!(account.autoscaling.state(), "Pending:Wait");
}

#[test]
fn an_instance_says_that_it_is_unhealthy() {
    let account = Account::open();
    account.autoscaling.launch();
    let form = |id: &str, health: &str| {
        format!("Action=SetInstanceHealth&InstanceId={id}&HealthStatus={health}")
    };
    refused(
        &ask(&account, &form("i-other", "Unhealthy")),
        400,
        "ValidationError",
    );
    refused(
        &ask(&account, &form(INSTANCE, "Unwell")),
        400,
        "ValidationError",
    );
    assert_eq!(ask(&account, &form(INSTANCE, "Unhealthy")).status(), 200);
    assert_eq!(account.autoscaling.health(), "Unhealthy");
    let described = ask(&account, "Action=DescribeAutoScalingInstances").text();
    assert!(
        described.contains("<HealthStatus>UNHEALTHY<"),
        "{described}"
    );
}

#[test]
fn hooks_are_described() {
    let account = Account::open();
    account.autoscaling.hook("launch", Transition::Launching);
    let form = format!("Action=DescribeLifecycleHooks&AutoScalingGroupName={GROUP}");
    let described = ask(&account, &form).text();
    assert!(
        described.contains("<LifecycleHookName>launch<"),
        "{described}"
    );
    assert!(
        described.contains("autoscaling:EC2_INSTANCE_LAUNCHING"),
        "{described}"
    );
}

#[test]
fn who_asks_must_be_known_now_and_allowed() {
    let account = Account::open();
    account.autoscaling.launch();
    let describe = "Action=DescribeAutoScalingInstances";
    let url = account.autoscaling.url();
    let ask = |key: &Key| exchange(&url, &signed(&account, key, describe));
    let unsigned = Request::new("POST", "/").body(describe);
    refused(
        &exchange(&url, &unsigned),
        403,
        "MissingAuthenticationToken",
    );
    let key = account.keys.issue_for(3600);
    assert_eq!(ask(&key).status(), 200);
    let stolen = Key {
        token: None,
        ..key.clone()
    };
    refused(&ask(&stolen), 403, "InvalidClientTokenId");
    account.keys.expire();
    refused(&ask(&key), 403, "ExpiredToken");
    let key = account.keys.issue();
    let late = signed(&account, &key, describe);
    account.keys.clock.ahead(3600);
    refused(&exchange(&url, &late), 403, "RequestTimeTooSkewed");
    account.keys.deny("DescribeAutoScalingInstances");
    refused(&ask(&key), 403, "AccessDenied");
    account.keys.allow("DescribeAutoScalingInstances");
    account.autoscaling.behave(Manner::Fails(400, "Throttling"));
    refused(&ask(&key), 400, "Throttling");
}
