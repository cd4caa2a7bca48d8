//! Rules of ids, names, shapes as they are written, aliases and outputs.

use std::collections::{BTreeMap, BTreeSet};

use super::{Compile, Findings, Rule};
use crate::proto::{HloComputation, HloInstruction, HloModule, Literal, MUST_ALIAS, Shape, TUPLE};
use crate::target::Target;
use crate::view::{View, attribute, count, is_view};

/// The largest id that the compiler's copy of XLA holds.
const LARGEST_ID: i64 = (1 << 31) - 1;

/// Ids are unique and small, and everything referred to is there.
pub(super) fn identities(module: &HloModule, findings: &mut Findings) {
    let mut ids = BTreeSet::new();
    let mut computations = BTreeSet::new();
    for computation in &module.computations {
        let at = format!("computation {:?}", computation.name);
        if !computations.insert(computation.id) {
            let what = format!("its id {} is another's too", computation.id);
            findings.add(Rule::Identity, &at, what);
        }
        for instruction in &computation.instructions {
            identity(instruction, &computations, &mut ids, findings);
        }
        references(computation, findings);
    }
    let last = module.computations.last();
    if last.is_none_or(|entry| entry.id != module.entry_computation_id) {
        findings.add(
            Rule::Identity,
            "the module",
            format!(
                "entry_computation_id {} is not the last computation's: write the entry last",
                module.entry_computation_id
            ),
        );
    }
    if last.is_some_and(|entry| entry.name != module.entry_computation_name) {
        let what = "entry_computation_name is not the name of the last computation";
        findings.add(Rule::Identity, "the module", what);
    }
}

/// An instruction's own id, and the computations that it calls.
fn identity(
    instruction: &HloInstruction,
    computations: &BTreeSet<i64>,
    ids: &mut BTreeSet<i64>,
    findings: &mut Findings,
) {
    let (id, name) = (instruction.id, &instruction.name);
    if !(0..=LARGEST_ID).contains(&id) {
        let what =
            format!("its id {id} is not below 2^31: number instructions from 0 through the module");
        findings.add(Rule::Identity, name, what);
    }
    if !ids.insert(id) {
        findings.add(
            Rule::Identity,
            name,
            format!("its id {id} is another's too"),
        );
    }
    for called in &instruction.called_computation_ids {
        if !computations.contains(called) {
            let what = format!("it calls computation {called}, which does not stand before it");
            findings.add(Rule::Identity, name, what);
        }
    }
}

/// Operands, predecessors and the root are of the same computation and stand before; names are
/// unique.
fn references(computation: &HloComputation, findings: &mut Findings) {
    let mut before = BTreeSet::new();
    let mut names = BTreeSet::new();
    for instruction in &computation.instructions {
        let name = &instruction.name;
        let all = instruction.operand_ids.iter();
        for id in all.chain(&instruction.control_predecessor_ids) {
            if !before.contains(id) {
                let what = format!("it refers to id {id}, which does not stand before it");
                findings.add(Rule::Identity, name, what);
            }
        }
        if name.is_empty() || !names.insert(name) {
            findings.add(
                Rule::Identity,
                format!("id {}", instruction.id),
                format!("its name {name:?} is empty or another's too"),
            );
        }
        before.insert(instruction.id);
    }
    if !before.contains(&computation.root_id) {
        let what = format!(
            "its root {} is not among its instructions",
            computation.root_id
        );
        let at = format!("computation {:?}", computation.name);
        findings.add(Rule::Identity, at, what);
    }
}

/// Element types that the target takes; sizes that are fixed.
pub(super) fn elements(module: &HloModule, compile: Compile, findings: &mut Findings) {
    for instruction in instructions(module) {
        let Some(shape) = &instruction.shape else {
            findings.add(Rule::Shape, &instruction.name, "it has no shape");
            continue;
        };
        for array in arrays(shape) {
            element(array, &instruction.name, compile, findings);
            let dynamic = array.is_dynamic_dimension.iter().any(|dynamic| *dynamic);
            if dynamic || array.dimensions.iter().any(|size| *size < 0) {
                let what = "a size of it is dynamic: compile a module for each size";
                findings.add(Rule::DynamicShape, &instruction.name, what);
            }
        }
        let kernel = instruction.custom_call_target == "AwsNeuronCustomNativeKernel";
        if kernel && compile.fp8_as_device && compile.target >= Target::Trn3 {
            let what = "with the flag for F8E4M3FN there can be no ready kernel on trn3: leave the \
                        flag out";
            findings.add(Rule::Fp8Flag, &instruction.name, what);
        }
    }
}

