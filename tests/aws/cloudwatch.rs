//! What CloudWatch is told, and what becomes of it when CloudWatch does not listen.

use std::ffi::OsString;

use appliance_tests::aws::{Account, Datum, GROUP, INSTANCE, Manner, Moto};
use appliance_tests::{Model, PATIENCE, Server, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

/// Tokens of every answer.
const TOKENS: u32 = 10;

/// An account whose instance is in its group.
fn account() -> Account {
    let account = Account::open();
    account.autoscaling.launch();
    account
}

/// A server in the account that tells CloudWatch how it does every so often.
fn server(account: &Account, interval: &str) -> Server {
    server_with(&account.environment(), interval, &[])
}

fn server_with(environment: &[(&'static str, OsString)], interval: &str, more: &[&str]) -> Server {
    let flags = [&["--cloudwatch-interval", interval], more].concat();
    Server::start_with(environment, &Model::chain(), &flags)
}

/// Has the server answer so many requests.
fn answer(server: &Server, count: u32) {
    for _ in 0..count {
        let body = json!({
            "model": server.model,
            "prompt": "abcd",
            "max_tokens": TOKENS,
            "ignore_eos": true,
            "temperature": 0,
        });
        server.ask("/v1/completions", &body);
    }
}

fn sum(data: &[Datum]) -> f64 {
    data.iter().map(Datum::sum).sum()
}

/// Waits until CloudWatch knows of all tokens of so many answers.
fn told(account: &Account, answers: u32) {
    let all = f64::from(answers * TOKENS);
    eventually("all tokens are told", || {
        sum(&account.cloudwatch.data("TokensOut")) == all
    });
}

/// How often a line of the log says this.
fn lines(server: &Server, what: &str) -> usize {
    server
        .log()
        .lines()
        .filter(|line| line.contains(what))
        .count()
}

#[test]
fn what_is_told_is_what_was_served() {
    let account = account();
    let server = server_with(
        &account.environment(),
        "200ms",
        &["--price-per-hour", "0.76"],
    );
    answer(&server, 5);
    told(&account, 5);
    let cloudwatch = &account.cloudwatch;
    assert_eq!(sum(&cloudwatch.data("TokensIn")), 20.0);
    let samples = |name| {
        cloudwatch
            .data(name)
            .iter()
            .map(Datum::samples)
            .sum::<f64>()
    };
    assert_eq!(samples("TimeToFirstToken"), 5.0);
    assert_eq!(samples("InterTokenLatency"), f64::from(5 * (TOKENS - 1)));
    let of_device = |datum: &Datum| datum.dimension("Kind") == Some("device");
    assert!(cloudwatch.data("Errors").iter().any(of_device));
    for name in [
        "QueueSeconds",
        "Running",
        "Waiting",
        "KvUsage",
        "CacheHitRate",
        "PaddingWaste",
    ] {
        assert!(!cloudwatch.data(name).is_empty(), "{name}");
    }
    let for_a_dollar = cloudwatch.data("TokensPerDollar");
    assert!(for_a_dollar.iter().any(|datum| datum.sum() > 0.0));
    assert_eq!(cloudwatch.refused(), []);
}

#[test]
fn metrics_are_of_the_group_and_never_of_an_instance() {
    let account = account();
    let server = server(&account, "200ms");
    answer(&server, 1);
    told(&account, 1);
    let calls = account.cloudwatch.calls();
    for datum in calls.iter().flat_map(|call| &call.data) {
        assert_eq!(datum.namespace, "Appliance");
        assert_eq!(
            datum.dimension("AutoScalingGroupName"),
            Some(GROUP),
            "{datum:?}"
        );
        assert_eq!(datum.dimension("InstanceId"), None, "{datum:?}");
    }
    let utilization = account.cloudwatch.data("SlotUtilization");
    let (of_group, of_model): (Vec<_>, Vec<_>) = utilization
        .iter()
        .partition(|datum| datum.dimensions.len() == 1);
    assert_eq!(of_group.len(), of_model.len());
    for datum in &utilization {
        assert_eq!((datum.resolution, &*datum.unit), (1, "Percent"));
    }
    assert_eq!(of_model[0].dimension("Model"), Some("chain"));
    assert_eq!(of_model[0].dimension("InstanceType"), Some("inf2.xlarge"));
    let packed = calls.iter().filter(|call| call.sent < call.unpacked);
    assert_eq!(packed.count(), calls.len(), "every call is packed");
}

#[test]
fn an_instance_is_told_apart_when_that_is_wanted() {
    let account = account();
    let environment = account.environment();
    let server = server_with(&environment, "200ms", &["--cloudwatch-instance"]);
    answer(&server, 1);
    told(&account, 1);
    let running = account.cloudwatch.data("Running");
    assert_eq!(running[0].dimension("InstanceId"), Some(INSTANCE));
}

#[test]
fn nothing_is_told_where_that_is_not_wanted() {
    let account = account();
    let environment = account.environment();
    let server = server_with(&environment, "100ms", &["--cloudwatch=false"]);
    answer(&server, 1);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.exit_code_within(PATIENCE), 0);
    assert_eq!(account.cloudwatch.asked(), 0);
}

#[test]
fn the_last_report_comes_on_the_way_down() {
    let account = account();
    let server = server(&account, "1h");
    answer(&server, 3);
    assert_eq!(account.cloudwatch.asked(), 0);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.exit_code_within(PATIENCE), 0);
    assert_eq!(
        sum(&account.cloudwatch.data("TokensOut")),
        f64::from(3 * TOKENS)
    );
}

#[test]
fn a_cloudwatch_that_hangs_does_not_keep_the_server_from_ending() {
    let account = account();
    let server = server(&account, "1h");
    account.cloudwatch.behave(Manner::Hangs);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.exit_code_within(PATIENCE), 0);
    assert_eq!(account.cloudwatch.calls().len(), 0);
}

