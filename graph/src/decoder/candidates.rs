//! Hidden states -> candidates: the best tokens with exact log-probabilities over the whole
//! vocabulary, of which each rank has a part.

use std::ops::Range;

use crate::build::{Binary, Constant, Direction, Reducer, Unary, Value};
use crate::decoder::{Lowering, NEVER, PADDING};
use crate::element::Element;
use crate::layout::{Content, Slot};
use crate::lower::LowerError;

/// Ids are found by comparing each place with each wanted one, up to so many pairs. Above, they are
/// gathered, one number at a time, which the device does slowly: a descriptor for each.
const MAX_PAIRS: u64 = 1 << 22;

/// Some of the best of each entry, best first: `[entries, k]` in F32.
#[derive(Clone, Debug)]
struct Best {
    ids: Value,
    logits: Value,
}

/// What is known of the distribution over a part of the vocabulary, or over all.
#[derive(Clone, Debug)]
struct Summary {
    best: Best,
    /// `[entries]`: the greatest logit.
    max: Value,
    /// `[entries]`: the sum of exponentials, relative to it.
    sum: Value,
    /// `[entries]`: the target's logit, 0 where the target is not of the part.
    target: Value,
}

impl Lowering<'_> {
    /// The candidates of `[entries, hidden]`, as [`Content::Candidates`] says.
    pub(super) fn candidates(
        &mut self,
        x: &Value,
        targets: &Range<usize>,
    ) -> Result<Value, LowerError> {
        let logits = self.linear(x, Slot::Head)?;
        let ids = self.ids_of(&logits)?;
        let logits = self.allowed_only(&logits, &ids)?;
        let part = self.summary(&logits, &ids, targets)?;
        let whole = match self.cut.ranks {
            1 => part,
            _ => self.joined(&part)?,
        };
        self.entries(&whole)
    }

    /// The token of each logit.
    fn ids_of(&mut self, logits: &Value) -> Result<Value, LowerError> {
        let first = self.rank_times(self.cut.vocabulary, logits.dims())?;
        let b = &mut self.builder;
        let column = b.iota(Element::S32, logits.dims(), 1)?;
        Ok(b.binary(Binary::Add, &first, &column)?)
    }

    /// Logits, [`NEVER`] for tokens that the mask forbids and for columns past the vocabulary.
    fn allowed_only(&mut self, logits: &Value, ids: &Value) -> Result<Value, LowerError> {
        let masks = self.input(Content::Masks)?;
        let vocabulary = Constant::S32(self.decoder.vocabulary.cast_signed());
        let b = &mut self.builder;
        let bits = [masks.dims()[0], masks.dims()[1], 32];
        let words = b.broadcast(&masks, &bits, &[0, 1])?;
        let places = b.iota(Element::S32, &bits, 2)?;
        let shifted = b.binary(Binary::ShiftRight, &words, &places)?;
        let bit = b.binary_scalar(Binary::And, &shifted, Constant::S32(1))?;
        let one = b.full(Constant::S32(1), bit.dims())?;
        let allowed = b.compare(Direction::Equal, &bit, &one)?;
        let allowed = b.reshape(&allowed, logits.dims())?;
        let end = b.full(vocabulary, ids.dims())?;
        let exists = b.compare(Direction::Less, ids, &end)?;
        let allowed = b.binary(Binary::And, &allowed, &exists)?;
        let never = b.full(NEVER, logits.dims())?;
        Ok(b.select(&allowed, logits, &never)?)
    }

    /// What is known of this rank's part.
    fn summary(
        &mut self,
        logits: &Value,
        ids: &Value,
        targets: &Range<usize>,
    ) -> Result<Summary, LowerError> {
        let best = self.best_of(logits)?;
        let targets = self.ints(targets)?;
        let b = &mut self.builder;
        let max = b.reduce(Reducer::Max, logits, 1)?;
        let relative = b.broadcast(&max, logits.dims(), &[0])?;
        let relative = b.binary(Binary::Subtract, logits, &relative)?;
        let exponentials = b.unary(Unary::Exponential, &relative)?;
        let sum = b.reduce(Reducer::Sum, &exponentials, 1)?;
        let targets = b.broadcast(&targets, ids.dims(), &[0])?;
        let is_target = b.compare(Direction::Equal, ids, &targets)?;
        let zero = b.full(Constant::F32(0.0), logits.dims())?;
        let target = b.select(&is_target, logits, &zero)?;
        let target = b.reduce(Reducer::Sum, &target, 1)?;
        Ok(Summary {
            best,
            max,
            sum,
            target,
        })
    }

    /// The best of a rank's part: of each fold, then of those.
    fn best_of(&mut self, logits: &Value) -> Result<Best, LowerError> {
        let (entries, folds, part) = (logits.dims()[0], self.cut.folds, self.cut.vocabulary);
        let piece = part / folds;
        let width = self.form.candidates.min(piece);
        let b = &mut self.builder;
        let folded = b.reshape(logits, &[entries * folds, piece])?;
        let (best, columns) = b.top_k(&folded, width)?;
        let dims = [entries, folds, width];
        let columns = b.convert(&columns, Element::S32)?;
        let columns = b.reshape(&columns, &dims)?;
        let fold = b.iota(Element::S32, &dims, 1)?;
        let fold = b.binary_scalar(Binary::Multiply, &fold, Constant::S32(piece.cast_signed()))?;
        let ids = b.binary(Binary::Add, &columns, &fold)?;
        let first = self.rank_times(part, &dims)?;
        let b = &mut self.builder;
        let ids = b.binary(Binary::Add, &ids, &first)?;
        let ids = b.convert(&ids, Element::F32)?;
        let dims = [entries, folds * width];
        let best = Best {
            ids: b.reshape(&ids, &dims)?,
            logits: b.reshape(&best, &dims)?,
        };
        match folds {
            1 => Ok(best),
            _ => self.best_among(&best),
        }
    }

    /// The best of `[entries, n]` that stand in the order of their ids where they are equal: as
    /// many as an entry has, or all.
    fn best_among(&mut self, best: &Best) -> Result<Best, LowerError> {
        let [entries, among] = [best.logits.dims()[0], best.logits.dims()[1]];
        let width = self.form.candidates.min(among);
        let columns = among.next_multiple_of(8);
        let b = &mut self.builder;
        let logits = b.pad(&best.logits, 1, columns - among, PADDING)?;
        let (logits, places) = b.top_k(&logits, width)?;
        let places = b.convert(&places, Element::S32)?;
        let pairs = u64::from(entries) * u64::from(width) * u64::from(among);
        let ids = match pairs {
            ..=MAX_PAIRS => self.compared(&best.ids, &places)?,
            _ => self.gathered(&best.ids, &places)?,
        };
        Ok(Best { ids, logits })
    }

    /// `numbers[entry, places[entry, k]]`, found by comparing.
    fn compared(&mut self, numbers: &Value, places: &Value) -> Result<Value, LowerError> {
        let b = &mut self.builder;
        let dims = [places.dims()[0], places.dims()[1], numbers.dims()[1]];
        let wanted = b.broadcast(places, &dims, &[0, 1])?;
        let place = b.iota(Element::S32, &dims, 2)?;
        let is_wanted = b.compare(Direction::Equal, &wanted, &place)?;
        let numbers = b.broadcast(numbers, &dims, &[0, 2])?;
        let zero = b.full(Constant::F32(0.0), &dims)?;
        let found = b.select(&is_wanted, &numbers, &zero)?;
        Ok(b.reduce(Reducer::Sum, &found, 2)?)
    }

    /// The same, gathered.
    fn gathered(&mut self, numbers: &Value, places: &Value) -> Result<Value, LowerError> {
        let b = &mut self.builder;
        let [entries, among] = [numbers.dims()[0], numbers.dims()[1]];
        let row = b.iota(Element::S32, places.dims(), 0)?;
        let first = b.binary_scalar(Binary::Multiply, &row, Constant::S32(among.cast_signed()))?;
        let index = b.binary(Binary::Add, &first, places)?;
        let wanted = entries * places.dims()[1];
        let index = b.reshape(&index, &[wanted])?;
        let numbers = b.reshape(numbers, &[entries * among, 1])?;
        let found = b.gather_rows(&numbers, &index)?;
        Ok(b.reshape(&found, places.dims())?)
    }

    /// What all ranks know together. Each puts what it knows at its own place among zeros, and one
    /// sum over all ranks gives everything to everyone.
    fn joined(&mut self, part: &Summary) -> Result<Summary, LowerError> {
        let ranks = self.cut.ranks;
        let entries = part.max.dims()[0];
        let b = &mut self.builder;
        let max = b.reshape(&part.max, &[entries, 1])?;
        let sum = b.reshape(&part.sum, &[entries, 1])?;
        let target = b.reshape(&part.target, &[entries, 1])?;
        let known = b.concatenate(&[&part.best.ids, &part.best.logits, &max, &sum], 1)?;
        let width = known.dims()[1];
        let dims = [entries, ranks, width];
        let own = self.rank_times(1, &dims)?;
        let b = &mut self.builder;
        let place = b.iota(Element::S32, &dims, 1)?;
        let is_own = b.compare(Direction::Equal, &place, &own)?;
        let known = b.broadcast(&known, &dims, &[0, 2])?;
        let zero = b.full(Constant::F32(0.0), &dims)?;
        let known = b.select(&is_own, &known, &zero)?;
        let known = b.reshape(&known, &[entries, ranks * width])?;
        let sent = b.concatenate(&[&known, &target], 1)?;
        let all = b.all_reduce(&sent, ranks)?;
        let known = b.slice_in(&all, 1, 0..ranks * width)?;
        let known = b.reshape(&known, &dims)?;
        let target = b.slice_in(&all, 1, ranks * width..ranks * width + 1)?;
        let target = b.reshape(&target, &[entries])?;
        self.joined_of(&known, target)
    }

    /// The whole of `[entries, ranks, ids | logits | max | sum]`.
    fn joined_of(&mut self, known: &Value, target: Value) -> Result<Summary, LowerError> {
        let [entries, ranks, width] = [known.dims()[0], known.dims()[1], known.dims()[2]];
        let best = (width - 2) / 2;
        let b = &mut self.builder;
        let ids = b.slice_in(known, 2, 0..best)?;
        let logits = b.slice_in(known, 2, best..2 * best)?;
        let maxima = b.slice_in(known, 2, 2 * best..2 * best + 1)?;
        let maxima = b.reshape(&maxima, &[entries, ranks])?;
        let sums = b.slice_in(known, 2, 2 * best + 1..width)?;
        let sums = b.reshape(&sums, &[entries, ranks])?;
        let max = b.reduce(Reducer::Max, &maxima, 1)?;
        let relative = b.broadcast(&max, maxima.dims(), &[0])?;
        let relative = b.binary(Binary::Subtract, &maxima, &relative)?;
        let scale = b.unary(Unary::Exponential, &relative)?;
        let sums = b.binary(Binary::Multiply, &sums, &scale)?;
        let sum = b.reduce(Reducer::Sum, &sums, 1)?;
        let all = Best {
            ids: b.reshape(&ids, &[entries, ranks * best])?,
            logits: b.reshape(&logits, &[entries, ranks * best])?,
        };
        Ok(Summary {
            best: self.best_among(&all)?,
            max,
            sum,
            target,
        })
    }

    /// Ids, log-probabilities, normalizer and the target's log-probability, side by side.
    fn entries(&mut self, whole: &Summary) -> Result<Value, LowerError> {
        let b = &mut self.builder;
        let logarithm = b.unary(Unary::Log, &whole.sum)?;
        let normalizer = b.binary(Binary::Add, &whole.max, &logarithm)?;
        let of_each = b.broadcast(&normalizer, whole.best.logits.dims(), &[0])?;
        let logprobs = b.binary(Binary::Subtract, &whole.best.logits, &of_each)?;
        let target = b.binary(Binary::Subtract, &whole.target, &normalizer)?;
        let column = [normalizer.dims()[0], 1];
        let normalizer = b.reshape(&normalizer, &column)?;
        let target = b.reshape(&target, &column)?;
        let parts = [&whole.best.ids, &logprobs, &normalizer, &target];
        Ok(b.concatenate(&parts, 1)?)
    }
}
