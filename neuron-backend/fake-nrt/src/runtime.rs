//! The runtime between `nrt_init` and `nrt_close`, without C: what `abi.rs` calls and tests can.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::collectives::{Gate, Group, Outcome, Rank, Shared};
use crate::cores::Claim;
use crate::execute::{Execution, Work, injected, suffer};
use crate::faults::{Call, Effect, Faults, Place, Scope};
use crate::handles::{self, Handle, Handles};
use crate::journal::{Entry, Journal, Start, micros};
use crate::memory::{Charge, Kind, Memory};
use crate::model::{Bound, Model, Use};
use crate::neff::{Binding, Neff};
use crate::set::Set;
use crate::settings::Settings;
use crate::status::{Failure, Status, misuse, refuse};
use crate::tensor::{Room, Storage, Tensor};
use crate::xla::Devices;

/// Device memory that collectives take on a core: the least that was seen (neuron.md 4.2).
const COLLECTIVES: u64 = 80 << 20;
/// The first runtime (2.31) that takes tensors of 4 GiB and more (neuron.md 1.2).
const LARGE_TENSORS: [u64; 2] = [2, 31];
/// Where the first tensor pretends to be.
const FIRST_ADDRESS: u64 = 0x10_0000_0000;

/// Where numbers of handles go on after a runtime before: of models, tensors and sets.
pub(crate) type Numbers = [u64; 3];

/// A runtime.
#[derive(Debug)]
pub struct Runtime {
    settings: Settings,
    claim: Arc<Claim>,
    faults: Faults,
    journal: Journal,
    memory: Arc<Memory>,
    models: Handles<Model>,
    tensors: Handles<Tensor>,
    sets: Handles<Set>,
    cores: Vec<Core>,
    gate: Gate,
    neffs: Shared<Neff>,
    works: Shared<Work>,
    devices: OnceLock<Result<Devices, Failure>>,
    address: AtomicU64,
}

/// A logical core of this process.
#[derive(Debug)]
struct Core {
    /// What the runtime takes.
    _overhead: Charge,
    /// What collectives take, once there are some.
    collectives: OnceLock<Result<Charge, Failure>>,
    /// Whether it executes.
    busy: AtomicBool,
}

/// An input or output, as `nrt_get_model_tensor_info` lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Whether it is an output.
    pub output: bool,
    /// What it is.
    pub binding: Binding,
}

/// Where to load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// The core, as the process numbers them; -1 for any.
    pub core: i32,
    /// No longer used: -1, or 1.
    pub count: i32,
    /// The rank and the number of ranks; `None` for `nrt_load`.
    pub rank: Option<(u32, u32)>,
}

/// Where a tensor is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allocation {
    /// Its address.
    pub address: u64,
    /// Its bytes.
    pub bytes: u64,
    /// The bank, counted within its chip.
    pub bank: u32,
}

impl Runtime {
    /// Takes cores and their memory.
    ///
    /// # Errors
    /// Another process has one of the cores, or the environment makes no sense.
    pub(crate) fn open(
        settings: Settings,
        numbers: Numbers,
        claim: Option<Arc<Claim>>,
    ) -> Result<Self, Failure> {
        let start = Start::now();
        let journal = Journal::open(&settings)?;
        let faults = Faults::new(settings.faults.clone());
        struck(faults.strike(Call::Init, &Place::default(), Scope::All)?)?;
        let claim = match claim {
            Some(claim) => claim,
            None => Arc::new(Claim::take(&settings)?),
        };
        let memory = Memory::new(&settings);
        let cores = claim.cores.clone().map(|core| {
            Ok(Core {
                _overhead: memory.take(core, Kind::Runtime, "runtime", settings.overhead)?,
                collectives: OnceLock::new(),
                busy: AtomicBool::new(false),
            })
        });
        let cores = cores.collect::<Result<_, Failure>>()?;
        journal.note("init", start, Entry::default);
        Ok(Self {
            settings,
            claim,
            faults,
            journal,
            memory,
            models: Handles::new(handles::Kind::Model, numbers[0]),
            tensors: Handles::new(handles::Kind::Tensor, numbers[1]),
            sets: Handles::new(handles::Kind::Set, numbers[2]),
            cores,
            gate: Gate::default(),
            neffs: Shared::default(),
            works: Shared::default(),
            devices: OnceLock::new(),
            address: AtomicU64::new(FIRST_ADDRESS),
        })
    }

