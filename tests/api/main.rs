//! What every answer must be, seen from a client.
//!
//! Most tests share two servers: one whose every greedy token is known ([`Model::chain`]) and one
//! with random weights ([`Model::random`]). A test that counts what a server did starts its own.

mod access;
mod cache;
mod chat;
mod cli;
mod completions;
mod errors;
mod golden;
mod life;
mod logprobs;
mod metrics;
mod queue;
mod refused;
mod replicas;
mod sampling;
mod streams;
mod text;
mod tls;
mod tokenize;

use std::sync::OnceLock;

use appliance_tests::{Answer, Model, Server, Stream};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// What the chain answers to any chat: the alphabet, then the end of the message.
const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// A server of the chain.
fn chain() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::shared(&Model::chain(), &[]))
}

/// A server of random weights.
fn random() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::shared(&Model::random(), &[]))
}

/// The body of a chat of one message, with `more` fields over it.
fn chat(server: &Server, content: &str, more: Value) -> Value {
    let body = json!({
        "model": server.model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
    });
    merged(body, more)
}

/// The body of a completion, with `more` fields over it.
fn completion(server: &Server, prompt: impl Into<Value>, more: Value) -> Value {
    let body = json!({
        "model": server.model,
        "prompt": prompt.into(),
        "temperature": 0,
    });
    merged(body, more)
}

/// `body` with the fields of `more` set.
fn merged(mut body: Value, more: Value) -> Value {
    let Value::Object(more) = more else {
        panic!("fields, not {more}")
    };
    let fields = body.as_object_mut().expect("a body is an object");
    fields.extend(more);
    body
}

/// The answer to a request, whole.
fn whole(server: &Server, target: &str, body: &Value) -> Answer {
    Answer::whole(&server.ask(target, body))
}

/// The chunks of the answer to the same request as a stream, usage asked for.
fn chunks(server: &Server, target: &str, body: &Value) -> Vec<Value> {
    let streaming = json!({"stream": true, "stream_options": {"include_usage": true}});
    let stream = server.stream(target, &merged(body.clone(), streaming));
    good(stream).chunks()
}

/// The stream, if its status is 200; fails with the body if not.
fn good(stream: Stream) -> Stream {
    let status = stream.head.status;
    if status != 200 {
        panic!("{status}: {}", stream.body());
    }
    stream
}

/// The answer to a request, which must be the same whole and streamed.
fn both(server: &Server, target: &str, body: &Value) -> Answer {
    let whole = whole(server, target, body);
    let streamed = Answer::streamed(&chunks(server, target, body));
    let (mut a, mut b) = (whole.clone(), streamed);
    // The second may find in the prefix cache what the first left there.
    for answer in [&mut a, &mut b] {
        if let Some(usage) = answer.usage.as_mut().and_then(Value::as_object_mut) {
            usage.remove("prompt_tokens_details");
        }
    }
    assert_eq!(a, b, "whole and streamed differ for {body}");
    whole
}

/// The bytes of `text` as token ids of the tiny models.
fn bytes(text: &str) -> Vec<u64> {
    text.bytes().map(u64::from).collect()
}
