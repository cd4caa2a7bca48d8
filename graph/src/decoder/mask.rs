//! What a token sees, from positions counted in the graph.

use crate::build::{Binary, Constant, Direction, Value};
use crate::decoder::attend::Tile;
use crate::decoder::span::Span;
use crate::decoder::step::{Asked, Rows};
use crate::decoder::{Lowering, NEVER};
use crate::element::Element;
use crate::lower::LowerError;

/// Which positions of a segment are seen.
#[derive(Clone, Debug)]
pub(super) struct Mask {
    truths: Value,
    /// Which of `R`, `K`, tokens of the tile, `G`, positions of the segment its sizes are.
    into: &'static [usize],
}

impl Lowering<'_> {
    /// Which own tokens in `span` those of a tile see: `[tokens, S]`.
    pub(super) fn mask_own(&mut self, tile: &Tile, span: Span) -> Result<Mask, LowerError> {
        let dims = [tile.tokens.count, span.count];
        let query = self.counted(tile.tokens.first, &dims, 0)?;
        let key = self.counted(span.first, &dims, 1)?;
        Ok(Mask {
            truths: self.causal(&key, &query)?,
            into: &[2, 4],
        })
    }

    /// Which of the `tokens` own tokens of each row the one sees that something is asked of:
    /// `[R, tokens]`.
    pub(super) fn mask_asked(
        &mut self,
        tokens: u32,
        rows: &Rows,
        asked: &Asked,
    ) -> Result<Mask, LowerError> {
        let dims = [rows.rows, tokens];
        let key = self.counted(0, &dims, 1)?;
        let query = self.builder.broadcast(&asked.last, &dims, &[0])?;
        Ok(Mask {
            truths: self.causal(&key, &query)?,
            into: &[0, 4],
        })
    }

    /// Whether a query sees a key: one before or itself, within the window.
    fn causal(&mut self, key: &Value, query: &Value) -> Result<Value, LowerError> {
        let b = &mut self.builder;
        let truths = b.compare(Direction::LessOrEqual, key, query)?;
        let Some(window) = self.decoder.attention.window else {
            return Ok(truths);
        };
        let oldest = b.binary_scalar(Binary::Subtract, query, positions(window))?;
        let recent = b.compare(Direction::Greater, key, &oldest)?;
        Ok(b.binary(Binary::And, &truths, &recent)?)
    }

    /// Which of the positions in `span` the tokens of a tile see, all of which come after pages
    /// before: `[R, S]`, or `[R, tokens, S]` where there is a window.
    pub(super) fn mask_before(
        &mut self,
        tile: &Tile,
        span: Span,
        rows: &Rows,
    ) -> Result<Mask, LowerError> {
        let dims = [rows.rows, span.count];
        let key = self.counted(span.first, &dims, 1)?;
        let b = &mut self.builder;
        let starts = b.broadcast(&rows.starts, &dims, &[0])?;
        let truths = b.compare(Direction::Less, &key, &starts)?;
        let Some(window) = self.decoder.attention.window else {
            let into = &[0, 4];
            return Ok(Mask { truths, into });
        };
        let dims = [rows.rows, tile.tokens.count, span.count];
        let query = b.slice_in(&rows.positions, 1, tile.tokens.range())?;
        let oldest = b.binary_scalar(Binary::Subtract, &query, positions(window))?;
        let oldest = b.broadcast(&oldest, &dims, &[0, 1])?;
        let key = b.broadcast(&key, &dims, &[0, 2])?;
        let recent = b.compare(Direction::Greater, &key, &oldest)?;
        let truths = b.broadcast(&truths, &dims, &[0, 2])?;
        Ok(Mask {
            truths: b.binary(Binary::And, &truths, &recent)?,
            into: &[0, 2, 4],
        })
    }

    /// `first`, `first + 1`, .. along `dimension`.
    fn counted(&mut self, first: u32, dims: &[u32], dimension: usize) -> Result<Value, LowerError> {
        let b = &mut self.builder;
        let steps = b.iota(Element::S32, dims, dimension)?;
        match first {
            0 => Ok(steps),
            _ => Ok(b.binary_scalar(Binary::Add, &steps, Constant::S32(first.cast_signed()))?),
        }
    }

    /// Scores `[R, K, M, S]`, [`NEVER`] where they are masked.
    pub(super) fn masked(
        &mut self,
        scores: &Value,
        mask: &Mask,
        tile: &Tile,
        rows: &Rows,
    ) -> Result<Value, LowerError> {
        let apart = self.apart(rows, tile.tokens.count, scores.dims()[3]);
        let b = &mut self.builder;
        let truths = b.broadcast(&mask.truths, &apart, mask.into)?;
        let truths = b.reshape(&truths, scores.dims())?;
        let never = b.full(NEVER, scores.dims())?;
        Ok(b.select(&truths, scores, &never)?)
    }
}

/// A window as positions are counted.
fn positions(window: u32) -> Constant {
    Constant::S32(i32::try_from(window).unwrap_or(i32::MAX))
}