/// Whether the target takes the elements of an array.
fn element(array: &Shape, at: &str, compile: Compile, findings: &mut Findings) {
    let (rule, what) = match array.element_type {
        // PRED, S8, S32, U8, U32, F16, F32, BF16, F8E5M2, F8E3M4.
        1 | 2 | 4 | 6 | 8 | 10 | 11 | 16 | 19 | 29 => return,
        20 if !compile.target.facts().fp8_flag || compile.fp8_as_device => return,
        20 => (
            Rule::Fp8Ocp,
            "F8E4M3FN needs --experimental-unsafe-fp8e4m3fn-as-fp8e4m3 on this target",
        ),
        28 if compile.target < Target::Trn3 => return,
        28 => (
            Rule::Fp8Ieee,
            "F8E4M3 with infinities is not of this target: write F8E4M3FN",
        ),
        23..=25 => (
            Rule::Fp8Fnuz,
            "no target has FP8 with an unsigned zero: write F8E4M3FN",
        ),
        12 => (Rule::Double, "it is of F64: write F32"),
        5 | 9 => (
            Rule::Integer64,
            "it is of integers of 64 bits, which are cut or refused: write S32 or U32",
        ),
        _ => (
            Rule::ElementType,
            "the devices do not know its element type: write PRED, S8, U8, S32, U32, F16, BF16, \
             F32 or FP8",
        ),
    };
    findings.add(rule, at, what);
}

/// Every array row by row; tuples of arrays only.
pub(super) fn layouts(module: &HloModule, findings: &mut Findings) {
    for instruction in instructions(module) {
        for array in instruction.shape.iter().flat_map(arrays) {
            let rank = i64::try_from(array.dimensions.len()).unwrap_or(i64::MAX);
            let row_major = array.layout.as_ref().is_some_and(|layout| {
                layout.minor_to_major.iter().copied().eq((0..rank).rev())
                    && layout.tail_padding_alignment_in_elements == 1
            });
            if !row_major {
                let what = "it needs the layout of rows one after the other, minor_to_major from \
                            the last dimension to the first, tail padding 1";
                findings.add(Rule::Layout, &instruction.name, what);
            }
        }
    }
}

/// Constants hold as many values as their shape says.
pub(super) fn literals(module: &HloModule, findings: &mut Findings) {
    let constants = instructions(module).filter(|one| one.opcode == "constant");
    for constant in constants {
        let (Some(shape), Some(literal)) = (&constant.shape, &constant.literal) else {
            findings.add(Rule::Shape, &constant.name, "it has no value");
            continue;
        };
        let same = literal.shape.as_ref().is_some_and(|of| {
            of.element_type == shape.element_type && of.dimensions == shape.dimensions
        });
        if !same {
            let what = "the shape of its value is another than its own";
            findings.add(Rule::Shape, &constant.name, what);
        }
        if !literal.f64s.is_empty() {
            findings.add(Rule::Double, &constant.name, "it has values of F64");
        }
        let (held, needed) = (values(literal, shape), count(&shape.dimensions));
        if held != needed {
            let what = format!("it has {held} values and its shape {needed}");
            findings.add(Rule::Shape, &constant.name, what);
        }
    }
}

/// How many values of a shape's element type a literal holds.
fn values(literal: &Literal, shape: &Shape) -> u64 {
    let held = match shape.element_type {
        1 => literal.preds.len(),
        2 => literal.s8s.len(),
        4 => literal.s32s.len(),
        8 => literal.u32s.len(),
        11 => literal.f32s.len(),
        12 => literal.f64s.len(),
        16 => literal.bf16s.len() / 2,
        _ => 0,
    };
    held as u64
}

