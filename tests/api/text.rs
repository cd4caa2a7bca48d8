//! Text as it streams: whole characters, and nothing of a stop string.

use serde_json::{Value, json};

use crate::{ALPHABET, CHAT, COMPLETIONS, both, chain, chat, chunks, completion, random, whole};

/// The pieces of text of a completion's stream.
fn pieces(body: &Value) -> Vec<String> {
    let text = |chunk: &Value| Some(chunk["choices"][0]["text"].as_str()?.to_owned());
    chunks(chain(), COMPLETIONS, body)
        .iter()
        .filter_map(text)
        .collect()
}

#[test]
fn a_character_of_many_tokens_comes_whole() {
    let body = completion(chain(), ".", json!({"max_tokens": 20}));
    let whole: Vec<_> = pieces(&body)
        .into_iter()
        .filter(|piece| !piece.is_empty())
        .collect();
    assert_eq!(whole, ["😀", "é", "你", ".", "😀", "é", "你", "."]);
}

#[test]
fn a_character_that_is_cut_off_is_replaced() {
    // Three of the four bytes of a smiley.
    let body = completion(chain(), ".", json!({"max_tokens": 3}));
    let answer = both(chain(), COMPLETIONS, &body);
    assert!(!answer.text().is_empty());
    assert!(answer.text().chars().all(|c| c == '\u{fffd}'), "{answer:?}");
}

#[test]
fn bytes_that_are_no_text_are_replaced() {
    let answer = both(
        chain(),
        COMPLETIONS,
        &completion(chain(), "~", json!({"max_tokens": 6})),
    );
    assert_eq!(answer.text().replace('\u{fffd}', ""), "~~");
    assert!(answer.text().starts_with('\u{fffd}'));
}

/// Random weights write random bytes: every way in which UTF-8 can be broken.
#[test]
fn any_bytes_stream_as_they_come_whole() {
    let server = random();
    for seed in 0..12 {
        let more = json!({
            "max_tokens": 120, "temperature": 1.5, "seed": seed, "return_token_ids": true,
            "ignore_eos": true,
        });
        let body = completion(server, format!("seed {seed}"), more);
        let answer = both(server, COMPLETIONS, &body);
        let ids = &answer.only().token_ids;
        assert_eq!(ids.len(), 120);
        let bytes: Vec<u8> = ids.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
        assert_eq!(answer.text(), String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn special_tokens_have_text_only_if_asked_for() {
    let server = chain();
    let more = json!({"ignore_eos": true, "max_tokens": 29, "skip_special_tokens": false});
    let answer = both(server, CHAT, &chat(server, "hi", more));
    assert_eq!(answer.text(), format!("{ALPHABET}<|im_end|>01"));
}

#[test]
fn a_stop_string_of_many_tokens_never_leaks() {
    let server = chain();
    for stop in [
        json!("hij"),
        json!(["zz", "hij"]),
        json!(["hij", "ijk", "hijk", "9"]),
    ] {
        let body = completion(server, "a", json!({"max_tokens": 50, "stop": stop}));
        let answer = both(server, COMPLETIONS, &body);
        assert_eq!(answer.text(), "bcdefg");
        assert_eq!(answer.only().finish, "stop");
        assert_eq!(answer.only().stop_reason, "hij");
        assert_eq!(answer.count("completion_tokens"), 9);
        assert_eq!(pieces(&body).concat(), "bcdefg");
    }
}

#[test]
fn a_stop_string_is_kept_if_asked_for() {
    let more = json!({"max_tokens": 50, "stop": "hij", "include_stop_str_in_output": true});
    let answer = both(chain(), COMPLETIONS, &completion(chain(), "a", more));
    assert_eq!(answer.text(), "bcdefghij");
}

#[test]
fn the_beginning_of_a_stop_string_is_only_held_back() {
    let body = completion(
        chain(),
        "a",
        json!({"max_tokens": 10, "stop": ["hix", "klm"]}),
    );
    let answer = both(chain(), COMPLETIONS, &body);
    assert_eq!(
        answer.text(),
        "bcdefghijk",
        "what was held back comes with the end"
    );
    assert_eq!(answer.only().finish, "length");
    let body = completion(chain(), "a", json!({"max_tokens": 12, "stop": "hix"}));
    let pieces = pieces(&body);
    assert_eq!(pieces.concat(), "bcdefghijklm");
    assert!(pieces.iter().any(|piece| piece == "hij"), "{pieces:?}");
}

#[test]
fn a_stop_string_may_end_within_a_character_of_many_tokens() {
    let body = completion(chain(), ".", json!({"max_tokens": 40, "stop": "é你"}));
    assert_eq!(both(chain(), COMPLETIONS, &body).text(), "😀");
}

#[test]
fn a_stop_string_in_the_prompt_does_not_count() {
    let body = completion(
        chain(),
        "hij",
        json!({"max_tokens": 3, "stop": "hij", "echo": true}),
    );
    assert_eq!(whole(chain(), COMPLETIONS, &body).text(), "hijklm");
}

#[test]
fn one_choice_that_stops_leaves_the_others() {
    let server = random();
    let more = json!({"n": 4, "max_tokens": 40, "temperature": 1.0, "seed": 3, "stop": ["e", "a"],
                      "ignore_eos": true});
    let answer = both(server, COMPLETIONS, &completion(server, "once", more));
    for choice in &answer.choices {
        assert!(!choice.text.contains(['e', 'a']), "{choice:?}");
        assert_eq!(
            choice.finish == "length",
            choice.stop_reason.is_null(),
            "{choice:?}"
        );
    }
}
