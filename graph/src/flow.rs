//! What a module holds where, and for how long: what cost and memory are counted from.
//!
//! A model of a compiler that we cannot see into. It says that
//! - what only renames, repeats or numbers elements takes no memory, and neither does an
//!   elementwise operation with one user: it is computed where it is used, tile by tile;
//! - a scatter into an aliased parameter, or into a value that nobody else takes, is done in place;
//! - instructions run in the order they are written, but what only reads parameters (a gather of
//!   pages) runs when it is first needed;
//! - every other value has a buffer from the instruction that gives it to the last that takes it;
//! - a buffer is on chip as long as there is room for it when it is made, and in device memory
//!   otherwise, written once and read by each of its users.

use std::collections::BTreeMap;

use crate::view::{View, element_bytes, is_view};

/// Where values of a module are held.
pub(crate) struct Flow {
    /// For each instruction, what it reads: the buffer or parameter, and bytes of it.
    pub(crate) reads: Vec<Vec<(usize, u64)>>,
    /// For each instruction, how its value is held.
    pub(crate) held: Vec<Held>,
    /// Instructions in the order they run.
    order: Vec<usize>,
    /// For each instruction, the buffers that are read for the last time.
    freed: Vec<Vec<usize>>,
    /// The largest sum of bytes of buffers at one time.
    pub(crate) peak: u64,
}

/// How a value is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Held {
    /// By whoever calls: a parameter.
    Outside,
    /// Not at all: computed where it is used.
    Nowhere,
    /// In the memory of its first operand.
    InPlace,
    /// In a buffer.
    Buffer,
}

impl Flow {
    pub(crate) fn of(view: &View<'_>) -> Self {
        let held: Vec<_> = (0..view.instructions.len())
            .map(|place| held(view, place))
            .collect();
        let reads: Vec<_> = (0..held.len())
            .map(|place| reads(view, &held, place))
            .collect();
        let order = order(&held, &reads);
        let mut last = vec![None; held.len()];
        for &place in &order {
            last[place] = Some(place);
            for &(from, _) in &reads[place] {
                last[from] = Some(place);
            }
        }
        let mut freed = vec![Vec::new(); held.len()];
        for (buffer, last) in last.iter().enumerate() {
            if let (Held::Buffer, Some(last)) = (held[buffer], *last) {
                freed[last].push(buffer);
            }
        }
        let mut flow = Self {
            reads,
            held,
            order,
            freed,
            peak: 0,
        };
        flow.peak = flow.peak(view);
        flow
    }

    /// The largest sum of buffers at one time. What the module gives lies in the caller's memory.
    fn peak(&self, view: &View<'_>) -> u64 {
        let mut given = vec![false; self.held.len()];
        for &output in &view.outputs {
            given[output] = true;
        }
        let size = |place: usize| match (self.held[place], given[place]) {
            (Held::Buffer, false) => view.bytes(place),
            _ => 0,
        };
        let (mut live, mut peak) = (0_u64, 0);
        for &place in &self.order {
            live = live.saturating_add(size(place));
            peak = peak.max(live);
            let freed: u64 = self.freed[place].iter().map(|&buffer| size(buffer)).sum();
            live = live.saturating_sub(freed);
        }
        peak
    }

    /// For each instruction, whether its buffer finds no room among `on_chip` bytes.
    pub(crate) fn spilled(&self, view: &View<'_>, on_chip: u64) -> Vec<bool> {
        let mut live = 0_u64;
        let mut spilled = vec![false; self.held.len()];
        for &place in &self.order {
            if self.held[place] == Held::Buffer {
                let bytes = view.bytes(place);
                spilled[place] = live.saturating_add(bytes) > on_chip;
                if !spilled[place] {
                    live += bytes;
                }
            }
            let kept = self.freed[place].iter().filter(|&&buffer| !spilled[buffer]);
            live -= kept.map(|&buffer| view.bytes(buffer)).sum::<u64>();
        }
        spilled
    }
}

/// As written, but what reads parameters only comes before the first that reads it.
fn order(held: &[Held], reads: &[Vec<(usize, u64)>]) -> Vec<usize> {
    let mut first = vec![usize::MAX; held.len()];
    for (place, read) in reads.iter().enumerate() {
        for &(from, _) in read {
            first[from] = first[from].min(place);
        }
    }
    let waits = |place: usize| {
        let outside = |&(from, _): &(usize, u64)| held[from] == Held::Outside;
        held[place] == Held::Buffer
            && first[place] != usize::MAX
            && reads[place].iter().all(outside)
    };
    let mut order: Vec<_> = (0..held.len()).collect();
    order.sort_by_key(|&place| match waits(place) {
        true => (first[place], false),
        false => (place, true),
    });
    order
}

