//! What stands behind the pointers that callers get: numbers that are never used twice and no
//! addresses of memory, so that a handle that is gone or was never given out is recognised, and
//! whoever looks behind one crashes.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::status::{Failure, misuse, refuse};

/// A handle's place for its kind. Addresses with these upper bits are none on x86-64 or AArch64.
const KIND_SHIFT: u32 = 48;

/// What a handle is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A loaded model.
    Model,
    /// A tensor.
    Tensor,
    /// A set of tensors.
    Set,
}

impl Kind {
    fn number(self) -> u64 {
        match self {
            Self::Model => 0x7e01,
            Self::Tensor => 0x7e02,
            Self::Set => 0x7e03,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Tensor => "tensor",
            Self::Set => "tensor set",
        }
    }
}

/// What callers hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// All handles of one kind.
#[derive(Debug)]
pub struct Handles<T> {
    kind: Kind,
    next: AtomicU64,
    living: Mutex<HashMap<u64, Arc<T>>>,
}

impl<T> Handles<T> {
    /// None yet. Numbers start at `first`: a runtime that is opened again must not give out those of
    /// the one before.
    pub fn new(kind: Kind, first: u64) -> Self {
        Self {
            kind,
            next: AtomicU64::new(first),
            living: Mutex::default(),
        }
    }

    fn with<U>(&self, work: impl FnOnce(&mut HashMap<u64, Arc<T>>) -> U) -> U {
        work(&mut self.living.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A handle for what `make` makes of it.
    pub fn add(&self, make: impl FnOnce(Handle) -> T) -> Handle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let handle = Handle(self.kind.number() << KIND_SHIFT | number);
        let thing = Arc::new(make(handle));
        self.with(|living| living.insert(handle.0, thing));
        handle
    }

    /// What a handle is of.
    ///
    /// # Errors
    /// `INVALID_HANDLE` for one that was never given out; misuse for one that is gone.
    pub fn get(&self, handle: Handle) -> Result<Arc<T>, Failure> {
        let found = self.with(|living| living.get(&handle.0).cloned());
        found.ok_or_else(|| self.missing(handle))
    }

    /// Ends a handle.
    ///
    /// # Errors
    /// As for [`Handles::get`].
    pub fn remove(&self, handle: Handle) -> Result<Arc<T>, Failure> {
        let found = self.with(|living| living.remove(&handle.0));
        found.ok_or_else(|| self.missing(handle))
    }

    fn missing(&self, handle: Handle) -> Failure {
        let name = self.kind.name();
        let number = handle.0 & ((1 << KIND_SHIFT) - 1);
        let ours = handle.0 >> KIND_SHIFT == self.kind.number();
        if ours && number < self.next.load(Ordering::Relaxed) {
            return misuse!("use of a {name} after it was freed: {handle:?}");
        }
        refuse!(INVALID_HANDLE, "{handle:?} is no {name}")
    }

    /// All that live.
    pub fn living(&self) -> Vec<Arc<T>> {
        self.with(|living| living.values().cloned().collect())
    }

    /// Where numbers go on.
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_that_is_gone_differs_from_one_that_never_was() {
        let tensors = Handles::new(Kind::Tensor, 1);
        let sets = Handles::new(Kind::Set, 1);
        let handle = tensors.add(|_| 7);
        let set = sets.add(|_| ());
        assert_eq!(*tensors.get(handle).unwrap(), 7);
        tensors.remove(handle).unwrap();
        assert!(matches!(tensors.get(handle), Err(Failure::Misuse(_))));
        assert!(matches!(tensors.remove(handle), Err(Failure::Misuse(_))));
        for never in [Handle(0), Handle(0x1234), set, Handle(handle.0 + 1)] {
            assert_eq!(tensors.get(never).unwrap_err().status().0, 3);
        }
    }
}
