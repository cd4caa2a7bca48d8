//! SmolLM2-135M-Instruct continues prompts as transformers does in FP32 (version 5.23, torch 2.15).
//! Needs the model's directory in `APPLIANCE_TEST_MODEL`; `make test` sets it.

use std::path::Path;

use cpu_backend::{Precision, open};
use engine::{Backend, Candidates, Demand, PageId, Row, Step, TokenId, Want};
use model::{Decoder, Weights};

/// Prompts and their greedy continuations.
const GOLDEN: [(&[u32], &[u32]); 3] = [
    // <|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n
    (
        &[
            1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198,
        ],
        &[
            504, 3575, 282, 4649, 314, 7042, 30, 2, 198, 2, 1, 9690, 198, 2, 198, 1, 4093, 198, 57,
            5248, 3946, 288, 7198, 253, 725, 1406, 281, 260, 2342, 30, 339, 3543, 2221, 4329, 253,
            1443, 1566, 16031, 28, 564, 339, 5248, 18661, 563, 638, 288, 4025, 2342,
        ],
    ),
    // The capital of France is
    (
        &[504, 3575, 282, 4649, 314],
        &[
            7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33, 40, 29, 32, 33, 29, 34, 34,
            216, 33, 34, 42, 33, 34, 42, 37, 35, 30, 2, 198, 1, 520, 9531, 198, 504, 2988, 314, 42,
            216, 34, 32, 33, 40, 29, 32, 33, 29,
        ],
    ),
    (
        &[1, 504, 2, 1206, 338, 253, 655, 30, 378],
        &[
            655, 346, 2316, 12634, 288, 314, 260, 655, 346, 2316, 12634, 288, 30, 198, 198, 504,
            655, 346, 2316, 12634, 288, 314, 260, 655, 346, 2316, 12634, 288, 30, 198, 198, 504,
            655, 346, 2316, 12634, 288, 314, 260, 655, 346, 2316, 12634, 288, 30, 198, 198, 504,
        ],
    ),
];

/// The log-probabilities of the first continuation's most likely first tokens.
const LOGPROBS: [(u32, f32); 4] = [
    (504, -0.581_500_35),
    (60, -2.320_968),
    (38634, -2.340_627),
    (15319, -2.506_937),
];

#[test]
fn greedy_continuations_are_those_of_transformers() {
    let Some(dir) = std::env::var_os("APPLIANCE_TEST_MODEL") else {
        return eprintln!("skipped: APPLIANCE_TEST_MODEL names no directory");
    };
    let decoder = Decoder::open(Path::new(&dir)).unwrap();
    let weights = Weights::open(Path::new(&dir), &decoder).unwrap();
    let demand = Demand {
        context: 1024,
        rows: 4,
        step_tokens: 512,
        kv_tokens: None,
        cores: None,
    };
    for precision in [Precision::Bf16, Precision::F32] {
        let mut cpu = open(&decoder, &weights, precision, &demand).unwrap();
        for (prompt, continuation) in GOLDEN {
            let tokens = greedy(&mut cpu, prompt, continuation.len());
            assert_eq!(tokens, continuation, "{precision:?} after {prompt:?}");
        }
        let out = run(&mut cpu, GOLDEN[0].0, 0, u32::MAX);
        let entry = out.entry(0).unwrap();
        for (token, expected) in LOGPROBS {
            let index = entry.ids.iter().position(|id| id.0 == token).unwrap();
            let given = entry.logprobs[index];
            assert!(
                (given - expected).abs() < 1e-4,
                "{token}: {given}, not {expected}"
            );
        }
    }
}

/// Runs the tokens of one row on the first pages.
fn run(backend: &mut dyn Backend, tokens: &[u32], position: u32, width: u32) -> Candidates {
    let tokens: Vec<_> = tokens.iter().copied().map(TokenId).collect();
    let count = u32::try_from(tokens.len()).unwrap();
    let pages: Vec<_> = (0..(position + count).div_ceil(16)).map(PageId).collect();
    let row = Row {
        tokens: 0..count,
        pages: 0..u32::try_from(pages.len()).unwrap(),
        position,
        mask: None,
        want: Want::Candidates { width },
    };
    let step = Step {
        copies: &[],
        tokens: &tokens,
        pages: &pages,
        masks: &[],
        rows: &[row],
    };
    let ticket = backend.submit(&step).unwrap();
    let mut out = Candidates::default();
    backend.collect(ticket, &mut out).unwrap();
    out
}

/// The most likely tokens one after the other.
fn greedy(backend: &mut dyn Backend, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut position = 0;
    let mut last = prompt.to_vec();
    let mut tokens = Vec::new();
    while tokens.len() < count {
        let out = run(backend, &last, position, 1);
        position += u32::try_from(last.len()).unwrap();
        last = vec![out.entry(0).unwrap().ids[0].0];
        tokens.extend(&last);
    }
    tokens
}
