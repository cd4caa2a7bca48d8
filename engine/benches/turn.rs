//! What one turn of the engine costs the host while sequences decode: the device does nothing.

use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use engine::{
    Constraint, Delivery, Engine, Limits, Penalties, Request, Sampling, Script, Scripted, Stop,
    TokenId,
};

const CONTEXT: u32 = 16_384;
const PROMPT: u32 = 200;

fn request(seed: u32) -> Request {
    Request {
        prompt: (0..PROMPT)
            .map(|at| TokenId((seed * PROMPT + at) % 49_152))
            .collect(),
        choices: 1,
        sampling: Sampling {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            penalties: Penalties::NONE,
            bias: [].into(),
            seed: 0,
        },
        stop: Stop {
            tokens: [TokenId(49_151)].into(),
            min_tokens: 0,
            max_tokens: CONTEXT,
        },
        logprobs: None,
        prompt_logprobs: None,
        constraint: Constraint::Free,
        priority: 0,
        deadline: None,
        cache_salt: 0,
    }
}

/// An engine all of whose rows decode.
fn decoding(rows: u32) -> Engine<Scripted> {
    let mut profile = Scripted::profile_of(rows * CONTEXT / 16, 16, 49_152);
    profile.context = engine::Axis::UpTo(CONTEXT);
    let script = Script {
        idle: true,
        ..Script::default()
    };
    let limits = Limits {
        queued_requests: rows,
        queued_tokens: u64::from(rows * PROMPT),
        running: rows,
        context: CONTEXT,
        step_tokens: 1024,
        step_time: Duration::from_secs(1),
    };
    let mut engine = Engine::new(Scripted::new(profile, script), limits, [0; 16]);
    for seed in 0..rows {
        engine
            .admit(request(seed), Duration::ZERO)
            .expect("there is room");
    }
    let mut out = Vec::new();
    while engine.stats().decode_tokens < u64::from(rows * 2) {
        turn(&mut engine, &mut out);
    }
    engine
}

fn turn(engine: &mut Engine<Scripted>, out: &mut Vec<Delivery>) {
    out.clear();
    engine
        .turn(Duration::ZERO, out)
        .expect("the script has no faults");
}

fn turns(bench: &mut Criterion) {
    for rows in [1, 32, 256] {
        let mut out = Vec::new();
        // A batch of turns on one engine: it must not come to the end of its context.
        bench.bench_function(&format!("100 turns of {rows} rows"), |bencher| {
            bencher.iter_batched(
                || decoding(rows),
                |mut engine| {
                    (0..100).for_each(|_| turn(&mut engine, &mut out));
                    engine
                },
                BatchSize::PerIteration,
            );
        });
    }
}

criterion_group!(benches, turns);
criterion_main!(benches);
