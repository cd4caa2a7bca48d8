//! What the builder refuses, and what a finished module holds.

use std::collections::BTreeSet;

use super::*;
use crate::layout::Alias;
use crate::proto::{HloModule, MUST_ALIAS};

const F32: Element = Element::F32;

fn started() -> (Builder, Value, Value) {
    let mut b = Builder::new("test");
    let x = b.parameter("x", "x", F32, &[4, 8]).unwrap();
    let y = b.parameter("y", "y", F32, &[8, 16]).unwrap();
    (b, x, y)
}

/// A module with reducers, shared constants and an alias.
fn sample() -> HloModule {
    let (mut b, x, y) = started();
    let cache = b.parameter("cache", "cache.must_alias_input", F32, &[4, 16]);
    let cache = cache.unwrap();
    let contraction = Contraction {
        batch: (&[], &[]),
        over: (1, 0),
    };
    let product = b.dot(&x, &y, contraction).unwrap();
    let doubled = b.binary_scalar(Binary::Multiply, &product, Constant::F32(2.0));
    let again = b.binary_scalar(Binary::Add, &doubled.unwrap(), Constant::F32(2.0));
    let sum = b.reduce(Reducer::Sum, &again.unwrap(), 1).unwrap();
    let total = b.reduce(Reducer::Sum, &product, 1).unwrap();
    let sum = b.binary(Binary::Add, &sum, &total).unwrap();
    let sum = b.all_reduce(&sum, 2).unwrap();
    let row = b.scalar(Constant::S32(1));
    let row = b.broadcast(&row, &[1], &[]).unwrap();
    let first = b.slice_in(&product, 0, 0..1).unwrap();
    let cache = b.scatter_rows(&cache, &row, &first).unwrap();
    let alias = Alias {
        input: 2,
        output: 1,
    };
    b.finish(&[("sum", sum), ("cache", cache)], &[alias])
        .unwrap()
}

#[test]
fn the_same_calls_give_the_same_bytes_and_they_are_read_back() {
    let bytes = sample().to_bytes();
    assert_eq!(bytes, sample().to_bytes());
    assert_eq!(HloModule::from_bytes(&bytes).unwrap(), sample());
}

#[test]
fn ids_are_dense_over_the_module_and_operands_come_first() {
    let module = sample();
    let instructions = || (module.computations.iter()).flat_map(|one| &one.instructions);
    let ids: Vec<_> = instructions().map(|one| one.id).collect();
    assert!(ids.iter().copied().eq(0..shape::signed(ids.len())));
    let names: BTreeSet<_> = instructions().map(|one| &one.name).collect();
    assert_eq!(names.len(), ids.len());
    for computation in &module.computations {
        let own: BTreeSet<_> = computation.instructions.iter().map(|one| one.id).collect();
        assert!(own.contains(&computation.root_id));
        for instruction in &computation.instructions {
            let operands = &instruction.operand_ids;
            assert!(
                operands
                    .iter()
                    .all(|id| own.contains(id) && *id < instruction.id)
            );
        }
    }
    let ids: Vec<_> = module.computations.iter().map(|one| one.id).collect();
    assert_eq!(ids, [1, 2, 3]);
}

#[test]
fn a_reducer_is_in_the_module_once_for_each_type() {
    let names: Vec<_> = (sample().computations.into_iter())
        .map(|computation| computation.name)
        .collect();
    assert_eq!(names, ["add_f32", "assign_f32", "main"]);
}

#[test]
fn a_constant_is_in_the_module_once() {
    let module = sample();
    let entry = module.computations.last().unwrap();
    let constants = (entry.instructions.iter()).filter(|one| one.opcode == "constant");
    assert_eq!(constants.count(), 3, "2.0, 0.0 and the row");
}

