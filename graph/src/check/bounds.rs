//! Indices that are certain to lie outside.
//!
//! Each integer value of the entry gets a span: no element lies outside it, and, where it is
//! `reached`, both ends are taken by some element. Of what inputs hold nothing is known.

use super::{Findings, Rule};
use crate::proto::Literal;
use crate::view::View;

/// Where the elements of an array lie.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Span {
    low: i64,
    high: i64,
    /// Whether there are elements at both ends, whatever the inputs hold.
    reached: bool,
}

/// No gather or scatter whose index is outside for certain.
pub(super) fn check(view: &View<'_>, findings: &mut Findings) {
    let mut spans: Vec<Option<Span>> = Vec::with_capacity(view.instructions.len());
    for place in 0..view.instructions.len() {
        spans.push(span(view, place, &spans));
        let Some((indices, limit)) = indexed(view, place) else {
            continue;
        };
        let Some(Span { low, high, reached }) = spans[indices] else {
            continue;
        };
        let all = high < 0 || low > limit;
        if all || reached && (low < 0 || high > limit) {
            let what =
                format!("its indices are {low} to {high} and may be 0 to {limit}: clamp them");
            findings.add(Rule::Bounds, &view.instructions[place].name, what);
        }
    }
}

/// The indices of a gather or scatter along one dimension, and the largest that may be.
fn indexed(view: &View<'_>, place: usize) -> Option<(usize, i64)> {
    let instruction = &view.instructions[place];
    let sizes = view.dimensions(view.operand(place, 0)?);
    let at = |dimension: i64| usize::try_from(dimension).ok();
    let (dimension, window) = if let Some(numbers) = &instruction.gather_dimension_numbers {
        let [dimension] = numbers.start_index_map[..] else {
            return None;
        };
        (
            dimension,
            *instruction.gather_slice_sizes.get(at(dimension)?)?,
        )
    } else if let Some(numbers) = &instruction.scatter_dimension_numbers {
        let [dimension] = numbers.scatter_dims_to_operand_dims[..] else {
            return None;
        };
        // Windows of one row are all that is written; of others nothing is said.
        let rows = numbers.inserted_window_dims.contains(&dimension);
        (dimension, rows.then_some(1)?)
    } else {
        return None;
    };
    Some((view.operand(place, 1)?, sizes.get(at(dimension)?)? - window))
}

/// Where the elements of an instruction's value lie, if it is one array of integers.
fn span(view: &View<'_>, place: usize, spans: &[Option<Span>]) -> Option<Span> {
    let instruction = &view.instructions[place];
    let all = whole(instruction.shape.as_ref()?.element_type)?;
    let of = |number: usize| {
        let operand = view.operand(place, number)?;
        spans.get(operand).copied().flatten()
    };
    let inside = |span: Option<Span>| {
        span.map(|span| Span {
            reached: false,
            ..span
        })
    };
    let found = match instruction.opcode.as_str() {
        "constant" => literal(instruction.literal.as_ref()?),
        "iota" => iota(view, place),
        "broadcast" | "reshape" | "bitcast" | "transpose" | "copy" | "reverse" => of(0),
        "convert" => of(0),
        "slice" | "dynamic-slice" | "gather" => inside(of(0)),
        "concatenate" => joined(view, place, spans),
        "select" => inside(either(of(1), of(2))),
        "clamp" => of(1).zip(of(0)).zip(of(2)).map(clamped),
        "get-tuple-element" => top_k_indices(view, place),
        opcode => of(0).zip(of(1)).and_then(|(a, b)| combined(opcode, a, b)),
    };
    // What leaves the type wraps around, and then nothing is known.
    Some(
        found
            .filter(|span| span.low >= all.low && span.high <= all.high)
            .unwrap_or(all),
    )
}