    pub(crate) fn claim(&self) -> Arc<Claim> {
        Arc::clone(&self.claim)
    }

    pub(crate) fn numbers(&self) -> Numbers {
        [self.models.next(), self.tensors.next(), self.sets.next()]
    }

    /// What it was opened with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The memory of the machine.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Refuses to close while something runs; lists what was never freed.
    pub(crate) fn leaks(&self) -> Result<Vec<String>, Failure> {
        let models = self.models.living();
        if let Some(model) = models.iter().find(|model| !model.is_idle()) {
            let name = model.name();
            return Err(misuse!(
                "nrt_close while an execution of {name} is under way"
            ));
        }
        let models = models
            .iter()
            .map(|model| format!("model {} on core {}", model.name(), model.core));
        let tensors = self.tensors.living();
        let tensors = tensors
            .iter()
            .map(|tensor| format!("tensor {:?} of {} bytes", tensor.name, tensor.size));
        let sets = self.sets.living();
        let sets = sets
            .iter()
            .map(|set| format!("tensor set {:?}", set.handle));
        Ok(models.chain(tensors).chain(sets).collect())
    }

    pub(crate) fn note_close(&self, start: Start, status: Status) {
        self.journal.note("close", start, || Entry {
            status: status.0,
            ..Entry::default()
        });
    }

    /// The machine's number of a core of this process.
    fn core(&self, core: u32) -> Result<u32, Failure> {
        let count = self.cores.len();
        if (core as usize) < count {
            return Ok(self.claim.cores.start + core);
        }
        Err(refuse!(
            INVALID,
            "there is no core {core}: this process has {count}"
        ))
    }

    // ---- Models ----

    /// Loads a NEFF; with a rank, together with the other ranks.
    ///
    /// # Errors
    /// It is no NEFF, or none for this device; there is no core or no memory for it; its ranks are
    /// others.
    pub fn load(&self, neff: &[u8], target: Target) -> Result<Handle, Failure> {
        let start = Start::now();
        let loaded = self.load_untimed(neff, target);
        self.journal.note("load", start, || {
            let model = loaded
                .as_ref()
                .ok()
                .and_then(|handle| self.models.get(*handle).ok());
            Entry {
                status: status_of(&loaded),
                core: u32::try_from(target.core).ok(),
                rank: target.rank.map(|(rank, _)| rank),
                model: model.map(|model| model.name().to_owned()),
                bytes: Some(neff.len() as u64),
                ..Entry::default()
            }
        });
        loaded
    }

    fn load_untimed(&self, bytes: &[u8], target: Target) -> Result<Handle, Failure> {
        let neff = Neff::read(bytes)?;
        let name = neff.header.name.clone();
        self.check_device(&neff)?;
        self.check_ranks(&neff, target)?;
        let core = self.pick(target)?;
        let place = Place {
            core: Some(core),
            rank: target.rank.map(|(rank, _)| rank),
            model: Some(&name),
            tensor: None,
        };
        struck(self.faults.strike(Call::Load, &place, Scope::All)?)?;
        let names = self.settings.names.of(&neff.io);
        for names in [&names.0, &names.1] {
            let distinct: BTreeSet<_> = names.iter().collect();
            if distinct.len() != names.len() {
                return Err(refuse!(
                    INVALID,
                    "{name} has two tensors of one name: {names:?}"
                ));
            }
        }
        let charges = self.reserve(&neff, core, target.rank.is_some())?;
        let (hash, ranks) = (neff.header.hash, neff.info.ranks);
        let neff = self.neffs.get((hash, ranks), || Ok(neff))?;
        let work = self.works.get((hash, ranks), || Ok(Work::default()))?;
        let member = self.join(core, target, hash)?;
        Ok(self.models.add(|_| Model {
            neff,
            work,
            core,
            member,
            names,
            running: AtomicU32::new(0),
            _charges: charges,
            bound: std::sync::Mutex::default(),
        }))
    }

