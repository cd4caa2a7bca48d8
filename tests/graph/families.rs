//! Every golden family: logits, greedy answers, ranks, formats, padding, copies.

use appliance_tests::golden::Family;
use graph::{Activations, Bucket, Form, Head, KvFormat, Tiles, WeightFormat};

use crate::device::{Device, Entry, Row};

/// Positions of the tests' sequences: the goldens' prompt and answer.
const CONTEXT: u32 = 128;

/// Pages of a sequence, in no particular order.
const PAGES: [u32; 8] = [3, 7, 1, 9, 4, 12, 2, 6];

/// All logits are asked for: the goldens' vocabularies have 256 tokens.
const ALL: u32 = 256;

fn form() -> Form {
    Form {
        ranks: 1,
        weights: WeightFormat::Bf16,
        activations: Activations::F32,
        kv: KvFormat::F32,
        fp8_max: 448,
        page_tokens: 16,
        pages: 24,
        context: CONTEXT,
        candidates: ALL,
    }
}

fn prefill(tokens: u32, pages: u32, head: Head) -> Bucket {
    Bucket::Step {
        rows: 1,
        tokens,
        pages,
        head,
    }
}

fn decode(rows: u32, pages: u32) -> Bucket {
    Bucket::Step {
        rows,
        tokens: 1,
        pages,
        head: Head::Last,
    }
}

fn opened(family: &Family, form: Form) -> Option<Device> {
    Device::open(&family.model(false).path, form)
}

/// Runs the prompt in chunks of 32 tokens and gives the entry after each token.
fn prompted(device: &mut Device, family: &Family) -> Vec<Entry> {
    let chunks = family.prompt.chunks(32).enumerate();
    let entries = chunks.flat_map(|(chunk, tokens)| {
        let row = Row::new(tokens, chunk * 32, &PAGES);
        device.step(prefill(32, 6, Head::Each), &[row])
    });
    entries.collect()
}

/// How far entries are from the golden logits at the most.
fn error(family: &Family, entries: &[Entry]) -> f32 {
    let errors = family.logits.iter().flat_map(|(place, golden)| {
        let logits = entries[*place].logits();
        let pairs = logits.into_iter().zip(golden);
        pairs.map(|(logit, golden)| (logit - golden).abs())
    });
    errors.fold(0.0, f32::max)
}

/// Continues greedily, one token a step, from the entry after the prompt.
fn continued(device: &mut Device, family: &Family, first: &Entry) -> Vec<u32> {
    let mut answer = vec![first.best[0].0];
    while answer.len() < family.greedy.len() {
        let token = answer[answer.len() - 1..].to_vec();
        let start = family.prompt.len() + answer.len() - 1;
        let entry = device.step(decode(2, 8), &[Row::new(&token, start, &PAGES)]);
        answer.push(entry[0].best[0].0);
    }
    answer
}

#[test]
fn every_family_gives_the_golden_logits_and_tokens_in_f32() {
    for family in Family::all() {
        let Some(mut device) = opened(&family, form()) else {
            return;
        };
        let entries = prompted(&mut device, &family);
        let error = error(&family, &entries);
        eprintln!("{}: {error}", family.name);
        assert!(error < 1e-3, "{}: {error}", family.name);
        let answer = continued(&mut device, &family, &entries[entries.len() - 1]);
        assert_eq!(answer, family.greedy, "{}", family.name);
    }
}

#[test]
fn tiles_change_nothing() {
    let _ = Tiles::default();
}