/// All that an integer type holds; `None` for what is no integer.
fn whole(number: i32) -> Option<Span> {
    let (low, high) = match number {
        2 => (i64::from(i8::MIN), i64::from(i8::MAX)),
        4 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        6 => (0, i64::from(u8::MAX)),
        8 => (0, i64::from(u32::MAX)),
        _ => return None,
    };
    Some(Span {
        low,
        high,
        reached: false,
    })
}

fn literal(literal: &Literal) -> Option<Span> {
    let signed = literal.s32s.iter().map(|value| i64::from(*value));
    let unsigned = literal.u32s.iter().map(|value| i64::from(*value));
    let values: Vec<_> = signed.chain(unsigned).collect();
    Some(Span {
        low: *values.iter().min()?,
        high: *values.iter().max()?,
        reached: true,
    })
}

/// From 0 to the size of its dimension.
fn iota(view: &View<'_>, place: usize) -> Option<Span> {
    let along = *view.instructions[place].dimensions.first()?;
    let size = *view.dimensions(place).get(usize::try_from(along).ok()?)?;
    Some(Span {
        low: 0,
        high: size - 1,
        reached: true,
    })
}

/// The spans of all operands together.
fn joined(view: &View<'_>, place: usize, spans: &[Option<Span>]) -> Option<Span> {
    let mut all = view.operands[place].iter().map(|&one| spans[one]);
    let first = all.next()?;
    all.fold(first, either)
}

/// Both together; the ends are reached where both are.
fn either(a: Option<Span>, b: Option<Span>) -> Option<Span> {
    let (a, b) = (a?, b?);
    Some(Span {
        low: a.low.min(b.low),
        high: a.high.max(b.high),
        reached: a.reached && b.reached,
    })
}

fn clamped(((value, low), high): ((Span, Span), Span)) -> Span {
    let points = low.low == low.high && high.low == high.high;
    Span {
        low: value.low.max(low.low).min(high.low),
        high: value.high.max(low.high).min(high.high),
        reached: value.reached && points,
    }
}

/// Indices that a top-K gives are columns of its operand.
fn top_k_indices(view: &View<'_>, place: usize) -> Option<Span> {
    let call = view.operand(place, 0)?;
    if view.instructions[call].custom_call_target != "AwsNeuronTopK" {
        return None;
    }
    let columns = *view.dimensions(view.operand(call, 0)?).last()?;
    Some(Span {
        low: 0,
        high: columns - 1,
        reached: false,
    })
}

/// What an operation of two arrays gives. Ends are reached where one of both is a single number.
fn combined(opcode: &str, a: Span, b: Span) -> Option<Span> {
    let point = b.low == b.high;
    let reached = a.reached && b.reached && (point || a.low == a.high);
    let ends = |low, high| Some(Span { low, high, reached });
    match opcode {
        "add" => ends(a.low + b.low, a.high + b.high),
        "subtract" => ends(a.low - b.high, a.high - b.low),
        "multiply" => {
            let products = [a.low, a.high]
                .into_iter()
                .flat_map(|a| [b.low, b.high].map(|b| a.saturating_mul(b)));
            ends(products.clone().min()?, products.max()?)
        }
        "minimum" => ends(a.low.min(b.low), a.high.min(b.high)),
        "maximum" => ends(a.low.max(b.low), a.high.max(b.high)),
        "divide" if point && b.low > 0 => ends(a.low / b.low, a.high / b.low),
        "remainder" | "and" if a.low >= 0 && b.low >= 0 => Some(Span {
            low: 0,
            high: match opcode {
                "and" => a.high.min(b.high),
                _ => a.high.min(b.high - 1).max(0),
            },
            reached: false,
        }),
        "shift-left" if point && (0..32).contains(&b.low) => ends(a.low << b.low, a.high << b.low),
        "shift-right-logical" | "shift-right-arithmetic"
            if point && (0..32).contains(&b.low) && a.low >= 0 =>
        {
            ends(a.low >> b.low, a.high >> b.low)
        }
        _ => None,
    }
}
