//! Bytes of device memory that one rank needs, known before anything is compiled or loaded.
//!
//! Weights, KV and step inputs are exact: they are the ports of [`Layout`]. The rest is an estimate
//! after `neuron.md` 4.2 (AWS's page on device memory, and what others measured); each part says
//! how it is estimated. Only `nrt_get_vnc_memory_stats` on the device tells.

use std::collections::BTreeMap;
use std::fmt;

use model::Decoder;

use crate::bucket::{Bucket, Form, KvFormat, WeightFormat};
use crate::flow::{Flow, Held, is_elementwise};
use crate::form::FormError;
use crate::layout::{Content, Layout};
use crate::lower::{LowerError, lower};
use crate::proto::HloModule;
use crate::target::Target;
use crate::view::{Malformed, View};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The scratchpad, shared by all modules, grows in steps of this.
const SCRATCHPAD_STEP: u64 = 64 * MIB;
/// The runtime's own on each core: about 0.13 GiB.
const RUNTIME: u64 = 133 * MIB;
/// Microcode of each core.
const MICROCODE: u64 = 96 * MIB;
/// Buffers of collectives: 0.08 GB among two ranks to 0.5 GB among many, here 32 and more.
const COLLECTIVES: [u64; 2] = [80_000_000, 500_000_000];
/// A machine instruction.
const INSTRUCTION: u64 = 64;
/// A DMA descriptor: about 32 bytes for each contiguous run that is moved.
const DESCRIPTOR: u64 = 32;
/// Rows and columns that one instruction of the matrix engine takes: 128 to contract, 128 that
/// stay, 512 that move.
const TILE: [u64; 3] = [128, 128, 512];
/// Sets of a step's inputs and outputs: one that runs, one that is filled.
const SETS: u64 = 2;

/// What one module needs beside the tensors that all modules share.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Footprint {
    /// Bytes of its inputs and outputs, those that share memory counted once.
    pub ports: u64,
    /// The largest sum of bytes of intermediate values at one time. What of them is on chip needs
    /// no scratchpad, but that is the compiler's choice.
    pub workspace: u64,
    /// Machine instructions, about: tiles of products, and 128 x 512 elements of all else.
    pub instructions: u64,
    /// DMA descriptors, about: rows of 512 columns of what is read whole, contiguous runs of what
    /// is gathered and scattered.
    pub descriptors: u64,
}

impl Footprint {
    /// Of a module.
    ///
    /// # Errors
    /// A module whose references lead nowhere.
    pub fn of(module: &HloModule) -> Result<Self, Malformed> {
        Ok(Self::of_view(&View::of(module)?))
    }

    pub(crate) fn of_view(view: &View<'_>) -> Self {
        let flow = Flow::of(view);
        let aliased = |output: &&usize| view.aliases.iter().all(|(one, _)| one != *output);
        let ports = view.parameters.values();
        let ports = ports.chain(view.outputs.iter().filter(aliased));
        let places = 0..view.instructions.len();
        Self {
            ports: ports.map(|&place| view.bytes(place)).sum(),
            workspace: flow.peak,
            instructions: places.clone().map(|place| instructions(view, place)).sum(),
            descriptors: places.map(|place| descriptors(view, &flow, place)).sum(),
        }
    }
}

/// Machine instructions that compute an instruction's value, about.
fn instructions(view: &View<'_>, place: usize) -> u64 {
    let elements = view.elements(place);
    match view.opcode(place) {
        "dot" => {
            let [contract, stay, moving] = TILE;
            let summed = view.contracted(place).div_ceil(contract);
            let sizes = dot_sizes(view, place);
            let [batch, left, right] = sizes;
            // Either operand may be the one that stays.
            let tiles = |a: u64, b: u64| a.div_ceil(stay) * b.div_ceil(moving);
            batch * summed * tiles(left, right).min(tiles(right, left))
        }
        "gather" | "scatter" | "reduce" | "transpose" | "concatenate" | "pad" | "slice" => {
            elements.div_ceil(TILE[0] * TILE[2])
        }
        opcode if is_elementwise(opcode) => elements.div_ceil(TILE[0] * TILE[2]),
        "custom-call" | "all-reduce" | "all-gather" | "reduce-scatter" => 64,
        _ => 0,
    }
}

/// Batches, rows of the left and columns of the right of a product.
fn dot_sizes(view: &View<'_>, place: usize) -> [u64; 3] {
    let numbers = view.instructions[place].dot_dimension_numbers.as_ref();
    let batches = numbers.map_or(0, |numbers| numbers.lhs_batch_dimensions.len());
    let own = view.dimensions(place);
    let size = |sizes: &[i64]| crate::view::count(sizes);
    let batches = batches.min(own.len());
    let batch = size(&own[..batches]);
    let left = view.operand(place, 0).map_or(1, |one| view.elements(one));
    let left = left / (batch * view.contracted(place)).max(1);
    let all = view.elements(place) / batch.max(1);
    [batch, left, all / left.max(1)]
}

