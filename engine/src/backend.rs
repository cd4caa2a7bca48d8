//! The seam: a device that runs one loaded model, one step at a time.

use crate::step::{Candidates, Step};

/// A device that runs one loaded model, one step at a time. It knows nothing of requests, text,
/// policy or time. Dropping it unloads the model.
pub trait Backend: Send {
    /// What this device can run. Fixed once opened.
    fn profile(&self) -> &Profile;

    /// Starts a step without waiting for it: the engine takes the time that
    /// [`collect`](Self::collect) waits for the cost of the step. Whatever is needed of `step` is
    /// copied before returning; steps run in the order submitted; at most [`Profile::depth`] in
    /// flight. On an error nothing of the step has run or will.
    fn submit(&mut self, step: &Step<'_>) -> Result<Ticket, Fault>;

    /// Waits for a submitted step, the oldest first, clears `out` and writes one entry for each
    /// row that asked.
    fn collect(&mut self, ticket: Ticket, out: &mut Candidates) -> Result<(), Fault>;
}

impl<B: Backend + ?Sized> Backend for Box<B> {
    fn profile(&self) -> &Profile {
        (**self).profile()
    }

    fn submit(&mut self, step: &Step<'_>) -> Result<Ticket, Fault> {
        (**self).submit(step)
    }

    fn collect(&mut self, ticket: Ticket, out: &mut Candidates) -> Result<(), Fault> {
        (**self).collect(ticket, out)
    }
}

/// A step in flight: proof that it was submitted, to be handed back once.
#[derive(PartialEq, Eq, Debug)]
pub struct Ticket(pub u64);

/// What a device can run. Fixed once opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// Tokens that the prefill rows (more than one token) of a step may bring, all together.
    pub prefill: Axis,
    /// Decode rows (one token) that a step may hold.
    pub decode: Axis,
    /// Positions that a row may span, its own tokens included.
    pub context: Axis,
    /// Whether prefill and decode rows may share a step.
    pub mixed: bool,
    /// Positions a KV page holds.
    pub page_tokens: u32,
    /// KV pages on the device, ids from 0.
    pub pages: u32,
    /// Size of the vocabulary: token ids are below it.
    pub vocabulary: u32,
    /// The most candidates an entry can hold; at `vocabulary` sampling is exact.
    pub candidates: u32,
    /// Steps that may be in flight; at least 1.
    pub depth: u32,
}

/// The sizes one axis of a step may take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Axis {
    /// Any size up to this one; nothing is padded.
    UpTo(u32),
    /// These sizes only, ascending; anything between is padded to the next.
    Buckets(Box<[u32]>),
}

impl Axis {
    /// The size the device will run for `n`, padding included; `None` if none holds `n`.
    pub fn fit(&self, n: u32) -> Option<u32> {
        match self {
            Axis::UpTo(most) => (n <= *most).then_some(n),
            Axis::Buckets(sizes) => sizes.iter().copied().find(|size| n <= *size),
        }
    }

    /// The largest size.
    pub fn most(&self) -> u32 {
        match self {
            Axis::UpTo(most) => *most,
            Axis::Buckets(sizes) => sizes.last().copied().unwrap_or(0),
        }
    }
}

/// A device found on this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// What it calls itself.
    pub name: String,
    /// Bytes free for weights and KV.
    pub memory: u64,
    /// Cores it computes with.
    pub cores: u32,
}

/// What a server wants of a device when it opens a model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Demand {
    /// Positions of the longest sequence.
    pub context: u32,
    /// Sequences to run at once.
    pub rows: u32,
    /// Tokens of a step at the most.
    pub step_tokens: u32,
    /// Positions of KV to hold for all sequences together; `None` lets the backend choose from free
    /// memory.
    pub kv_tokens: Option<u64>,
    /// Cores to compute with; `None` takes all.
    pub cores: Option<u32>,
}

/// What went wrong on a device, in its own words: status, operation, values.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Cause(pub String);

/// Why a step failed, named by what the engine must do next.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// The step's inputs are at fault; the device is as usable as before.
    #[error("the device rejected the step: {0}")]
    Reject(Cause),
    /// A passing fault: the same step may be submitted again.
    #[error("the device failed for now: {0}")]
    Retry(Cause),
    /// The device is lost and must be opened again.
    #[error("the device is lost: {0}")]
    Restart(Cause),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(axis: &Axis, n: u32, size: Option<u32>) {
        assert_eq!(axis.fit(n), size, "{axis:?} for {n}");
    }

    #[test]
    fn fit_picks_the_first_size_that_holds() {
        let buckets = Axis::Buckets([1, 4, 16].into());
        check(&buckets, 1, Some(1));
        check(&buckets, 2, Some(4));
        check(&buckets, 16, Some(16));
        check(&buckets, 17, None);
        check(&Axis::UpTo(8), 3, Some(3));
        check(&Axis::UpTo(8), 9, None);
    }
}
