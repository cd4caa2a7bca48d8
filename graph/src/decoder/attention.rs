//! Attention: to own tokens causally, to pages before them in segments.
//!
//! Shapes: `R` rows, `T` own tokens of each, `K` key heads of this rank, `G` query heads that share
//! one, `D` dimensions of a head. Queries of a tile are `[R, K, M, D]`, `M` = its tokens x `G`, a
//! token's heads side by side.

use std::ops::Range;

use crate::bucket::KvFormat;
use crate::build::{Binary, Constant, Contraction, Direction, Reducer, Unary, Value};
use crate::decoder::step::Rows;
use crate::decoder::{Lowering, NEVER};
use crate::element::Element;
use crate::layout::{Content, LayerSlot, Slot};
use crate::lower::LowerError;
use crate::tiles::{Cutting, Extent};

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

/// Keys and values of some positions, `[R, S, K, D]` of what is multiplied.
#[derive(Clone, Debug)]
struct Segment {
    keys: Value,
    values: Value,
}

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
struct Tile {
    tokens: Span,
    queries: Value,
}

/// Which positions of a segment are seen.
#[derive(Clone, Debug)]
struct Mask {
    truths: Value,
    /// Which of `R`, `K`, tokens of the tile, `G`, positions of the segment its sizes are.
    into: &'static [usize],
}

/// Consecutive tokens, pages or positions.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: u32,
    count: u32,
}

impl Span {
    fn end(self) -> u32 {
        self.first + self.count
    }

    fn range(self) -> Range<u32> {
        self.first..self.end()
    }
}