/// DMA descriptors that move what an instruction reads of parameters and writes into them, about.
fn descriptors(view: &View<'_>, flow: &Flow, place: usize) -> u64 {
    let runs = |of: usize, bytes: u64, run: u64| {
        let element = view.bytes(of) / view.elements(of).max(1);
        bytes.div_ceil((run * element).max(1))
    };
    let row = |of: usize| {
        let columns = view.dimensions(of).last().copied().unwrap_or(1);
        u64::try_from(columns).unwrap_or(1).max(1)
    };
    let read = flow.reads[place]
        .iter()
        .filter(|(from, _)| flow.held[*from] == Held::Outside)
        .map(|&(from, bytes)| match view.opcode(place) {
            "gather" => runs(from, bytes, window(view, place)),
            _ => runs(from, bytes, row(from).min(TILE[2])),
        });
    let written = match (flow.held[place], view.operand(place, 2)) {
        (Held::InPlace, Some(updates)) => runs(updates, view.bytes(updates), row(updates)),
        _ => 0,
    };
    read.sum::<u64>() + written
}

/// Elements of one slice of a gather.
fn window(view: &View<'_>, place: usize) -> u64 {
    crate::view::count(&view.instructions[place].gather_slice_sizes)
}

/// Bytes that one rank needs of its core's memory.
#[derive(Clone, PartialEq, Debug)]
pub struct Memory {
    decoder: Decoder,
    form: Form,
    parts: Parts,
    modules: usize,
}

/// [`Memory`] by what it is for. Bytes of one rank.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Parts {
    /// Matrices, their scales, norms and biases.
    pub weights: u64,
    /// Keys and values of all pages.
    pub kv: u64,
    /// Rotary tables, the rank, and for every module two sets of a step's inputs and results.
    pub ports: u64,
    /// Intermediate values: what the largest module needs, in steps of 64 MiB.
    pub scratchpad: u64,
    /// Machine instructions of all modules.
    pub code: u64,
    /// DMA rings of all modules.
    pub rings: u64,
    /// Buffers of collectives.
    pub collectives: u64,
    /// The runtime's own, microcode included.
    pub runtime: u64,
}

impl Parts {
    /// What comes with loading modules of these footprints on each of `ranks` ranks, and no tensors.
    pub fn loading(ranks: u32, modules: &[Footprint]) -> Self {
        let largest = modules.iter().map(|one| one.workspace).max();
        let sum = |of: fn(&Footprint) -> u64| modules.iter().map(of).sum::<u64>();
        Self {
            scratchpad: largest.unwrap_or(0).next_multiple_of(SCRATCHPAD_STEP),
            code: INSTRUCTION * sum(|one| one.instructions),
            rings: DESCRIPTOR * sum(|one| one.descriptors),
            collectives: collectives(ranks),
            runtime: RUNTIME + MICROCODE,
            ..Self::default()
        }
    }

    /// What we allocate ourselves.
    pub fn tensors(&self) -> u64 {
        self.weights + self.kv + self.ports
    }

    /// What comes with loading modules: an estimate.
    pub fn overhead(&self) -> u64 {
        self.scratchpad + self.code + self.rings + self.collectives + self.runtime
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.tensors() + self.overhead()
    }
}

impl Memory {
    /// Of a bundle of these buckets: each is lowered, and nothing compiled.
    ///
    /// # Errors
    /// A form or bucket that cannot be lowered.
    pub fn of(decoder: &Decoder, form: &Form, buckets: &[Bucket]) -> Result<Self, MemoryError> {
        let footprint = |&bucket: &Bucket| {
            let module = lower(decoder, form, bucket)?;
            Ok((bucket, Footprint::of(&module.proto)?))
        };
        let footprints: Result<Vec<_>, MemoryError> = buckets.iter().map(footprint).collect();
        Ok(Self::of_footprints(decoder, form, &footprints?)?)
    }

    /// Of a bundle whose modules are lowered: the buckets, each with its module.
    ///
    /// # Errors
    /// A form or bucket that cannot be, and a module whose references lead nowhere.
    pub fn of_modules(
        decoder: &Decoder,
        form: &Form,
        modules: &[(Bucket, HloModule)],
    ) -> Result<Self, MemoryError> {
        let footprints: Result<Vec<_>, Malformed> = modules
            .iter()
            .map(|(bucket, module)| Ok((*bucket, Footprint::of(module)?)))
            .collect();
        Ok(Self::of_footprints(decoder, form, &footprints?)?)
    }

