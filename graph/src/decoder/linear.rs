//! Products with weights, and norms.

use crate::build::{Binary, Constant, Contraction, Reducer, Unary, Value};
use crate::decoder::Lowering;
use crate::element::Element;
use crate::layout::{Content, Slot};
use crate::lower::LowerError;

/// `[n, in]` x `[in, out]`.
const ROWS: Contraction<'static> = Contraction {
    batch: (&[], &[]),
    over: (1, 0),
};

impl Lowering<'_> {
    /// `[n, in]` times the matrix: `[n, out]` in F32.
    ///
    /// A matrix of bytes is widened to what is multiplied and no further, and its scale comes after
    /// the sum, on the few results instead of the many weights.
    pub(super) fn linear(&mut self, x: &Value, slot: Slot) -> Result<Value, LowerError> {
        let multiplied = self.multiplied();
        let matrix = self.weight(slot)?;
        let matrix = self.builder.convert(&matrix, multiplied)?;
        let x = self.builder.convert(x, multiplied)?;
        let product = self.builder.dot(&x, &matrix, ROWS)?;
        if !self.form.weights.is_scaled() {
            return Ok(product);
        }
        let scale = self.input(Content::Scale(slot))?;
        let scale = self.builder.broadcast(&scale, product.dims(), &[1])?;
        Ok(self.builder.binary(Binary::Multiply, &product, &scale)?)
    }

    /// Adds a vector to each row of `[n, out]`, where `present`.
    pub(super) fn bias(
        &mut self,
        x: Value,
        slot: Slot,
        present: bool,
    ) -> Result<Value, LowerError> {
        if !present {
            return Ok(x);
        }
        let bias = self.weight(slot)?;
        let bias = self.builder.broadcast(&bias, x.dims(), &[1])?;
        Ok(self.builder.binary(Binary::Add, &x, &bias)?)
    }

    /// The RMS norm over the last dimension, in F32.
    pub(super) fn norm(&mut self, x: &Value, slot: Slot) -> Result<Value, LowerError> {
        let weight = self.weight(slot)?;
        let b = &mut self.builder;
        let last = x.dims().len() - 1;
        #[expect(
            clippy::cast_precision_loss,
            reason = "a row has less than 2^24 columns"
        )]
        let share = (x.dims()[last] as f32).recip();
        let squares = b.binary(Binary::Multiply, x, x)?;
        let sum = b.reduce(Reducer::Sum, &squares, last)?;
        let mean = b.binary_scalar(Binary::Multiply, &sum, Constant::F32(share))?;
        let epsilon = Constant::F32(self.decoder.norm_epsilon);
        let mean = b.binary_scalar(Binary::Add, &mean, epsilon)?;
        let scale = b.unary(Unary::Rsqrt, &mean)?;
        let rows: Vec<_> = (0..last).collect();
        let scale = b.broadcast(&scale, x.dims(), &rows)?;
        let weight = b.broadcast(&weight, x.dims(), &[last])?;
        let scaled = b.binary(Binary::Multiply, x, &scale)?;
        Ok(b.binary(Binary::Multiply, &scaled, &weight)?)
    }

    /// Columns `at ..` of `[n, columns]`, and where the next begin.
    pub(super) fn columns(
        &mut self,
        x: &Value,
        at: u32,
        count: u32,
    ) -> Result<(Value, u32), LowerError> {
        let end = at + count;
        Ok((self.builder.slice_in(x, 1, at..end)?, end))
    }

    /// `x` in F32.
    pub(super) fn widened(&mut self, x: &Value) -> Result<Value, LowerError> {
        Ok(self.builder.convert(x, Element::F32)?)
    }
}