impl Lowering<'_> {
    /// What attention of `layer` adds to the residual, given it normed, `[N, hidden]`; and the
    /// layer's caches with the own keys and values in them.
    pub(super) fn attention(
        &mut self,
        layer: u32,
        x: &Value,
        rows: &Rows,
    ) -> Result<(Value, Value, Value), LowerError> {
        let slot = |slot| Slot::Layer(layer, slot);
        let attention = &self.decoder.attention;
        let (head_size, input_bias) = (attention.head_size, attention.input_bias);
        let (head_norm, output_bias) = (attention.head_norm, attention.output_bias);
        let (queries, keys) = (self.cut.heads * head_size, self.cut.kv_heads * head_size);

        let projected = self.linear(x, slot(LayerSlot::Qkv))?;
        let projected = self.bias(projected, slot(LayerSlot::QkvBias), input_bias)?;
        let (query, end) = self.columns(&projected, 0, queries)?;
        let (key, end) = self.columns(&projected, end, keys)?;
        let (value, _) = self.columns(&projected, end, keys)?;
        let query_norm = head_norm.then_some(slot(LayerSlot::QueryNorm));
        let key_norm = head_norm.then_some(slot(LayerSlot::KeyNorm));
        let query = self.turned(&query, self.cut.heads, query_norm, rows)?;
        let key = self.turned(&key, self.cut.kv_heads, key_norm, rows)?;

        let key_cache = self.input(Content::Keys(layer))?;
        let value_cache = self.input(Content::Values(layer))?;
        let (key_cache, own_keys) = self.store(&key_cache, &key, rows)?;
        let (value_cache, own_values) = self.store(&value_cache, &value, rows)?;
        let own = Segment {
            keys: own_keys,
            values: own_values,
        };
        let cutting = self.cutting(rows);
        let before = self.before(&key_cache, &value_cache, rows, &cutting)?;
        let attended = self.attend(&query, &own, &before, rows, &cutting)?;

        let out = self.linear(&attended, slot(LayerSlot::Output))?;
        let out = self.bias(out, slot(LayerSlot::OutputBias), output_bias)?;
        Ok((self.sum_over_ranks(&out)?, key_cache, value_cache))
    }

    /// Heads of `[N, heads * D]`, normed where there is a norm, then rotated.
    fn turned(
        &mut self,
        x: &Value,
        heads: u32,
        norm: Option<Slot>,
        rows: &Rows,
    ) -> Result<Value, LowerError> {
        let apart = [x.dims()[0], heads, self.decoder.attention.head_size];
        let mut turned = self.builder.reshape(x, &apart)?;
        if let Some(norm) = norm {
            turned = self.norm(&turned, norm)?;
        }
        let turned = self.rotate(&turned, &rows.rotation)?;
        Ok(self.builder.reshape(&turned, x.dims())?)
    }

    /// Writes `[N, K * D]` to the cache; gives the cache, and what was written as `[R, T, K, D]` of
    /// what is multiplied.
    ///
    /// Own keys and values are rounded as the cache rounds them, so that a token sees the same
    /// whether another is of its own chunk or of a page before. Where the cache is narrower than
    /// what is multiplied, they are read back from it: compilers fold a rounding away that only
    /// widens again.
    fn store(
        &mut self,
        cache: &Value,
        new: &Value,
        rows: &Rows,
    ) -> Result<(Value, Value), LowerError> {
        let multiplied = self.multiplied();
        let held = self.held(new)?;
        let b = &mut self.builder;
        let cache = b.scatter_rows(cache, &rows.slots, &held)?;
        let own = if held.element() == multiplied {
            held
        } else if held.element().bytes() > multiplied.bytes() {
            b.convert(new, multiplied)?
        } else {
            let read = b.gather_rows(&cache, &rows.slots)?;
            b.convert(&read, multiplied)?
        };
        let own = self.key_heads_apart(&own, rows, rows.tokens)?;
        Ok((cache, own))
    }

    /// `x` as the cache holds it.
    fn held(&mut self, x: &Value) -> Result<Value, LowerError> {
        let b = &mut self.builder;
        let element = self.form.kv.element();
        match self.form.kv {
            KvFormat::Bf16 | KvFormat::F32 => Ok(b.convert(x, element)?),
            KvFormat::Fp8 => {
                #[expect(clippy::cast_precision_loss, reason = "it is 240 or 448")]
                let most = self.form.fp8_max as f32;
                let x = b.clamp(Constant::F32(-most), x, Constant::F32(most))?;
                Ok(b.convert(&x, element)?)
            }
        }
    }

    /// As `[R, positions, K, D]`.
    fn key_heads_apart(
        &mut self,
        x: &Value,
        rows: &Rows,
        positions: u32,
    ) -> Result<Value, LowerError> {
        let (heads, head_size) = (self.cut.kv_heads, self.decoder.attention.head_size);
        let dims = [rows.rows, positions, heads, head_size];
        Ok(self.builder.reshape(x, &dims)?)
    }

    fn cutting(&self, rows: &Rows) -> Cutting {
        let width = self.cut.kv_heads * self.decoder.attention.head_size;
        self.tiles.cut(&Extent {
            rows: rows.rows,
            tokens: rows.tokens,
            pages: rows.pages,
            page_tokens: self.form.page_tokens,
            heads: self.cut.heads,
            key_bytes: u64::from(width) * self.multiplied().bytes(),
        })
    }

    /// The pages before own tokens, whole, in segments. They are read from the caches that own
    /// keys and values were written to: nothing is read before all is written.
    fn before(
        &mut self,
        keys: &Value,
        values: &Value,
        rows: &Rows,
        cutting: &Cutting,
    ) -> Result<Vec<Segment>, LowerError> {
        let Some(tables) = &rows.tables else {
            return Ok(Vec::new());
        };
        let keys = self.pages_of(keys)?;
        let values = self.pages_of(values)?;
        pieces(rows.pages, cutting.pages)
            .map(|piece| {
                let positions = piece.count * self.form.page_tokens;
                let b = &mut self.builder;
                let table = b.slice_in(tables, 1, piece.range())?;
                let table = b.reshape(&table, &[rows.rows * piece.count])?;
                let mut read = |pages: &Value| {
                    let b = &mut self.builder;
                    let read = b.gather_rows(pages, &table)?;
                    let apart = self.key_heads_apart(&read, rows, positions)?;
                    let multiplied = self.multiplied();
                    Ok::<_, LowerError>(self.builder.convert(&apart, multiplied)?)
                };
                Ok(Segment {
                    keys: read(&keys)?,
                    values: read(&values)?,
                })
            })
            .collect()
    }

    /// What queries `[N, K * G * D]` attend to, in the same shape.
    fn attend(
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
            let mut attended = self.attend_own(&tile, own, rows, cutting)?;
            let mut first = 0;
            for segment in before {
                let mask = self.mask_before(&tile, segment, first, rows)?;
                attended = self.absorb(Some(attended), &tile, segment, Some(&mask), rows)?;
                first += segment.keys.dims()[1];
            }
            tiles.push(self.side_by_side(&attended, &tile, rows)?);
        }
        let tiles: Vec<_> = tiles.iter().collect();
        let b = &mut self.builder;
        let whole = b.concatenate(&tiles, 1)?;
        let width = self.cut.heads * self.decoder.attention.head_size;
        Ok(b.reshape(&whole, &[rows.rows * rows.tokens, width])?)
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

    /// Which own tokens in `span` those of a tile see: `[tokens, S]`.
    fn mask_own(&mut self, tile: &Tile, span: Span) -> Result<Mask, LowerError> {
        let window = self.decoder.attention.window;
        let dims = [tile.tokens.count, span.count];
        let query = self.counted(tile.tokens.first, &dims, 0)?;
        let key = self.counted(span.first, &dims, 1)?;
        let b = &mut self.builder;
        let truths = b.compare(Direction::LessOrEqual, &key, &query)?;
        let into = &[2, 4];
        let Some(window) = window else {
            return Ok(Mask { truths, into });
        };
        let window = Constant::S32(clamped(window));
        let oldest = b.binary_scalar(Binary::Subtract, &query, window)?;
        let recent = b.compare(Direction::Greater, &key, &oldest)?;
        let truths = b.binary(Binary::And, &truths, &recent)?;
        Ok(Mask { truths, into })
    }

    /// Which positions of a segment, of which `first` is the first, the tokens of a tile see:
    /// `[R, S]`, or `[R, tokens, S]` where there is a window.
    fn mask_before(
        &mut self,
        tile: &Tile,
        segment: &Segment,
        first: u32,
        rows: &Rows,
    ) -> Result<Mask, LowerError> {
        let window = self.decoder.attention.window;
        let positions = segment.keys.dims()[1];
        let dims = [rows.rows, positions];
        let key = self.counted(first, &dims, 1)?;
        let b = &mut self.builder;
        let starts = b.broadcast(&rows.starts, &dims, &[0])?;
        let truths = b.compare(Direction::Less, &key, &starts)?;
        let Some(window) = window else {
            let into = &[0, 4];
            return Ok(Mask { truths, into });
        };
        let dims = [rows.rows, tile.tokens.count, positions];
        let query = b.slice_in(&rows.positions, 1, tile.tokens.range())?;
        let window = Constant::S32(clamped(window));
        let oldest = b.binary_scalar(Binary::Subtract, &query, window)?;
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

    /// Scores `[R, K, M, S]`, [`NEVER`] where they are masked.
    fn masked(
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

    /// `[R, K, tokens, G, last]`
    fn apart(&self, rows: &Rows, tokens: u32, last: u32) -> [u32; 5] {
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

/// A window as positions are counted.
fn clamped(window: u32) -> i32 {
    i32::try_from(window).unwrap_or(i32::MAX)
}

/// `0 .. whole` in pieces of `size`, the last perhaps shorter.
fn pieces(whole: u32, size: u32) -> impl DoubleEndedIterator<Item = Span> {
    let size = size.max(1);
    (0..whole.div_ceil(size)).map(move |piece| {
        let first = piece * size;
        let count = size.min(whole - first);
        Span { first, count }
    })
}
