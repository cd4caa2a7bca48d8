//! A step: its integers, its layers, what it gives.

use std::ops::Range;

use crate::bucket::Head;
use crate::build::{Binary, Constant, Value};
use crate::decoder::Lowering;
use crate::decoder::rotary::Rotation;
use crate::element::Element;
use crate::layout::{Content, Ints, LayerSlot, Slot};
use crate::lower::LowerError;

/// The rows of a step.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    pub(super) rows: u32,
    /// Tokens of each.
    pub(super) tokens: u32,
    /// Pages before them.
    pub(super) pages: u32,
    /// `[rows]`: the position of the first token.
    pub(super) starts: Value,
    /// `[rows, tokens]`
    pub(super) positions: Value,
    /// `[rows * tokens]`: where keys and values go.
    pub(super) slots: Value,
    /// `[rows, pages]`, where there are pages.
    pub(super) tables: Option<Value>,
    pub(super) rotation: Rotation,
}

/// The last token of each row that is none of padding: the only one that something is asked of.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// `[rows]`: which of the row's tokens it is.
    pub(super) last: Value,
    /// `[rows]`: which of all tokens it is.
    pub(super) token: Value,
}

impl Lowering<'_> {
    /// What a step of these sizes gives, then the caches.
    pub(crate) fn step(
        &mut self,
        rows: u32,
        tokens: u32,
        pages: u32,
        head: Head,
    ) -> Result<Vec<Value>, LowerError> {
        let places = Ints::of(self.bucket);
        let rows = self.rows(&places, rows, tokens, pages)?;
        let tokens = self.ints(&places.tokens)?;
        let mut x = self.embed(&tokens)?;
        let mut asked = match head {
            Head::Each => None,
            Head::Last | Head::Embedding => self.asked(&rows, &places.lengths)?,
        };
        let mut caches = Vec::new();
        for layer in 0..self.decoder.layers {
            let normed = self.norm(&x, Slot::Layer(layer, LayerSlot::AttentionNorm))?;
            // In the last layer only keys and values matter of tokens that nothing is asked of.
            let is_last = layer + 1 == self.decoder.layers;
            let only = asked.take_if(|_| is_last);
            let (attended, keys, values) = self.attention(layer, &normed, &rows, only.as_ref())?;
            x = self.picked(x, only.as_ref())?;
            x = self.builder.binary(Binary::Add, &x, &attended)?;
            let normed = self.norm(&x, Slot::Layer(layer, LayerSlot::MlpNorm))?;
            let fed = self.mlp(layer, &normed)?;
            x = self.builder.binary(Binary::Add, &x, &fed)?;
            caches.extend([keys, values]);
        }
        let x = self.picked(x, asked.as_ref())?;
        let normed = self.norm(&x, Slot::FinalNorm)?;
        let given = match head {
            Head::Embedding => normed,
            Head::Last | Head::Each => self.candidates(&normed, &places.targets)?,
        };
        Ok(std::iter::once(given).chain(caches).collect())
    }

    /// The integers in `range`.
    pub(super) fn ints(&mut self, range: &Range<usize>) -> Result<Value, LowerError> {
        let ints = self.input(Content::Ints)?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a bucket that was checked has less than 2^31 integers"
        )]
        let range = range.start as u32..range.end as u32;
        Ok(self.builder.slice(&ints, &[range])?)
    }

    fn rows(
        &mut self,
        places: &Ints,
        rows: u32,
        tokens: u32,
        pages: u32,
    ) -> Result<Rows, LowerError> {
        let starts = self.ints(&places.starts)?;
        let slots = self.ints(&places.slots)?;
        let tables = match pages {
            0 => None,
            _ => {
                let tables = self.ints(&places.tables)?;
                Some(self.builder.reshape(&tables, &[rows, pages])?)
            }
        };
        let b = &mut self.builder;
        let firsts = b.broadcast(&starts, &[rows, tokens], &[0])?;
        let steps = b.iota(Element::S32, &[rows, tokens], 1)?;
        let positions = b.binary(Binary::Add, &firsts, &steps)?;
        let flat = b.reshape(&positions, &[rows * tokens])?;
        let rotation = self.rotation(&flat)?;
        Ok(Rows {
            rows,
            tokens,
            pages,
            starts,
            positions,
            slots,
            tables,
            rotation,
        })
    }

    /// Which tokens something is asked of, where rows bring several.
    fn asked(&mut self, rows: &Rows, lengths: &Range<usize>) -> Result<Option<Asked>, LowerError> {
        if rows.tokens == 1 {
            return Ok(None);
        }
        let lengths = self.ints(lengths)?;
        let b = &mut self.builder;
        let last = b.binary_scalar(Binary::Subtract, &lengths, Constant::S32(1))?;
        let most = Constant::S32(rows.tokens.cast_signed() - 1);
        let last = b.clamp(Constant::S32(0), &last, most)?;
        let row = b.iota(Element::S32, &[rows.rows], 0)?;
        let tokens = Constant::S32(rows.tokens.cast_signed());
        let first = b.binary_scalar(Binary::Multiply, &row, tokens)?;
        let token = b.binary(Binary::Add, &first, &last)?;
        Ok(Some(Asked { last, token }))
    }

    /// Of `[rows * tokens, ..]` the tokens that something is asked of: `[rows, ..]`; all where
    /// nothing says which.
    pub(super) fn picked(&mut self, x: Value, asked: Option<&Asked>) -> Result<Value, LowerError> {
        match asked {
            None => Ok(x),
            Some(asked) => Ok(self.builder.gather_rows(&x, &asked.token)?),
        }
    }
}