/// Whatever keeps CloudWatch from listening: the server serves, says so once, and tells it all with its
/// own times once it listens again.
fn away(manner: Manner) {
    let account = account();
    let server = server(&account, "200ms");
    account.cloudwatch.behave(manner);
    eventually("that it is away is told", || {
        lines(&server, "CloudWatch does not take") == 1
    });
    answer(&server, 2);
    account.cloudwatch.behave(Manner::Works);
    told(&account, 2);
    eventually("that it is back is told", || {
        lines(&server, "takes metrics again") == 1
    });
    assert_eq!(lines(&server, "CloudWatch does not take"), 1);
    let waiting = account.cloudwatch.data("Waiting");
    let mut times: Vec<_> = waiting.iter().map(|datum| datum.time).collect();
    assert!(times.is_sorted(), "{times:?}");
    times.dedup();
    assert_eq!(times.len(), waiting.len(), "each report has its own time");
    assert_eq!(
        server.metrics().value("appliance_cloudwatch_dropped_total"),
        0.0
    );
}

#[test]
fn nothing_is_lost_while_connections_are_refused() {
    away(Manner::Refuses);
}

#[test]
fn nothing_is_lost_while_calls_are_throttled() {
    away(Manner::Fails(400, "Throttling"));
}

#[test]
fn nothing_is_lost_while_calls_fail() {
    away(Manner::Fails(500, "InternalServiceError"));
}

#[test]
fn nothing_is_lost_while_calls_are_not_answered() {
    away(Manner::Hangs);
}

#[test]
fn a_missing_permission_is_told_once_and_noticed_when_it_comes() {
    let account = account();
    account.keys.deny("PutMetricData");
    let server = server(&account, "100ms");
    answer(&server, 1);
    eventually("it was tried often", || account.cloudwatch.asked() > 5);
    assert_eq!(lines(&server, "may not cloudwatch:PutMetricData"), 1);
    account.keys.allow("PutMetricData");
    told(&account, 1);
    eventually("that it may is told", || {
        lines(&server, "takes metrics again") == 1
    });
}

#[test]
fn credentials_that_expire_are_fetched_anew() {
    let account = account();
    account.imds.role(Some(14));
    let server = server(&account, "200ms");
    let read = "meta-data/iam/security-credentials/appliance-role";
    eventually("they were fetched anew", || account.imds.reads(read) >= 3);
    answer(&server, 1);
    told(&account, 1);
    assert_eq!(account.cloudwatch.refused(), []);
}

