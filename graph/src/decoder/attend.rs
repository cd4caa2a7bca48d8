//! What queries attend to: own tokens causally, then pages before them, in segments.
//!
//! The scores of a segment are added to what was attended to before by online softmax: all is
//! relative to the greatest score so far, and rescaled where a greater one is found. Shapes as in
//! [`super::attention`].

use crate::build::{Binary, Constant, Contraction, Reducer, Unary, Value};
use crate::decoder::Lowering;
use crate::decoder::attention::Segment;
use crate::decoder::mask::Mask;
use crate::decoder::span::{Span, pieces};
use crate::decoder::step::{Asked, Rows};
use crate::lower::LowerError;
use crate::tiles::Cutting;

/// Queries `[R, K, M, D]` x keys `[R, S, K, D]` = scores `[R, K, M, S]`.
const QUERIES_BY_KEYS: Contraction<'static> = Contraction {
    batch: (&[0, 1], &[0, 2]),
    over: (3, 3),
};

/// Weights `[R, K, M, S]` x values `[R, S, K, D]` = `[R, K, M, D]`.
const WEIGHTS_BY_VALUES: Contraction<'static> = Contraction {
    batch: (&[0, 1], &[0, 2]),
    over: (3, 1),
};

/// What some queries have attended to so far.
#[derive(Clone, Debug)]
struct Attended {
    /// `[R, K, M]`: the greatest score.
    max: Value,
    /// `[R, K, M]`: the sum of exponentials, relative to it.
    sum: Value,
    /// `[R, K, M, D]`: values, weighed by them.
    out: Value,
}

/// Consecutive own tokens of every row, and their queries.
#[derive(Clone, Debug)]
pub(super) struct Tile {
    pub(super) tokens: Span,
    queries: Value,
}

