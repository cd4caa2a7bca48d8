//! What memory a prepared model really takes, beside what was expected: its tensors are allocated and
//! its modules loaded, without its weights.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use graph::proto::HloModule;
use graph::{Footprint, Parts, Port};
use serde_json::{Value, json};

use super::bench::{Plan, read, told};
use crate::artifact::{Bundle, MANIFEST};
use crate::nrt::{self, NrtError, Runtime};
use crate::rank::{Module, Rank, is_shared};
use crate::ranks::{Lost, Places, Ranks};

/// Bytes that an estimate may be too low by: the step in which the runtime's scratchpad grows.
const SLACK: u64 = 64 << 20;

/// Directories of bundles in a store, or the store itself if it is one.
pub(super) fn in_store(store: &Path) -> Vec<PathBuf> {
    let is_bundle = |path: &PathBuf| path.join(MANIFEST).is_file();
    let root = Some(store.to_owned()).filter(is_bundle);
    let entries = fs::read_dir(store).into_iter().flatten().flatten();
    let within = entries.map(|entry| entry.path()).filter(is_bundle);
    let mut bundles: Vec<_> = root.into_iter().chain(within).collect();
    bundles.sort();
    bundles
}

/// Memory of a bundle on its first core, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Measured {
    tensors: u64,
    tensors_expected: u64,
    loading: u64,
    loading_expected: u64,
    limit: u64,
}

impl Measured {
    /// Whether plans made by the estimate may not fit.
    pub(super) fn is_more_than_expected(self) -> bool {
        let more = |found: u64, expected: u64| found > expected + SLACK;
        more(
            self.tensors,
            self.tensors_expected + self.tensors_expected / 100,
        ) || more(self.loading, self.loading_expected)
    }

    pub(super) fn json(self) -> Value {
        json!({
            "tensors": self.tensors, "tensors_expected": self.tensors_expected,
            "loading": self.loading, "loading_expected": self.loading_expected,
            "limit": self.limit,
        })
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tensors,
            tensors_expected,
            loading,
            loading_expected,
            ..
        } = self;
        write!(
            f,
            "tensors take {tensors} bytes of {tensors_expected} expected, and loading its modules \
             {loading} of {loading_expected}"
        )
    }
}

/// Allocates and loads a bundle, and measures.
pub(super) fn measure(runtime: &Runtime, plan: &Plan, path: &Path) -> Result<Measured, String> {
    let bundle = Bundle::open(path).map_err(told)?;
    let manifest = bundle.manifest();
    let (compiler, ranks) = (&manifest.compiler, manifest.form.ranks);
    if (compiler.target, compiler.lnc) != (plan.target, plan.lnc) || ranks > plan.count() {
        return Err(format!(
            "it is for {ranks} logical cores of {} with {} physical ones each, and does not run here",
            compiler.target, compiler.lnc
        ));
    }
    let used = || -> Result<nrt::MemoryStats, String> {
        let memory = runtime.memory(0).map_err(told)?;
        memory.ok_or_else(|| "this runtime does not tell how much memory is used".to_owned())
    };
    let before = used()?.used;
    let mut threads: Ranks<Option<Rank>> =
        Ranks::start(ranks as usize, &Places::anywhere(), |_| None).map_err(told)?;
    let ports = shared(&bundle);
    allocate(&mut threads, runtime, plan, &ports)?;
    let allocated = used()?.used;
    let mut footprints = Vec::new();
    for module in &manifest.modules {
        let hlo = HloModule::from_bytes(&read(&bundle.hlo(module.bucket))?).map_err(told)?;
        footprints.push(Footprint::of(&hlo).map_err(told)?);
        let module = Module {
            bucket: module.bucket,
            layout: module.layout.clone(),
            neff: read(&bundle.neff(module.bucket))?,
        };
        let flight = threads.begin(move |_, state| match state {
            Some(rank) => rank.load(&module),
            None => Ok(()),
        });
        done(flight.wait(plan.patience).map_err(told)?)?;
    }
    let after = used()?;
    let own = manifest.modules.iter().flat_map(|module| {
        let ports = module.layout.inputs.iter().chain(&module.layout.outputs);
        ports.filter(|port| !is_shared(port)).map(Port::bytes)
    });
    let own: u64 = own.sum();
    let expected = Parts::loading(ranks, &footprints);
    Ok(Measured {
        tensors: allocated.saturating_sub(before),
        tensors_expected: ports.iter().map(Port::bytes).sum(),
        loading: after.used.saturating_sub(allocated),
        // The runtime's own was there before.
        loading_expected: own + expected.overhead() - expected.runtime,
        limit: after.limit,
    })
}

/// What all modules of a bundle share, once.
fn shared(bundle: &Bundle) -> Arc<[Port]> {
    let mut ports: Vec<Port> = Vec::new();
    for module in &bundle.manifest().modules {
        for port in module.layout.inputs.iter().filter(|port| is_shared(port)) {
            if !ports.iter().any(|known| known.name == port.name) {
                ports.push(port.clone());
            }
        }
    }
    ports.into()
}

fn allocate(
    threads: &mut Ranks<Option<Rank>>,
    runtime: &Runtime,
    plan: &Plan,
    ports: &Arc<[Port]>,
) -> Result<(), String> {
    let (ports, runtime) = (Arc::clone(ports), runtime.clone());
    let count = u32::try_from(threads.count()).map_err(told)?;
    let flight = threads.begin(move |index, state| {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let place = nrt::Rank { index, count };
        *state = Some(Rank::new(&runtime, index, place, &ports)?);
        Ok(())
    });
    done(flight.wait(plan.patience).map_err(told)?)
}

fn done(answers: Vec<Result<Result<(), NrtError>, Lost>>) -> Result<(), String> {
    for (rank, answer) in answers.into_iter().enumerate() {
        let answer = answer.map_err(told)?;
        answer.map_err(|error| format!("rank {rank}: {error}"))?;
    }
    Ok(())
}
