//! What must not break it.

mod burst;
mod deadline;
mod disconnects;
mod ledger;
mod malformed;
mod memory;
mod shutdown;
mod slow;

use appliance_tests::Server;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// What the chain answers to any chat.
const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// The body of a greedy completion that no end token ends.
fn completion(server: &Server, prompt: &str, max_tokens: u32) -> Value {
    json!({
        "model": server.model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": true,
    })
}

/// The same as a stream.
fn streaming(server: &Server, prompt: &str, max_tokens: u32) -> Value {
    let mut body = completion(server, prompt, max_tokens);
    body["stream"] = true.into();
    body
}

/// The server of a chain answers a chat as it should.
fn is_well(server: &Server) {
    assert_eq!(server.get("/health").status(), 200);
    let body = json!({
        "model": server.model,
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0,
    });
    let answer = server.ask(CHAT, &body);
    assert_eq!(answer["choices"][0]["message"]["content"], ALPHABET);
}

/// Numbers that look random and are the same in every run (xorshift64).
struct Dice(u64);

impl Dice {
    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits fit") % end
    }

    /// One of `list`.
    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}
