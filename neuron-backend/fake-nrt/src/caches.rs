//! Caches of BF16 and FP8 as integers of their size. XLA for the CPU knows no scatter of such floats:
//! it would widen a whole cache to F32 and back in each step, for the few rows that are written. What
//! shares memory with an output is therefore an integer, and so is all that is only moved from there
//! to the output; whoever computes with it takes the bits for floats again.

use std::collections::HashMap;

use graph::Element;
use graph::proto::{HloComputation, HloInstruction, HloModule, ProgramShape, Shape, TUPLE};

/// XLA's number of bytes.
const U8: i32 = 6;
/// XLA's number of integers of 16 bits.
const U16: i32 = 7;

/// What an input or output is made of for XLA, if it shares memory with another.
pub(crate) fn element(shared: Element) -> pjrt::Element {
    match shared {
        Element::Pred => pjrt::Element::Pred,
        Element::S8 => pjrt::Element::S8,
        Element::S32 => pjrt::Element::S32,
        Element::U32 => pjrt::Element::U32,
        Element::F32 => pjrt::Element::F32,
        Element::Bf16 => pjrt::Element::U16,
        Element::F8e4m3fn => pjrt::Element::U8,
    }
}

/// Makes integers of a module's caches.
pub(crate) fn as_integers(module: &mut HloModule, free: &mut i64) {
    let entry = module.entry_computation_id;
    let place = module.computations.iter().position(|one| one.id == entry);
    let shared = shared(module);
    let (Some(place), false) = (place, shared.is_empty()) else {
        return;
    };
    let mut rewriting = Rewriting {
        free,
        shared,
        integers: HashMap::new(),
        floats: HashMap::new(),
        reducers: Reducers::of(module),
        written: Vec::new(),
    };
    let root = module.computations[place].root_id;
    for instruction in std::mem::take(&mut module.computations[place].instructions) {
        rewriting.rewrite(instruction, root);
    }
    let Rewriting {
        reducers, written, ..
    } = rewriting;
    module.computations[place].instructions = written;
    let program = program_of(&module.computations[place]);
    module.computations[place]
        .program_shape
        .clone_from(&program);
    module.host_program_shape = program;
    module.computations.splice(0..0, reducers.made);
}

/// Parameters that share memory, and the place of the output that they share it with.
fn shared(module: &HloModule) -> HashMap<i64, usize> {
    let entries = module
        .input_output_alias
        .iter()
        .flat_map(|alias| &alias.entries);
    let pairs = entries.filter_map(|entry| {
        let output = entry.output_shape_index.first().copied().unwrap_or(0);
        Some((entry.parameter_number, usize::try_from(output).ok()?))
    });
    pairs.collect()
}

/// The integer of the same size, of a float that scatters do not move.
fn integer(element: i32) -> Option<i32> {
    match Element::from_number(element)? {
        Element::Bf16 => Some(U16),
        Element::F8e4m3fn => Some(U8),
        _ => None,
    }
}

fn with(element: i32, shape: &Shape) -> Shape {
    Shape {
        element_type: element,
        ..shape.clone()
    }
}

/// The entry while it is rewritten.
struct Rewriting<'a> {
    /// The next id that nothing has.
    free: &'a mut i64,
    shared: HashMap<i64, usize>,
    /// What became an integer, with the shape that it had.
    integers: HashMap<i64, Shape>,
    /// The same as a float again, by id.
    floats: HashMap<i64, i64>,
    reducers: Reducers,
    written: Vec<HloInstruction>,
}