    /// Refuses a NEFF for another device.
    fn check_device(&self, neff: &Neff) -> Result<(), Failure> {
        let topology = &self.settings.topology;
        let info = &neff.info;
        if !topology.runs(&info.target) {
            let own = topology.instance.chip.target;
            return Err(refuse!(
                UNSUPPORTED_NEFF_VERSION,
                "{} is for {}, and this is {own}: compile it with --target {own}",
                info.name,
                info.target
            ));
        }
        if info.lnc != topology.lnc {
            return Err(refuse!(
                INVALID,
                "{} is for logical cores of {}, and NEURON_LOGICAL_NC_CONFIG makes them of {}",
                info.name,
                info.lnc,
                topology.lnc
            ));
        }
        if self.settings.latency.is_none() && self.settings.plugin.is_none() {
            Devices::open(&self.settings)?;
        }
        Ok(())
    }

    /// Refuses ranks that are not those of the NEFF.
    fn check_ranks(&self, neff: &Neff, target: Target) -> Result<(), Failure> {
        let wanted = neff.info.ranks;
        let total = self.settings.topology.cores();
        if wanted > total {
            return Err(refuse!(
                LOAD_NOT_ENOUGH_NC,
                "{wanted} ranks on {total} cores"
            ));
        }
        if target.count != -1 && target.count != 1 {
            let count = target.count;
            return Err(refuse!(
                INVALID,
                "vnc_count is {count}: it is no longer used, pass -1"
            ));
        }
        let Some((rank, ranks)) = target.rank else {
            if wanted == 1 {
                return Ok(());
            }
            return Err(refuse!(
                INVALID,
                "the NEFF is for {wanted} ranks: load it with nrt_load_collectives"
            ));
        };
        if ranks != wanted || rank >= ranks {
            return Err(refuse!(
                INVALID,
                "rank {rank} of {ranks}, and the NEFF is for {wanted}"
            ));
        }
        self.check_root(ranks)
    }

    /// Refuses ranks that have no address to meet at.
    fn check_root(&self, ranks: u32) -> Result<(), Failure> {
        let root = self.settings.root.as_deref().unwrap_or_default();
        let port = root
            .split_once(':')
            .and_then(|(_, port)| port.parse::<u16>().ok());
        if ranks > 1 && port.is_none() {
            return Err(refuse!(
                INVALID,
                "collectives need NEURON_RT_ROOT_COMM_ID before nrt_init, such as 127.0.0.1:61239; \
                 it is {root:?}"
            ));
        }
        Ok(())
    }

    /// Whether a core could be this rank.
    ///
    /// # Errors
    /// There is no such core or rank, or the environment names no address to meet at.
    pub fn check_communicator(&self, core: i32, rank: u32, ranks: u32) -> Result<(), Failure> {
        let core = u32::try_from(core);
        self.core(core.map_err(|_| refuse!(INVALID, "a core must be named"))?)?;
        if rank >= ranks {
            return Err(refuse!(INVALID, "rank {rank} of {ranks}"));
        }
        self.check_root(ranks)
    }

    /// The core to load on.
    fn pick(&self, target: Target) -> Result<u32, Failure> {
        let count = self.cores.len();
        let core = match (u32::try_from(target.core), target.core) {
            (Ok(core), _) => core,
            (_, -1) => {
                let used: BTreeSet<_> = self
                    .models
                    .living()
                    .iter()
                    .map(|model| model.core)
                    .collect();
                (0..).find(|core| !used.contains(core)).unwrap_or(0)
            }
            _ => return Err(refuse!(INVALID, "there is no core {}", target.core)),
        };
        if (core as usize) < count {
            return Ok(core);
        }
        Err(refuse!(
            LOAD_NOT_ENOUGH_NC,
            "core {core} of {count} that this process has"
        ))
    }

