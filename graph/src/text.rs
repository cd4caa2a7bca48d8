//! A module as HLO text, in XLA's own syntax: its parser reads it back.
//!
//! Names have a `%` before them, shapes their layout, computations no signature (the parser needs
//! none), and constants all their values. The same module always gives the same text.

use std::collections::HashMap;
use std::fmt::{self, Display, Write};

use half::bf16;

use crate::element::Element;
use crate::proto::{
    DotDimensionNumbers, GatherDimensionNumbers, HloComputation, HloInstruction, HloModule,
    Literal, MUST_ALIAS, ScatterDimensionNumbers, Shape, TUPLE,
};

/// Writes `module` as text. Whatever the module holds is written, also what no compiler takes;
/// references that lead nowhere are written as `%?ID`.
pub fn text(module: &HloModule) -> String {
    Text(module).to_string()
}

/// A module on its way to text.
struct Text<'a>(&'a HloModule);

/// What instructions and computations are called, by id.
struct Names<'a> {
    computations: HashMap<i64, &'a str>,
    instructions: HashMap<i64, &'a str>,
}

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let module = self.0;
        write!(f, "HloModule {}", identifier(&module.name))?;
        aliases(f, module)?;
        let computations = module.computations.iter();
        let computations: HashMap<_, _> = computations
            .map(|computation| (computation.id, computation.name.as_str()))
            .collect();
        f.write_char('\n')?;
        for computation in &module.computations {
            let instructions = computation.instructions.iter();
            let names = Names {
                computations: computations.clone(),
                instructions: instructions
                    .map(|instruction| (instruction.id, instruction.name.as_str()))
                    .collect(),
            };
            let entry = computation.id == module.entry_computation_id;
            write_computation(f, computation, entry, &names)?;
        }
        Ok(())
    }
}

/// The pairs that share memory, a line each.
fn aliases(f: &mut fmt::Formatter<'_>, module: &HloModule) -> fmt::Result {
    let Some(alias) = &module.input_output_alias else {
        return Ok(());
    };
    if alias.entries.is_empty() {
        return Ok(());
    }
    f.write_str(", input_output_alias={")?;
    for (number, entry) in alias.entries.iter().enumerate() {
        let comma = if number == 0 { "" } else { "," };
        let kind = match entry.kind {
            MUST_ALIAS => "must-alias",
            _ => "may-alias",
        };
        write!(
            f,
            "{comma}\n  {}: ({}, {}, {kind})",
            Braces(&entry.output_shape_index),
            entry.parameter_number,
            Braces(&entry.parameter_shape_index),
        )?;
    }
    f.write_str("\n}")
}

fn write_computation(
    f: &mut fmt::Formatter<'_>,
    computation: &HloComputation,
    entry: bool,
    names: &Names<'_>,
) -> fmt::Result {
    let start = if entry { "ENTRY " } else { "" };
    writeln!(f, "\n{start}%{} {{", identifier(&computation.name))?;
    for instruction in &computation.instructions {
        let root = match instruction.id == computation.root_id {
            true => "ROOT ",
            false => "",
        };
        write!(f, "  {root}")?;
        write_instruction(f, instruction, names)?;
        f.write_char('\n')?;
    }
    f.write_str("}\n")
}

fn write_instruction(
    f: &mut fmt::Formatter<'_>,
    instruction: &HloInstruction,
    names: &Names<'_>,
) -> fmt::Result {
    write!(f, "%{} = ", identifier(&instruction.name))?;
    if let Some(shape) = &instruction.shape {
        write!(f, "{} ", ShapeText(shape))?;
    }
    write!(f, "{}(", instruction.opcode)?;
    match instruction.opcode.as_str() {
        "parameter" => write!(f, "{}", instruction.parameter_number)?,
        "constant" => write_values(f, instruction)?,
        _ => {
            for (number, id) in instruction.operand_ids.iter().enumerate() {
                let comma = if number == 0 { "" } else { ", " };
                write!(f, "{comma}{}", reference(&names.instructions, *id))?;
            }
        }
    }
    f.write_char(')')?;
    for attribute in attributes(instruction, names) {
        write!(f, ", {attribute}")?;
    }
    Ok(())
}