#[test]
fn what_was_built_before_is_not_built_again() {
    let (mut b, x, y) = started();
    let twice = |b: &mut Builder, value: &Value| b.binary(Binary::Add, value, value).unwrap();
    let first = twice(&mut b, &x);
    assert_eq!(first, twice(&mut b, &x));
    assert_ne!(first, twice(&mut b, &y));
    let other = b.binary(Binary::Multiply, &x, &x).unwrap();
    assert_ne!(first, other);
    let again = b.parameter("x again", "x", F32, &[4, 8]).unwrap();
    assert_ne!(x, again);
}

#[test]
fn outputs_and_inputs_are_named_and_aliased() {
    let module = sample();
    let entry = module.computations.last().unwrap();
    let attribute = |instruction: &HloInstruction, key: &str| {
        instruction.frontend_attributes.as_ref().unwrap().map[key].clone()
    };
    let root = entry.instructions.last().unwrap();
    assert_eq!((root.opcode.as_str(), root.id), ("tuple", entry.root_id));
    assert_eq!(attribute(root, "neff_output_names"), "sum,cache");
    let cache = attribute(&entry.instructions[2], "neff_input_names");
    assert_eq!(cache, "cache.must_alias_input");
    let alias = &module.input_output_alias.unwrap().entries[0];
    assert_eq!((alias.parameter_number, alias.kind), (2, MUST_ALIAS));
    assert_eq!(alias.output_shape_index, [1]);
}

#[test]
fn arrays_lie_row_after_row_and_program_shapes_do_not_say() {
    let module = sample();
    let entry = module.computations.last().unwrap();
    let shape = entry.instructions[0].shape.clone().unwrap();
    let layout = shape.layout.unwrap();
    assert_eq!(layout.minor_to_major, [1, 0]);
    assert_eq!(layout.tail_padding_alignment_in_elements, 1);
    assert_eq!(shape.is_dynamic_dimension, [false, false]);
    let program = module.host_program_shape.unwrap();
    assert!(
        program
            .parameters
            .iter()
            .all(|shape| shape.layout.is_none())
    );
    assert_eq!(program.parameter_names, ["x", "y", "cache"]);
}

#[test]
fn a_single_output_is_copied_and_so_is_a_parameter_that_is_given_back() {
    let (b, x, y) = started();
    let module = b.finish(&[("x", x.clone())], &[]).unwrap();
    let entry = module.computations.last().unwrap();
    let opcodes: Vec<_> = (entry.instructions.iter().map(|one| one.opcode.as_str())).collect();
    assert_eq!(opcodes, ["parameter", "parameter", "copy", "copy"]);
    let (b, ..) = started();
    let module = b.finish(&[("x", x), ("y", y)], &[]).unwrap();
    let entry = module.computations.last().unwrap();
    let opcodes: Vec<_> = (entry.instructions.iter().map(|one| one.opcode.as_str())).collect();
    assert_eq!(opcodes, ["parameter", "parameter", "copy", "copy", "tuple"]);
}

#[test]
fn aliases_that_do_not_fit_are_refused() {
    let alias = |input, output| [Alias { input, output }];
    let finish = |aliases: &[Alias]| {
        let (b, x, y) = started();
        b.finish(&[("x", x), ("y", y)], aliases)
    };
    assert!(finish(&alias(0, 0)).is_ok());
    assert!(finish(&alias(0, 1)).is_err());
    assert!(finish(&alias(2, 0)).is_err());
    assert!(finish(&[alias(0, 0), alias(0, 0)].concat()).is_err());
    assert!(started().0.finish(&[], &[]).is_err());
}

#[test]
fn shapes_and_types_that_differ_are_refused_with_the_shapes() {
    let (mut b, x, y) = started();
    let refusal = b.binary(Binary::Add, &x, &y).unwrap_err().to_string();
    assert!(refusal.contains("f32[4, 8], f32[8, 16]"), "{refusal}");
    let integers = b.convert(&x, Element::S32).unwrap();
    assert!(b.binary(Binary::Add, &x, &integers).is_err());
    assert!(b.compare(Direction::Less, &x, &integers).is_err());
    assert!(b.select(&x, &x, &x).is_err());
    assert!(b.clamp(Constant::S32(0), &x, Constant::S32(1)).is_err());
}

