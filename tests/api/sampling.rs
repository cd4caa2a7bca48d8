//! How tokens are drawn: everything a caller may set has the effect it names.

use std::collections::HashSet;

use appliance_tests::Stream;
use serde_json::{Value, json};

use crate::{COMPLETIONS, both, chain, completion, good, merged, random, whole};

/// The only text of a completion by random weights.
fn drawn(more: Value) -> String {
    let server = random();
    let body = completion(
        server,
        "once upon",
        json!({"max_tokens": 24, "ignore_eos": true}),
    );
    whole(server, COMPLETIONS, &merged(body, more))
        .text()
        .to_owned()
}

#[test]
fn a_seed_is_reproducible_whatever_else_runs() {
    let server = random();
    let asked = json!({"temperature": 1.0, "seed": 7});
    let alone = drawn(asked.clone());
    let others: Vec<Stream> = (0..9)
        .map(|length| {
            let more = json!({"max_tokens": 1500, "temperature": 1.0, "stream": true,
                              "ignore_eos": true});
            let prompt = "x".repeat(1 + 37 * length);
            good(server.stream(COMPLETIONS, &completion(server, prompt, more)))
        })
        .collect();
    for _ in 0..4 {
        assert_eq!(drawn(asked.clone()), alone);
    }
    drop(others);
    assert_ne!(drawn(json!({"temperature": 1.0, "seed": 8})), alone);
}

#[test]
fn greedy_is_the_same_whatever_else_runs() {
    let server = random();
    let alone = drawn(json!({}));
    let others: Vec<Stream> = (0..9)
        .map(|length| {
            let more = json!({"max_tokens": 1500, "stream": true, "ignore_eos": true});
            let prompt = "y".repeat(1 + 41 * length);
            good(server.stream(COMPLETIONS, &completion(server, prompt, more)))
        })
        .collect();
    for _ in 0..4 {
        assert_eq!(drawn(json!({})), alone);
    }
    drop(others);
}

#[test]
fn without_a_seed_two_draws_differ() {
    let warm = json!({"temperature": 1.5});
    assert_ne!(drawn(warm.clone()), drawn(warm));
}

#[test]
fn choices_of_a_seed_differ_and_come_again() {
    let server = random();
    let more =
        json!({"n": 5, "max_tokens": 20, "temperature": 1.2, "seed": 11, "ignore_eos": true});
    let body = completion(server, "once", more);
    let answer = both(server, COMPLETIONS, &body);
    let texts: HashSet<&str> = answer.choices.iter().map(|choice| &*choice.text).collect();
    assert_eq!(texts.len(), 5, "{answer:?}");
}

#[test]
fn narrow_draws_are_greedy() {
    let greedy = drawn(json!({}));
    for narrow in [
        json!({"temperature": 1.0, "top_k": 1}),
        json!({"temperature": 1.0, "top_p": 1e-9}),
        json!({"temperature": 1.0, "min_p": 1.0}),
        json!({"temperature": 1e-6}),
    ] {
        assert_eq!(drawn(narrow.clone()), greedy, "{narrow}");
    }
}

#[test]
fn a_bias_makes_or_forbids_a_token() {
    let server = chain();
    let made = json!({"max_tokens": 4, "logit_bias": {"113": 100}});
    assert_eq!(
        both(server, COMPLETIONS, &completion(server, "a", made)).text(),
        "qqqq"
    );
    // Without `c`, the lowest id of all the equals.
    let without = json!({"max_tokens": 2, "logit_bias": {"99": -100}, "return_token_ids": true});
    let answer = both(server, COMPLETIONS, &completion(server, "a", without));
    assert_eq!(answer.only().token_ids, [98, 0]);
}

#[test]
fn penalties_keep_tokens_from_coming_again() {
    let server = chain();
    // The digits come round; with a logit of 12, a penalty of 2 a time is too small to matter at
    // first, and frequency adds up.
    let plain = completion(server, "9", json!({"max_tokens": 30}));
    assert_eq!(
        whole(server, COMPLETIONS, &plain).text(),
        "012345678901234567890123456789"
    );
    let more = json!({"frequency_penalty": 2.0, "max_tokens": 120});
    let answer = whole(server, COMPLETIONS, &completion(server, "9", more));
    assert_ne!(
        &answer.text()[60..100],
        "0123456789012345678901234567890123456789"
    );
    // A logit of 12 divided by 1000 is the best still, but only just; presence then takes it below.
    let more = json!({"repetition_penalty": 1000.0, "presence_penalty": 1.0, "max_tokens": 11});
    let answer = whole(server, COMPLETIONS, &completion(server, "9", more));
    assert!(answer.text().starts_with("012345678"), "{answer:?}");
    assert!(!answer.text().ends_with("90"), "{answer:?}");
}

#[test]
fn only_allowed_tokens_come() {
    let server = random();
    let more = json!({"allowed_token_ids": [65, 66, 67], "temperature": 1.0, "max_tokens": 30});
    let answer = whole(server, COMPLETIONS, &completion(server, "once", more));
    assert_eq!(answer.text().len(), 30);
    assert!(
        answer.text().chars().all(|c| "ABC".contains(c)),
        "{answer:?}"
    );
}

#[test]
fn temperature_makes_the_unlikely_likely() {
    // At temperature 0.5 the chain's next token is certain; at 2 it is one in two.
    let server = chain();
    let cold = json!({"temperature": 0.3, "max_tokens": 40, "seed": 1});
    let cold = whole(server, COMPLETIONS, &completion(server, "9", cold));
    assert_eq!(cold.text(), "0123456789012345678901234567890123456789");
    let hot = json!({"temperature": 2.0, "max_tokens": 40, "seed": 1, "return_token_ids": true});
    let hot = whole(server, COMPLETIONS, &completion(server, "9", hot));
    let ids: HashSet<_> = hot.only().token_ids.iter().collect();
    assert!(ids.len() > 12, "{ids:?}");
}
