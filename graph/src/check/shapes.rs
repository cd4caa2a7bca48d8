//! Shapes that follow from those of the operands.

use super::{Findings, Rule};
use crate::view::{View, count};

/// Every instruction whose sizes are known from its operands has those sizes.
pub(super) fn check(view: &View<'_>, findings: &mut Findings) {
    for place in 0..view.instructions.len() {
        if let Some(Err(what)) = wrong(view, place) {
            findings.add(Rule::Shape, &view.instructions[place].name, what);
        }
    }
}

/// Whether an instruction's sizes are as they must be; `None` where that is not known here.
fn wrong(view: &View<'_>, place: usize) -> Option<Result<(), String>> {
    let own = view.dimensions(place);
    if let Some(operands) = operands_of(view.opcode(place))
        && view.operands[place].len() != operands
    {
        let given = view.operands[place].len();
        return Some(Err(format!("it has {given} operands and needs {operands}")));
    }
    let first = view.operand(place, 0).map(|one| view.dimensions(one));
    let expected = match view.opcode(place) {
        "reshape" => {
            let held = count(first?);
            return Some(match count(own) {
                own if own == held => Ok(()),
                own => Err(format!("it has {own} elements and its operand {held}")),
            });
        }
        "select" => view.dimensions(view.operand(place, 1)?).to_vec(),
        opcode if is_elementwise(opcode) => {
            let others = view.operands[place].iter().skip(1);
            let alike = others.map(|&one| view.dimensions(one));
            let scalars = opcode == "clamp";
            let odd = alike
                .filter(|sizes| !(scalars && sizes.is_empty()))
                .find(|sizes| scalars.then_some(own).or(first) != Some(*sizes));
            if let Some(odd) = odd {
                return Some(Err(format!(
                    "its operands have sizes {first:?} and {odd:?}"
                )));
            }
            match scalars {
                true => view.dimensions(view.operand(place, 1)?).to_vec(),
                false => first?.to_vec(),
            }
        }
        "broadcast" => return Some(broadcast(view, place, first?)),
        "transpose" => permuted(first?, &view.instructions[place].dimensions)?,
        "reduce" => without(first?, &view.instructions[place].dimensions),
        "dot" => dot(view, place)?,
        "slice" => sliced(view, place),
        "concatenate" => concatenated(view, place)?,
        _ => return None,
    };
    Some(match own == expected {
        true => Ok(()),
        false => Err(format!("it has sizes {own:?} and must have {expected:?}")),
    })
}

/// How many operands an operation has, where that is fixed.
fn operands_of(opcode: &str) -> Option<usize> {
    Some(match opcode {
        "parameter" | "constant" | "iota" => 0,
        "reshape" | "broadcast" | "transpose" | "slice" | "get-tuple-element" | "convert"
        | "copy" | "negate" | "exponential" | "log" | "rsqrt" | "sqrt" | "logistic" | "tanh"
        | "abs" | "not" | "floor" | "ceil" | "sine" | "cosine" => 1,
        "dot"
        | "gather"
        | "pad"
        | "add"
        | "subtract"
        | "multiply"
        | "divide"
        | "remainder"
        | "maximum"
        | "minimum"
        | "compare"
        | "and"
        | "or"
        | "xor"
        | "power"
        | "shift-left"
        | "shift-right-logical"
        | "shift-right-arithmetic" => 2,
        "select" | "clamp" => 3,
        _ => return None,
    })
}

/// Whether an operation computes each element from the same place of its operands.
fn is_elementwise(opcode: &str) -> bool {
    crate::flow::is_elementwise(opcode) || opcode == "copy"
}

/// Each size of the operand at the dimension it is broadcast to.
fn broadcast(view: &View<'_>, place: usize, first: &[i64]) -> Result<(), String> {
    let own = view.dimensions(place);
    let to = &view.instructions[place].dimensions;
    let at = |dimension: &i64| usize::try_from(*dimension).ok().and_then(|at| own.get(at));
    let rising = to.windows(2).all(|pair| pair[0] < pair[1]);
    let alike =
        to.len() == first.len() && to.iter().zip(first).all(|(to, size)| at(to) == Some(size));
    match rising && alike {
        true => Ok(()),
        false => Err(format!(
            "it puts sizes {first:?} at dimensions {to:?} of {own:?}"
        )),
    }
}

/// Sizes in the order of `by`.
fn permuted(sizes: &[i64], by: &[i64]) -> Option<Vec<i64>> {
    by.iter()
        .map(|&at| sizes.get(usize::try_from(at).ok()?).copied())
        .collect()
}

/// Sizes but those of the dimensions `gone`.
fn without(sizes: &[i64], gone: &[i64]) -> Vec<i64> {
    (0..)
        .zip(sizes)
        .filter(|(at, _)| !gone.contains(at))
        .map(|(_, &size)| size)
        .collect()
}

/// Batch dimensions, then what is left of the left, then of the right.
fn dot(view: &View<'_>, place: usize) -> Option<Vec<i64>> {
    let numbers = view.instructions[place].dot_dimension_numbers.as_ref()?;
    let left = view.dimensions(view.operand(place, 0)?);
    let right = view.dimensions(view.operand(place, 1)?);
    let gone = |batch: &[i64], summed: &[i64]| [batch, summed].concat();
    let of_left = gone(
        &numbers.lhs_batch_dimensions,
        &numbers.lhs_contracting_dimensions,
    );
    let of_right = gone(
        &numbers.rhs_batch_dimensions,
        &numbers.rhs_contracting_dimensions,
    );
    // Equal sizes of what is paired: otherwise no sizes can be right.
    if permuted(left, &of_left) != permuted(right, &of_right) {
        return Some(vec![-1]);
    }
    let mut sizes = permuted(left, &numbers.lhs_batch_dimensions)?;
    sizes.extend(without(left, &of_left));
    sizes.extend(without(right, &of_right));
    Some(sizes)
}

/// As many of each dimension as lie between start and limit.
fn sliced(view: &View<'_>, place: usize) -> Vec<i64> {
    let slices = &view.instructions[place].slice_dimensions;
    let operand = view
        .operand(place, 0)
        .map_or(&[][..], |one| view.dimensions(one));
    slices
        .iter()
        .zip(operand)
        .map(|(slice, &size)| {
            let within = slice.start >= 0 && slice.limit <= size && slice.stride > 0;
            match within {
                true => (slice.limit - slice.start + slice.stride - 1) / slice.stride,
                false => -1,
            }
        })
        .collect()
}

/// The sum along one dimension.
fn concatenated(view: &View<'_>, place: usize) -> Option<Vec<i64>> {
    let along = *view.instructions[place].dimensions.first()?;
    let along = usize::try_from(along).ok()?;
    let mut sizes = view.dimensions(view.operand(place, 0)?).to_vec();
    for &operand in view.operands[place].iter().skip(1) {
        let more = view.dimensions(operand).get(along)?;
        *sizes.get_mut(along)? += more;
    }
    Some(sizes)
}
