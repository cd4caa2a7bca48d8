//! What one execution of a module costs: bytes moved to and from device memory, and operations.
//!
//! Counted from the module alone, by this model of a compiler that we cannot see into:
//! - buffers are where [`crate::flow`] says: on chip as long as they fit the on-chip memory of
//!   *one* physical core (the second of a logical core is left for weights that stream through);
//! - a parameter is read by each instruction that takes it: whole, or as much as is sliced or
//!   gathered; a scatter in place writes its updates and nothing else;
//! - a product reads both its operands once, or, if neither fits half the on-chip memory, the
//!   larger once for every such half of the smaller;
//! - a collective reads and writes device memory once each; what it moves between chips is not
//!   counted;
//! - what is on chip costs nothing, and no work is done twice.
//!
//! The compiler may do worse (spills inside loops, layout changes, gathers by small pieces) and in
//! places better (a buffer that never is: attention by one kernel). Only hardware tells.

use model::{Decoder, Mlp};

use crate::bucket::{Form, KvFormat, WeightFormat};
use crate::cut::Cut;
use crate::flow::{Flow, Held};
use crate::form::FormError;
use crate::proto::HloModule;
use crate::target::Target;
use crate::view::{Malformed, View};

/// What one execution costs one rank. Bytes are those of device memory.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Cost {
    /// Bytes of weights that are read: of every parameter but those below.
    pub weights: u64,
    /// Bytes of the cache that are read and written: of parameters that outputs share memory with.
    pub kv: u64,
    /// All other bytes: what buffers that are not on chip are written and read, collectives, step
    /// inputs, rotary tables, results.
    pub other: u64,
    /// Operations of products, a multiplication and an addition counted as two.
    pub flops: u64,
    /// The largest sum of intermediate values at one time, on chip or not.
    pub workspace: u64,
}

/// Parameters that are neither weights nor cache.
const NO_WEIGHTS: [&str; 5] = ["ints", "masks", "rank", "rope.cos", "rope.sin"];

impl Cost {
    /// What one execution of `module` costs on `target`.
    ///
    /// # Errors
    /// A module whose references lead nowhere.
    pub fn of(module: &HloModule, target: Target) -> Result<Self, Malformed> {
        let view = View::of(module)?;
        let flow = Flow::of(&view);
        let on_chip = target.facts().on_chip;
        let spilled = flow.spilled(&view, on_chip);
        let mut cost = Self {
            workspace: flow.peak,
            ..Self::default()
        };
        for place in 0..view.instructions.len() {
            cost.flops += view.dot_flops(place);
            for (from, bytes) in passes(&view, &flow, place, on_chip) {
                match flow.held[from] {
                    Held::Outside => *cost.account(&view, from) += bytes,
                    _ if spilled[from] => cost.other += bytes,
                    _ => (),
                }
            }
            cost.add_writes(&view, &flow, place, spilled[place]);
        }
        Ok(cost)
    }

    /// Bytes moved in all.
    pub fn bytes(&self) -> u64 {
        self.weights + self.kv + self.other
    }

    /// What an instruction writes to device memory.
    fn add_writes(&mut self, view: &View<'_>, flow: &Flow, place: usize, spilled: bool) {
        let whole = view.bytes(place);
        match flow.held[place] {
            Held::InPlace => {
                let updates = match view.opcode(place) {
                    "scatter" => view.operand(place, 2),
                    _ => view.operand(place, 1),
                };
                let home = home(view, flow, place);
                let bytes = updates.map_or(0, |updates| view.bytes(updates));
                match flow.held[home] {
                    Held::Outside => *self.account(view, home) += bytes,
                    _ => self.other += bytes,
                }
            }
            Held::Buffer if is_collective(view.opcode(place)) => self.other += 2 * whole,
            Held::Buffer => {
                let aliased = view.aliases.iter().find(|&&(output, _)| output == place);
                if let Some(&(_, parameter)) = aliased {
                    *self.account(view, parameter) += whole;
                } else if spilled || view.outputs.contains(&place) {
                    self.other += whole;
                }
            }
            Held::Nowhere | Held::Outside => (),
        }
    }

    /// The account that a parameter's bytes go to.
    fn account(&mut self, view: &View<'_>, parameter: usize) -> &mut u64 {
        let aliased = view.aliases.iter().any(|&(_, one)| one == parameter);
        let name = view.input_name(parameter).unwrap_or_default();
        match name {
            _ if aliased => &mut self.kv,
            name if NO_WEIGHTS.contains(&name) => &mut self.other,
            _ => &mut self.weights,
        }
    }
}