/// Everything behind the operands, in a fixed order.
fn attributes(instruction: &HloInstruction, names: &Names<'_>) -> Vec<String> {
    let mut all = Vec::new();
    sizes(instruction, &mut all);
    if let Some(numbers) = &instruction.dot_dimension_numbers {
        dot(numbers, &mut all);
    }
    if let Some(numbers) = &instruction.gather_dimension_numbers {
        gather(numbers, &instruction.gather_slice_sizes, &mut all);
    }
    if let Some(numbers) = &instruction.scatter_dimension_numbers {
        scatter(numbers, &mut all);
    }
    if instruction.indices_are_sorted {
        all.push("indices_are_sorted=true".into());
    }
    if instruction.unique_indices {
        all.push("unique_indices=true".into());
    }
    if instruction.channel_id != 0 {
        all.push(format!("channel_id={}", instruction.channel_id));
    }
    if !instruction.replica_groups.is_empty() {
        let groups = instruction.replica_groups.iter();
        let groups: Vec<_> = groups
            .map(|group| Braces(&group.replica_ids).to_string())
            .collect();
        all.push(format!("replica_groups={{{}}}", groups.join(",")));
    }
    calls(instruction, names, &mut all);
    frontend(instruction, &mut all);
    let before = &instruction.control_predecessor_ids;
    if !before.is_empty() {
        let before = before.iter().map(|id| reference(&names.instructions, *id));
        let before: Vec<_> = before.collect();
        all.push(format!("control-predecessors={{{}}}", before.join(", ")));
    }
    all
}

/// Dimensions, sizes and places.
fn sizes(instruction: &HloInstruction, all: &mut Vec<String>) {
    let opcode = instruction.opcode.as_str();
    match (opcode, &instruction.dimensions[..]) {
        ("iota", [dimension]) => all.push(format!("iota_dimension={dimension}")),
        // A scalar is broadcast to no dimension, and still must say so.
        ("broadcast", dimensions) => all.push(format!("dimensions={}", Braces(dimensions))),
        ("transpose" | "reduce", dimensions) => {
            all.push(format!("dimensions={}", Braces(dimensions)));
        }
        (_, []) => (),
        (_, dimensions) => all.push(format!("dimensions={}", Braces(dimensions))),
    }
    if opcode == "slice" {
        let slices = instruction.slice_dimensions.iter();
        let slices: Vec<_> = slices
            .map(|slice| match slice.stride {
                1 => format!("[{}:{}]", slice.start, slice.limit),
                stride => format!("[{}:{}:{stride}]", slice.start, slice.limit),
            })
            .collect();
        all.push(format!("slice={{{}}}", slices.join(", ")));
    }
    if opcode == "dynamic-slice" {
        let sizes = Braces(&instruction.dynamic_slice_sizes);
        all.push(format!("dynamic_slice_sizes={sizes}"));
    }
    if let Some(padding) = &instruction.padding_config {
        let dimensions = padding.dimensions.iter();
        let dimensions: Vec<_> = dimensions
            .map(|one| match one.interior_padding {
                0 => format!("{}_{}", one.edge_padding_low, one.edge_padding_high),
                between => format!(
                    "{}_{}_{between}",
                    one.edge_padding_low, one.edge_padding_high
                ),
            })
            .collect();
        all.push(format!("padding={}", dimensions.join("x")));
    }
    if opcode == "get-tuple-element" {
        all.push(format!("index={}", instruction.tuple_index));
    }
    if !instruction.comparison_direction.is_empty() {
        all.push(format!("direction={}", instruction.comparison_direction));
    }
    if opcode == "topk" {
        let (k, largest) = (instruction.k, instruction.largest);
        all.push(format!("k={k}, largest={largest}"));
    }
}