    /// Takes what a NEFF needs besides its tensors.
    fn reserve(&self, neff: &Neff, core: u32, collectives: bool) -> Result<Vec<Charge>, Failure> {
        let here = self.core(core)?;
        let name = &neff.header.name;
        if collectives {
            let taken = self.cores[core as usize].collectives.get_or_init(|| {
                self.memory
                    .take(here, Kind::Collectives, "collectives", COLLECTIVES)
            });
            taken.as_ref().map_err(Clone::clone)?;
        }
        let reservation = neff.info.reservation;
        let needs = [
            (Kind::Code, reservation.code),
            (Kind::Rings, reservation.rings),
            (Kind::Scratchpad, reservation.scratchpad),
        ];
        let taken = needs.map(|(kind, bytes)| self.memory.take(here, kind, name, bytes));
        taken.into_iter().collect()
    }

    fn join(
        &self,
        core: u32,
        target: Target,
        hash: [u8; 32],
    ) -> Result<Option<(u32, Arc<Group>)>, Failure> {
        let Some((rank, ranks)) = target.rank else {
            return Ok(None);
        };
        let who = Rank { core, rank, ranks };
        let group = self.gate.join(who, hash, self.settings.timeout)?;
        Ok(Some((rank, group)))
    }

    /// Unloads a model.
    ///
    /// # Errors
    /// It is none, or it runs.
    pub fn unload(&self, handle: Handle) -> Result<(), Failure> {
        let start = Start::now();
        let model = self.models.get(handle)?;
        if !model.is_idle() {
            return Err(misuse!(
                "nrt_unload of {} while it is executed",
                model.name()
            ));
        }
        struck(
            self.faults
                .strike(Call::Unload, &place_of(&model), Scope::All)?,
        )?;
        self.models.remove(handle)?;
        self.journal
            .note("unload", start, || of_model(&model, Status::SUCCESS));
        Ok(())
    }

    /// The core of a model, as the process numbers them.
    ///
    /// # Errors
    /// It is none.
    pub fn model_core(&self, handle: Handle) -> Result<u32, Failure> {
        Ok(self.models.get(handle)?.core)
    }

    /// All inputs, then all outputs.
    ///
    /// # Errors
    /// It is no model.
    pub fn tensor_info(&self, handle: Handle) -> Result<Vec<TensorInfo>, Failure> {
        let model = self.models.get(handle)?;
        let io = &model.neff.io;
        let info = |output| {
            move |(name, binding): (&String, &Binding)| TensorInfo {
                name: name.clone(),
                output,
                binding: binding.clone(),
            }
        };
        let inputs = model.names.0.iter().zip(&io.inputs).map(info(false));
        let outputs = model.names.1.iter().zip(&io.outputs).map(info(true));
        Ok(inputs.chain(outputs).collect())
    }

    // ---- Tensor sets and executions ----

    /// A new set.
    pub fn allocate_set(&self) -> Handle {
        self.sets.add(Set::new)
    }

    /// Ends a set.
    ///
    /// # Errors
    /// It is none, or an execution uses it.
    pub fn destroy_set(&self, handle: Handle) -> Result<(), Failure> {
        self.sets.get(handle)?.clear()?;
        let set = self.sets.remove(handle)?;
        self.forget(&set);
        Ok(())
    }

    fn forget(&self, set: &Set) {
        if set.take_bound() {
            self.models
                .living()
                .iter()
                .for_each(|model| model.forget(set.handle));
        }
    }