/// Whether an operation goes over the links between chips.
fn is_collective(opcode: &str) -> bool {
    matches!(
        opcode,
        "all-reduce" | "all-gather" | "reduce-scatter" | "all-to-all"
    )
}

/// What holds the memory that a write in place changes.
fn home(view: &View<'_>, flow: &Flow, mut place: usize) -> usize {
    while let (Held::InPlace | Held::Nowhere, Some(operand)) =
        (flow.held[place], view.operand(place, 0))
    {
        place = operand;
    }
    place
}

/// What an instruction reads, with as many passes over the larger operand of a product as the
/// smaller needs.
fn passes(view: &View<'_>, flow: &Flow, place: usize, on_chip: u64) -> Vec<(usize, u64)> {
    let mut reads = flow.reads[place].clone();
    let Some(numbers) = &view.instructions[place].dot_dimension_numbers else {
        return reads;
    };
    let [left, right] = view.operands[place][..] else {
        return reads;
    };
    let batch: u64 = numbers
        .lhs_batch_dimensions
        .iter()
        .filter_map(|&at| view.dimensions(left).get(usize::try_from(at).ok()?))
        .map(|&size| u64::try_from(size).unwrap_or(1))
        .product();
    let smaller = view.bytes(left).min(view.bytes(right)) / batch.max(1);
    let passes = smaller.div_ceil(on_chip / 2).max(1);
    if let Some((_, bytes)) = reads.iter_mut().max_by_key(|(_, bytes)| *bytes) {
        *bytes = bytes.saturating_mul(passes);
    }
    reads
}

/// The least that one decode step must move, for one rank: every weight once, nothing padded, and
/// the keys and values that the rows attend to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ideal {
    /// Bytes of weights: all matrices, scales and norms of a rank, and of the embedding only the
    /// rows' own vectors.
    pub weights: u64,
    /// Bytes of the cache: keys and values of `context` positions a row read, of one written.
    pub kv: u64,
}

impl Ideal {
    /// Of a step of `rows` rows, each of one token after `context` others.
    ///
    /// # Errors
    /// A number of ranks that heads cannot be shared out among.
    pub fn of(decoder: &Decoder, form: &Form, rows: u32, context: u32) -> Result<Self, FormError> {
        let cut = Cut::of(decoder, form.ranks)?;
        let attention = &decoder.attention;
        let [hidden, vocabulary, ranks, head_size] = [
            decoder.hidden,
            decoder.vocabulary,
            form.ranks,
            attention.head_size,
        ]
        .map(u64::from);
        let mlp = &decoder.mlp;
        let (size, bias) = (mlp.size(), mlp.bias());
        // No two rows need choose the same expert.
        let experts = u64::from(mlp.experts());
        let read = experts.min(u64::from(rows) * u64::from(mlp.chosen()));
        let attended = u64::from(cut.heads) * head_size;
        let cached = u64::from(cut.kv_heads) * head_size;
        let inner = u64::from(size).div_ceil(ranks);
        let matrix = |from: u64, to: u64| match form.weights {
            WeightFormat::Bf16 => 2 * from * to,
            WeightFormat::Fp8 | WeightFormat::Int8 => from * to + 4 * to,
        };
        let when = |given: bool, count: u64| if given { 4 * count } else { 0 };
        let router = match mlp {
            Mlp::Gated { .. } => 0,
            Mlp::Experts { .. } => 2 * hidden * experts,
        };
        let layer = matrix(hidden, attended + 2 * cached)
            + matrix(attended, hidden)
            + read * (matrix(hidden, 2 * inner) + matrix(inner, hidden))
            + router
            + 4 * 2 * hidden
            + when(attention.head_norm, 2 * head_size)
            + when(attention.input_bias, attended + 2 * cached)
            + when(attention.output_bias, hidden)
            + when(bias, 2 * inner + hidden);
        let head = matrix(hidden, vocabulary.div_ceil(ranks)) + 4 * hidden;
        let number = match form.kv {
            KvFormat::Fp8 => 1,
            KvFormat::Bf16 => 2,
            KvFormat::F32 => 4,
        };
        let layers = u64::from(decoder.layers);
        let positions = u64::from(rows) * (u64::from(context) + 1);
        Ok(Self {
            weights: layers * layer + head + 2 * hidden * u64::from(rows),
            kv: layers * positions * 2 * cached * number,
        })
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.weights + self.kv
    }
}

#[cfg(test)]
mod tests;