fn dot(numbers: &DotDimensionNumbers, all: &mut Vec<String>) {
    let parts = [
        ("lhs_batch_dims", &numbers.lhs_batch_dimensions),
        ("lhs_contracting_dims", &numbers.lhs_contracting_dimensions),
        ("rhs_batch_dims", &numbers.rhs_batch_dimensions),
        ("rhs_contracting_dims", &numbers.rhs_contracting_dimensions),
    ];
    let parts = parts
        .iter()
        .filter(|(_, dimensions)| !dimensions.is_empty());
    all.extend(parts.map(|(name, dimensions)| format!("{name}={}", Braces(dimensions))));
}

fn gather(numbers: &GatherDimensionNumbers, slice_sizes: &[i64], all: &mut Vec<String>) {
    let offsets = Braces(&numbers.offset_dims);
    let collapsed = Braces(&numbers.collapsed_slice_dims);
    all.push(format!("offset_dims={offsets}"));
    all.push(format!("collapsed_slice_dims={collapsed}"));
    all.push(format!(
        "start_index_map={}",
        Braces(&numbers.start_index_map)
    ));
    all.push(format!("index_vector_dim={}", numbers.index_vector_dim));
    all.push(format!("slice_sizes={}", Braces(slice_sizes)));
}

fn scatter(numbers: &ScatterDimensionNumbers, all: &mut Vec<String>) {
    let windows = Braces(&numbers.update_window_dims);
    let inserted = Braces(&numbers.inserted_window_dims);
    let to = Braces(&numbers.scatter_dims_to_operand_dims);
    all.push(format!("update_window_dims={windows}"));
    all.push(format!("inserted_window_dims={inserted}"));
    all.push(format!("scatter_dims_to_operand_dims={to}"));
    all.push(format!("index_vector_dim={}", numbers.index_vector_dim));
}

/// Computations and custom calls.
fn calls(instruction: &HloInstruction, names: &Names<'_>, all: &mut Vec<String>) {
    match instruction.called_computation_ids[..] {
        [] => (),
        [one] => all.push(format!("to_apply={}", reference(&names.computations, one))),
        ref more => {
            let more = more.iter().map(|id| reference(&names.computations, *id));
            let more: Vec<_> = more.collect();
            all.push(format!("called_computations={{{}}}", more.join(", ")));
        }
    }
    if !instruction.custom_call_target.is_empty() {
        let target = quoted(instruction.custom_call_target.as_bytes());
        // The version of its interface, which ours leave out, has no word that the parser takes.
        all.push(format!("custom_call_target={target}"));
    }
    if !instruction.backend_config.is_empty() {
        let config = quoted(&instruction.backend_config);
        all.push(format!("backend_config={config}"));
    }
}

fn frontend(instruction: &HloInstruction, all: &mut Vec<String>) {
    let Some(attributes) = &instruction.frontend_attributes else {
        return;
    };
    let pairs = attributes.map.iter();
    let pairs: Vec<_> = pairs
        .map(|(key, value)| format!("{key}={}", quoted(value.as_bytes())))
        .collect();
    if !pairs.is_empty() {
        all.push(format!("frontend_attributes={{{}}}", pairs.join(",")));
    }
}

/// The values of a constant, nested as its dimensions are.
fn write_values(f: &mut fmt::Formatter<'_>, instruction: &HloInstruction) -> fmt::Result {
    let (Some(shape), Some(literal)) = (&instruction.shape, &instruction.literal) else {
        return f.write_str("?");
    };
    let values = values(literal, shape.element_type);
    let sizes: Vec<_> = shape
        .dimensions
        .iter()
        .map(|&size| usize::try_from(size).unwrap_or(0))
        .collect();
    write_nested(f, &values, &sizes)
}

fn write_nested(f: &mut fmt::Formatter<'_>, values: &[String], sizes: &[usize]) -> fmt::Result {
    let Some((&size, inner)) = sizes.split_first() else {
        return f.write_str(values.first().map_or("?", String::as_str));
    };
    let each = values.len().checked_div(size).unwrap_or(0);
    f.write_str("{")?;
    for number in 0..size {
        let comma = if number == 0 { "" } else { ", " };
        f.write_str(comma)?;
        let part = values.get(number * each..(number + 1) * each);
        write_nested(f, part.unwrap_or(&[]), inner)?;
    }
    f.write_str("}")
}

