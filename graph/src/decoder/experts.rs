//! A mixture of experts: each token passes a few of them, and which is known on the device only.
//!
//! Shapes are static, so there are two ways. Where all tokens together choose fewer experts than
//! there are, the chosen ones' matrices are gathered, whole experts at a time: nothing else is read.
//! Else every token passes every expert, and what it did not choose is multiplied by 0: then all
//! weights would be read anyhow, the products have no batches, and what is computed in vain is the
//! price of a prompt. Both are done some experts at a time, so that what is between the products
//! stays on the chip.

use std::ops::Range;

use model::Activation;

use crate::build::{Binary, Constant, Contraction, Direction, Reducer, Unary, Value};
use crate::decoder::{Lowering, PADDING};
use crate::element::Element;
use crate::layout::{Content, LayerSlot, Slot};
use crate::lower::LowerError;

/// Every piece adds instructions, and a model has many layers: no layer has more pieces than this.
const MAX_PIECES: u32 = 16;

/// `[n, in]` x `[experts, in, out]`: each row by each expert.
const ROWS_BY_EXPERTS: Contraction<'static> = Contraction {
    batch: (&[], &[]),
    over: (1, 1),
};

/// `[n, in]` x `[n, in, out]`: each row by its own matrix.
const EACH_BY_ITS_OWN: Contraction<'static> = Contraction {
    batch: (&[0], &[0]),
    over: (1, 1),
};

/// `[n, in]` x `[in, out]`.
const ROWS: Contraction<'static> = Contraction {
    batch: (&[], &[]),
    over: (1, 0),
};

/// How tokens choose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) chosen: u32,
    pub(super) renormalise: bool,
    pub(super) activation: Activation,
}

/// What each token chose, the most probable first: `[n, chosen]`.
#[derive(Debug)]
struct Routes {
    /// Experts, in S32.
    experts: Value,
    /// What their outputs are multiplied by, in F32.
    weights: Value,
}