impl Rewriting<'_> {
    fn rewrite(&mut self, mut instruction: HloInstruction, root: i64) {
        if self.becomes_integer(&instruction) {
            self.move_bits(&mut instruction);
        } else {
            let is_result = instruction.id == root && instruction.opcode == "tuple";
            for place in 0..instruction.operand_ids.len() {
                match self.shared.values().any(|output| *output == place) && is_result {
                    true => self.give(&mut instruction, place),
                    false => self.take_as_float(&mut instruction, place),
                }
            }
        }
        self.written.push(instruction);
    }

    /// Whether an instruction only moves what is an integer already, or is a cache as it comes in.
    fn becomes_integer(&self, instruction: &HloInstruction) -> bool {
        let element = instruction.shape.as_ref().map(|shape| shape.element_type);
        if element.and_then(integer).is_none() {
            return false;
        }
        let moves = instruction.operand_ids.first();
        let moves = moves.is_some_and(|operand| self.integers.contains_key(operand));
        match instruction.opcode.as_str() {
            "parameter" => self.shared.contains_key(&instruction.parameter_number),
            "copy" | "gather" | "reshape" | "slice" => moves,
            "scatter" => moves && self.reducers.assigns(instruction),
            _ => false,
        }
    }

    fn move_bits(&mut self, instruction: &mut HloInstruction) {
        let Some(shape) = instruction.shape.clone() else {
            return;
        };
        let Some(integer) = integer(shape.element_type) else {
            return;
        };
        if instruction.opcode == "scatter" {
            let updates = instruction.operand_ids.get(2).copied();
            let is_float = updates.is_some_and(|updates| !self.integers.contains_key(&updates));
            if let (true, Some(updates)) = (is_float, updates) {
                instruction.operand_ids[2] = self.bits(updates, integer);
            }
            self.reducers.replace(instruction, integer, self.free);
        }
        instruction.shape = Some(with(integer, &shape));
        self.integers.insert(instruction.id, shape);
    }

    /// Lets an operand be a float, if it is none.
    fn take_as_float(&mut self, instruction: &mut HloInstruction, place: usize) {
        let operand = instruction.operand_ids[place];
        let Some(shape) = self.integers.get(&operand) else {
            return;
        };
        let element = shape.element_type;
        instruction.operand_ids[place] = match self.floats.get(&operand) {
            Some(float) => *float,
            None => {
                let float = self.bits(operand, element);
                self.floats.insert(operand, float);
                float
            }
        };
    }

    /// Lets an output that shares memory be what its input is.
    fn give(&mut self, result: &mut HloInstruction, place: usize) {
        let parts = result.shape.as_mut().map(|shape| &mut shape.tuple_shapes);
        let Some(part) = parts.and_then(|parts| parts.get_mut(place)) else {
            return;
        };
        let Some(integer) = integer(part.element_type) else {
            return;
        };
        part.element_type = integer;
        let operand = result.operand_ids[place];
        if !self.integers.contains_key(&operand) {
            result.operand_ids[place] = self.bits(operand, integer);
        }
    }

    /// What has the bits of `operand` and another type.
    fn bits(&mut self, operand: i64, element: i32) -> i64 {
        let id = *self.free;
        *self.free += 1;
        let of = self.written.iter().rfind(|one| one.id == operand);
        let shape = of.and_then(|one| one.shape.as_ref());
        let bits = HloInstruction {
            name: format!("bitcast-convert.{id}"),
            opcode: "bitcast-convert".to_owned(),
            shape: shape.map(|shape| with(element, shape)),
            id,
            operand_ids: vec![operand],
            ..HloInstruction::default()
        };
        self.written.push(bits);
        id
    }
}

/// Computations that give the second of two scalars, and what does the same with integers.
struct Reducers {
    known: HashMap<i64, HloComputation>,
    /// By the id of the computation for floats, and type.
    ids: HashMap<(i64, i32), i64>,
    made: Vec<HloComputation>,
    /// The next id of a computation that nothing has.
    free: i64,
}

impl Reducers {
    fn of(module: &HloModule) -> Self {
        let assignments = module.computations.iter().filter(|one| is_assignment(one));
        Self {
            known: assignments.map(|one| (one.id, one.clone())).collect(),
            ids: HashMap::new(),
            made: Vec::new(),
            free: 1 + module
                .computations
                .iter()
                .map(|one| one.id)
                .max()
                .unwrap_or(0),
        }
    }

    fn assigns(&self, scatter: &HloInstruction) -> bool {
        let reducer = scatter.called_computation_ids.first();
        reducer.is_some_and(|reducer| self.known.contains_key(reducer))
    }

