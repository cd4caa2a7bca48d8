//! The default model over HTTP: what transformers answers in FP32, and answers that make sense.

use std::sync::OnceLock;

use appliance_tests::golden::Continuation;
use appliance_tests::{Answer, Model, Request, Server};
use serde_json::json;

use crate::{CHAT, COMPLETIONS, both, chat};

/// Where the best two tokens were closer than this, another order of adding may swap them.
const TIE: f32 = 1e-3;

/// The default model in F32, unless it is not there.
fn server() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    let start = || Some(Server::shared(&Model::smollm2()?, &["--dtype", "f32"]));
    SERVER.get_or_init(start).as_ref()
}

#[test]
fn all_goldens_at_once_are_answered_as_transformers_does() {
    let Some(server) = server() else { return };
    let goldens = Continuation::all();
    let mut clients = Vec::new();
    for golden in &goldens {
        let mut body = json!({
            "model": server.model,
            "temperature": 0,
            "max_tokens": golden.greedy.len(),
            "return_token_ids": true,
        });
        let target = if golden.messages.is_null() {
            body["prompt"] = golden.text.clone();
            COMPLETIONS
        } else {
            body["messages"] = golden.messages.clone();
            CHAT
        };
        let mut client = server.connect();
        client.send(&Request::post(target, &body)).unwrap();
        clients.push(client);
    }
    for (golden, client) in goldens.iter().zip(&mut clients) {
        let body = client.response().unwrap().json();
        let prompt = [
            &body["prompt_token_ids"],
            &body["choices"][0]["prompt_token_ids"],
        ];
        assert!(prompt.contains(&&json!(golden.prompt)), "{}", golden.answer);
        let answer = Answer::whole(&body);
        let tie = golden.margins.iter().position(|margin| *margin < TIE);
        let sure = tie.unwrap_or(golden.greedy.len());
        let expected: Vec<u64> = golden.greedy.iter().copied().map(u64::from).collect();
        assert_eq!(answer.only().token_ids[..sure], expected[..sure]);
        if tie.is_none() {
            assert_eq!(answer.text(), golden.answer);
        }
    }
}

#[test]
fn an_answer_makes_sense() {
    let Some(server) = server() else { return };
    let more = json!({"max_tokens": 24});
    let answer = both(
        server,
        CHAT,
        &chat(server, "What is the capital of France?", more),
    );
    assert!(answer.text().contains("Paris"), "{answer:?}");
    assert_eq!(answer.only().finish, "stop");
}

#[test]
fn a_tokenized_text_comes_back() {
    let Some(server) = server() else { return };
    for text in ["The quick brown fox", " naïve 😀 日本語\n\tfn main() {}  "] {
        let tokens = server.ask("/tokenize", &json!({"prompt": text}));
        assert!(tokens["count"].as_u64().unwrap() > 3);
        let back = server.ask("/detokenize", &json!({"tokens": tokens["tokens"]}));
        assert_eq!(back["prompt"], text);
    }
}