/// Program shapes say what the entry's parameters and root are, and nothing of layout.
pub(super) fn programs(module: &HloModule, view: &View<'_>, findings: &mut Findings) {
    let numbers = view.parameters.keys().copied();
    let parameters = view
        .instructions
        .iter()
        .filter(|one| one.opcode == "parameter");
    if !numbers.eq(0..i64::try_from(parameters.count()).unwrap_or(-1)) {
        let what = "its parameters are not numbered from 0 without gaps";
        findings.add(Rule::Identity, "the entry", what);
    }
    let Some(program) = &module.host_program_shape else {
        let what = "host_program_shape is missing";
        findings.add(Rule::Layout, "the module", what);
        return;
    };
    let shapes = program.parameters.iter().chain(&program.result);
    if shapes
        .clone()
        .flat_map(arrays)
        .any(|one| one.layout.is_some())
    {
        let what = "host_program_shape has layouts: leave them out of program shapes";
        findings.add(Rule::Layout, "the module", what);
    }
    let places = view.parameters.values().chain([&view.root]);
    let own = places.map(|&place| view.instructions[place].shape.as_ref());
    let same = own.clone().count() == shapes.clone().count()
        && own
            .zip(shapes)
            .all(|(own, said)| own.is_some_and(|own| same(own, said)));
    if !same {
        let what = "host_program_shape is not that of the entry's parameters and root";
        findings.add(Rule::Shape, "the module", what);
    }
}

/// The root is a tuple or a copy, gives back no parameter as it is, and nothing empty.
pub(super) fn outputs(view: &View<'_>, findings: &mut Findings) {
    let root = &view.instructions[view.root];
    if !matches!(root.opcode.as_str(), "tuple" | "copy") {
        let what = "the root must be a tuple, or a copy of the only result";
        findings.add(Rule::ReturnedParameter, &root.name, what);
    }
    for &output in &view.outputs {
        let name = &view.instructions[output].name;
        if view.opcode(view.source(output)) == "parameter" {
            let what = "a parameter is given back as it is: put a copy between";
            findings.add(Rule::ReturnedParameter, name, what);
        }
    }
    for &port in view.outputs.iter().chain(view.parameters.values()) {
        if view.bytes(port) == 0 {
            let what = "nothing empty can be taken or given: the compiler drops it";
            findings.add(Rule::Empty, &view.instructions[port].name, what);
        }
    }
}

/// Every input and output has a name, and no two the same.
pub(super) fn names(view: &View<'_>, findings: &mut Findings) {
    let mut seen = BTreeSet::new();
    for &place in view.parameters.values() {
        let name = view.input_name(place).unwrap_or_default();
        if name.is_empty() || name.contains(',') || !seen.insert(name) {
            let what = format!("its neff_input_names is {name:?}: each input needs one of its own");
            findings.add(Rule::InputNames, &view.instructions[place].name, what);
        }
    }
    let names = output_names(view);
    let distinct: BTreeSet<_> = names.iter().collect();
    let all = distinct.len() == names.len() && names.len() == view.outputs.len();
    if !all || names.iter().any(|name| name.is_empty()) {
        let what = format!(
            "its neff_output_names has {} names for {} outputs: each needs one of its own",
            distinct.len(),
            view.outputs.len()
        );
        findings.add(Rule::OutputNames, &view.instructions[view.root].name, what);
    }
}

/// What the root says that outputs are called.
fn output_names<'a>(view: &View<'a>) -> Vec<&'a str> {
    match attribute(&view.instructions[view.root], "neff_output_names") {
        Some(names) => names.split(',').collect(),
        None => Vec::new(),
    }
}