    /// Adds a tensor to a set, or replaces the one of that name.
    ///
    /// # Errors
    /// One of them is none, or an execution uses the set.
    pub fn add_to_set(&self, set: Handle, name: &str, tensor: Handle) -> Result<(), Failure> {
        let set = self.sets.get(set)?;
        set.add(name, self.tensors.get(tensor)?)?;
        self.forget(&set);
        Ok(())
    }

    /// The tensor of a name in a set.
    ///
    /// # Errors
    /// It is no set, or has no such tensor (`FAILURE`).
    pub fn get_from_set(&self, set: Handle, name: &str) -> Result<Handle, Failure> {
        let tensor = self.sets.get(set)?.get(name);
        let tensor = tensor.ok_or_else(|| refuse!(FAILURE, "the set has no tensor {name:?}"))?;
        Ok(tensor.handle)
    }

    /// Runs a model, and waits for it.
    ///
    /// # Errors
    /// The tensors do not fit ([`Status::EXEC_BAD_INPUT`], [`Status::INVALID`]), another execution
    /// has the core (misuse), or the execution fails.
    pub fn execute(&self, model: Handle, inputs: Handle, outputs: Handle) -> Result<(), Failure> {
        let start = Start::now();
        let model = self.models.get(model)?;
        let (inputs, outputs) = (self.sets.get(inputs)?, self.sets.get(outputs)?);
        let bound = model.bind(&inputs, &outputs)?;
        let busy = &self.cores[model.core as usize].busy;
        if busy.swap(true, Ordering::AcqRel) {
            let name = model.name();
            return Err(misuse!(
                "nrt_execute of {name} while core {} executes: one execution at a time",
                model.core
            ));
        }
        let using = Use::begin(&model, [&inputs, &outputs], &bound);
        let outcome = self.execute_bound(&model, &bound);
        drop(using);
        busy.store(false, Ordering::Release);
        self.journal.note("execute", start, || Entry {
            device_us: outcome.as_ref().ok().copied().map(micros),
            ..of_model(&model, Status(status_of(&outcome)))
        });
        outcome.map(|_| ())
    }

    fn execute_bound(&self, model: &Model, bound: &Arc<Bound>) -> Outcome {
        let place = place_of(model);
        let Some((rank, group)) = &model.member else {
            let effect = self.faults.strike(Call::Execute, &place, Scope::All)?;
            return self.run(model, std::slice::from_ref(bound), effect);
        };
        let own = self.faults.strike(Call::Execute, &place, Scope::Rank)?;
        struck(own)?;
        group.execute(*rank, Arc::clone(bound), self.settings.timeout, |all| {
            let mut effect = self.faults.strike(Call::Execute, &place, Scope::Round)?;
            effect.nan |= own.nan;
            self.run(model, all, effect)
        })
    }

    fn run(&self, model: &Model, ranks: &[Arc<Bound>], effect: Effect) -> Outcome {
        let execution = Execution {
            settings: &self.settings,
            devices: &self.devices,
            neff: &model.neff,
            work: &model.work,
            effect,
        };
        execution.run(ranks)
    }

    // ---- Tensors ----

    /// A new tensor on a core (as the process numbers them), or on the host.
    ///
    /// # Errors
    /// There is no such core or no memory, or it has no bytes.
    pub fn allocate(&self, core: Option<u32>, bytes: u64, name: &str) -> Result<Handle, Failure> {
        let start = Start::now();
        let allocated = self.allocate_untimed(core, bytes, name);
        self.journal.note("tensor_allocate", start, || Entry {
            status: status_of(&allocated),
            core,
            tensor: Some(name.to_owned()),
            bytes: Some(bytes),
            ..Entry::default()
        });
        allocated
    }

