//! `/metrics`: the names that dashboards and routers know, and counts that agree with what was served.

use std::collections::BTreeSet;

use appliance_tests::{Metrics, Model, Server, eventually};
use serde_json::json;

use crate::{CHAT, COMPLETIONS, chain, chat, chunks, completion, whole};

/// Name without suffix and type, as vLLM exposes them.
const FAMILIES: &[(&str, &str)] = &[
    ("vllm:num_requests_running", "gauge"),
    ("vllm:num_requests_waiting", "gauge"),
    ("vllm:kv_cache_usage_perc", "gauge"),
    ("vllm:prefix_cache_queries", "counter"),
    ("vllm:prefix_cache_hits", "counter"),
    ("vllm:prompt_tokens", "counter"),
    ("vllm:generation_tokens", "counter"),
    ("vllm:prompt_tokens_cached", "counter"),
    ("vllm:num_preemptions", "counter"),
    ("vllm:request_success", "counter"),
    ("vllm:admission_rejections", "counter"),
    ("vllm:iteration_tokens_total", "histogram"),
    ("vllm:time_to_first_token_seconds", "histogram"),
    ("vllm:inter_token_latency_seconds", "histogram"),
    ("vllm:e2e_request_latency_seconds", "histogram"),
    ("vllm:request_queue_time_seconds", "histogram"),
    ("vllm:request_inference_time_seconds", "histogram"),
    ("vllm:request_prefill_time_seconds", "histogram"),
    ("vllm:request_decode_time_seconds", "histogram"),
    ("vllm:request_prompt_tokens", "histogram"),
    ("vllm:request_generation_tokens", "histogram"),
    ("vllm:request_params_n", "histogram"),
    ("vllm:request_params_max_tokens", "histogram"),
    ("vllm:cache_config_info", "gauge"),
];

/// The upper edges of vLLM's buckets (`vllm/v1/metrics/loggers.py`).
const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const INTER_TOKEN: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];

#[test]
fn the_names_of_vllm_are_there_from_the_start() {
    let server = Server::start(&Model::chain(), &[]);
    let response = server.get("/metrics");
    let kind = response.header("content-type").unwrap();
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let metrics = Metrics::parse(&response.text()).unwrap();
    for (name, kind) in FAMILIES {
        let exposed = match *kind {
            "counter" => format!("{name}_total"),
            "histogram" => format!("{name}_count"),
            _ => (*name).to_owned(),
        };
        assert!(metrics.all(&exposed).next().is_some(), "no {exposed}");
        let typed = metrics.kind(name).or_else(|| metrics.kind(&exposed));
        assert_eq!(typed, Some(*kind), "{name}");
    }
}

#[test]
fn histograms_have_the_edges_of_vllm() {
    let metrics = chain().metrics();
    for (name, edges) in [
        ("vllm:time_to_first_token_seconds", TTFT),
        ("vllm:inter_token_latency_seconds", INTER_TOKEN),
        ("vllm:e2e_request_latency_seconds", REQUEST),
        ("vllm:request_queue_time_seconds", REQUEST),
        ("vllm:request_prefill_time_seconds", REQUEST),
        ("vllm:request_decode_time_seconds", REQUEST),
    ] {
        let mut exposed = metrics.edges(name);
        assert_eq!(exposed.pop().as_deref(), Some("+Inf"), "{name}");
        let exposed: Vec<f64> = exposed.iter().map(|edge| edge.parse().unwrap()).collect();
        assert_eq!(exposed, edges, "{name}");
    }
}

#[test]
fn the_exposition_is_well_formed() {
    let server = chain();
    whole(server, CHAT, &chat(server, "hi", json!({})));
    let text = server.get("/metrics").text();
    assert!(text.ends_with('\n'));
    let metrics = Metrics::parse(&text).unwrap();
    let mut seen = BTreeSet::new();
    for series in metrics.series() {
        assert!(
            seen.insert((&series.name, &series.labels)),
            "twice: {series:?}"
        );
        assert!(series.value.is_finite(), "{series:?}");
        let family = ["_bucket", "_sum", "_count", "_total"]
            .iter()
            .find_map(|suffix| series.name.strip_suffix(suffix))
            .filter(|family| metrics.kind(family).is_some())
            .unwrap_or(&series.name);
        let kind = metrics
            .kind(family)
            .unwrap_or_else(|| panic!("no type: {series:?}"));
        assert!(
            text.contains(&format!("# HELP {family} ")),
            "no help: {family}"
        );
        if kind == "counter" {
            assert!(
                series.name.ends_with("_total") && series.value >= 0.0,
                "{series:?}"
            );
        }
        if series.name.starts_with("vllm:") {
            assert!(series.labels.contains_key("engine"), "{series:?}");
            let named = series.labels.get("model_name").map(String::as_str);
            assert!(
                named == Some("chain") || family == "vllm:cache_config_info",
                "{series:?}"
            );
        }
    }
    in_one_piece(&text);
    for (name, kind) in FAMILIES {
        if *kind == "histogram" {
            cumulative(&metrics, name);
        }
    }
}