/// Aliased pairs exist, once, with one shape, names that agree, and the kind "must".
pub(super) fn aliases(module: &HloModule, view: &View<'_>, findings: &mut Findings) {
    let names = output_names(view);
    let mut taken = BTreeMap::new();
    for entry in module.input_output_alias.iter().flat_map(|a| &a.entries) {
        let index = entry.output_shape_index.first().copied().unwrap_or(0);
        let at = format!("alias of output {index}");
        let output = usize::try_from(index).ok();
        let output = output.and_then(|index| Some((index, *view.outputs.get(index)?)));
        let parameter = view.parameters.get(&entry.parameter_number);
        let (Some((index, output)), Some(&parameter)) = (output, parameter) else {
            findings.add(Rule::Alias, at, "there is no such output or parameter");
            continue;
        };
        let said = |place: usize| view.instructions[place].shape.as_ref();
        let alike = said(output)
            .zip(said(parameter))
            .is_some_and(|(output, parameter)| same(output, parameter));
        if !alike {
            findings.add(Rule::Alias, &at, "output and parameter have other shapes");
        }
        if entry.kind != MUST_ALIAS {
            let what = format!("its kind is {}: write MUST ({MUST_ALIAS})", entry.kind);
            findings.add(Rule::Alias, &at, what);
        }
        let input = view.input_name(parameter).unwrap_or_default();
        let output_name = names.get(index).copied().unwrap_or_default();
        if input.strip_suffix(".must_alias_input") != Some(output_name) {
            let what = format!(
                "the input is called {input:?} and must be {:?}",
                format!("{output_name}.must_alias_input")
            );
            findings.add(Rule::Alias, &at, what);
        }
        let twice = taken.insert(parameter, output).is_some();
        if twice || taken.values().filter(|one| **one == output).count() > 1 {
            findings.add(
                Rule::Alias,
                &at,
                "its output or parameter has another alias",
            );
        }
    }
}

/// A cache is written by one instruction, and what is read of it is read after that or for it.
pub(super) fn writers(view: &View<'_>, findings: &mut Findings) {
    for &(output, parameter) in &view.aliases {
        let mut old = BTreeSet::from([parameter]);
        let mut new = BTreeSet::new();
        let mut writers = Vec::new();
        for place in parameter + 1..view.instructions.len() {
            let Some(first) = view.operand(place, 0) else {
                continue;
            };
            let (of_old, of_new) = (old.contains(&first), new.contains(&first));
            let opcode = view.opcode(place);
            if is_writer(opcode) && (of_old || of_new) {
                writers.push(place);
                new.insert(place);
            } else if is_view(opcode) && of_old {
                old.insert(place);
            } else if (is_view(opcode) || opcode == "copy") && (of_new || of_old) {
                new.insert(place);
            }
        }
        let name = &view.instructions[parameter].name;
        if writers.len() > 1 {
            let what = format!(
                "{} instructions write to it, which copies the whole of it each time: write once, \
                 and give each layer a cache of its own",
                writers.len()
            );
            findings.add(Rule::Writers, name, what);
        }
        if !new.contains(&output) {
            let what = "the output in its memory is not made of it by writing";
            findings.add(Rule::Alias, name, what);
        }
        if let [writer] = writers[..] {
            unordered(view, &old, writer, name, findings);
        }
    }
}

/// Whether an operation changes a part of its first operand.
fn is_writer(opcode: &str) -> bool {
    matches!(opcode, "scatter" | "dynamic-update-slice")
}

/// What reads the old content must come before the write: the write must depend on it.
fn unordered(
    view: &View<'_>,
    old: &BTreeSet<usize>,
    writer: usize,
    name: &str,
    findings: &mut Findings,
) {
    let mut needed = BTreeSet::from([writer]);
    for place in (0..=writer).rev() {
        if needed.contains(&place) {
            needed.extend(&view.operands[place]);
        }
    }
    let readers = old.iter().flat_map(|&place| &view.users[place]);
    for &reader in readers {
        if reader != writer && !old.contains(&reader) && !needed.contains(&reader) {
            let what = format!(
                "{:?} reads what it held while it is written: read what the write gives, or let \
                 the write depend on the read",
                view.instructions[reader].name
            );
            findings.add(Rule::UnorderedRead, name, what);
        }
    }
}

/// Whether two shapes are the same but for layout.
fn same(one: &Shape, other: &Shape) -> bool {
    one.element_type == other.element_type
        && one.dimensions == other.dimensions
        && one.tuple_shapes.len() == other.tuple_shapes.len()
        && one
            .tuple_shapes
            .iter()
            .zip(&other.tuple_shapes)
            .all(|(one, other)| same(one, other))
}

/// The arrays of a shape: itself, or those of a tuple. A tuple in a tuple counts as an array of an
/// unknown element type.
fn arrays(shape: &Shape) -> &[Shape] {
    match shape.element_type {
        TUPLE => &shape.tuple_shapes,
        _ => std::slice::from_ref(shape),
    }
}

/// Every instruction of a module.
fn instructions(module: &HloModule) -> impl Iterator<Item = &HloInstruction> {
    module
        .computations
        .iter()
        .flat_map(|computation| &computation.instructions)
}