#[test]
fn a_clock_that_is_an_hour_off_is_no_reason_not_to_tell() {
    for ahead in [3600, -3600] {
        let account = account();
        account.keys.clock.ahead(ahead);
        let server = server(&account, "200ms");
        answer(&server, 1);
        told(&account, 1);
    }
}

#[test]
fn data_of_a_clock_that_is_hours_ahead_are_dropped_and_the_log_says_why() {
    let account = account();
    account.keys.clock.ahead(-3 * 3600);
    let server = server(&account, "200ms");
    eventually("the log says why", || {
        lines(&server, "is this machine's clock right?") == 1
    });
    eventually("they are counted", || {
        server.metrics().value("appliance_cloudwatch_dropped_total") > 0.0
    });
    answer(&server, 1);
    assert_eq!(account.cloudwatch.calls().len(), 0);
}

#[test]
fn moto_reads_back_what_was_told() {
    let account = account();
    let Some(moto) = Moto::start(&account.keys) else {
        return;
    };
    let server = server(&account, "200ms");
    answer(&server, 4);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.exit_code_within(PATIENCE), 0, "{}", server.log());
    for call in account.cloudwatch.calls() {
        let form = form(&call.data);
        let form: Vec<_> = form
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        moto.query("monitoring", &form);
    }
    let (from, to) = (account.keys.clock.after(-600), account.keys.clock.after(60));
    let statistics = |name: &str, statistic: &str| -> f64 {
        let fields = [
            ("Action", "GetMetricStatistics"),
            ("Version", "2010-08-01"),
            ("Namespace", "Appliance"),
            ("MetricName", name),
            ("Dimensions.member.1.Name", "AutoScalingGroupName"),
            ("Dimensions.member.1.Value", GROUP),
            ("Dimensions.member.2.Name", "InstanceType"),
            ("Dimensions.member.2.Value", "inf2.xlarge"),
            ("Dimensions.member.3.Name", "Model"),
            ("Dimensions.member.3.Value", "chain"),
            ("StartTime", &from),
            ("EndTime", &to),
            ("Period", "3600"),
            ("Statistics.member.1", statistic),
        ];
        let answer = moto.query("monitoring", &fields);
        let tag = format!("<{statistic}>");
        let values = answer.split(&tag).skip(1);
        let values = values.map(|rest| rest.split('<').next().unwrap_or_default().parse::<f64>());
        values.map(|value| value.expect("a number")).sum()
    };
    assert_eq!(statistics("TokensOut", "Sum"), f64::from(4 * TOKENS));
    assert_eq!(statistics("TimeToFirstToken", "SampleCount"), 4.0);
    assert!(statistics("TimeToFirstToken", "Maximum") < PATIENCE.as_secs_f64());
}

/// The data as a form, which is the one protocol of CloudWatch that moto speaks; the SDK speaks
/// another.
fn form(data: &[Datum]) -> Vec<(String, String)> {
    let mut form: Vec<(String, String)> = vec![
        ("Action".into(), "PutMetricData".into()),
        ("Version".into(), "2010-08-01".into()),
        ("Namespace".into(), "Appliance".into()),
    ];
    for (number, datum) in (1..).zip(data) {
        let mut put = |name: &str, value: String| {
            form.push((format!("MetricData.member.{number}.{name}"), value));
        };
        put("MetricName", datum.name.clone());
        put("Unit", datum.unit.clone());
        #[expect(clippy::cast_possible_truncation, reason = "a time of today")]
        let time = jiff::Timestamp::from_millisecond((datum.time * 1000.0) as i64);
        put("Timestamp", time.expect("a time").to_string());
        for (number, (name, value)) in (1..).zip(&datum.dimensions) {
            put(&format!("Dimensions.member.{number}.Name"), name.clone());
            put(&format!("Dimensions.member.{number}.Value"), value.clone());
        }
        for (number, (value, count)) in (1..).zip(&datum.values) {
            put(&format!("Values.member.{number}"), value.to_string());
            put(&format!("Counts.member.{number}"), count.to_string());
        }
    }
    form
}
