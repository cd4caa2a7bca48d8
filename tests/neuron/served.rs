//! The default model on the Neuron backend's stand-ins, over HTTP: what transformers answers in FP32,
//! which is what the CPU backend is held to as well.

use appliance_tests::golden::Continuation;
use appliance_tests::{Answer, Fake, Model, Request, Server};
use serde_json::json;

/// Few modules, and no larger than the goldens need: XLA computes what pads them too.
const FORM: [&str; 10] = [
    "--max-context",
    "256",
    "--decode-rows",
    "4",
    "--prefill-tokens",
    "64",
    "--context-pages",
    "16",
    "--kv-pages",
    "257",
];

/// Where the best two tokens were closer than this, another order of adding may swap them.
const TIE: f32 = 1e-3;

/// Tokens of an answer: the stand-in takes a good part of a second for each.
const TOKENS: usize = 16;

#[test]
fn goldens_of_the_default_model_are_answered_as_transformers_does() {
    let (Some(fake), Some(model)) = (Fake::found(), Model::smollm2()) else {
        return;
    };
    let bundles = fake.prepared(&model, 1, &FORM);
    let bundles = bundles.to_str().expect("paths of tests are text");
    let flags = ["--backend", "neuron", "--artifacts", bundles];
    let server = Server::start_with(&fake.environment(), &model, &flags);
    let goldens = Continuation::all().into_iter().take(4);
    let asked = goldens.map(|golden| {
        let body = json!({
            "model": server.model,
            "prompt": golden.prompt,
            "temperature": 0,
            "max_tokens": TOKENS,
            "return_token_ids": true,
        });
        let mut client = server.connect();
        let request = Request::post("/v1/completions", &body);
        client.send(&request).expect("the server reads the request");
        (golden, client)
    });
    for (golden, mut client) in asked.collect::<Vec<_>>() {
        let answer = Answer::whole(&client.response().expect("an answer").json());
        let ids = &answer.only().token_ids;
        let tie = golden.margins.iter().position(|margin| *margin < TIE);
        let sure = tie.unwrap_or(golden.greedy.len()).min(ids.len());
        let expected: Vec<u64> = golden.greedy.iter().copied().map(u64::from).collect();
        assert_eq!(ids[..sure], expected[..sure], "{}", golden.answer);
        assert!(sure > 4, "{} says little", golden.answer);
    }
}