    fn allocate_untimed(
        &self,
        core: Option<u32>,
        bytes: u64,
        name: &str,
    ) -> Result<Handle, Failure> {
        let place = Place {
            core,
            tensor: Some(name),
            ..Place::default()
        };
        let here = core.map(|core| self.core(core)).transpose()?;
        struck(
            self.faults
                .strike(Call::TensorAllocate, &place, Scope::All)?,
        )?;
        if bytes == 0 {
            return Err(refuse!(INVALID, "tensor {name:?} of no bytes"));
        }
        if bytes > u64::from(u32::MAX) && self.settings.version[..2] < LARGE_TENSORS[..] {
            return Err(misuse!(
                "tensor {name:?} of {bytes} bytes: 4 GiB and more are undefined before runtime 2.31"
            ));
        }
        let charge = |here| self.memory.take(here, Kind::Tensor, name, bytes);
        let storage = Storage::new(Room {
            core,
            address: self
                .address
                .fetch_add(bytes.next_multiple_of(4096), Ordering::Relaxed),
            size: bytes,
            charge: here.map(charge).transpose()?,
            computed: self.settings.latency.is_none(),
        });
        let storage = Arc::new(storage);
        Ok(self
            .tensors
            .add(|handle| Tensor::new(handle, name, storage, 0, bytes)))
    }

    /// A part of another tensor, which keeps its memory.
    ///
    /// # Errors
    /// It is none, or the part is not within it.
    pub fn slice(
        &self,
        of: Handle,
        offset: u64,
        bytes: u64,
        name: &str,
    ) -> Result<Handle, Failure> {
        let whole = self.tensors.get(of)?;
        let within = offset
            .checked_add(bytes)
            .is_some_and(|end| end <= whole.size);
        if bytes == 0 || !within {
            return Err(refuse!(
                INVALID,
                "{bytes} bytes from {offset} on of tensor {:?}, which has {}",
                whole.name,
                whole.size
            ));
        }
        let storage = Arc::clone(&whole.storage);
        let offset = whole.offset + offset;
        Ok(self
            .tensors
            .add(|handle| Tensor::new(handle, name, storage, offset, bytes)))
    }

    /// Frees a tensor. Its memory goes with its last part.
    ///
    /// # Errors
    /// It is none, or still in a set.
    pub fn free(&self, handle: Handle) -> Result<(), Failure> {
        let tensor = self.tensors.get(handle)?;
        if !tensor.is_free() {
            let name = &tensor.name;
            return Err(misuse!(
                "nrt_tensor_free of {name:?}, which is still in a tensor set"
            ));
        }
        self.tensors.remove(handle)?;
        Ok(())
    }

    /// The bytes of a tensor.
    ///
    /// # Errors
    /// It is none.
    pub fn size(&self, handle: Handle) -> Result<u64, Failure> {
        Ok(self.tensors.get(handle)?.size)
    }

    /// Where a tensor is.
    ///
    /// # Errors
    /// It is none, or on the host.
    pub fn allocation(&self, handle: Handle) -> Result<Allocation, Failure> {
        let tensor = self.tensors.get(handle)?;
        let core = tensor.storage.core;
        let core =
            core.ok_or_else(|| refuse!(INVALID, "tensor {:?} is on the host", tensor.name))?;
        let topology = &self.settings.topology;
        Ok(Allocation {
            address: tensor.storage.address + tensor.offset,
            bytes: tensor.size,
            bank: topology.bank(self.core(core)?) % topology.instance.chip.banks,
        })
    }

    /// Copies bytes from a tensor.
    ///
    /// # Errors
    /// It is none or shorter; misuse while an execution writes it.
    pub fn read(&self, handle: Handle, offset: u64, into: &mut [u8]) -> Result<(), Failure> {
        let bytes = into.len() as u64;
        self.touch(
            Call::TensorRead,
            "tensor_read",
            handle,
            bytes,
            |tensor, races| tensor.read(offset, into, races),
        )
    }

    /// Copies bytes into a tensor.
    ///
    /// # Errors
    /// It is none or shorter; misuse while an execution uses it.
    pub fn write(&self, handle: Handle, offset: u64, from: &[u8]) -> Result<(), Failure> {
        let bytes = from.len() as u64;
        self.touch(
            Call::TensorWrite,
            "tensor_write",
            handle,
            bytes,
            |tensor, races| tensor.write(offset, from, races),
        )
    }

