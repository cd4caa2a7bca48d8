//! The prefix cache, as a client sees it.

use appliance_tests::{Answer, Model, Server};
use serde_json::{Value, json};

use crate::{COMPLETIONS, completion, merged};

/// A prompt of some pages that nobody else sends.
fn prompt(of: &str) -> String {
    format!(
        "{of}: {}",
        "all work and no play makes jack a dull boy. ".repeat(12)
    )
}

fn ask(server: &Server, prompt: &str, more: Value) -> Answer {
    let body = completion(
        server,
        prompt,
        json!({"max_tokens": 16, "ignore_eos": true}),
    );
    Answer::whole(&server.ask(COMPLETIONS, &merged(body, more)))
}

#[test]
fn a_repeated_prompt_is_cached_and_answered_the_same() {
    let server = Server::start(&Model::random(), &[]);
    let prompt = prompt("repeated");
    let first = ask(&server, &prompt, json!({}));
    assert_eq!(first.cached_tokens(), 0);
    let length = first.count("prompt_tokens");
    for _ in 0..3 {
        let again = ask(&server, &prompt, json!({}));
        assert_eq!(again.choices, first.choices);
        assert!(again.cached_tokens() > length / 2, "{again:?}");
        assert!(
            again.cached_tokens() < length,
            "the last token is computed: {again:?}"
        );
    }
    // What goes on from a cached prefix is the same as without a cache.
    let longer = format!("{prompt}{}and so on", first.text());
    let cached = ask(&server, &longer, json!({}));
    assert!(cached.cached_tokens() > 0);
    let fresh = ask(&Server::start(&Model::random(), &[]), &longer, json!({}));
    assert_eq!(fresh.cached_tokens(), 0);
    assert_eq!(cached.choices, fresh.choices);
}

#[test]
fn a_stream_says_what_was_cached() {
    let server = Server::start(&Model::random(), &[]);
    let body = completion(&server, prompt("streamed"), json!({"max_tokens": 2}));
    let first = Answer::streamed(&crate::chunks(&server, COMPLETIONS, &body));
    assert_eq!(first.cached_tokens(), 0);
    let second = Answer::streamed(&crate::chunks(&server, COMPLETIONS, &body));
    assert!(second.cached_tokens() > 0);
}

#[test]
fn a_salt_keeps_caches_apart() {
    let server = Server::start(&Model::random(), &[]);
    let prompt = prompt("salted");
    ask(&server, &prompt, json!({}));
    assert!(ask(&server, &prompt, json!({})).cached_tokens() > 0);
    let salted = json!({"cache_salt": "pepper"});
    assert_eq!(ask(&server, &prompt, salted.clone()).cached_tokens(), 0);
    assert!(ask(&server, &prompt, salted).cached_tokens() > 0);
    assert_eq!(
        ask(&server, &prompt, json!({"cache_salt": "thyme"})).cached_tokens(),
        0
    );
}

#[test]
fn a_small_cache_preempts_and_loses_nothing() {
    let model = Model::random();
    // Room for about two of the eight at their full length.
    let small = Server::start(&model, &["--kv-tokens", "1024", "--max-context", "512"]);
    let large = Server::start(&model, &[]);
    let bodies: Vec<Value> = (0..8)
        .map(|n| {
            let more = json!({"max_tokens": 300, "ignore_eos": true, "return_token_ids": true});
            completion(&small, format!("{n} {}", "ab ".repeat(40)), more)
        })
        .collect();
    let of = |server: &Server| -> Vec<Answer> {
        let streams: Vec<_> = bodies
            .iter()
            .map(|body| merged(body.clone(), json!({"stream": true})))
            .map(|body| crate::good(server.stream(COMPLETIONS, &body)))
            .collect();
        streams
            .into_iter()
            .map(|stream| Answer::streamed(&stream.chunks()))
            .collect()
    };
    let squeezed = of(&small);
    assert_eq!(squeezed, of(&large));
    assert!(small.metrics().value("vllm:num_preemptions_total") > 0.0);
}
