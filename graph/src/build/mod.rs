//! A builder of HLO modules: an instruction at a time, each checked as it is added.
//!
//! It writes what `neuronx-cc` is known to read: row-major layouts, static shapes, ids that are
//! dense and below 2^31, names of inputs and outputs as attributes, aliases that must be kept. The
//! same calls always give the same bytes, and what was built before is not built again: the masks
//! of all layers are one.

mod module;
mod ops;
mod reducers;
mod shape;
mod value;

use std::collections::HashMap;

use prost::Message as _;

use crate::element::Element;
use crate::proto::{HloInstruction, Literal};

pub use ops::{Binary, Contraction, Direction, Unary};
pub use reducers::Reducer;
pub use value::{BuildError, Constant, Value};

/// A module being built.
#[derive(Debug)]
pub struct Builder {
    name: String,
    /// Of the entry; an id is a place here, until the module is finished.
    instructions: Vec<HloInstruction>,
    /// The parameters: names in the module, and their values.
    parameters: Vec<(String, Value)>,
    /// Computations that are called, in the order of their first use: ids 1, 2, ..
    reducers: Vec<(Reducer, Element)>,
    /// What each instruction without a name gives, by its bytes.
    known: HashMap<Vec<u8>, Value>,
}

impl Builder {
    /// An empty module of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            instructions: Vec::new(),
            parameters: Vec::new(),
            reducers: Vec::new(),
            known: HashMap::new(),
        }
    }

    /// The next parameter. `name` names it in the module, `neff_name` in the NEFF.
    ///
    /// # Errors
    /// A size is 0.
    pub fn parameter(
        &mut self,
        name: &str,
        neff_name: &str,
        element: Element,
        dims: &[u32],
    ) -> Result<Value, BuildError> {
        let number = self.parameters.len();
        let instruction = HloInstruction {
            name: name.to_owned(),
            parameter_number: shape::signed(number),
            frontend_attributes: Some(module::attribute("neff_input_names", neff_name)),
            ..instruction("parameter", &[])
        };
        let value = self.push(instruction, element, dims)?;
        self.parameters.push((name.to_owned(), value.clone()));
        Ok(value)
    }

    /// A scalar.
    pub fn scalar(&mut self, constant: Constant) -> Value {
        let instruction = HloInstruction {
            literal: Some(literal(&[constant], &[])),
            ..instruction("constant", &[])
        };
        self.add(instruction, constant.element(), &[])
    }

    /// A vector of these numbers, all of one type.
    ///
    /// # Errors
    /// There are none, or they are of several types.
    pub fn vector(&mut self, constants: &[Constant]) -> Result<Value, BuildError> {
        let refuse = |reason: &str| BuildError::new("constant", &[], reason);
        let first = constants.first().ok_or_else(|| refuse("it is empty"))?;
        let element = first.element();
        if constants.iter().any(|one| one.element() != element) {
            return Err(refuse("its numbers are of several types"));
        }
        let len = u32::try_from(constants.len()).map_err(|_| refuse("it is too long"))?;
        let instruction = HloInstruction {
            literal: Some(literal(constants, &[len])),
            ..instruction("constant", &[])
        };
        self.push(instruction, element, &[len])
    }

    /// An array of this shape that holds `constant` everywhere.
    ///
    /// # Errors
    /// A size is 0.
    pub fn full(&mut self, constant: Constant, dims: &[u32]) -> Result<Value, BuildError> {
        let scalar = self.scalar(constant);
        self.broadcast(&scalar, dims, &[])
    }

    /// Adds an instruction that gives an array, unless it would be empty.
    fn push(
        &mut self,
        instruction: HloInstruction,
        element: Element,
        dims: &[u32],
    ) -> Result<Value, BuildError> {
        if dims.contains(&0) {
            let reason = format!("a size of {dims:?} is 0");
            return Err(BuildError::new(&instruction.opcode, &[], reason));
        }
        Ok(self.add(instruction, element, dims))
    }

    /// Adds an instruction, unless there is the same already. None has an effect beside its value.
    fn add(&mut self, instruction: HloInstruction, element: Element, dims: &[u32]) -> Value {
        let instruction = HloInstruction {
            shape: Some(shape::array(element, dims)),
            ..instruction
        };
        let bytes = instruction.encode_to_vec();
        let is_named = !instruction.name.is_empty();
        if let Some(value) = self.known.get(&bytes).filter(|_| !is_named) {
            return value.clone();
        }
        let value = Value::new(self.instructions.len(), element, dims);
        self.instructions.push(instruction);
        self.known.insert(bytes, value.clone());
        value
    }
}

/// An instruction with operands and nothing else.
fn instruction(opcode: &str, operands: &[&Value]) -> HloInstruction {
    HloInstruction {
        opcode: opcode.to_owned(),
        operand_ids: operands
            .iter()
            .map(|value| shape::signed(value.id))
            .collect(),
        ..HloInstruction::default()
    }
}

/// The values of a constant, all of the type of the first.
fn literal(constants: &[Constant], dims: &[u32]) -> Literal {
    let mut literal = Literal::default();
    for constant in constants {
        literal.shape = Some(shape::array(constant.element(), dims));
        match *constant {
            Constant::Pred(truth) => literal.preds.push(truth),
            Constant::S32(number) => literal.s32s.push(number),
            Constant::U32(number) => literal.u32s.push(number),
            Constant::F32(number) => literal.f32s.push(number),
            Constant::Bf16(number) => literal.bf16s.extend(number.to_le_bytes()),
        }
    }
    literal
}

#[cfg(test)]
mod tests;
