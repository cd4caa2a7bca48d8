//! The forward pass of one rank, as instructions.
//!
//! `N` = rows x tokens of the bucket. The residual stream, sums and exponentials are F32; what
//! enters a matrix is of [`Lowering::multiplied`].

mod attend;
mod attention;
mod candidates;
mod copy;
mod embedding;
mod experts;
mod linear;
mod mask;
mod mlp;
mod rotary;
mod span;
mod step;

use std::collections::HashMap;

use model::Decoder;

use crate::bucket::{Activations, Bucket, Form};
use crate::build::{Builder, Constant, Value};
use crate::cut::Cut;
use crate::element::Element;
use crate::layout::{Content, Layout, Slot};
use crate::lower::LowerError;
use crate::tiles::Tiles;

/// What stands for minus infinity: below every logit and score, and finite, so that no difference
/// of two is not a number.
pub(crate) const NEVER: Constant = Constant::F32(-1e30);

/// What pads a row for the device's top-K: below [`NEVER`], so it is never among the best of as many.
pub(crate) const PADDING: Constant = Constant::F32(-2e30);

/// A module being made of a decoder.
#[derive(Debug)]
pub(crate) struct Lowering<'a> {
    pub(crate) builder: Builder,
    decoder: &'a Decoder,
    form: &'a Form,
    bucket: Bucket,
    cut: Cut,
    tiles: Tiles,
    inputs: HashMap<Content, Value>,
}

impl<'a> Lowering<'a> {
    /// The module with its parameters and nothing else.
    pub(crate) fn new(
        decoder: &'a Decoder,
        form: &'a Form,
        bucket: Bucket,
        layout: &Layout,
        tiles: Tiles,
    ) -> Result<Self, LowerError> {
        let mut builder = Builder::new(bucket.name());
        let mut inputs = HashMap::new();
        for (place, port) in layout.inputs.iter().enumerate() {
            let neff_name = layout.input_name(place);
            let value = builder.parameter(&port.name, &neff_name, port.element, &port.shape)?;
            inputs.insert(port.content, value);
        }
        Ok(Self {
            builder,
            decoder,
            form,
            bucket,
            cut: Cut::of(decoder, form.ranks)?,
            tiles,
            inputs,
        })
    }

    fn input(&self, content: Content) -> Result<Value, LowerError> {
        let input = self.inputs.get(&content).cloned();
        input.ok_or(LowerError::Input(content))
    }

    fn weight(&self, slot: Slot) -> Result<Value, LowerError> {
        self.input(Content::Weight(slot))
    }

    /// What is multiplied.
    fn multiplied(&self) -> Element {
        match self.form.activations {
            Activations::Bf16 => Element::Bf16,
            Activations::F32 => Element::F32,
        }
    }

    /// The sum of each rank's part, on all of them. It travels as what is multiplied: half the
    /// bytes, for one more rounding of what is rounded anyhow.
    fn sum_over_ranks(&mut self, part: &Value) -> Result<Value, LowerError> {
        if self.cut.ranks == 1 {
            return Ok(part.clone());
        }
        let part = self.builder.convert(part, self.multiplied())?;
        let sum = self.builder.all_reduce(&part, self.cut.ranks)?;
        Ok(self.builder.convert(&sum, Element::F32)?)
    }

    /// Of `[rows, ..]` the rows of this rank's number times `stride`: a scalar of S32, repeated.
    fn rank_times(&mut self, stride: u32, dims: &[u32]) -> Result<Value, LowerError> {
        let rank = self.input(Content::Rank)?;
        let rank = self.builder.reshape(&rank, &[])?;
        let stride = self.builder.scalar(Constant::S32(stride.cast_signed()));
        let first = self
            .builder
            .binary(crate::build::Binary::Multiply, &rank, &stride)?;
        Ok(self.builder.broadcast(&first, dims, &[])?)
    }
}