/// The values of a literal as XLA reads them.
fn values(literal: &Literal, element: i32) -> Vec<String> {
    fn all<T: Display>(values: impl IntoIterator<Item = T>) -> Vec<String> {
        let values = values.into_iter();
        values.map(|value| value.to_string()).collect()
    }
    match Element::from_number(element) {
        Some(Element::Pred) => all(&literal.preds),
        Some(Element::S8) => all(literal.s8s.iter().map(|byte| byte.cast_signed())),
        Some(Element::S32) => all(&literal.s32s),
        Some(Element::U32) => all(&literal.u32s),
        Some(Element::F32) => literal.f32s.iter().copied().map(float).collect(),
        Some(Element::Bf16) => literal
            .bf16s
            .chunks_exact(2)
            .map(|pair| float(bf16::from_le_bytes([pair[0], pair[1]]).to_f32()))
            .collect(),
        Some(Element::F8e4m3fn) | None => Vec::new(),
    }
}

/// The shortest decimal that reads back as the same number.
fn float(value: f32) -> String {
    match value {
        _ if value.is_nan() => "nan".into(),
        _ if value.is_infinite() && value > 0.0 => "inf".into(),
        _ if value.is_infinite() => "-inf".into(),
        _ => {
            let text = format!("{value:?}");
            text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
        }
    }
}

/// A shape with its layout.
struct ShapeText<'a>(&'a Shape);

impl Display for ShapeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = self.0;
        if shape.element_type == TUPLE {
            f.write_char('(')?;
            for (number, part) in shape.tuple_shapes.iter().enumerate() {
                let comma = if number == 0 { "" } else { ", " };
                write!(f, "{comma}{}", ShapeText(part))?;
            }
            return f.write_char(')');
        }
        f.write_str(element_name(shape.element_type))?;
        f.write_char('[')?;
        for (number, size) in shape.dimensions.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            let dynamic = match shape.is_dynamic_dimension.get(number) {
                Some(true) => "<=",
                _ => "",
            };
            write!(f, "{comma}{dynamic}{size}")?;
        }
        f.write_char(']')?;
        match &shape.layout {
            Some(layout) if !layout.minor_to_major.is_empty() => {
                write!(f, "{}", Braces(&layout.minor_to_major))
            }
            _ => Ok(()),
        }
    }
}

/// XLA's word for an element type, also for those that we never write.
fn element_name(number: i32) -> &'static str {
    match Element::from_number(number) {
        Some(element) => element.name(),
        None => match number {
            3 => "s16",
            5 => "s64",
            6 => "u8",
            7 => "u16",
            9 => "u64",
            10 => "f16",
            12 => "f64",
            15 => "c64",
            17 => "token",
            18 => "c128",
            19 => "f8e5m2",
            23 => "f8e4m3b11fnuz",
            24 => "f8e5m2fnuz",
            25 => "f8e4m3fnuz",
            28 => "f8e4m3",
            29 => "f8e3m4",
            _ => "invalid",
        },
    }
}

/// Numbers in braces.
struct Braces<'a>(&'a [i64]);

impl Display for Braces<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('{')?;
        for (number, value) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            write!(f, "{comma}{value}")?;
        }
        f.write_char('}')
    }
}

/// What an id is called.
fn reference(names: &HashMap<i64, &str>, id: i64) -> String {
    match names.get(&id) {
        Some(name) => format!("%{}", identifier(name)),
        None => format!("%?{id}"),
    }
}

/// A name with what the parser takes in names only.
fn identifier(name: &str) -> String {
    let kept = |c: char| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '.' | '-' => c,
        _ => '_',
    };
    match name.is_empty() {
        true => "_".into(),
        false => name.chars().map(kept).collect(),
    }
}

/// Bytes in double quotes, with C's escapes.
fn quoted(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for &byte in bytes {
        match byte {
            b'"' | b'\\' => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b' '..=b'~' => text.push(char::from(byte)),
            _ => text += &format!("\\{byte:03o}"),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests;