/// Whether an operation computes each element from the elements at the same place.
pub(crate) fn is_elementwise(opcode: &str) -> bool {
    matches!(
        opcode,
        "abs"
            | "add"
            | "and"
            | "bitcast-convert"
            | "ceil"
            | "clamp"
            | "compare"
            | "convert"
            | "cosine"
            | "divide"
            | "exponential"
            | "exponential-minus-one"
            | "floor"
            | "is-finite"
            | "log"
            | "log-plus-one"
            | "logistic"
            | "maximum"
            | "minimum"
            | "multiply"
            | "negate"
            | "not"
            | "or"
            | "power"
            | "remainder"
            | "rsqrt"
            | "select"
            | "shift-left"
            | "shift-right-arithmetic"
            | "shift-right-logical"
            | "sign"
            | "sine"
            | "sqrt"
            | "subtract"
            | "tanh"
            | "xor"
    )
}

fn held(view: &View<'_>, place: usize) -> Held {
    match view.opcode(place) {
        "parameter" => Held::Outside,
        "constant" | "iota" | "broadcast" | "get-tuple-element" | "tuple" | "slice" => {
            Held::Nowhere
        }
        opcode if is_view(opcode) => Held::Nowhere,
        "scatter" | "dynamic-update-slice" if in_place(view, place) => Held::InPlace,
        opcode
            if (is_elementwise(opcode) || matches!(opcode, "concatenate" | "pad"))
                && view.users[place].len() == 1
                && view.users[place] != [view.root] =>
        {
            Held::Nowhere
        }
        _ => Held::Buffer,
    }
}

/// Whether a write changes memory that is the module's to change.
fn in_place(view: &View<'_>, place: usize) -> bool {
    let Some(operand) = view.operand(place, 0) else {
        return false;
    };
    let source = view.source(operand);
    match view.opcode(source) {
        "parameter" => view
            .aliases
            .iter()
            .any(|&(_, parameter)| parameter == source),
        "scatter" | "dynamic-update-slice" => true,
        "constant" | "iota" | "broadcast" => false,
        _ => view.users[source].len() == 1,
    }
}

/// What an instruction that does something reads, and how much of each. Nothing for what is
/// computed where it is used: that is read by its user.
fn reads(view: &View<'_>, held: &[Held], place: usize) -> Vec<(usize, u64)> {
    let mut found = BTreeMap::new();
    if matches!(held[place], Held::Nowhere | Held::Outside) && place != view.root {
        return Vec::new();
    }
    for (number, &operand) in view.operands[place].iter().enumerate() {
        // The root's operands are given as they are, not read.
        if place == view.root && view.opcode(place) == "tuple" {
            continue;
        }
        let elements = match (view.opcode(place), number) {
            ("gather" | "dynamic-slice", 0) => view.elements(place),
            ("scatter" | "dynamic-update-slice", 0) if held[place] == Held::InPlace => 0,
            _ => u64::MAX,
        };
        walk(view, held, operand, elements, &mut found);
    }
    found.into_iter().collect()
}

/// Goes up from an operand, of which `elements` are read at the most, to what holds it.
fn walk(
    view: &View<'_>,
    held: &[Held],
    place: usize,
    elements: u64,
    found: &mut BTreeMap<usize, u64>,
) {
    let elements = elements.min(view.elements(place));
    match held[place] {
        Held::Outside | Held::Buffer => {
            let bytes = match view.instructions[place].shape.as_ref() {
                Some(shape) if shape.tuple_shapes.is_empty() => {
                    elements.saturating_mul(element_bytes(shape.element_type))
                }
                // Of the parts of a tuple nothing is known here.
                _ => view.bytes(place),
            };
            let most = found.entry(place).or_default();
            *most = bytes.max(*most);
        }
        Held::InPlace => {
            if let Some(operand) = view.operand(place, 0) {
                walk(view, held, operand, elements, found);
            }
        }
        Held::Nowhere => {
            for &operand in &view.operands[place] {
                walk(view, held, operand, elements, found);
            }
        }
    }
}
