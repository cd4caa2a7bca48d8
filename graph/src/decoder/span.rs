//! Consecutive things, and how many there are.

use std::ops::Range;

/// Consecutive tokens, pages or positions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) first: u32,
    pub(super) count: u32,
}

impl Span {
    pub(super) fn end(self) -> u32 {
        self.first + self.count
    }

    pub(super) fn range(self) -> Range<u32> {
        self.first..self.end()
    }
}

/// `0 .. whole` in pieces of `size`, the last perhaps shorter.
pub(super) fn pieces(whole: u32, size: u32) -> impl DoubleEndedIterator<Item = Span> {
    let size = size.max(1);
    (0..whole.div_ceil(size)).map(move |piece| {
        let first = piece * size;
        let count = size.min(whole - first);
        Span { first, count }
    })
}
