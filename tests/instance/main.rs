//! An instance's life: what it is told to serve, and how that changes under it.

mod disk;
mod keys;
mod parameters;
mod swap;

use appliance_tests::{Model, Server};
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";

/// The key for the places of operators.
const ADMIN: &str = "the-operator";

/// The body of a greedy completion that no end token ends.
fn completion(prompt: &str, max_tokens: u32) -> Value {
    json!({
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": true,
    })
}

/// The server's status, as it tells operators.
fn status(server: &Server) -> Value {
    let request = appliance_tests::Request::get("/admin/status");
    let answer = server.exchange(&request.header("authorization", &format!("Bearer {ADMIN}")));
    assert_eq!(answer.status(), 200, "{}", answer.text());
    answer.json()
}

/// Has the settings read anew: the status of the answer, and what it says.
fn reload(server: &Server) -> (u16, Value) {
    let request = appliance_tests::Request::post("/admin/reload", &json!({}));
    let answer = server.exchange(&request.header("authorization", &format!("Bearer {ADMIN}")));
    (answer.status(), answer.json())
}

/// A copy of the chain under a name of its own.
fn other(name: &str) -> Model {
    Model::chain().copy(name)
}

/// A model's name in the API.
fn name(model: &Model) -> String {
    let name = model.path.file_name().expect("a directory");
    name.to_str().expect("of letters").to_owned()
}
