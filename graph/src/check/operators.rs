//! Rules of single operations.

use std::collections::BTreeSet;

use super::{Compile, Findings, Rule};
use crate::proto::{HloComputation, HloInstruction, HloModule};
use crate::target::Target;
use crate::view::View;

/// Operations that compile, in one of the public emitters or as the appendix of `neuron.md` has
/// them.
const KNOWN: [&str; 62] = [
    "abs",
    "add",
    "all-gather",
    "all-reduce",
    "all-to-all",
    "and",
    "bitcast",
    "bitcast-convert",
    "broadcast",
    "ceil",
    "clamp",
    "compare",
    "concatenate",
    "constant",
    "convert",
    "convolution",
    "copy",
    "cosine",
    "custom-call",
    "divide",
    "dot",
    "dynamic-slice",
    "dynamic-update-slice",
    "exponential",
    "exponential-minus-one",
    "floor",
    "gather",
    "get-tuple-element",
    "iota",
    "is-finite",
    "log",
    "log-plus-one",
    "logistic",
    "maximum",
    "minimum",
    "multiply",
    "negate",
    "not",
    "or",
    "pad",
    "parameter",
    "power",
    "reduce",
    "reduce-scatter",
    "remainder",
    "reshape",
    "reverse",
    "rsqrt",
    "scatter",
    "select",
    "shift-left",
    "shift-right-arithmetic",
    "shift-right-logical",
    "sign",
    "sine",
    "slice",
    "sqrt",
    "subtract",
    "tanh",
    "transpose",
    "tuple",
    "xor",
];

/// Custom calls that the compiler recognises (EHCA005, EVRF015); a `*` stands for any end.
const CUSTOM_CALLS: [&str; 24] = [
    "AwsNeuronErf",
    "AwsNeuronGelu",
    "AwsNeuronGeluApprxTanh",
    "AwsNeuronGeluBackward",
    "AwsNeuronSilu",
    "AwsNeuronSiluBackward",
    "AwsNeuronRmsNorm",
    "AwsNeuronSoftmax",
    "AwsNeuronSoftmaxBackward",
    "AwsNeuronCollectiveMatmul",
    "AwsNeuronIntMatmult",
    "AwsNeuronArgMax",
    "AwsNeuronArgMin",
    "AwsNeuronTopK",
    "AwsNeuronDropoutMaskV1",
    "AwsNeuronCustomNativeKernel",
    "AwsNeuronCustomOp",
    "AwsNeuronDevicePrint",
    "AwsNeuronResize*",
    "AwsNeuronLNCShardingConstraint",
    "AwsNeuronTransferWithStaticRing",
    "AwsNeuronModuleMarker*",
    "NeuronBoundaryMarker-*",
    "AwsNeuronNeff",
];

/// Custom calls that only Trainium3's matrix formats have.
const CUSTOM_CALLS_TRN3: [&str; 2] = ["QuantizeMX", "__op$block_scaled_dot"];

/// Columns that a row of a top-K may have.
const TOP_K_COLUMNS: std::ops::RangeInclusive<i64> = 8..=16_384;

/// What every instruction must be.
pub(super) fn check(
    module: &HloModule,
    view: &View<'_>,
    compile: Compile,
    findings: &mut Findings,
) {
    for computation in &module.computations {
        for instruction in &computation.instructions {
            operation(instruction, findings);
        }
    }
    for place in 0..view.instructions.len() {
        match view.opcode(place) {
            "dot" => integer_dot(view, place, compile, findings),
            "divide" | "remainder" => integer_division(view, place, findings),
            "custom-call" => custom_call(view, place, compile, findings),
            "reduce" => reduction(view, place, findings),
            "scatter" => scatter(view, place, findings),
            "all-reduce" | "reduce-scatter" => {
                let instruction = &view.instructions[place];
                reducer(view, instruction, &["add", "minimum", "maximum"], findings);
            }
            _ => (),
        }
    }
    groups(view, findings);
}

/// Whether anybody has seen an operation compile.
fn operation(instruction: &HloInstruction, findings: &mut Findings) {
    let opcode = instruction.opcode.as_str();
    let (rule, what) = match opcode {
        "sort" => (Rule::Sort, "no sort: use the custom call AwsNeuronTopK"),
        "topk" => (
            Rule::Sort,
            "topk becomes a sort: use the custom call AwsNeuronTopK",
        ),
        "while" | "conditional" | "call" => (
            Rule::ControlFlow,
            "no loops, branches or calls: unroll, or select between both",
        ),
        "rng" | "rng-bit-generator" | "rng-get-and-update-state" => (
            Rule::Random,
            "no random numbers in the graph: take them as an input",
        ),
        "get-dimension-size" | "set-dimension-size" | "dynamic-reshape" => (
            Rule::DynamicShape,
            "no dynamic sizes: compile a module for each size",
        ),
        _ if KNOWN.contains(&opcode) => return,
        _ => (
            Rule::Operation,
            "nobody has seen this operation compile: express it by others",
        ),
    };
    findings.add(rule, &instruction.name, format!("{opcode}: {what}"));
}

