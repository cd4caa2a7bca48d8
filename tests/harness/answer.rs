//! One answer, whether it came whole or as a stream, so that the two can be compared.
//!
//! Reading a stream also holds it to what clients are strict about: the same `id`, `created` and
//! `model` in every chunk, the keys that must be there, the role first, nothing after the end of a
//! choice, `usage` where it was asked for and nowhere else.

use std::collections::BTreeMap;

use serde_json::Value;

/// What a client has in hand when an answer is over.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// By index.
    pub choices: Vec<Choice>,
    /// Token counts; `None` from a stream that was not asked for them.
    pub usage: Option<Value>,
}

/// One of an answer's choices.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Choice {
    /// What it says.
    pub text: String,
    /// Why it ended.
    pub finish: String,
    /// The stop token or string that ended it.
    pub stop_reason: Value,
    /// Its log-probabilities: one object a token for a chat, null without.
    pub logprobs: Value,
    /// Its tokens, if they were asked for.
    pub token_ids: Vec<u64>,
}

impl Answer {
    /// Reads the body of an answer that came whole.
    pub fn whole(body: &Value) -> Self {
        let chat = body["object"] == "chat.completion";
        assert!(chat || body["object"] == "text_completion", "{body}");
        assert!(body["id"].is_string() && body["created"].is_u64() && body["model"].is_string());
        let mut choices: Vec<&Value> = array(body, "choices").iter().collect();
        choices.sort_by_key(|choice| choice["index"].as_u64());
        let read = |(index, choice): (usize, &&Value)| {
            assert_eq!(choice["index"], index, "{body}");
            assert!(
                choice.get("logprobs").is_some(),
                "logprobs must be there: {body}"
            );
            let text = if chat {
                assert_eq!(choice["message"]["role"], "assistant");
                &choice["message"]["content"]
            } else {
                &choice["text"]
            };
            Choice {
                text: text.as_str().expect("text").into(),
                finish: choice["finish_reason"].as_str().expect("a reason").into(),
                stop_reason: choice["stop_reason"].clone(),
                logprobs: choice["logprobs"].clone(),
                token_ids: ids(&choice["token_ids"]),
            }
        };
        Self {
            choices: choices.iter().enumerate().map(read).collect(),
            usage: Some(body["usage"].clone()),
        }
    }

    /// Reads the chunks of a stream, in order and without `[DONE]`.
    pub fn streamed(chunks: &[Value]) -> Self {
        let mut choices: BTreeMap<u64, Streamed> = BTreeMap::new();
        let mut usage = None;
        for chunk in chunks {
            let first = &chunks[0];
            for key in ["id", "created", "model", "object"] {
                assert_eq!(chunk[key], first[key], "{key} changes: {chunk}");
            }
            assert!(
                usage.is_none(),
                "after the chunk without choices comes nothing: {chunk}"
            );
            let parts = array(chunk, "choices");
            if parts.is_empty() {
                usage = Some(chunk["usage"].clone());
            }
            for part in parts {
                let index = part["index"].as_u64().expect("an index");
                choices.entry(index).or_default().add(part);
            }
        }
        let choices = choices.into_values().map(Streamed::end).collect();
        Self { choices, usage }
    }

    /// The text of the only choice.
    pub fn text(&self) -> &str {
        &self.only().text
    }

    /// The only choice.
    pub fn only(&self) -> &Choice {
        let [choice] = &self.choices[..] else {
            panic!("one choice, not {:?}", self.choices)
        };
        choice
    }

    /// A count of the usage.
    pub fn count(&self, key: &str) -> u64 {
        let usage = self.usage.as_ref().expect("usage");
        usage[key]
            .as_u64()
            .unwrap_or_else(|| panic!("{key} in {usage}"))
    }

    /// Prompt tokens that the prefix cache held.
    pub fn cached_tokens(&self) -> u64 {
        let usage = self.usage.as_ref().expect("usage");
        usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap_or_else(|| panic!("cached_tokens in {usage}"))
    }
}

/// A choice of a stream as far as it has come.
#[derive(Default)]
struct Streamed {
    so_far: Choice,
    chunks: usize,
    ended: bool,
}

impl Streamed {
    fn add(&mut self, part: &Value) {
        assert!(!self.ended, "after its end a choice says nothing: {part}");
        assert!(
            part.get("finish_reason").is_some(),
            "finish_reason must be there: {part}"
        );
        let finish = &part["finish_reason"];
        let piece = match part.get("delta") {
            None => part["text"].as_str().expect("text"),
            Some(delta) => {
                let opens = self.chunks == 0;
                assert_eq!(
                    delta.get("role").is_some(),
                    opens,
                    "the role, once, first: {part}"
                );
                assert!(
                    !opens || delta["content"] == "",
                    "the role with empty content: {part}"
                );
                let empty = delta.as_object().is_some_and(serde_json::Map::is_empty);
                assert_eq!(empty, !finish.is_null(), "the end, and only it, is empty");
                delta["content"].as_str().unwrap_or_default()
            }
        };
        self.chunks += 1;
        self.so_far.text.push_str(piece);
        self.so_far.token_ids.extend(ids(&part["token_ids"]));
        join(&mut self.so_far.logprobs, &part["logprobs"]);
        if let Some(finish) = finish.as_str() {
            self.ended = true;
            self.so_far.finish = finish.into();
            self.so_far.stop_reason = part["stop_reason"].clone();
        }
    }

    fn end(self) -> Choice {
        assert!(self.ended, "a choice without an end: {:?}", self.so_far);
        self.so_far
    }
}

/// Appends the arrays of one logprobs object to those of another.
fn join(all: &mut Value, more: &Value) {
    let Some(more) = more.as_object() else { return };
    if all.is_null() {
        *all = Value::Object(more.clone());
        return;
    }
    for (key, list) in more {
        match (&mut all[key], list) {
            (Value::Array(all), Value::Array(list)) => all.extend(list.iter().cloned()),
            (all, other) => assert_eq!(all, other, "{key}"),
        }
    }
}

fn array<'a>(value: &'a Value, key: &str) -> &'a Vec<Value> {
    value[key]
        .as_array()
        .unwrap_or_else(|| panic!("an array {key}: {value}"))
}

fn ids(value: &Value) -> Vec<u64> {
    let ids = value.as_array().into_iter().flatten();
    ids.map(|id| id.as_u64().expect("an id")).collect()
}