    fn replace(&mut self, scatter: &mut HloInstruction, element: i32, free: &mut i64) {
        let reducer = scatter.called_computation_ids.first();
        let Some(reducer) = reducer.and_then(|reducer| self.known.get(reducer)) else {
            return;
        };
        let id = *self.ids.entry((reducer.id, element)).or_insert_with(|| {
            self.made.push(retyped(reducer, self.free, element, free));
            self.free += 1;
            self.free - 1
        });
        scatter.called_computation_ids = vec![id];
    }
}

fn is_assignment(computation: &HloComputation) -> bool {
    let by_id = |id| computation.instructions.iter().find(|one| one.id == id);
    let Some(root) = by_id(computation.root_id) else {
        return false;
    };
    let given = match (root.opcode.as_str(), &root.operand_ids[..]) {
        ("copy", [operand]) => by_id(*operand),
        _ => Some(root),
    };
    given.is_some_and(|given| given.opcode == "parameter" && given.parameter_number == 1)
}

/// A computation of scalars for those of another type.
fn retyped(of: &HloComputation, id: i64, element: i32, free: &mut i64) -> HloComputation {
    let mut made = of.clone();
    made.id = id;
    made.name = format!("{}.{element}", of.name);
    let mut new = HashMap::new();
    for one in &mut made.instructions {
        new.insert(one.id, *free);
        one.id = *free;
        *free += 1;
        one.name = format!("{}.{}", one.name, one.id);
        one.shape = one.shape.as_ref().map(|shape| with(element, shape));
        let operands = one.operand_ids.iter();
        one.operand_ids = operands.filter_map(|id| new.get(id).copied()).collect();
    }
    made.root_id = new.get(&of.root_id).copied().unwrap_or(of.root_id);
    made.program_shape = program_of(&made);
    made
}

/// What a computation takes and gives, as its instructions say.
fn program_of(computation: &HloComputation) -> Option<ProgramShape> {
    let plain = |shape: &Shape| Shape {
        layout: None,
        ..shape.clone()
    };
    let mut program = computation.program_shape.clone()?;
    for one in &computation.instructions {
        let shape = one.shape.as_ref()?;
        if one.opcode == "parameter" {
            let number = usize::try_from(one.parameter_number).ok()?;
            *program.parameters.get_mut(number)? = plain(shape);
        }
        if one.id == computation.root_id {
            let mut result = plain(shape);
            if shape.element_type == TUPLE {
                result.tuple_shapes = shape.tuple_shapes.iter().map(plain).collect();
            }
            program.result = Some(result);
        }
    }
    Some(program)
}

#[cfg(test)]
mod tests {
    use graph::Alias;
    use graph::build::{Binary, Builder, Constant, Value};
    use pjrt::{Client, Plugin};

    use super::*;
    use crate::program;

    fn client() -> Option<Client> {
        let Some(path) = std::env::var_os("APPLIANCE_XLA_CPU") else {
            eprintln!("skipped: APPLIANCE_XLA_CPU names no plugin; `make test` sets it");
            return None;
        };
        let plugin = Plugin::open(path.as_ref()).expect("a plugin");
        Some(plugin.client(&[]).expect("a client"))
    }

    /// Two rows of 4 are written into a cache of 8 rows, of which row 1 and row 6 are then read; the
    /// cache is used once more as a whole.
    fn step(element: Element) -> HloModule {
        let mut b = Builder::new("step");
        let rows = b.parameter("rows", "rows", Element::F32, &[2, 4]).unwrap();
        let slots = b.parameter("slots", "slots", Element::S32, &[2]).unwrap();
        let name = "cache.must_alias_input";
        let cache = b.parameter("cache", name, element, &[8, 4]).unwrap();
        let narrow = b.convert(&rows, element).unwrap();
        let written = b.scatter_rows(&cache, &slots, &narrow).unwrap();
        let places = b.vector(&[Constant::S32(1), Constant::S32(6)]).unwrap();
        let read = b.gather_rows(&written, &places).unwrap();
        let wide = |b: &mut Builder, value: &Value| b.convert(value, Element::F32).unwrap();
        let (read, whole) = (wide(&mut b, &read), wide(&mut b, &written));
        let outputs = [("read", read), ("whole", whole), ("cache", written)];
        let alias = Alias {
            input: 2,
            output: 2,
        };
        b.finish(&outputs, &[alias]).unwrap()
    }