    /// Sets bytes of a tensor.
    ///
    /// # Errors
    /// It is none or shorter; misuse while an execution uses it.
    pub fn fill(&self, handle: Handle, offset: u64, byte: u8, bytes: u64) -> Result<(), Failure> {
        self.touch(
            Call::TensorWrite,
            "tensor_memset",
            handle,
            bytes,
            |tensor, races| tensor.fill(offset, byte, bytes, races),
        )
    }

    /// Copies bytes from one tensor to another of the same core, or to or from the host.
    ///
    /// # Errors
    /// One is none or shorter, or they are on different cores; misuse while an execution uses them.
    pub fn copy(
        &self,
        (from, from_offset): (Handle, u64),
        (to, to_offset): (Handle, u64),
        bytes: u64,
    ) -> Result<(), Failure> {
        let source = self.tensors.get(from)?;
        self.touch(
            Call::TensorCopy,
            "tensor_copy",
            to,
            bytes,
            |target, races| {
                let cores = (source.storage.core, target.storage.core);
                if let (Some(from), Some(to)) = cores
                    && from != to
                {
                    return Err(refuse!(INVALID, "a copy from core {from} to core {to}"));
                }
                let size = usize::try_from(bytes).unwrap_or(usize::MAX);
                if bytes > source.size {
                    return Err(refuse!(
                        INVALID,
                        "{bytes} bytes of a tensor of {}",
                        source.size
                    ));
                }
                let mut between = vec![0; size];
                source.read(from_offset, &mut between, races)?;
                target.write(to_offset, &between, races)
            },
        )
    }

    /// Does something with a tensor's bytes, unless the faults forbid it.
    fn touch(
        &self,
        call: Call,
        name: &str,
        handle: Handle,
        bytes: u64,
        work: impl FnOnce(&Tensor, bool) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let start = Start::now();
        let tensor = self.tensors.get(handle)?;
        let place = Place {
            core: tensor.storage.core,
            tensor: Some(&tensor.name),
            ..Place::default()
        };
        let effect = self.faults.strike(call, &place, Scope::All)?;
        let races = self.settings.races || effect.unordered;
        let done = struck(effect).and_then(|()| work(&tensor, races));
        self.journal.note(name, start, || Entry {
            status: status_of(&done),
            core: tensor.storage.core,
            tensor: Some(tensor.name.clone()),
            bytes: Some(bytes),
            ..Entry::default()
        });
        done
    }

    // ---- Memory ----

    /// Bytes used and bytes there are, of the bank that serves a core of this process.
    ///
    /// # Errors
    /// There is no such core.
    pub fn memory_stats(&self, core: u32) -> Result<(u64, u64), Failure> {
        let here = self.core(core)?;
        let place = Place {
            core: Some(core),
            ..Place::default()
        };
        struck(self.faults.strike(Call::MemoryStats, &place, Scope::All)?)?;
        Ok(self.memory.stats(here))
    }
}

/// Suffers a fault, and fails if it says so.
fn struck(effect: Effect) -> Result<(), Failure> {
    suffer(&effect)?;
    effect.status.map_or(Ok(()), |status| Err(injected(status)))
}

fn status_of<T>(result: &Result<T, Failure>) -> u32 {
    result
        .as_ref()
        .err()
        .map_or(Status::SUCCESS, Failure::status)
        .0
}

fn place_of(model: &Model) -> Place<'_> {
    Place {
        core: Some(model.core),
        rank: model.rank(),
        model: Some(model.name()),
        tensor: None,
    }
}

fn of_model(model: &Model, status: Status) -> Entry {
    Entry {
        status: status.0,
        core: Some(model.core),
        rank: model.rank(),
        model: Some(model.name().to_owned()),
        ..Entry::default()
    }
}