impl Lowering<'_> {
    /// What the experts of `layer` add to the residual, given it normed: `[n, hidden]`.
    pub(super) fn experts(
        &mut self,
        layer: u32,
        x: &Value,
        choice: Choice,
    ) -> Result<Value, LowerError> {
        let routes = self.routes(layer, x, choice)?;
        let experts = self.decoder.mlp.experts();
        let pairs = u64::from(x.dims()[0]) * u64::from(choice.chosen);
        let rows_fit = self.expert_rows(layer)?.is_some();
        let part = if pairs < u64::from(experts) && rows_fit {
            self.of_chosen(layer, x, &routes, choice)?
        } else {
            self.of_all(layer, x, &routes, choice)?
        };
        self.sum_over_ranks(&part)
    }

    /// Which experts each token chooses. All in F32, on every rank alike: a rounding here would send
    /// a token elsewhere.
    fn routes(&mut self, layer: u32, x: &Value, choice: Choice) -> Result<Routes, LowerError> {
        let router = self.weight(Slot::Layer(layer, LayerSlot::Router))?;
        let router = self.widened(&router)?;
        let x = self.widened(x)?;
        let b = &mut self.builder;
        let scores = b.dot(&x, &router, ROWS)?;
        let experts = scores.dims()[1];
        // The device wants 8 columns or a multiple.
        let padded = b.pad(&scores, 1, experts.next_multiple_of(8) - experts, PADDING)?;
        let (best, ids) = b.top_k(&padded, choice.chosen)?;
        let ids = b.convert(&ids, Element::S32)?;
        let max = b.reduce(Reducer::Max, &scores, 1)?;
        let best = self.exponentials(&best, &max)?;
        let among = match choice.renormalise {
            true => best.clone(),
            false => self.exponentials(&scores, &max)?,
        };
        let b = &mut self.builder;
        let sum = b.reduce(Reducer::Sum, &among, 1)?;
        let sum = b.broadcast(&sum, best.dims(), &[0])?;
        Ok(Routes {
            experts: ids,
            weights: b.binary(Binary::Divide, &best, &sum)?,
        })
    }

    /// `e^(scores - max)`, of `[n, k]` and `[n]`.
    fn exponentials(&mut self, scores: &Value, max: &Value) -> Result<Value, LowerError> {
        let b = &mut self.builder;
        let max = b.broadcast(max, scores.dims(), &[0])?;
        let relative = b.binary(Binary::Subtract, scores, &max)?;
        Ok(b.unary(Unary::Exponential, &relative)?)
    }

    /// Gathers the chosen experts of each token.
    fn of_chosen(
        &mut self,
        layer: u32,
        x: &Value,
        routes: &Routes,
        choice: Choice,
    ) -> Result<Value, LowerError> {
        let [tokens, hidden, chosen] = [x.dims()[0], x.dims()[1], choice.chosen];
        let pairs = tokens * chosen;
        let multiplied = self.multiplied();
        let b = &mut self.builder;
        let x = b.convert(x, multiplied)?;
        let x = b.broadcast(&x, &[tokens, chosen, hidden], &[0, 2])?;
        let x = b.reshape(&x, &[pairs, hidden])?;
        let experts = b.reshape(&routes.experts, &[pairs])?;
        let weights = b.reshape(&routes.weights, &[pairs])?;
        let gate_up = self.weight(Slot::Layer(layer, LayerSlot::ExpertsGateUp))?;
        let of_one = gate_up.bytes() / u64::from(gate_up.dims()[0]);
        let mut outputs = Vec::new();
        for piece in self.pieces(pairs, of_one) {
            let b = &mut self.builder;
            let x = b.slice_in(&x, 0, piece.clone())?;
            let experts = b.slice(&experts, std::slice::from_ref(&piece))?;
            let weights = b.slice(&weights, &[piece])?;
            let both = self.by_own(layer, LayerSlot::ExpertsGateUp, &x, &experts)?;
            let inner = self.inside(&both, &weights, choice.activation)?;
            outputs.push(self.by_own(layer, LayerSlot::ExpertsDown, &inner, &experts)?);
        }
        let outputs: Vec<_> = outputs.iter().collect();
        let b = &mut self.builder;
        let all = b.concatenate(&outputs, 0)?;
        let all = b.reshape(&all, &[tokens, chosen, hidden])?;
        Ok(b.reduce(Reducer::Sum, &all, 1)?)
    }

    /// Each row of `[n, in]` times the matrix of its own expert: `[n, out]` in F32.
    fn by_own(
        &mut self,
        layer: u32,
        slot: LayerSlot,
        x: &Value,
        experts: &Value,
    ) -> Result<Value, LowerError> {
        let slot = Slot::Layer(layer, slot);
        let multiplied = self.multiplied();
        let matrices = self.weight(slot)?;
        let [count, from, to] = [0, 1, 2].map(|place| matrices.dims()[place]);
        let rows = experts.dims()[0];
        let b = &mut self.builder;
        // An expert is one row: a descriptor or few, where rows of its matrix would take thousands.
        let matrices = b.reshape(&matrices, &[count, from * to])?;
        let own = b.gather_rows(&matrices, experts)?;
        let own = b.reshape(&own, &[rows, from, to])?;
        let own = b.convert(&own, multiplied)?;
        let x = b.convert(x, multiplied)?;
        let product = b.dot(&x, &own, EACH_BY_ITS_OWN)?;
        if !self.form.weights.is_scaled() {
            return Ok(product);
        }
        let scales = self.input(Content::Scale(slot))?;
        let scales = self.builder.gather_rows(&scales, experts)?;
        Ok(self.builder.binary(Binary::Multiply, &product, &scales)?)
    }

    /// Elements of an expert's larger matrix, if they can be counted as a row's.
    fn expert_rows(&self, layer: u32) -> Result<Option<u32>, LowerError> {
        let gate_up = self.weight(Slot::Layer(layer, LayerSlot::ExpertsGateUp))?;
        Ok(gate_up.dims()[1].checked_mul(gate_up.dims()[2]))
    }

    /// Passes each token through all experts.
    fn of_all(
        &mut self,
        layer: u32,
        x: &Value,
        routes: &Routes,
        choice: Choice,
    ) -> Result<Value, LowerError> {
        let experts = self.decoder.mlp.experts();
        let weights = self.weight_of_each(routes, experts)?;
        let multiplied = self.multiplied();
        let x = self.builder.convert(x, multiplied)?;
        let of_one = u64::from(x.dims()[0]) * u64::from(2 * self.cut.size) * 4;
        let mut sum: Option<Value> = None;
        for piece in self.pieces(experts, of_one) {
            let weights = self.builder.slice_in(&weights, 1, piece.clone())?;
            let both = self.by_all(layer, &x, piece.clone())?;
            let inner = self.inside(&both, &weights, choice.activation)?;
            let part = self.summed(layer, &inner, piece)?;
            sum = Some(match sum {
                None => part,
                Some(sum) => self.builder.binary(Binary::Add, &sum, &part)?,
            });
        }
        // A decoder has one expert or more.
        sum.ok_or(LowerError::Input(Content::Weight(Slot::Layer(
            layer,
            LayerSlot::ExpertsGateUp,
        ))))
    }

    /// What each expert's output is multiplied by, 0 where it was not chosen: `[n, experts]`.
    fn weight_of_each(&mut self, routes: &Routes, experts: u32) -> Result<Value, LowerError> {
        let b = &mut self.builder;
        let [tokens, chosen] = [routes.experts.dims()[0], routes.experts.dims()[1]];
        let dims = [tokens, chosen, experts];
        let wanted = b.broadcast(&routes.experts, &dims, &[0, 1])?;
        let expert = b.iota(Element::S32, &dims, 2)?;
        let is_wanted = b.compare(Direction::Equal, &wanted, &expert)?;
        let weights = b.broadcast(&routes.weights, &dims, &[0, 1])?;
        let zero = b.full(Constant::F32(0.0), &dims)?;
        let weights = b.select(&is_wanted, &weights, &zero)?;
        Ok(b.reduce(Reducer::Sum, &weights, 1)?)
    }

    /// Gate and up of some experts: `[n, experts, 2 * size]` in F32.
    fn by_all(&mut self, layer: u32, x: &Value, some: Range<u32>) -> Result<Value, LowerError> {
        let slot = Slot::Layer(layer, LayerSlot::ExpertsGateUp);
        let multiplied = self.multiplied();
        let matrices = self.weight(slot)?;
        let b = &mut self.builder;
        let matrices = b.slice_in(&matrices, 0, some.clone())?;
        let matrices = b.convert(&matrices, multiplied)?;
        let product = b.dot(x, &matrices, ROWS_BY_EXPERTS)?;
        if !self.form.weights.is_scaled() {
            return Ok(product);
        }
        let scales = self.input(Content::Scale(slot))?;
        let b = &mut self.builder;
        let scales = b.slice_in(&scales, 0, some)?;
        let scales = b.broadcast(&scales, product.dims(), &[1, 2])?;
        Ok(b.binary(Binary::Multiply, &product, &scales)?)
    }

    /// What some experts make of their insides, `[n, experts, size]`, added up: `[n, hidden]` in F32.
    /// Sizes of all experts together are what one product sums over.
    fn summed(&mut self, layer: u32, inner: &Value, some: Range<u32>) -> Result<Value, LowerError> {
        let slot = Slot::Layer(layer, LayerSlot::ExpertsDown);
        let multiplied = self.multiplied();
        let matrices = self.weight(slot)?;
        let mut matrices = self.builder.slice_in(&matrices, 0, some.clone())?;
        if self.form.weights.is_scaled() {
            // The sum is over experts with scales of their own, so these cannot wait until after it.
            let scales = self.input(Content::Scale(slot))?;
            let wide = self.widened(&matrices)?;
            let b = &mut self.builder;
            let scales = b.slice_in(&scales, 0, some)?;
            let scales = b.broadcast(&scales, wide.dims(), &[0, 2])?;
            matrices = b.binary(Binary::Multiply, &wide, &scales)?;
        }
        let [count, size, hidden] = [0, 1, 2].map(|place| matrices.dims()[place]);
        let b = &mut self.builder;
        let matrices = b.convert(&matrices, multiplied)?;
        let matrices = b.reshape(&matrices, &[count * size, hidden])?;
        let inner = b.convert(inner, multiplied)?;
        let inner = b.reshape(&inner, &[inner.dims()[0], count * size])?;
        Ok(b.dot(&inner, &matrices, ROWS)?)
    }

    /// `activation(gate) * up * weight`, where gate and up are side by side in the last dimension
    /// and weights are for all others.
    fn inside(
        &mut self,
        both: &Value,
        weights: &Value,
        activation: Activation,
    ) -> Result<Value, LowerError> {
        let (size, last) = (self.cut.size, both.dims().len() - 1);
        let gate = self.builder.slice_in(both, last, 0..size)?;
        let up = self.builder.slice_in(both, last, size..2 * size)?;
        let gate = self.activated(&gate, activation)?;
        let b = &mut self.builder;
        let inner = b.binary(Binary::Multiply, &gate, &up)?;
        let others: Vec<_> = (0..last).collect();
        let weights = b.broadcast(weights, inner.dims(), &others)?;
        Ok(b.binary(Binary::Multiply, &inner, &weights)?)
    }

    /// `count` things of so many bytes in pieces that stay on the chip, unless they would be too many.
    fn pieces(&self, count: u32, bytes: u64) -> Vec<Range<u32>> {
        let fitting = u32::try_from(self.tiles.bytes / bytes.max(1)).unwrap_or(u32::MAX);
        let most = fitting
            .max(count.div_ceil(MAX_PIECES))
            .clamp(1, count.max(1));
        // Of equal size, as far as that goes.
        let most = count.div_ceil(count.div_ceil(most).max(1)).max(1);
        let starts = (0..count).step_by(most as usize);
        starts.map(|start| start..count.min(start + most)).collect()
    }
}
