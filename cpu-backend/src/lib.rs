//! Where: the decoder as hand-written kernels for any host.
//!
//! [`open`] packs a checkpoint's weights and gives a [`Cpu`], whose steps run on the calling thread
//! and a pool of workers. What it promises beyond [`engine::Backend`]: a row's candidates are the
//! same to the bit whatever else is in the step, however its prompt was cut into chunks and
//! whichever pages it has. It is the embedded default, and the reference that other devices are
//! held to.

mod attention;
mod backend;
mod cache;
mod candidates;
mod decoder;
mod kernels;
mod mlp;
mod plan;
mod pool;
mod probe;
mod rotary;
mod weights;

pub use backend::Cpu;
pub use probe::{kernels, probe};

use std::io;

use engine::Demand;
use model::{Decoder, ReadError, Weights};

use decoder::Forward;
use plan::{Plan, Promise};
use pool::Pool;
use weights::Packed;

/// How the weights are held. Activations, sums and KV are F32 either way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Precision {
    /// Two bytes a weight; products are summed in F32.
    Bf16,
    /// Four bytes a weight: the reference.
    F32,
}

/// Why a model was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The memory asked for is not there.
    #[error(
        "{needed} bytes are needed ({weights} for weights, {kv} for KV) and {free} are free: \
         ask for a shorter context, fewer rows or fewer KV positions, or take a smaller model"
    )]
    Memory {
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// Bytes needed for weights.
        weights: u64,
        /// Bytes needed for KV pages.
        kv: u64,
    },
    /// The system tells nothing of its memory.
    #[error("the system does not tell how much memory is free: is /proc mounted?")]
    MemoryUnknown,
    /// A worker thread was not started.
    #[error("{threads} threads could not be started: ask for fewer cores")]
    Threads {
        /// How many were to run.
        threads: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The weights cannot be read, or are not those that were stored.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Packs `weights` for this host and makes room for KV. `demand.cores` beyond those that the process
/// may use are not taken. The checkpoint is not needed afterwards.
///
/// # Errors
/// Whatever keeps the model from running here, with the values and what to change.
pub fn open(
    decoder: &Decoder,
    weights: &Weights,
    precision: Precision,
    demand: &Demand,
) -> Result<Cpu, OpenError> {
    let free = probe::free_memory().ok_or(OpenError::MemoryUnknown)?;
    let free = free.saturating_sub(Promise::all());
    let Plan {
        profile,
        logit_rows,
        kv,
    } = Plan::new(decoder, precision, demand, free)?;
    let cores = probe::cores();
    let threads = demand.cores.map_or(cores, |asked| asked.clamp(1, cores)) as usize;
    let mut pool = Pool::new(threads).map_err(|source| OpenError::Threads { threads, source })?;
    let packed = Packed::new(decoder, weights, precision, &mut pool)?;
    let kernels = kernels::detect();
    let forward = Forward::new(decoder, packed, kernels, pool, profile.pages, logit_rows);
    Ok(Cpu::new(profile, forward, Promise::new(kv)))
}
