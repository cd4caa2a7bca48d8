//! Where: the decoder as hand-written kernels for any host.

use engine::{Backend, Candidates, Demand, Device, Fault, Profile, Step, Ticket};
use model::{Decoder, Weights};

/// How the weights are held.
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
    #[error("{needed} bytes are needed and {free} are free")]
    Memory {
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
}

/// The host's own processor, or `None` where it cannot serve.
pub fn probe() -> Option<Device> {
    None
}

/// Packs `weights` for this host and makes room for KV.
pub fn open(
    decoder: &Decoder,
    weights: &Weights,
    precision: Precision,
    demand: &Demand,
) -> Result<Cpu, OpenError> {
    let _ = (decoder, weights, precision, demand);
    unimplemented!("lands with the backend")
}

/// A model opened on the host's processor.
#[derive(Debug)]
pub struct Cpu {}

impl Backend for Cpu {
    fn profile(&self) -> &Profile {
        unimplemented!("lands with the backend")
    }

    fn submit(&mut self, _: &Step<'_>) -> Result<Ticket, Fault> {
        unimplemented!("lands with the backend")
    }

    fn collect(&mut self, _: Ticket, _: &mut Candidates) -> Result<(), Fault> {
        unimplemented!("lands with the backend")
    }
}
