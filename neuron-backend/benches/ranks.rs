//! What it costs to hand a step to all ranks and to hear from all of them: the ranks do nothing.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use neuron_backend::ranks::{Places, Ranks};

const SOON: Duration = Duration::from_secs(10);

fn ranks(count: usize) -> Ranks<u64> {
    Ranks::start(count, &Places::anywhere(), |_| 0).expect("a few threads")
}

/// One step after the other: every rank may be asleep when its job comes.
fn alone(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("begin and wait");
    for count in [1, 4, 32] {
        let mut ranks = ranks(count);
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                let flight = ranks.begin(|_, steps| *steps += 1);
                black_box(flight.wait(SOON).expect("in time"));
            });
        });
    }
}

/// Two in flight, as the backend has them.
fn in_turn(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("begin the next, then wait");
    for count in [1, 4, 32] {
        let mut ranks = ranks(count);
        let mut flying = ranks.begin(|_, steps| *steps += 1);
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                let next = ranks.begin(|_, steps| *steps += 1);
                let before = std::mem::replace(&mut flying, next);
                black_box(before.wait(SOON).expect("in time"));
            });
        });
    }
}

criterion_group!(benches, alone, in_turn);
criterion_main!(benches);