/// Products of integer matrices.
fn integer_dot(view: &View<'_>, place: usize, compile: Compile, findings: &mut Findings) {
    let integers = view.operands[place]
        .iter()
        .any(|&operand| is_integer(element(view, operand)));
    if integers && compile.target.facts().refuses_integer_dot {
        let what = "no products of integer matrices: convert to BF16 first";
        findings.add(Rule::IntegerDot, &view.instructions[place].name, what);
    }
}

/// Integers are divided by way of an F32 reciprocal, which is exact for powers of two only.
fn integer_division(view: &View<'_>, place: usize, findings: &mut Findings) {
    if !is_integer(element(view, place)) {
        return;
    }
    let divisor = view.operand(place, 1).and_then(|by| constant(view, by));
    let exact = divisor.is_some_and(|by| by > 0 && by.count_ones() == 1);
    if !exact {
        let what = "integers are divided through an F32 reciprocal, wrong for many values: divide \
                    by a constant power of two, or on the host";
        findings.add(Rule::IntegerDivision, &view.instructions[place].name, what);
    }
}

/// The value of which all elements of an integer array are, if it is a constant.
fn constant(view: &View<'_>, mut place: usize) -> Option<i64> {
    while matches!(
        view.opcode(place),
        "broadcast" | "reshape" | "bitcast" | "copy" | "convert"
    ) {
        place = view.operand(place, 0)?;
    }
    let literal = view.instructions[place].literal.as_ref()?;
    let signed = literal.s32s.iter().map(|value| i64::from(*value));
    let unsigned = literal.u32s.iter().map(|value| i64::from(*value));
    let bytes = literal
        .s8s
        .iter()
        .map(|value| i64::from(value.cast_signed()));
    let mut values = signed.chain(unsigned).chain(bytes);
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}

/// A custom call must be one that the compiler knows.
fn custom_call(view: &View<'_>, place: usize, compile: Compile, findings: &mut Findings) {
    let instruction = &view.instructions[place];
    let target = instruction.custom_call_target.as_str();
    let named = |known: &&str| match known.strip_suffix('*') {
        Some(start) => target.starts_with(start),
        None => target == *known,
    };
    let mx = compile.target >= Target::Trn3 && CUSTOM_CALLS_TRN3.contains(&target);
    if !CUSTOM_CALLS.iter().any(named) && !mx {
        let what = format!("the compiler knows no custom call {target:?} for this target");
        findings.add(Rule::CustomCall, &instruction.name, what);
    }
    if target == "AwsNeuronTopK"
        && let Err(what) = top_k(view, place)
    {
        findings.add(Rule::TopK, &instruction.name, what);
    }
}

/// A top-K of floats, along the last dimension, of 8 to 16384 columns, a multiple of 8.
fn top_k(view: &View<'_>, place: usize) -> Result<(), String> {
    let [operand] = view.operands[place][..] else {
        return Err("it takes one operand".into());
    };
    let floats = matches!(element(view, operand), 10 | 11 | 16);
    if !floats {
        return Err("it takes floats only: convert to F32 first".into());
    }
    let Some((&columns, outer)) = view.dimensions(operand).split_last() else {
        return Err("it takes no scalars".into());
    };
    if !TOP_K_COLUMNS.contains(&columns) || columns % 8 != 0 {
        return Err(format!(
            "its rows have {columns} columns and must have a multiple of 8 from 8 to 16384: fold \
             or pad them"
        ));
    }
    let config = &view.instructions[place].backend_config;
    let k = std::str::from_utf8(config)
        .ok()
        .and_then(|text| text.parse::<i64>().ok())
        .filter(|k| (1..=columns).contains(k))
        .ok_or_else(|| {
            format!("its backend_config must be a decimal number from 1 to {columns}")
        })?;
    let shape = view.instructions[place].shape.as_ref();
    let parts = shape.map_or(&[][..], |shape| &shape.tuple_shapes);
    let mut sizes = outer.to_vec();
    sizes.push(k);
    match parts {
        [values, indices]
            if values.element_type == element(view, operand)
                && indices.element_type == 8
                && values.dimensions == sizes
                && indices.dimensions == sizes =>
        {
            Ok(())
        }
        _ => Err(format!(
            "it gives a tuple of values, as its operand has them, and of U32 indices, both of \
             sizes {sizes:?}"
        )),
    }
}

