//! Tensors that are streamed: the same bytes as those that are read one by one, in memory that is
//! bounded, whatever the blocks and the order.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod tiny;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use model::{Bytes, Decoder, Files, Flow, Role, Weights};
use proptest::prelude::*;

/// A checkpoint in memory that counts what is read of it.
#[derive(Debug)]
struct Memory {
    file: Arc<Counted>,
    flow: Flow,
}

#[derive(Debug)]
struct Counted {
    bytes: Vec<u8>,
    /// How often each place was read from.
    reads: Mutex<HashMap<u64, usize>>,
    now: AtomicUsize,
    most: AtomicUsize,
    /// From which byte on nothing can be read.
    broken: u64,
}

impl Bytes for Counted {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        if at + out.len() as u64 > self.broken {
            return Err(io::Error::other("the disk is broken"));
        }
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        *self.reads.lock().unwrap().entry(at).or_default() += 1;
        let start = usize::try_from(at).unwrap();
        out.copy_from_slice(&self.bytes[start..][..out.len()]);
        self.now.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}

impl Files for Memory {
    fn open(&self, name: &str) -> io::Result<Arc<dyn Bytes>> {
        match name {
            "model.safetensors" => Ok(Arc::clone(&self.file) as _),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("memory").join(name)
    }

    fn flow(&self) -> Flow {
        self.flow
    }
}

/// The tiny checkpoint, each byte of it different from those around.
fn memory(flow: Flow, broken: u64) -> Memory {
    let mut bytes = tiny::safetensors(&tiny::TENSORS);
    let numbers: usize = tiny::TENSORS
        .iter()
        .map(|(_, shape)| shape.iter().product::<usize>() * 2)
        .sum();
    let start = bytes.len() - numbers;
    for (place, byte) in bytes[start..].iter_mut().enumerate() {
        *byte = u8::try_from(place * 31 % 251).unwrap();
    }
    let file = Arc::new(Counted {
        bytes,
        reads: Mutex::default(),
        now: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
        broken,
    });
    Memory { file, flow }
}

fn decoder() -> Decoder {
    Decoder::parse(tiny::CONFIG.as_bytes()).unwrap()
}

fn order() -> Vec<Role> {
    decoder().roles().map(|(role, _)| role).collect()
}

/// All bytes of a role, asked for some rows at a time.
fn streamed(weights: &Weights, stream: &model::Stream<'_>, role: Role, step: usize) -> Vec<u8> {
    let shape = weights.shape(role).1;
    let count = if shape.len() > 1 { shape[0] } else { 1 };
    let mut bytes = Vec::new();
    for first in (0..count).step_by(step) {
        let rows = stream.rows(role, first..count.min(first + step)).unwrap();
        (0..rows.len()).for_each(|row| bytes.extend_from_slice(rows.row(row)));
    }
    bytes
}

proptest! {
    /// Whatever the sizes, threads and order, what is streamed is what is stored.
    #[test]
    fn what_is_streamed_is_what_is_stored(
        block in 1..600_usize,
        readers in 1..5_usize,
        more in 0..40_usize,
        step in 1..70_usize,
        order in Just(order()).prop_shuffle(),
        turned in any::<bool>(),
    ) {
        let flow = Flow { block, readers, held: readers + more };
        let memory = memory(flow, u64::MAX);
        let weights = Weights::of(&memory, &decoder()).unwrap();
        let stream = weights.stream(order.iter().copied()).unwrap();
        let mut wanted = order;
        if turned {
            // Out of the order that was given: it takes more memory and ends all the same.
            wanted.reverse();
        }
        for role in wanted {
            let expected = weights.tensor(role).unwrap().bytes;
            prop_assert!(streamed(&weights, &stream, role, step) == expected, "{:?}", role);
        }
        prop_assert!(memory.file.most.load(Ordering::SeqCst) <= readers + 1);
        let progress = weights.progress();
        prop_assert_eq!(progress.read(), progress.total());
    }
}

#[test]
fn no_more_is_read_ahead_than_there_is_room_for() {
    let flow = Flow {
        block: 64,
        readers: 3,
        held: 8,
    };
    let memory = memory(flow, u64::MAX);
    let weights = Weights::of(&memory, &decoder()).unwrap();
    let reads = |memory: &Memory| memory.file.reads.lock().unwrap().values().sum::<usize>();
    let headers = reads(&memory);
    let order = order();
    let stream = weights.stream(order.iter().copied()).unwrap();
    let rows = stream.rows(order[0], 0..6).unwrap();
    // Of what is asked for nothing is held back, and beyond it there are at most so many blocks.
    let asked = rows.len() * 64 / flow.block + 2;
    let mut seen = 0;
    for _ in 0..200 {
        std::thread::yield_now();
        seen = reads(&memory) - headers;
    }
    assert!(seen <= asked + flow.held, "{seen} blocks for {asked}");
    drop(rows);
    for role in &order[1..] {
        streamed(&weights, &stream, *role, 7);
    }
    // Hardly a block is read twice: in the order of the file none would be.
    let blocks = memory.file.bytes.len().div_ceil(flow.block);
    let all = reads(&memory) - headers;
    assert!(
        all <= blocks + 2 * order.len(),
        "{all} reads of {blocks} blocks"
    );
}

#[test]
fn an_error_reaches_whoever_waits_and_ends_the_stream() {
    let flow = Flow {
        block: 256,
        readers: 2,
        held: 4,
    };
    let broken = memory(flow, 8000);
    let weights = Weights::of(&broken, &decoder()).unwrap();
    let order = order();
    let stream = weights.stream(order.iter().copied()).unwrap();
    let failed = order.iter().find_map(|role| stream.whole(*role).err());
    let told = failed.unwrap().to_string();
    assert_eq!(
        told,
        "cannot read memory/model.safetensors: the disk is broken"
    );
    assert!(stream.whole(order[0]).is_err());
}

#[test]
fn a_stream_may_be_left_before_its_end() {
    let flow = Flow {
        block: 128,
        readers: 4,
        held: 6,
    };
    let memory = memory(flow, u64::MAX);
    let weights = Weights::of(&memory, &decoder()).unwrap();
    let stream = weights.stream(order()).unwrap();
    drop(stream.rows(Role::Embedding, 0..2).unwrap());
    drop(stream);
    let progress = weights.progress();
    assert!(progress.read() < progress.total());
}
