//! Tiny modules for tests of whatever loads NEFFs: a counter, and a sum over ranks.

use std::collections::BTreeMap;

use graph::Element;
use graph::proto::{
    AliasEntry, FrontendAttributes, HloComputation, HloInputOutputAlias, HloInstruction, HloModule,
    Layout, MUST_ALIAS, ProgramShape, ReplicaGroup, Shape, TUPLE,
};

use crate::neff::{Info, Reservation};

/// Elements of every array of these modules.
pub const SIZE: u64 = 4;

/// A module that takes `x` and `state` (both F32 of [`SIZE`]), and gives `sum`, that is `x + state`
/// summed over all ranks, and `state`, which holds `x + state` of the rank: the two names of the
/// state share memory. There are so many `ranks`.
pub fn counter(name: &str, ranks: u32) -> HloModule {
    let array = array();
    let tuple = Shape {
        element_type: TUPLE,
        tuple_shapes: vec![array.clone(), array.clone()],
        ..Shape::default()
    };
    let add = HloInstruction {
        operand_ids: vec![0, 1],
        ..instruction(2, "add", &array)
    };
    let sum = match ranks {
        1 => HloInstruction {
            operand_ids: vec![2],
            ..instruction(3, "copy", &array)
        },
        _ => HloInstruction {
            operand_ids: vec![2],
            called_computation_ids: vec![0],
            replica_groups: vec![ReplicaGroup {
                replica_ids: (0..i64::from(ranks)).collect(),
            }],
            ..instruction(3, "all-reduce", &array)
        },
    };
    let root = HloInstruction {
        operand_ids: vec![3, 2],
        frontend_attributes: attribute("neff_output_names", "sum,state"),
        ..instruction(4, "tuple", &tuple)
    };
    let main = HloComputation {
        name: "main".to_owned(),
        instructions: vec![
            parameter(0, 0, "x", &array),
            parameter(1, 1, "state.must_alias_input", &array),
            add,
            sum,
            root,
        ],
        program_shape: Some(program(&[array.clone(), array], &tuple)),
        id: 1,
        root_id: 4,
    };
    HloModule {
        name: name.to_owned(),
        entry_computation_name: "main".to_owned(),
        host_program_shape: main.program_shape.clone(),
        computations: vec![reducer(), main],
        entry_computation_id: 1,
        input_output_alias: Some(HloInputOutputAlias {
            entries: vec![AliasEntry {
                output_shape_index: vec![1],
                parameter_number: 1,
                parameter_shape_index: Vec::new(),
                kind: MUST_ALIAS,
            }],
        }),
        ..HloModule::default()
    }
}

/// What a compiler would say of it.
pub fn info(target: &str, lnc: u32, ranks: u32) -> Info {
    Info {
        name: "sample.neff".to_owned(),
        compiler: "2.27.0.0+sample".to_owned(),
        target: target.to_owned(),
        lnc,
        ranks,
        reservation: Reservation {
            code: 4096,
            rings: 8192,
            scratchpad: 1,
        },
    }
}

/// The sum of two numbers.
fn reducer() -> HloComputation {
    let scalar = Shape {
        dimensions: Vec::new(),
        is_dynamic_dimension: Vec::new(),
        layout: Some(layout(0)),
        ..array()
    };
    let add = HloInstruction {
        operand_ids: vec![5, 6],
        ..instruction(7, "add", &scalar)
    };
    HloComputation {
        name: "add".to_owned(),
        instructions: vec![
            parameter(5, 0, "", &scalar),
            parameter(6, 1, "", &scalar),
            add,
        ],
        program_shape: Some(program(&[scalar.clone(), scalar.clone()], &scalar)),
        id: 0,
        root_id: 7,
    }
}

fn array() -> Shape {
    Shape {
        element_type: Element::F32.number(),
        dimensions: vec![4],
        is_dynamic_dimension: vec![false],
        layout: Some(layout(1)),
        ..Shape::default()
    }
}

fn layout(rank: i64) -> Layout {
    Layout {
        minor_to_major: (0..rank).rev().collect(),
        tail_padding_alignment_in_elements: 1,
    }
}

fn program(parameters: &[Shape], result: &Shape) -> ProgramShape {
    ProgramShape {
        parameters: parameters.to_vec(),
        result: Some(result.clone()),
        parameter_names: (0..parameters.len()).map(|at| format!("p{at}")).collect(),
    }
}

fn attribute(key: &str, value: &str) -> Option<FrontendAttributes> {
    let map = BTreeMap::from([(key.to_owned(), value.to_owned())]);
    (!value.is_empty()).then_some(FrontendAttributes { map })
}

fn parameter(id: i64, number: i64, name: &str, shape: &Shape) -> HloInstruction {
    HloInstruction {
        parameter_number: number,
        frontend_attributes: attribute("neff_input_names", name),
        ..instruction(id, "parameter", shape)
    }
}

fn instruction(id: i64, opcode: &str, shape: &Shape) -> HloInstruction {
    HloInstruction {
        name: format!("{opcode}.{id}"),
        opcode: opcode.to_owned(),
        shape: Some(shape.clone()),
        id,
        ..HloInstruction::default()
    }
}