/// A reduction's computation and where it starts.
fn reduction(view: &View<'_>, place: usize, findings: &mut Findings) {
    let instruction = &view.instructions[place];
    let kinds = ["add", "minimum", "maximum", "multiply"];
    reducer(view, instruction, &kinds, findings);
    let starts = view.operands[place].iter().skip(1);
    if view.operands[place].len() != 2 {
        let what = "it must reduce one array from one start";
        findings.add(Rule::Reducer, &instruction.name, what);
    }
    for &start in starts {
        if view.opcode(start) != "constant" {
            let what = "it must start from a constant";
            findings.add(Rule::ReduceStart, &instruction.name, what);
        }
    }
}

/// A reducer is one operation on its two scalar parameters.
fn reducer(view: &View<'_>, instruction: &HloInstruction, kinds: &[&str], findings: &mut Findings) {
    let root = called(view, instruction).and_then(|(computation, root)| {
        let known = kinds.contains(&root.opcode.as_str()) && computation.instructions.len() == 3;
        let mut operands = root
            .operand_ids
            .iter()
            .filter_map(|id| parameter(computation, *id));
        (known && operands.next() == Some(0) && operands.next() == Some(1)).then_some(())
    });
    if root.is_none() {
        let what = format!(
            "its computation must be one operation on both parameters: {}",
            kinds.join(", ")
        );
        findings.add(Rule::Reducer, &instruction.name, what);
    }
}

/// A scatter assigns: its computation is a copy of the second parameter.
fn scatter(view: &View<'_>, place: usize, findings: &mut Findings) {
    let instruction = &view.instructions[place];
    let assigns = called(view, instruction).is_some_and(|(computation, root)| {
        root.opcode == "copy"
            && root
                .operand_ids
                .first()
                .and_then(|id| parameter(computation, *id))
                == Some(1)
    });
    if !assigns {
        let what = "only assignment compiles: its computation must be a copy of the second \
                    parameter";
        findings.add(Rule::Reducer, &instruction.name, what);
    }
    if view.operands[place].len() != 3 {
        let what = "it must have one operand, indices, and one array of updates";
        findings.add(Rule::Reducer, &instruction.name, what);
    }
}

/// The only computation that an instruction calls, and its root.
fn called<'a>(
    view: &View<'a>,
    instruction: &HloInstruction,
) -> Option<(&'a HloComputation, &'a HloInstruction)> {
    let [id] = instruction.called_computation_ids[..] else {
        return None;
    };
    let computation = view.computations.get(&id)?;
    let root = computation
        .instructions
        .iter()
        .find(|instruction| instruction.id == computation.root_id)?;
    Some((computation, root))
}

/// The number of the parameter that an id is of.
fn parameter(computation: &HloComputation, id: i64) -> Option<i64> {
    computation
        .instructions
        .iter()
        .find(|instruction| instruction.id == id && instruction.opcode == "parameter")
        .map(|instruction| instruction.parameter_number)
}

/// Collectives part the same ranks, from 0 on, into groups of equal size, and use no channel.
fn groups(view: &View<'_>, findings: &mut Findings) {
    let mut ranks = None;
    let collectives = view.instructions.iter().filter(|instruction| {
        matches!(
            instruction.opcode.as_str(),
            "all-reduce" | "all-gather" | "reduce-scatter" | "all-to-all"
        )
    });
    for instruction in collectives {
        if instruction.channel_id != 0 {
            let what = "it has a channel id: leave it out";
            findings.add(Rule::Groups, &instruction.name, what);
        }
        let groups = &instruction.replica_groups;
        let size = groups.first().map_or(0, |group| group.replica_ids.len());
        let ids = groups.iter().flat_map(|group| &group.replica_ids);
        let distinct: BTreeSet<_> = ids.clone().copied().collect();
        let count = i64::try_from(ids.count()).unwrap_or(i64::MAX);
        let parted = size > 0
            && groups.iter().all(|group| group.replica_ids.len() == size)
            && distinct.into_iter().eq(0..count);
        if !parted || *ranks.get_or_insert(count) != count {
            let what = "its groups must part all ranks, from 0 on, into equally many each, the \
                        same ranks in every collective";
            findings.add(Rule::Groups, &instruction.name, what);
        }
    }
}

/// XLA's number of an instruction's element type.
fn element(view: &View<'_>, place: usize) -> i32 {
    let shape = view.instructions[place].shape.as_ref();
    shape.map_or(0, |shape| shape.element_type)
}

/// Whether elements of this number are integers.
fn is_integer(number: i32) -> bool {
    matches!(number, 2..=9)
}
