//! Computations that others call: two scalars in, one out.

use crate::build::shape::{array, plain};
use crate::build::{Builder, instruction};
use crate::element::Element;
use crate::proto::{HloComputation, HloInstruction, ProgramShape};

/// How two numbers become one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reducer {
    /// Their sum.
    Sum,
    /// The greater.
    Max,
    /// The second, whatever the first: what a scatter does that assigns.
    Assign,
}

/// Instructions of each: two parameters and what is done with them.
pub(super) const INSTRUCTIONS: usize = 3;

impl Reducer {
    fn name(self) -> &'static str {
        match self {
            Self::Sum => "add",
            Self::Max => "maximum",
            Self::Assign => "assign",
        }
    }

    /// The computation, whose instructions have the ids `first ..`.
    pub(super) fn computation(self, element: Element, id: i64, first: i64) -> HloComputation {
        let parameter = |number: i64, name: &str| HloInstruction {
            parameter_number: number,
            name: format!("{name}.{id}"),
            id: first + number,
            ..instruction("parameter", &[])
        };
        let (opcode, operands) = match self {
            Self::Sum | Self::Max => (self.name(), vec![first, first + 1]),
            Self::Assign => ("copy", vec![first + 1]),
        };
        let result = HloInstruction {
            name: format!("{opcode}.{id}"),
            id: first + 2,
            operand_ids: operands,
            ..instruction(opcode, &[])
        };
        let instructions = [parameter(0, "left"), parameter(1, "right"), result];
        let scalar = |instruction| HloInstruction {
            shape: Some(array(element, &[])),
            ..instruction
        };
        HloComputation {
            name: format!("{}_{}", self.name(), element.name()),
            instructions: instructions.map(scalar).into(),
            program_shape: Some(ProgramShape {
                parameters: vec![plain(element, &[]); 2],
                result: Some(plain(element, &[])),
                parameter_names: vec![format!("left.{id}"), format!("right.{id}")],
            }),
            id,
            root_id: first + 2,
        }
    }
}

impl Builder {
    /// The id of the computation; each is in the module once.
    pub(super) fn reducer(&mut self, reducer: Reducer, element: Element) -> i64 {
        let wanted = (reducer, element);
        let known = self.reducers.iter().position(|known| *known == wanted);
        let place = known.unwrap_or_else(|| {
            self.reducers.push(wanted);
            self.reducers.len() - 1
        });
        super::shape::signed(place) + 1
    }
}
