//! The CPU backend computes what transformers does. The other devices are held to the CPU backend.

use std::path::Path;

use appliance_tests::Model;
use appliance_tests::golden::{Continuation, Family};
use cpu_backend::Precision;
use engine::{Backend, Demand};
use model::{Decoder, Weights};

use crate::CHECKS;
use crate::device::{Answer, Ask, Device, Wish, len};

/// The largest error of a logit with weights in BF16.
const TOLERANCE: f32 = 2e-2;

/// Below this margin another order of adding F32 numbers may choose another token.
const TIE: f32 = 1e-3;

/// Opens the model in `dir` with room for a few short sequences.
pub(crate) fn open_cpu(dir: &Path, precision: Precision) -> Box<dyn Backend> {
    let decoder = Decoder::open(dir).expect("a configuration");
    let weights = Weights::open(dir, &decoder).expect("weights");
    let demand = Demand {
        context: 512,
        rows: 8,
        step_tokens: 256,
        kv_tokens: Some(1024),
        cores: None,
    };
    Box::new(cpu_backend::open(&decoder, &weights, precision, &demand).expect("room for the model"))
}

#[test]
fn logits_of_every_family_are_near_those_of_transformers() {
    for family in Family::all() {
        for precision in [Precision::Bf16, Precision::F32] {
            let model = family.model(false);
            let mut device = Device::new(open_cpu(&model.path, precision), 0.0);
            let prompt = &family.prompt;
            let pages = device.pages(0, prompt.len());
            let each = Wish::Each(u32::MAX, prompt.clone());
            let rows = [Ask::prompt(prompt, &pages).wishing(each)];
            let answers = device.run(&[], &rows).expect("a valid step");
            for (place, logits) in &family.logits {
                let error = furthest(&answers[*place], logits);
                let name = &family.name;
                assert!(
                    error <= TOLERANCE,
                    "{name} in {precision:?} at {place}: {error}"
                );
            }
        }
    }
}

#[test]
fn greedy_answers_of_every_family_are_those_of_transformers() {
    for family in Family::all() {
        let model = family.model(false);
        let mut device = Device::new(open_cpu(&model.path, Precision::F32), 0.0);
        let tokens = greedy(&mut device, &family.prompt, family.greedy.len());
        assert_eq!(tokens, family.greedy, "{}", family.name);
    }
}

#[test]
fn mixtures_of_experts_do_what_every_device_must() {
    for family in Family::with_experts() {
        for (check, run) in CHECKS {
            eprintln!("{}: {check}", family.name);
            let model = family.model(false);
            run(&mut Device::new(
                open_cpu(&model.path, Precision::Bf16),
                0.0,
            ));
        }
    }
}

#[test]
fn a_checkpoint_in_shards_is_the_same_model() {
    for family in Family::all() {
        let [whole, sharded] = [false, true].map(|sharded| {
            let model = family.model(sharded);
            let mut device = Device::new(open_cpu(&model.path, Precision::Bf16), 0.0);
            device.answer(Ask::prompt(&family.prompt[..16], &[0]))
        });
        assert_eq!(whole, sharded, "{}", family.name);
    }
}

#[test]
fn greedy_answers_of_the_default_model_are_those_of_transformers() {
    let Some(model) = Model::smollm2() else {
        return;
    };
    // Its weights are BF16 numbers, so nothing is lost in two bytes each.
    let mut device = Device::new(open_cpu(&model.path, Precision::Bf16), 0.0);
    for golden in Continuation::all() {
        let tie = golden.margins.iter().position(|margin| *margin < TIE);
        let sure = tie.unwrap_or(golden.greedy.len());
        let tokens = greedy(&mut device, &golden.prompt, sure);
        assert_eq!(tokens, golden.greedy[..sure], "{}", golden.answer);
    }
}

/// The most likely tokens after `prompt`, one after the other.
pub(crate) fn greedy(device: &mut Device, prompt: &[u32], count: usize) -> Vec<u32> {
    let pages = device.pages(0, prompt.len() + count);
    let mut tokens = prompt.to_vec();
    let mut position = 0;
    let most = device.profile().prefill.most() as usize;
    while tokens.len() < prompt.len() + count {
        let end = tokens.len().min(position + most);
        let ask = Ask::at(len(position), &tokens[position..end], &pages);
        position = end;
        let answer = device.answer(ask.wishing(Wish::Best(1)));
        if end == tokens.len() {
            tokens.push(answer.best[0].0);
        }
    }
    tokens.split_off(prompt.len())
}

/// The largest error of a logit.
pub(crate) fn furthest(answer: &Answer, logits: &[f32]) -> f32 {
    assert_eq!(answer.best.len(), logits.len());
    let errors = answer
        .best
        .iter()
        .zip(logits)
        .map(|((_, logprob), logit)| (logprob + answer.normalizer - logit).abs());
    errors.fold(0.0, f32::max)
}
