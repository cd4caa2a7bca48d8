//! Shapes as messages.

use crate::element::Element;
use crate::proto::{Layout, Shape, TUPLE};

/// An array, its elements row after row.
pub(super) fn array(element: Element, dims: &[u32]) -> Shape {
    Shape {
        layout: Some(Layout {
            minor_to_major: (0..signed(dims.len())).rev().collect(),
            tail_padding_alignment_in_elements: 1,
        }),
        ..plain(element, dims)
    }
}

/// An array as a program's shape has it: nothing of where its elements lie.
pub(super) fn plain(element: Element, dims: &[u32]) -> Shape {
    Shape {
        element_type: element.number(),
        dimensions: dims.iter().map(|size| i64::from(*size)).collect(),
        is_dynamic_dimension: vec![false; dims.len()],
        ..Shape::default()
    }
}

/// Several of them.
pub(super) fn tuple(shapes: Vec<Shape>) -> Shape {
    Shape {
        element_type: TUPLE,
        tuple_shapes: shapes,
        ..Shape::default()
    }
}

/// A place or count as messages have it.
#[expect(
    clippy::cast_possible_wrap,
    reason = "a module has fewer than 2^31 of anything"
)]
pub(super) fn signed(number: usize) -> i64 {
    number as i64
}
