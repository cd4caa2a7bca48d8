//! Attention of a layer: projections, the cache, the pages before.
//!
//! Shapes: `R` rows, `T` own tokens of each, `K` key heads of this rank, `G` query heads that share
//! one, `D` dimensions of a head. Queries of a tile are `[R, K, M, D]`, `M` = its tokens x `G`, a
//! token's heads side by side.

use crate::bucket::KvFormat;
use crate::build::{Constant, Value};
use crate::decoder::Lowering;
use crate::decoder::span::pieces;
use crate::decoder::step::{Asked, Rows};
use crate::layout::{Content, LayerSlot, Slot};
use crate::lower::LowerError;
use crate::tiles::{Cutting, Extent};

/// Keys and values of some positions, `[R, S, K, D]` of what is multiplied.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) keys: Value,
    pub(super) values: Value,
}

impl Lowering<'_> {
    /// What attention of `layer` adds to the residual, given it normed, `[N, hidden]`; and the
    /// layer's caches with the own keys and values in them. Where it is told which tokens something
    /// is `asked` of, it gives what it adds to those, `[R, hidden]`.
    pub(super) fn attention(
        &mut self,
        layer: u32,
        x: &Value,
        rows: &Rows,
        asked: Option<&Asked>,
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
        let cutting = self.cutting(rows, asked.map_or(rows.tokens, |_| 1));
        let before = self.before(&key_cache, &value_cache, rows, &cutting)?;
        let attended = match asked {
            None => self.attend(&query, &own, &before, rows, &cutting)?,
            Some(asked) => {
                let query = self.picked(query, Some(asked))?;
                self.attend_asked(&query, &own, &before, rows, asked)?
            }
        };

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

    /// How attention is cut where so many tokens of each row attend.
    fn cutting(&self, rows: &Rows, tokens: u32) -> Cutting {
        let width = self.cut.kv_heads * self.decoder.attention.head_size;
        self.tiles.cut(&Extent {
            rows: rows.rows,
            tokens,
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
}
