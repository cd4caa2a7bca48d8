//! `/tokenize` and `/detokenize`.

use serde_json::{Value, json};

use crate::{bytes, chain};

#[test]
fn text_becomes_tokens_and_tokens_text() {
    let server = chain();
    for text in ["hello", "", "😀 é 你\n", "<|im_end|>"] {
        let body = json!({"model": server.model, "prompt": text});
        let answer = server.ask("/tokenize", &body);
        let expected = if text == "<|im_end|>" {
            vec![258]
        } else {
            bytes(text)
        };
        assert_eq!(answer["tokens"], json!(expected));
        assert_eq!(answer["count"], expected.len());
        assert_eq!(answer["max_model_len"], 8192);
        let back = server.ask("/detokenize", &json!({"tokens": expected}));
        assert_eq!(back["prompt"], text);
    }
}

#[test]
fn tokens_can_be_shown_as_text() {
    let body = json!({"prompt": "hi", "return_token_strs": true});
    let answer = chain().ask("/tokenize", &body);
    assert_eq!(answer["token_strs"], json!(["h", "i"]));
    let plain = chain().ask("/tokenize", &json!({"prompt": "hi"}));
    assert_eq!(plain["token_strs"], Value::Null);
}

#[test]
fn messages_are_tokenized_through_the_template() {
    let server = chain();
    let messages = json!([{"role": "user", "content": "hi"}]);
    let answer = server.ask("/tokenize", &json!({"messages": messages}));
    assert_eq!(answer["count"], "?user\nhi?\n?assistant\n".len());
    let body = json!({"messages": messages, "add_generation_prompt": false});
    assert_eq!(
        server.ask("/tokenize", &body)["count"],
        "?user\nhi?\n".len()
    );
}

#[test]
fn what_is_neither_is_refused() {
    let server = chain();
    for body in [json!({}), json!({"prompt": 5}), json!({"tokens": "x"})] {
        assert_eq!(server.post("/tokenize", &body).status(), 400, "{body}");
    }
    for body in [json!({}), json!({"tokens": "x"}), json!({"tokens": [-1]})] {
        assert_eq!(server.post("/detokenize", &body).status(), 400, "{body}");
    }
}
