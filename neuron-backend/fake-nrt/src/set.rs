//! Tensor sets: names that an execution finds its tensors by.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::handles::Handle;
use crate::status::{Failure, misuse, refuse};
use crate::tensor::Tensor;

/// A set.
#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) handle: Handle,
    /// Executions that use it.
    pub(crate) running: AtomicU32,
    /// Whether a model remembers its tensors.
    bound: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Goes up with each change.
    version: u64,
    tensors: BTreeMap<String, Arc<Tensor>>,
}

impl Set {
    pub(crate) fn new(handle: Handle) -> Self {
        Self {
            handle,
            running: AtomicU32::new(0),
            bound: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Refuses a change while an execution uses it.
    fn check_idle(&self, what: &str) -> Result<(), Failure> {
        if self.running.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        Err(misuse!(
            "{what} while an execution uses it: {:?}",
            self.handle
        ))
    }

    /// Adds a tensor, or replaces the one of that name.
    pub(crate) fn add(&self, name: &str, tensor: Arc<Tensor>) -> Result<(), Failure> {
        self.check_idle("change of a tensor set")?;
        if name.is_empty() || name.len() >= 256 {
            return Err(refuse!(INVALID, "{name:?} is no name of 1 to 255 bytes"));
        }
        tensor.sets.fetch_add(1, Ordering::AcqRel);
        let before = self.with(|state| {
            state.version += 1;
            state.tensors.insert(name.to_owned(), tensor)
        });
        if let Some(before) = before {
            before.sets.fetch_sub(1, Ordering::AcqRel);
        }
        Ok(())
    }

    /// The tensor of a name.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Tensor>> {
        self.with(|state| state.tensors.get(name).cloned())
    }

    /// A model remembers its tensors.
    pub(crate) fn note_bound(&self) {
        self.bound.store(true, Ordering::Release);
    }

    /// Whether a model remembered its tensors since this was last asked.
    pub(crate) fn take_bound(&self) -> bool {
        self.bound.swap(false, Ordering::AcqRel)
    }

    /// How often it was changed.
    pub(crate) fn version(&self) -> u64 {
        self.with(|state| state.version)
    }

    /// All names.
    pub(crate) fn names(&self) -> Vec<String> {
        self.with(|state| state.tensors.keys().cloned().collect())
    }

    /// Lets its tensors go.
    pub(crate) fn clear(&self) -> Result<(), Failure> {
        self.check_idle("end of a tensor set")?;
        let tensors = self.with(|state| std::mem::take(&mut state.tensors));
        for tensor in tensors.values() {
            tensor.sets.fetch_sub(1, Ordering::AcqRel);
        }
        Ok(())
    }
}