    /// Of a bundle whose modules' footprints are known.
    ///
    /// # Errors
    /// A form or bucket that cannot be.
    pub fn of_footprints(
        decoder: &Decoder,
        form: &Form,
        modules: &[(Bucket, Footprint)],
    ) -> Result<Self, FormError> {
        let buckets: Vec<_> = modules.iter().map(|(bucket, _)| *bucket).collect();
        let Parts {
            weights, kv, ports, ..
        } = tensors(decoder, form, &buckets)?;
        let footprints: Vec<_> = modules.iter().map(|(_, one)| *one).collect();
        let parts = Parts {
            weights,
            kv,
            ports,
            ..Parts::loading(form.ranks, &footprints)
        };
        Ok(Self {
            decoder: decoder.clone(),
            form: form.clone(),
            parts,
            modules: modules.len(),
        })
    }

    /// Bytes by what they are for.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Whether a core of `target`, of `logical` physical ones, holds it: tensors may take 80 % of
    /// the memory of inf2 and trn1 and 85 % of that of trn2 and trn3, and all must fit.
    ///
    /// # Errors
    /// [`TooLarge`] with what would fit.
    pub fn fit(&self, target: Target, logical: u32) -> Result<(), Box<TooLarge>> {
        let room = Room::of(target, logical);
        if room.holds(&self.parts) {
            return Ok(());
        }
        Err(Box::new(TooLarge {
            target,
            memory: room.memory,
            tensor_memory: room.tensors,
            parts: self.parts,
            advice: self.advice(room),
        }))
    }

    /// What would fit in place of this, one change at a time.
    fn advice(&self, room: Room) -> Vec<Advice> {
        let mut advice = Vec::new();
        let page = self.parts.kv / u64::from(self.form.pages.max(1));
        let without = Parts {
            kv: 0,
            ..self.parts
        };
        if let Some(pages) = room.left(&without).checked_div(page)
            && let pages @ 2.. = u32::try_from(pages).unwrap_or(u32::MAX)
        {
            advice.push(Advice::Pages {
                pages,
                positions: u64::from(pages - 1) * u64::from(self.form.page_tokens),
            });
        }
        let mut change = |change: &dyn Fn(&mut Form), advise: &dyn Fn(u64) -> Advice| {
            let mut form = self.form.clone();
            change(&mut form);
            if let Some(parts) = self.changed(&form)
                && room.holds(&parts)
                && form != self.form
            {
                advice.push(advise(parts.tensors()));
                return true;
            }
            false
        };
        for weights in [WeightFormat::Fp8, WeightFormat::Int8] {
            if self.form.weights == WeightFormat::Bf16 {
                change(&|form| form.weights = weights, &|bytes| Advice::Weights {
                    weights,
                    bytes,
                });
            }
        }
        change(&|form| form.kv = KvFormat::Fp8, &|bytes| Advice::Kv {
            bytes,
        });
        let more = self.form.ranks + 1..=self.decoder.attention.heads;
        for ranks in more {
            let advise = |bytes| Advice::Ranks { ranks, bytes };
            if change(&|form| form.ranks = ranks, &advise) {
                break;
            }
        }
        advice
    }

    /// The same bundle in another form: weights and KV anew, and all else but the collectives'
    /// buffers as it is.
    fn changed(&self, form: &Form) -> Option<Parts> {
        let tensors = tensors(&self.decoder, form, &[WHOLE]).ok()?;
        Some(Parts {
            weights: tensors.weights,
            kv: tensors.kv,
            collectives: collectives(form.ranks),
            ..self.parts
        })
    }
}

/// A bucket that takes every weight.
const WHOLE: Bucket = Bucket::Step {
    rows: 1,
    tokens: 1,
    pages: 1,
    head: crate::bucket::Head::Last,
};

/// Exactly what tensors take: what all modules share once, what is each one's own in two sets.
fn tensors(decoder: &Decoder, form: &Form, buckets: &[Bucket]) -> Result<Parts, FormError> {
    let mut shared = BTreeMap::new();
    let mut parts = Parts::default();
    for &bucket in buckets {
        let layout = Layout::of(decoder, form, bucket)?;
        for port in layout.inputs.iter().chain(&layout.outputs) {
            match port.content {
                Content::Ints | Content::Masks | Content::Candidates | Content::Embedding => {
                    parts.ports += SETS * port.bytes();
                }
                _ => {
                    shared.insert(port.name.clone(), port.clone());
                }
            }
        }
    }
    for port in shared.values() {
        let part = match port.content {
            Content::Weight(_) | Content::Scale(_) => &mut parts.weights,
            Content::Keys(_) | Content::Values(_) => &mut parts.kv,
            _ => &mut parts.ports,
        };
        *part += port.bytes();
    }
    Ok(parts)
}

/// Between both known ends, by how often ranks double.
fn collectives(ranks: u32) -> u64 {
    let [two, many] = COLLECTIVES;
    match ranks.checked_ilog2() {
        None | Some(0) => 0,
        Some(doubled) => two + (many - two) / 4 * u64::from((doubled - 1).min(4)),
    }
}

