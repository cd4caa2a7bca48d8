//! Modules written by hand, for tests: nothing is checked while they are written.

use std::collections::BTreeMap;

use crate::proto::{
    AliasEntry, FrontendAttributes, HloComputation, HloInputOutputAlias, HloInstruction, HloModule,
    Layout, Literal, MUST_ALIAS, ProgramShape, Shape, TUPLE,
};

pub(crate) const S32: i32 = 4;
pub(crate) const U32: i32 = 8;
pub(crate) const F32: i32 = 11;
pub(crate) const BF16: i32 = 16;

/// A module that grows. Instructions are named as they are given; operands are names.
#[derive(Default)]
pub(crate) struct Sketch {
    reducers: Vec<HloComputation>,
    instructions: Vec<HloInstruction>,
    parameters: Vec<Shape>,
    aliases: Vec<AliasEntry>,
}

/// An array of rows one after the other.
pub(crate) fn array(element: i32, dimensions: &[i64]) -> Shape {
    Shape {
        element_type: element,
        dimensions: dimensions.to_vec(),
        is_dynamic_dimension: vec![false; dimensions.len()],
        layout: Some(Layout {
            minor_to_major: (0..i64::try_from(dimensions.len()).unwrap())
                .rev()
                .collect(),
            tail_padding_alignment_in_elements: 1,
        }),
        ..Shape::default()
    }
}

pub(crate) fn tuple(parts: Vec<Shape>) -> Shape {
    Shape {
        element_type: TUPLE,
        tuple_shapes: parts,
        ..Shape::default()
    }
}

/// A shape without layouts, as program shapes are.
fn plain(shape: &Shape) -> Shape {
    Shape {
        layout: None,
        tuple_shapes: shape.tuple_shapes.iter().map(plain).collect(),
        ..shape.clone()
    }
}

fn attribute(key: &str, value: &str) -> FrontendAttributes {
    FrontendAttributes {
        map: BTreeMap::from([(key.to_owned(), value.to_owned())]),
    }
}

impl Sketch {
    /// Adds an instruction.
    pub(crate) fn add(
        &mut self,
        name: &str,
        opcode: &str,
        shape: Shape,
        operands: &[&str],
    ) -> &mut HloInstruction {
        let place = |name: &&str| {
            let named = |one: &HloInstruction| one.name == *name;
            let place = self.instructions.iter().position(named);
            ENTRY + i64::try_from(place.unwrap_or_else(|| panic!("no {name}"))).unwrap()
        };
        let operand_ids = operands.iter().map(place).collect();
        self.instructions.push(HloInstruction {
            id: ENTRY + i64::try_from(self.instructions.len()).unwrap(),
            name: name.to_owned(),
            opcode: opcode.to_owned(),
            shape: Some(shape),
            operand_ids,
            ..HloInstruction::default()
        });
        self.instructions.last_mut().unwrap()
    }

    /// Adds a parameter, whose name in the NEFF is its own.
    pub(crate) fn parameter(&mut self, name: &str, element: i32, dimensions: &[i64]) {
        let shape = array(element, dimensions);
        let number = i64::try_from(self.parameters.len()).unwrap();
        self.parameters.push(plain(&shape));
        let parameter = self.add(name, "parameter", shape, &[]);
        parameter.parameter_number = number;
        parameter.frontend_attributes = Some(attribute("neff_input_names", name));
    }

    /// Adds a scalar of S32.
    pub(crate) fn integer(&mut self, name: &str, value: i32) {
        let constant = self.add(name, "constant", array(S32, &[]), &[]);
        constant.literal = Some(Literal {
            shape: Some(array(S32, &[])),
            s32s: vec![value],
            ..Literal::default()
        });
    }

    /// Adds a scalar of F32.
    pub(crate) fn float(&mut self, name: &str, value: f32) {
        let constant = self.add(name, "constant", array(F32, &[]), &[]);
        constant.literal = Some(Literal {
            shape: Some(array(F32, &[])),
            f32s: vec![value],
            ..Literal::default()
        });
    }

    /// Adds a computation of two scalars and gives its id.
    pub(crate) fn reducer(&mut self, opcode: &str, element: i32) -> i64 {
        let id = i64::try_from(self.reducers.len()).unwrap() + 1;
        let first = 3 * (id - 1);
        let one = |offset: i64, opcode: &str, operands: Vec<i64>| HloInstruction {
            id: first + offset,
            name: format!("{opcode}.{}", first + offset),
            opcode: opcode.to_owned(),
            shape: Some(array(element, &[])),
            parameter_number: offset,
            operand_ids: operands,
            ..HloInstruction::default()
        };
        let operands = match opcode {
            "copy" => vec![first + 1],
            _ => vec![first, first + 1],
        };
        let mut root = one(2, opcode, operands);
        root.parameter_number = 0;
        let instructions = vec![
            one(0, "parameter", vec![]),
            one(1, "parameter", vec![]),
            root,
        ];
        let scalar = plain(&array(element, &[]));
        self.reducers.push(HloComputation {
            id,
            name: format!("{opcode}_{id}"),
            root_id: first + 2,
            instructions,
            program_shape: Some(ProgramShape {
                parameters: vec![scalar.clone(); 2],
                result: Some(scalar),
                parameter_names: vec!["a".into(), "b".into()],
            }),
        });
        id
    }

    /// Lets an output lie in the memory of a parameter.
    pub(crate) fn alias(&mut self, output: i64, parameter: i64) {
        self.aliases.push(AliasEntry {
            output_shape_index: vec![output],
            parameter_number: parameter,
            parameter_shape_index: Vec::new(),
            kind: MUST_ALIAS,
        });
    }

    /// The module that gives these instructions by these names, in a tuple.
    pub(crate) fn finish(mut self, outputs: &[(&str, &str)]) -> HloModule {
        let instructions: Vec<_> = outputs.iter().map(|(one, _)| *one).collect();
        let names: Vec<_> = outputs.iter().map(|(_, name)| *name).collect();
        let shape_of = |name: &&str| {
            let named = |one: &&HloInstruction| one.name == **name;
            self.instructions
                .iter()
                .find(named)
                .unwrap()
                .shape
                .clone()
                .unwrap()
        };
        let result = tuple(instructions.iter().map(shape_of).collect());
        let root = self.add("root", "tuple", result.clone(), &instructions);
        root.frontend_attributes = Some(attribute("neff_output_names", &names.join(",")));
        let program = ProgramShape {
            parameters: self.parameters,
            result: Some(plain(&result)),
            parameter_names: Vec::new(),
        };
        let id = i64::try_from(self.reducers.len()).unwrap() + 1;
        let mut computations = self.reducers;
        computations.push(HloComputation {
            id,
            name: "main".into(),
            root_id: self.instructions.last().unwrap().id,
            instructions: self.instructions,
            program_shape: Some(program.clone()),
        });
        HloModule {
            name: "sketch".into(),
            entry_computation_name: "main".into(),
            computations,
            host_program_shape: Some(program),
            id: 0,
            entry_computation_id: id,
            input_output_alias: Some(HloInputOutputAlias {
                entries: self.aliases,
            }),
        }
    }
}

/// Where ids of the entry start: behind those of all reducers.
const ENTRY: i64 = 100;

/// The instruction of that name in the entry.
pub(crate) fn named<'a>(module: &'a mut HloModule, name: &str) -> &'a mut HloInstruction {
    let entry = module.computations.last_mut().unwrap();
    let named = |one: &&mut HloInstruction| one.name == name;
    entry.instructions.iter_mut().find(named).unwrap()
}