impl Lowering<'_> {
    /// What queries `[N, K * G * D]` attend to, in the same shape.
    pub(super) fn attend(
        &mut self,
        queries: &Value,
        own: &Segment,
        before: &[Segment],
        rows: &Rows,
        cutting: &Cutting,
    ) -> Result<Value, LowerError> {
        let queries = self.query_heads_apart(queries, rows)?;
        let mut tiles = Vec::new();
        for tokens in pieces(rows.tokens, cutting.queries) {
            let tile = self.tile(&queries, tokens, rows)?;
            let attended = self.attend_own(&tile, own, rows, cutting)?;
            tiles.push((tile, attended));
        }
        self.attend_before(&mut tiles, before, rows)?;
        let parts = tiles.iter();
        let parts = parts.map(|(tile, attended)| self.side_by_side(attended, tile, rows));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        let parts: Vec<_> = parts.iter().collect();
        let b = &mut self.builder;
        let whole = b.concatenate(&parts, 1)?;
        let width = self.cut.heads * self.decoder.attention.head_size;
        Ok(b.reshape(&whole, &[rows.rows * rows.tokens, width])?)
    }

    /// Adds what tiles attend to in pages before. All tiles attend to a segment before any attends
    /// to the next, so that keys and values of one segment are needed at a time.
    fn attend_before(
        &mut self,
        tiles: &mut [(Tile, Attended)],
        before: &[Segment],
        rows: &Rows,
    ) -> Result<(), LowerError> {
        let mut first = 0;
        for segment in before {
            let count = segment.keys.dims()[1];
            let span = Span { first, count };
            for (tile, attended) in &mut *tiles {
                let mask = self.mask_before(tile, span, rows)?;
                let so_far = Some(attended.clone());
                *attended = self.absorb(so_far, tile, segment, Some(&mask), rows)?;
            }
            first = span.end();
        }
        Ok(())
    }

    /// What the queries of one token of each row, `[R, K * G * D]`, attend to.
    pub(super) fn attend_asked(
        &mut self,
        queries: &Value,
        own: &Segment,
        before: &[Segment],
        rows: &Rows,
        asked: &Asked,
    ) -> Result<Value, LowerError> {
        let b = &mut self.builder;
        let positions = b.binary(Binary::Add, &rows.starts, &asked.last)?;
        let single = Rows {
            tokens: 1,
            positions: b.reshape(&positions, &[rows.rows, 1])?,
            ..rows.clone()
        };
        let queries_apart = self.query_heads_apart(queries, &single)?;
        let token = Span { first: 0, count: 1 };
        let tile = self.tile(&queries_apart, token, &single)?;
        let mask = self.mask_asked(rows.tokens, &single, asked)?;
        let attended = self.absorb(None, &tile, own, Some(&mask), &single)?;
        let mut tiles = [(tile, attended)];
        self.attend_before(&mut tiles, before, &single)?;
        let [(tile, attended)] = &tiles;
        let out = self.side_by_side(attended, tile, &single)?;
        Ok(self.builder.reshape(&out, queries.dims())?)
    }

    /// Queries as `[R, K, T, G, D]` of what is multiplied. They are scaled here, once, instead of
    /// all their scores.
    fn query_heads_apart(&mut self, queries: &Value, rows: &Rows) -> Result<Value, LowerError> {
        let head_size = self.decoder.attention.head_size;
        let group = self.cut.heads / self.cut.kv_heads;
        let multiplied = self.multiplied();
        let b = &mut self.builder;
        #[expect(clippy::cast_precision_loss, reason = "a head has few dimensions")]
        let scale = Constant::F32((head_size as f32).sqrt().recip());
        let scaled = b.binary_scalar(Binary::Multiply, queries, scale)?;
        let scaled = b.convert(&scaled, multiplied)?;
        let dims = [rows.rows, rows.tokens, self.cut.kv_heads, group, head_size];
        let apart = b.reshape(&scaled, &dims)?;
        Ok(b.transpose(&apart, &[0, 2, 1, 3, 4])?)
    }

    /// The queries of `tokens`.
    fn tile(&mut self, queries: &Value, tokens: Span, rows: &Rows) -> Result<Tile, LowerError> {
        let [_, heads, tokens_of_tile, group, head_size] =
            self.apart(rows, tokens.count, self.decoder.attention.head_size);
        let b = &mut self.builder;
        let queries = b.slice_in(queries, 2, tokens.range())?;
        let dims = [rows.rows, heads, tokens_of_tile * group, head_size];
        let queries = b.reshape(&queries, &dims)?;
        Ok(Tile { tokens, queries })
    }

    /// What the tokens of a tile attend to among the own tokens of their rows: those before and
    /// themselves. Segments of which they see nothing are left out.
    fn attend_own(
        &mut self,
        tile: &Tile,
        own: &Segment,
        rows: &Rows,
        cutting: &Cutting,
    ) -> Result<Attended, LowerError> {
        if rows.tokens == 1 {
            return self.absorb(None, tile, own, None, rows);
        }
        // The last segment first: every token sees one of it, itself or one before.
        let first = (tile.tokens.end() - 1) / cutting.positions * cutting.positions;
        let last = Span {
            first,
            count: tile.tokens.end() - first,
        };
        let mut attended = self.absorb_own(None, tile, own, last, rows)?;
        let window = self.decoder.attention.window.unwrap_or(u32::MAX);
        let oldest = (tile.tokens.first + 1).saturating_sub(window);
        for span in pieces(first, cutting.positions).rev() {
            if span.end() > oldest {
                attended = self.absorb_own(Some(attended), tile, own, span, rows)?;
            }
        }
        Ok(attended)
    }

    fn absorb_own(
        &mut self,
        before: Option<Attended>,
        tile: &Tile,
        own: &Segment,
        span: Span,
        rows: &Rows,
    ) -> Result<Attended, LowerError> {
        let b = &mut self.builder;
        let segment = Segment {
            keys: b.slice_in(&own.keys, 1, span.range())?,
            values: b.slice_in(&own.values, 1, span.range())?,
        };
        let mask = self.mask_own(tile, span)?;
        self.absorb(before, tile, &segment, Some(&mask), rows)
    }

    /// Adds what a tile attends to in `segment` to what it has attended to so far.
    fn absorb(
        &mut self,
        before: Option<Attended>,
        tile: &Tile,
        segment: &Segment,
        mask: Option<&Mask>,
        rows: &Rows,
    ) -> Result<Attended, LowerError> {
        let b = &mut self.builder;
        let mut scores = b.dot(&tile.queries, &segment.keys, QUERIES_BY_KEYS)?;
        if let Some(mask) = mask {
            scores = self.masked(&scores, mask, tile, rows)?;
        }
        let multiplied = self.multiplied();
        let b = &mut self.builder;
        let mut max = b.reduce(Reducer::Max, &scores, 3)?;
        if let Some(before) = &before {
            max = b.binary(Binary::Maximum, &before.max, &max)?;
        }
        let relative = b.broadcast(&max, scores.dims(), &[0, 1, 2])?;
        let relative = b.binary(Binary::Subtract, &scores, &relative)?;
        let weights = b.unary(Unary::Exponential, &relative)?;
        let mut sum = b.reduce(Reducer::Sum, &weights, 3)?;
        let weights = b.convert(&weights, multiplied)?;
        let mut out = b.dot(&weights, &segment.values, WEIGHTS_BY_VALUES)?;
        if let Some(before) = before {
            let fallen = b.binary(Binary::Subtract, &before.max, &max)?;
            let scale = b.unary(Unary::Exponential, &fallen)?;
            let kept = b.binary(Binary::Multiply, &before.sum, &scale)?;
            sum = b.binary(Binary::Add, &kept, &sum)?;
            let scale = b.broadcast(&scale, out.dims(), &[0, 1, 2])?;
            let kept = b.binary(Binary::Multiply, &before.out, &scale)?;
            out = b.binary(Binary::Add, &kept, &out)?;
        }
        Ok(Attended { max, sum, out })
    }

    /// `[R, K, tokens, G, last]`
    pub(super) fn apart(&self, rows: &Rows, tokens: u32, last: u32) -> [u32; 5] {
        let heads = self.cut.kv_heads;
        [rows.rows, heads, tokens, self.cut.heads / heads, last]
    }

    /// What a tile has attended to, as `[R, tokens, K * G * D]`.
    fn side_by_side(
        &mut self,
        attended: &Attended,
        tile: &Tile,
        rows: &Rows,
    ) -> Result<Value, LowerError> {
        let head_size = self.decoder.attention.head_size;
        let apart = self.apart(rows, tile.tokens.count, head_size);
        let width = self.cut.heads * head_size;
        let b = &mut self.builder;
        let sum = b.broadcast(&attended.sum, attended.out.dims(), &[0, 1, 2])?;
        let out = b.binary(Binary::Divide, &attended.out, &sum)?;
        let out = b.reshape(&out, &apart)?;
        let out = b.transpose(&out, &[0, 2, 1, 3, 4])?;
        Ok(b.reshape(&out, &[rows.rows, tile.tokens.count, width])?)
    }
}