    fn floats(buffer: &pjrt::Buffer, count: usize) -> Vec<f32> {
        let mut bytes = vec![0; 4 * count];
        buffer.to_host(&mut bytes).unwrap();
        let floats = bytes.as_chunks().0.iter();
        floats.map(|four| f32::from_le_bytes(*four)).collect()
    }

    fn run(element: Element, one: &[u8]) {
        let Some(client) = client() else { return };
        let module = program::for_xla(&step(element)).unwrap();
        let options = program::options(1, client.devices());
        let program = client.compile(&module.to_bytes(), &options).unwrap();
        let device = client.devices()[0];
        let rows: Vec<u8> = [1.0_f32, 1.0, 1.0, 1.0, -2.0, 0.0, 2.0, 4.0]
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        let rows = client.buffer(device, pjrt::Element::F32, &[2, 4], &rows);
        let slots: Vec<u8> = [6_i32, 2]
            .iter()
            .flat_map(|slot| slot.to_le_bytes())
            .collect();
        let slots = client.buffer(device, pjrt::Element::S32, &[2], &slots);
        let cache = client.buffer(device, super::element(element), &[8, 4], &one.repeat(32));
        let (rows, slots, cache) = (rows.unwrap(), slots.unwrap(), cache.unwrap());
        let mut results = program.execute(&[vec![&rows, &slots, &cache]]).unwrap();
        let mut results = results.remove(0);
        assert!(cache.is_deleted().unwrap());
        assert_eq!(floats(&results[0], 8), [1.0; 8]);
        let whole = floats(&results[1], 32);
        assert_eq!(whole[8..12], [-2.0, 0.0, 2.0, 4.0]);
        assert_eq!(whole[..8], [1.0; 8]);
        // And once more with the cache as it came back.
        let cache = results.remove(2);
        let again = program.execute(&[vec![&rows, &slots, &cache]]).unwrap();
        assert_eq!(floats(&again[0][1], 32), whole);
    }

    #[test]
    fn caches_of_narrow_floats_are_written_read_and_handed_on() {
        run(Element::Bf16, &[0x80, 0x3f]);
        run(Element::F8e4m3fn, &[0x38]);
    }

    #[test]
    fn caches_of_f32_stay_what_they_are() {
        run(Element::F32, &1_f32.to_le_bytes());
        let module = step(Element::F32);
        assert_eq!(program::for_xla(&module).unwrap(), module);
    }

    #[test]
    fn no_scatter_of_narrow_floats_is_left() {
        for element in [Element::Bf16, Element::F8e4m3fn] {
            let module = program::for_xla(&step(element)).unwrap();
            let instructions = module.computations.iter().flat_map(|one| &one.instructions);
            let mut scatters = instructions.filter(|one| one.opcode == "scatter");
            let narrow = |one: &HloInstruction| {
                one.shape
                    .as_ref()
                    .is_some_and(|shape| integer(shape.element_type).is_some())
            };
            assert!(!scatters.any(narrow), "{element:?}");
        }
    }

    /// Nothing moves the cache: its output is computed.
    #[test]
    fn an_output_that_is_computed_shares_memory_all_the_same() {
        let Some(client) = client() else { return };
        let mut b = Builder::new("computed");
        let name = "state.must_alias_input";
        let state = b.parameter("state", name, Element::Bf16, &[2]).unwrap();
        let twice = b.binary(Binary::Add, &state, &state).unwrap();
        let alias = Alias {
            input: 0,
            output: 1,
        };
        let first = b.convert(&twice, Element::F32).unwrap();
        let module = b
            .finish(&[("first", first), ("state", twice)], &[alias])
            .unwrap();
        let module = program::for_xla(&module).unwrap();
        let options = program::options(1, client.devices());
        let program = client.compile(&module.to_bytes(), &options).unwrap();
        let device = client.devices()[0];
        let state = client.buffer(device, pjrt::Element::U16, &[2], &[0x80, 0x3f, 0, 0x40]);
        let results = program.execute(&[vec![&state.unwrap()]]).unwrap();
        assert_eq!(floats(&results[0][0], 2), [2.0, 4.0]);
        assert_eq!(results[0][1].element().unwrap(), pjrt::Element::U16);
    }
}
