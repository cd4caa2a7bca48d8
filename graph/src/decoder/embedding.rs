//! Tokens -> the residual stream.

use crate::build::{Binary, Constant, Direction, Value};
use crate::decoder::Lowering;
use crate::layout::Slot;
use crate::lower::LowerError;

impl Lowering<'_> {
    /// The embeddings of `[n]` tokens: `[n, hidden]` in F32.
    ///
    /// Each rank has a part of the vocabulary. It looks up the tokens that are in it, and gives 0
    /// for the others, whose indices are clamped: the device stops at one that is outside.
    pub(super) fn embed(&mut self, tokens: &Value) -> Result<Value, LowerError> {
        let table = self.weight(Slot::Embedding)?;
        let part = self.cut.vocabulary;
        let first = self.rank_times(part, tokens.dims())?;
        let last = part.cast_signed() - 1;
        let b = &mut self.builder;
        let local = b.binary(Binary::Subtract, tokens, &first)?;
        let inside = b.clamp(Constant::S32(0), &local, Constant::S32(last))?;
        let is_here = b.compare(Direction::Equal, &local, &inside)?;
        let rows = b.gather_rows(&table, &inside)?;
        let rows = self.widened(&rows)?;
        let b = &mut self.builder;
        let is_here = b.broadcast(&is_here, rows.dims(), &[0])?;
        let zero = b.full(Constant::F32(0.0), rows.dims())?;
        let rows = b.select(&is_here, &rows, &zero)?;
        self.sum_over_ranks(&rows)
    }
}