/// All series of a family stand together.
fn in_one_piece(text: &str) {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names: Vec<&str> = types.filter_map(|line| line.split(' ').next()).collect();
    let distinct: BTreeSet<&&str> = names.iter().collect();
    assert_eq!(
        names.len(),
        distinct.len(),
        "a type is told twice: {names:?}"
    );
}

/// Buckets only grow, and the last is the count.
fn cumulative(metrics: &Metrics, name: &str) {
    let buckets: Vec<f64> = metrics
        .all(&format!("{name}_bucket"))
        .map(|series| series.value)
        .collect();
    assert!(buckets.is_sorted(), "{name}: {buckets:?}");
    assert_eq!(
        buckets.last(),
        Some(&metrics.value(&format!("{name}_count"))),
        "{name}"
    );
}

#[test]
fn counts_agree_with_what_was_served() {
    let server = Server::start(&Model::chain(), &[]);
    let (mut prompt, mut generated, mut cached) = (0, 0, 0);
    let mut served = |answer: appliance_tests::Answer| {
        prompt += answer.count("prompt_tokens");
        generated += answer.count("completion_tokens");
        cached += answer.cached_tokens();
    };
    for _ in 0..3 {
        served(whole(&server, CHAT, &chat(&server, "hi", json!({}))));
    }
    let long = "jack ".repeat(50);
    for _ in 0..4 {
        let body = completion(&server, long.as_str(), json!({"max_tokens": 9}));
        served(appliance_tests::Answer::streamed(&chunks(
            &server,
            COMPLETIONS,
            &body,
        )));
    }
    assert!(cached > 0);
    eventually("the counts are rendered", || {
        let metrics = server.metrics();
        metrics.labelled(
            "vllm:request_success_total",
            &[("finished_reason", "length")],
        ) == 4.0
            && metrics.labelled("vllm:request_success_total", &[("finished_reason", "stop")]) == 3.0
    });
    server.idle_within(appliance_tests::PATIENCE);
    let metrics = server.metrics();
    let check = |name: &str, expected: u64| {
        #[expect(clippy::cast_precision_loss, reason = "counts of a test are small")]
        let expected = expected as f64;
        assert_eq!(metrics.value(name), expected, "{name}");
    };
    check("vllm:prompt_tokens_total", prompt);
    check("vllm:generation_tokens_total", generated);
    check("vllm:prompt_tokens_cached_total", cached);
    check("vllm:prefix_cache_hits_total", cached);
    check("vllm:prefix_cache_queries_total", prompt);
    check("vllm:num_preemptions_total", 0);
    for per_request in [
        "vllm:time_to_first_token_seconds_count",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:request_queue_time_seconds_count",
        "vllm:request_prompt_tokens_count",
        "vllm:request_generation_tokens_count",
        "vllm:request_params_n_count",
    ] {
        check(per_request, 7);
    }
    check("vllm:request_prompt_tokens_sum", prompt);
    check("vllm:request_generation_tokens_sum", generated);
    check("vllm:inter_token_latency_seconds_count", generated - 7);
}

#[test]
fn what_runs_is_seen_and_what_is_dropped_is_counted() {
    let server = Server::start(&Model::endless(), &["--max-running", "1"]);
    let stream = server.hold();
    eventually("it runs", || {
        server.metrics().value("vllm:num_requests_running") == 1.0
    });
    assert!(server.metrics().value("vllm:kv_cache_usage_perc") > 0.0);
    drop(stream);
    server.idle_within(appliance_tests::PATIENCE);
    eventually("an abort is counted", || {
        let reason = [("finished_reason", "abort")];
        server
            .metrics()
            .labelled("vllm:request_success_total", &reason)
            == 1.0
    });
}

#[test]
fn requests_are_counted_by_status() {
    let server = Server::start(&Model::chain(), &[]);
    whole(&server, CHAT, &chat(&server, "hi", json!({})));
    assert_eq!(server.post(CHAT, &json!({})).status(), 400);
    eventually("both are counted", || {
        let metrics = server.metrics();
        let of = |status| {
            let of_chat = metrics.all("http_requests_total").filter(|series| {
                series.labels["handler"] == CHAT && series.labels["status"] == status
            });
            of_chat.map(|series| series.value).sum::<f64>()
        };
        of("2xx") == 1.0 && of("4xx") == 1.0
    });
}