#[test]
fn functions_of_another_type_are_refused() {
    let (mut b, x, _) = started();
    let integers = b.convert(&x, Element::S32).unwrap();
    assert!(b.unary(Unary::Exponential, &integers).is_err());
    assert!(b.unary(Unary::Not, &x).is_err());
    // The device would divide by way of floats.
    assert!(b.binary(Binary::Divide, &integers, &integers).is_err());
    assert!(b.binary(Binary::And, &x, &x).is_err());
    assert!(b.reduce(Reducer::Sum, &integers, 0).is_err());
    assert!(b.all_reduce(&integers, 2).is_err());
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    let (mut b, x, y) = started();
    assert!(b.parameter("z", "z", F32, &[0]).is_err());
    assert!(b.reshape(&x, &[31]).is_err());
    assert!(b.transpose(&x, &[0, 0]).is_err());
    assert!(b.transpose(&x, &[0]).is_err());
    assert!(b.broadcast(&x, &[4, 9], &[0, 1]).is_err());
    assert!(b.broadcast(&x, &[8, 4], &[1, 0]).is_err());
    assert!(b.slice(&x, &[0..4, 8..8]).is_err());
    assert!(b.slice(&x, &[0..5, 0..8]).is_err());
    assert!(b.slice_in(&x, 2, 0..1).is_err());
    assert!(b.concatenate(&[], 0).is_err());
    assert!(b.concatenate(&[&x, &y], 0).is_err());
    assert!(b.iota(Element::S32, &[4], 1).is_err());
    assert!(b.iota(Element::Pred, &[4], 0).is_err());
    assert!(b.pad(&x, 1, 3, Constant::S32(0)).is_err());
    assert!(b.vector(&[]).is_err());
    assert!(b.vector(&[Constant::S32(1), Constant::F32(1.0)]).is_err());
}

#[test]
fn products_whose_sizes_differ_are_refused() {
    let (mut b, x, y) = started();
    let over = |left, right| Contraction {
        batch: (&[], &[]),
        over: (left, right),
    };
    assert_eq!(b.dot(&x, &y, over(1, 0)).unwrap().dims(), [4, 16]);
    assert!(b.dot(&x, &y, over(0, 0)).is_err());
    assert!(b.dot(&x, &y, over(2, 0)).is_err());
    let narrow = b.convert(&x, Element::Bf16).unwrap();
    assert!(b.dot(&narrow, &y, over(1, 0)).is_err());
    let z = b.parameter("z", "z", F32, &[3, 4, 8]).unwrap();
    let by_first = Contraction {
        batch: (&[0], &[1]),
        over: (1, 2),
    };
    assert_eq!(b.dot(&x, &z, by_first).unwrap().dims(), [4, 3]);
}

#[test]
fn rows_are_taken_and_replaced_by_vectors_of_integers() {
    let (mut b, x, y) = started();
    let numbers = b.vector(&[Constant::S32(1), Constant::S32(3)]).unwrap();
    let rows = b.gather_rows(&x, &numbers).unwrap();
    assert_eq!(rows.dims(), [2, 8]);
    assert_eq!(b.scatter_rows(&x, &numbers, &rows).unwrap().dims(), [4, 8]);
    assert!(b.gather_rows(&x, &y).is_err());
    assert!(b.scatter_rows(&y, &numbers, &rows).is_err());
}

#[test]
fn top_k_takes_what_the_device_takes() {
    let mut b = Builder::new("test");
    let mut of = |columns: u32, k: u32| {
        let value = b.full(Constant::F32(0.0), &[2, columns]).unwrap();
        b.top_k(&value, k)
            .map(|(values, indices)| (values.dims().to_vec(), indices.element()))
    };
    assert_eq!(of(16, 4).unwrap(), (vec![2, 4], Element::U32));
    assert!(of(16_384, 256).is_ok());
    for (columns, k) in [(4, 1), (12, 1), (16_392, 1), (8, 9), (8, 0)] {
        assert!(of(columns, k).is_err(), "{k} of {columns}");
    }
}
