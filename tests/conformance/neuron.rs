//! The Neuron backend on the stand-ins for libnrt and neuronx-cc: through `appliance prepare`, NEFFs and
//! C to the same answers as the CPU backend.
//!
//! There is one runtime a process, and it reads its environment, so each test is a process of its own.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use appliance_tests::golden::Family;
use appliance_tests::neuron::apart;
use appliance_tests::{Fake, Model};
use engine::{Backend, Demand};
use model::{Decoder, Weights};
use neuron_backend::artifact::Store;
use neuron_backend::nrt::Settings;
use neuron_backend::{Opening, Target};

use crate::CHECKS;
use crate::device::{Ask, Device, Wish};
use crate::golden::{furthest, greedy};

/// How far log-probabilities may be apart where all is computed in F32: sums are added up in another
/// order.
const EXACT: f32 = 1e-3;

/// The same where activations and KV are BF16 as the device has them by default.
const ROUNDED: f32 = 0.15;

/// What every model here is prepared with: few modules, so that tests start soon.
const FEW: [&str; 8] = [
    "--max-context",
    "256",
    "--decode-rows",
    "1,4",
    "--prefill-tokens",
    "16,64",
    "--context-pages",
    "4,16",
];

/// A way to prepare a model.
#[derive(Clone, Copy)]
struct Kind {
    ranks: u32,
    flags: &'static [&'static str],
    tolerance: f32,
}

const ONE: Kind = Kind {
    ranks: 1,
    flags: &[],
    tolerance: EXACT,
};

const TWO: Kind = Kind { ranks: 2, ..ONE };

const FOUR: Kind = Kind { ranks: 4, ..ONE };

const BF16: Kind = Kind {
    ranks: 2,
    flags: &["--activations", "bf16", "--kv-dtype", "bf16"],
    tolerance: ROUNDED,
};

/// Runs all checks, each on a device of its own. XLA compiles a model's modules once a process, so this
/// is one process.
fn check_all(name: &str, kind: Kind) {
    let Some(fake) = Fake::found() else { return };
    apart(name, &environment(&fake, kind.ranks), || {
        for (check, run) in CHECKS {
            eprintln!("{check}");
            let backend = open(&fake, &Model::random(), kind);
            run(&mut Device::new(backend, kind.tolerance));
        }
    });
}

#[test]
fn one_rank_does_what_every_device_must() {
    check_all("neuron::one_rank_does_what_every_device_must", ONE);
}

#[test]
fn two_ranks_do_what_every_device_must() {
    check_all("neuron::two_ranks_do_what_every_device_must", TWO);
}

#[test]
fn four_ranks_do_what_every_device_must() {
    check_all("neuron::four_ranks_do_what_every_device_must", FOUR);
}

#[test]
fn in_bf16_it_does_what_every_device_must() {
    check_all("neuron::in_bf16_it_does_what_every_device_must", BF16);
}

#[test]
fn mixtures_of_experts_do_what_every_device_must() {
    let name = "neuron::mixtures_of_experts_do_what_every_device_must";
    let Some(fake) = Fake::found() else { return };
    apart(name, &environment(&fake, TWO.ranks), || {
        for family in Family::with_experts() {
            for (check, run) in CHECKS {
                eprintln!("{}: {check}", family.name);
                let backend = open(&fake, &family.model(false), TWO);
                run(&mut Device::new(backend, TWO.tolerance));
            }
        }
    });
}

/// What a process needs in which models of so many ranks are opened. What is left on the device in the
/// end aborts it.
fn environment(fake: &Fake, ranks: u32) -> Vec<(&'static str, OsString)> {
    let settings = Settings {
        refuse_nan: true,
        ..Settings::new(0..ranks, Target::Trn2.default_logical())
    };
    let mut environment = fake.clone().with("FAKE_NRT_LEAKS", "abort");
    environment = environment.with("FAKE_NRT_REINIT", "1");
    let mut environment = environment.environment();
    environment.extend(settings.environment());
    environment
}

fn open(fake: &Fake, model: &Model, kind: Kind) -> Box<dyn Backend> {
    let flags = [&FEW, kind.flags].concat();
    let store = fake.prepared(model, kind.ranks, &flags);
    opened(&model.path, &store)
}

fn opened(model: &Path, store: &Path) -> Box<dyn Backend> {
    let decoder = Decoder::open(model).expect("a configuration");
    let weights = Weights::open(model, &decoder).expect("weights");
    let demand = Demand {
        context: 256,
        rows: 4,
        step_tokens: 64,
        kv_tokens: None,
        cores: None,
    };
    let opened = neuron_backend::open(&Opening {
        source: "a test",
        decoder: &decoder,
        weights: &weights,
        store: &Store::new(store.to_owned()),
        format: None,
        kv: None,
        demand: &demand,
        replicas: 1,
        patience: Duration::from_secs(120),
    });
    let mut replicas = opened.unwrap_or_else(|error| panic!("{error}"));
    Box::new(replicas.remove(0))
}

#[test]
fn greedy_answers_of_every_family_are_those_of_transformers() {
    let name = "neuron::greedy_answers_of_every_family_are_those_of_transformers";
    let Some(fake) = Fake::found() else { return };
    apart(name, &environment(&fake, 1), || {
        for family in Family::all() {
            let backend = open(&fake, &family.model(false), ONE);
            let mut device = Device::new(backend, 0.0);
            let tokens = greedy(&mut device, &family.prompt, family.greedy.len());
            assert_eq!(tokens, family.greedy, "{}", family.name);
        }
    });
}

#[test]
fn logits_of_every_family_are_near_those_of_transformers_on_any_number_of_ranks() {
    let name =
        "neuron::logits_of_every_family_are_near_those_of_transformers_on_any_number_of_ranks";
    let Some(fake) = Fake::found() else { return };
    apart(name, &environment(&fake, 2), || {
        for family in Family::all() {
            // Nine heads go on one rank or on three.
            let ranks = if family.name == "smollm2" {
                continue;
            } else {
                2
            };
            let backend = open(&fake, &family.model(false), Kind { ranks, ..ONE });
            let mut device = Device::new(backend, 0.0);
            let prompt = &family.prompt;
            for (place, logits) in &family.logits {
                let pages = device.pages(0, prompt.len());
                let mut start = 0;
                let mut last = None;
                for chunk in prompt[..=*place].chunks(64) {
                    let ask = Ask::at(start, chunk, &pages).wishing(Wish::Best(u32::MAX));
                    last = Some(device.answer(ask));
                    start += u32::try_from(chunk.len()).expect("a short chunk");
                }
                let error = furthest(&last.expect("a chunk"), logits);
                assert!(error <= 2e-2, "{} at {place}: {error}", family.name);
            }
        }
    });
}
