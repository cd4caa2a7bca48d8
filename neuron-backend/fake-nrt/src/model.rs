//! A loaded NEFF, and the tensors that an execution of it is given.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::collectives::Group;
use crate::execute::Work;
use crate::handles::Handle;
use crate::memory::Charge;
use crate::neff::{Binding, Neff};
use crate::set::Set;
use crate::status::{Failure, refuse};
use crate::tensor::Tensor;

/// A loaded model.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) neff: Arc<Neff>,
    pub(crate) work: Arc<Work>,
    /// The core, as the process numbers them.
    pub(crate) core: u32,
    /// Its rank and the ranks that it runs with.
    pub(crate) member: Option<(u32, Arc<Group>)>,
    /// What its inputs and outputs are called.
    pub(crate) names: (Vec<String>, Vec<String>),
    /// Executions of it.
    pub(crate) running: AtomicU32,
    pub(crate) _charges: Vec<Charge>,
    /// What was bound before: the runtime caches descriptors of sets, too.
    pub(crate) bound: Mutex<HashMap<(Handle, Handle), Cached>>,
}

/// Tensors that were bound, and the versions of the sets that they were found in.
#[derive(Debug)]
pub(crate) struct Cached {
    versions: (u64, u64),
    bound: Arc<Bound>,
}

/// The tensors of an execution, in the order of the NEFF.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) inputs: Vec<Arc<Tensor>>,
    pub(crate) outputs: Vec<Arc<Tensor>>,
}

impl Model {
    /// What it is called in messages and journals.
    pub(crate) fn name(&self) -> &str {
        &self.neff.header.name
    }

    /// Its rank.
    pub(crate) fn rank(&self) -> Option<u32> {
        self.member.as_ref().map(|(rank, _)| *rank)
    }

    /// Whether no execution of it is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.load(Ordering::Acquire) == 0
    }

    /// The tensors of both sets, if an execution may have them.
    ///
    /// # Errors
    /// A name is missing or too many, a size is wrong, a tensor is on another core, or tensors share
    /// memory that must not or do not that must.
    pub(crate) fn bind(&self, inputs: &Set, outputs: &Set) -> Result<Arc<Bound>, Failure> {
        let key = (inputs.handle, outputs.handle);
        let versions = (inputs.version(), outputs.version());
        let mut cache = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cached) = cache.get(&key)
            && cached.versions == versions
        {
            return Ok(Arc::clone(&cached.bound));
        }
        let io = &self.neff.io;
        let bound = Arc::new(Bound {
            inputs: self.find("input", inputs, &self.names.0, &io.inputs)?,
            outputs: self.find("output", outputs, &self.names.1, &io.outputs)?,
        });
        self.check_sharing(&bound)?;
        let cached = Cached {
            versions,
            bound: Arc::clone(&bound),
        };
        cache.insert(key, cached);
        inputs.note_bound();
        outputs.note_bound();
        Ok(bound)
    }

    /// Forgets what was found in a set that changes or goes: else its tensors would live on here.
    pub(crate) fn forget(&self, set: Handle) {
        let mut cache = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|key, _| key.0 != set && key.1 != set);
    }

    /// The tensors of one set.
    fn find(
        &self,
        side: &str,
        set: &Set,
        names: &[String],
        bindings: &[Binding],
    ) -> Result<Vec<Arc<Tensor>>, Failure> {
        let model = self.name();
        let known: BTreeSet<_> = names.iter().map(String::as_str).collect();
        if let Some(other) = set
            .names()
            .iter()
            .find(|name| !known.contains(name.as_str()))
        {
            return Err(refuse!(
                EXEC_BAD_INPUT,
                "the {side} set has a tensor {other:?} that {model} does not know"
            ));
        }
        let pairs = names.iter().zip(bindings);
        let tensors = pairs.map(|(name, binding)| {
            let tensor = set.get(name).ok_or_else(|| {
                refuse!(
                    EXEC_BAD_INPUT,
                    "Unable to find {side} tensor {name} in {side} set, for {model}"
                )
            })?;
            self.check(name, &tensor, binding)?;
            Ok(tensor)
        });
        tensors.collect()
    }

    fn check(&self, name: &str, tensor: &Tensor, binding: &Binding) -> Result<(), Failure> {
        let (model, size, wanted) = (self.name(), tensor.size, binding.bytes());
        if size != wanted {
            return Err(refuse!(
                EXEC_BAD_INPUT,
                "tensor {name} of {model} has {size} bytes, not {wanted}"
            ));
        }
        if tensor.storage.core != Some(self.core) {
            return Err(refuse!(
                INVALID,
                "tensor on incorrect HBM: {name} of {model} on core {} is on {}",
                self.core,
                match tensor.storage.core {
                    Some(core) => format!("core {core}"),
                    None => "the host".to_owned(),
                }
            ));
        }
        Ok(())
    }

    /// An input that is an output must have its memory, and no other output may have any memory in
    /// common with another tensor of the execution.
    fn check_sharing(&self, bound: &Bound) -> Result<(), Failure> {
        let io = &self.neff.io;
        let name = self.name();
        for (index, output) in bound.outputs.iter().enumerate() {
            let alias = io.outputs[index].alias;
            if let Some(input) = alias
                && !bound.inputs[input].is(output)
            {
                return Err(refuse!(
                    EXEC_BAD_INPUT,
                    "input {} and output {} of {name} must be the same tensor: they share memory",
                    self.names.0[input],
                    self.names.1[index]
                ));
            }
            let inputs = bound.inputs.iter().zip(&self.names.0).enumerate();
            let inputs = inputs
                .filter(|(input, _)| Some(*input) != alias)
                .map(|(_, pair)| pair);
            let outputs = bound.outputs.iter().zip(&self.names.1).skip(index + 1);
            if let Some((_, other)) = inputs
                .chain(outputs)
                .find(|(other, _)| other.overlaps(output))
            {
                return Err(refuse!(
                    EXEC_BAD_INPUT,
                    "output {} of {name} has memory in common with {other}: an execution would \
                     overwrite one with the other",
                    self.names.1[index]
                ));
            }
        }
        Ok(())
    }
}

/// Tensors, sets and the model of an execution are in use while this lives.
#[derive(Debug)]
pub(crate) struct Use<'a> {
    bound: &'a Bound,
    running: [&'a AtomicU32; 3],
}

impl<'a> Use<'a> {
    pub(crate) fn begin(model: &'a Model, sets: [&'a Set; 2], bound: &'a Bound) -> Self {
        let running = [&model.running, &sets[0].running, &sets[1].running];
        for count in running {
            count.fetch_add(1, Ordering::AcqRel);
        }
        bound.inputs.iter().for_each(|tensor| tensor.begin(false));
        bound.outputs.iter().for_each(|tensor| tensor.begin(true));
        Self { bound, running }
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        self.bound
            .inputs
            .iter()
            .for_each(|tensor| tensor.end(false));
        self.bound
            .outputs
            .iter()
            .for_each(|tensor| tensor.end(true));
        for count in self.running {
            count.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
