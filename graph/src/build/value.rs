//! What instructions give, and why one cannot be.

use std::fmt;

use crate::element::Element;

/// What an instruction gives: a handle, with the shape that was found while building.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Value {
    /// The instruction's place in the computation.
    pub(super) id: usize,
    element: Element,
    dims: Vec<u32>,
}

impl Value {
    pub(super) fn new(id: usize, element: Element, dims: &[u32]) -> Self {
        let dims = dims.to_vec();
        Self { id, element, dims }
    }

    /// What it is made of.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Sizes, slowest first; none for a scalar.
    pub fn dims(&self) -> &[u32] {
        &self.dims
    }

    /// How many elements it has.
    pub fn len(&self) -> u64 {
        count(&self.dims)
    }

    /// Whether it has none; the builder makes no such value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its bytes.
    pub fn bytes(&self) -> u64 {
        self.len() * self.element.bytes()
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.element.name(), self.dims)
    }
}

/// Elements of an array of this shape.
pub(super) fn count(dims: &[u32]) -> u64 {
    dims.iter().map(|size| u64::from(*size)).product()
}

/// A number as an array holds it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Constant {
    /// A truth.
    Pred(bool),
    /// An integer.
    S32(i32),
    /// An integer without a sign.
    U32(u32),
    /// A float.
    F32(f32),
    /// A float of 16 bits.
    Bf16(half::bf16),
}

impl Constant {
    /// Its type.
    pub fn element(self) -> Element {
        match self {
            Self::Pred(_) => Element::Pred,
            Self::S32(_) => Element::S32,
            Self::U32(_) => Element::U32,
            Self::F32(_) => Element::F32,
            Self::Bf16(_) => Element::Bf16,
        }
    }
}

/// An instruction whose operands do not fit it: a mistake in a lowering, or sizes that it does not
/// know how to treat.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{opcode}` of {operands}: {reason}")]
pub struct BuildError {
    /// The instruction.
    pub opcode: String,
    /// What it was to take.
    pub operands: String,
    /// What does not fit.
    pub reason: String,
}

impl BuildError {
    pub(super) fn new(opcode: &str, operands: &[&Value], reason: impl Into<String>) -> Self {
        let operands: Vec<_> = operands.iter().map(ToString::to_string).collect();
        Self {
            opcode: opcode.to_owned(),
            operands: operands.join(", "),
            reason: reason.into(),
        }
    }
}
