//! Rotation of queries and keys by their positions.

use crate::build::{Binary, Constant, Value};
use crate::decoder::Lowering;
use crate::layout::Content;
use crate::lower::LowerError;

/// The cosines and sines of all tokens, `[n, head_size / 2]` each.
#[derive(Clone, Debug)]
pub(super) struct Rotation {
    cosines: Value,
    sines: Value,
}

impl Lowering<'_> {
    /// Looks up the rotations of `[n]` positions. Those of padded tokens may lie past the table and
    /// are clamped.
    pub(super) fn rotation(&mut self, positions: &Value) -> Result<Rotation, LowerError> {
        let (cosines, sines) = (self.input(Content::RopeCos)?, self.input(Content::RopeSin)?);
        let b = &mut self.builder;
        let last = Constant::S32(self.form.context.cast_signed() - 1);
        let positions = b.clamp(Constant::S32(0), positions, last)?;
        Ok(Rotation {
            cosines: b.gather_rows(&cosines, &positions)?,
            sines: b.gather_rows(&sines, &positions)?,
        })
    }

    /// Rotates `[n, heads, head_size]`, whose halves are the two coordinates.
    pub(super) fn rotate(
        &mut self,
        heads: &Value,
        rotation: &Rotation,
    ) -> Result<Value, LowerError> {
        let b = &mut self.builder;
        let half = self.decoder.attention.head_size / 2;
        let first = b.slice_in(heads, 2, 0..half)?;
        let second = b.slice_in(heads, 2, half..2 * half)?;
        let cosines = b.broadcast(&rotation.cosines, first.dims(), &[0, 2])?;
        let sines = b.broadcast(&rotation.sines, first.dims(), &[0, 2])?;
        let first_by_cosine = b.binary(Binary::Multiply, &first, &cosines)?;
        let second_by_sine = b.binary(Binary::Multiply, &second, &sines)?;
        let second_by_cosine = b.binary(Binary::Multiply, &second, &cosines)?;
        let first_by_sine = b.binary(Binary::Multiply, &first, &sines)?;
        let first = b.binary(Binary::Subtract, &first_by_cosine, &second_by_sine)?;
        let second = b.binary(Binary::Add, &second_by_cosine, &first_by_sine)?;
        Ok(b.concatenate(&[&first, &second], 2)?)
    }
}