/// What a core has.
#[derive(Clone, Copy)]
struct Room {
    memory: u64,
    tensors: u64,
}

impl Room {
    fn of(target: Target, logical: u32) -> Self {
        let facts = target.facts();
        Self {
            memory: facts.memory(logical),
            tensors: facts.tensor_memory(logical),
        }
    }

    fn holds(self, parts: &Parts) -> bool {
        parts.tensors() <= self.tensors && parts.total() <= self.memory
    }

    /// What could be added.
    fn left(self, parts: &Parts) -> u64 {
        let tensors = self.tensors.saturating_sub(parts.tensors());
        tensors.min(self.memory.saturating_sub(parts.total()))
    }
}

/// Why the memory of a bundle is not known.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// There is no such form or bucket.
    #[error(transparent)]
    Form(#[from] FormError),
    /// It cannot be lowered.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// A module of it is broken.
    #[error(transparent)]
    Module(#[from] Malformed),
}

/// A bundle that a core does not hold.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "a core of {target} has {}, of which tensors may take {}, and a rank needs {} for weights, {} \
     for KV and {} for inputs and results, in all {} with an estimated {} that come with loading: {}",
    size(*memory), size(*tensor_memory), size(parts.weights), size(parts.kv), size(parts.ports),
    size(parts.total()), size(parts.overhead()), advised(advice)
)]
pub struct TooLarge {
    /// What for.
    pub target: Target,
    /// Bytes that a core has.
    pub memory: u64,
    /// Of these, bytes that tensors may take.
    pub tensor_memory: u64,
    /// Bytes that are needed.
    pub parts: Parts,
    /// What would fit, any one of them; none if no single change does.
    pub advice: Vec<Advice>,
}

/// A change that makes a bundle fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// At most so many KV pages.
    Pages {
        /// The null page included.
        pages: u32,
        /// Positions that the others hold.
        positions: u64,
    },
    /// Matrices in fewer bits.
    Weights {
        /// How.
        weights: WeightFormat,
        /// Bytes that tensors then take.
        bytes: u64,
    },
    /// KV in FP8.
    Kv {
        /// Bytes that tensors then take.
        bytes: u64,
    },
    /// More ranks.
    Ranks {
        /// The fewest that do.
        ranks: u32,
        /// Bytes that tensors then take.
        bytes: u64,
    },
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pages { pages, positions } => {
                write!(f, "at most {pages} KV pages ({positions} positions)")
            }
            Self::Weights { weights, bytes } => {
                let name = match weights {
                    WeightFormat::Bf16 => "bf16",
                    WeightFormat::Fp8 => "fp8",
                    WeightFormat::Int8 => "int8",
                };
                write!(f, "{name} weights (tensors take {})", size(*bytes))
            }
            Self::Kv { bytes } => write!(f, "fp8 KV (tensors take {})", size(*bytes)),
            Self::Ranks { ranks, bytes } => {
                write!(f, "{ranks} ranks (tensors take {} each)", size(*bytes))
            }
        }
    }
}

/// `would fit: a; or b`.
fn advised(advice: &[Advice]) -> String {
    match advice {
        [] => "no single change would fit; combine fewer KV pages, fp8 weights, fp8 KV and more \
               ranks, or choose a target with more memory"
            .into(),
        _ => {
            let all: Vec<_> = advice.iter().map(Advice::to_string).collect();
            format!("any of these would fit: {}", all.join("; "))
        }
    }
}

/// Bytes for a reader.
fn size(bytes: u64) -> String {
    match bytes {
        GIB.. => format!("{:.2} GiB", bytes as f64 / GIB as f64),
        _ => format!("{:.1} MiB", bytes as f64 / MIB as f64),
    }
}

impl fmt::Display for Memory {
    /// A table, a line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts {
            weights,
            kv,
            ports,
            scratchpad,
            code,
            rings,
            collectives,
            runtime,
        } = self.parts;
        let form = &self.form;
        writeln!(
            f,
            "memory of each of {} ranks, {} modules",
            form.ranks, self.modules
        )?;
        let pages = format!("{} pages of {} positions", form.pages, form.page_tokens);
        let lines = [
            ("weights", weights, ""),
            ("KV", kv, pages.as_str()),
            ("inputs and results", ports, ""),
            ("scratchpad", scratchpad, "estimate: the largest module's"),
            ("code", code, "estimate"),
            ("DMA rings", rings, "estimate"),
            ("collectives", collectives, "estimate"),
            ("runtime", runtime, "estimate"),
            ("total", self.parts.total(), ""),
        ];
        for (name, bytes, note) in lines {
            let line = format!("  {name:<20}{:>12}  {note}", size(bytes));
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
