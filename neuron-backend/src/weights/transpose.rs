//! Rows of a checkpoint's `[out, in]` as the columns of `[in, out]`.

use std::ops::Range;
use std::sync::Arc;

use model::{Dtype, ReadError, Tensor};

use super::made::{Part, Shape};
use super::shelf::Shelf;
use super::{Sink, WriteError};

/// Rows and columns that are turned at once: what is written then is a whole line of the
/// processor's cache or two.
const TILE: usize = 64;

/// Inputs that are read of a row before the next is: a run that is long enough to be fetched ahead,
/// while those of a tile's rows, converted, stay in the second cache.
const RUN: usize = 8 * TILE;

/// A matrix, and the tensors that it is made of.
#[derive(Debug)]
pub(super) struct Columns<'a> {
    shape: &'a Shape,
    tensors: Vec<(Arc<Tensor>, &'a Part)>,
    /// Bytes that are handed over at once.
    piece: usize,
}

/// A row of a tensor within a tile: which column it becomes, and its bytes.
struct Line<'a> {
    column: usize,
    dtype: Dtype,
    bytes: &'a [u8],
}

impl<'a> Columns<'a> {
    /// Waits for the tensors.
    pub(super) fn new(
        shelf: &Shelf<'_>,
        shape: &'a Shape,
        piece: usize,
    ) -> Result<Self, ReadError> {
        let parts = shape.parts.iter();
        let tensors = parts.map(|part| Ok((shelf.tensor(part.role)?, part)));
        Ok(Self {
            shape,
            piece,
            tensors: tensors.collect::<Result<_, ReadError>>()?,
        })
    }

    /// Gives each column that is not padding: its place, and its numbers as the checkpoint has them.
    pub(super) fn each(&self, mut take: impl FnMut(usize, Dtype, &[u8])) {
        for (tensor, part) in &self.tensors {
            for row in 0..part.rows.len() {
                let line = self.line(tensor, part, row, &(0..self.shape.of.len()));
                take(line.column, line.dtype, line.bytes);
            }
        }
    }

    /// Hands the matrix to `sink`, some rows at a time, of numbers of `W` bytes. `convert` makes
    /// them of what the checkpoint has, and is told which column they are of.
    pub(super) fn write<const W: usize, E, F: FnMut(u64, &[u8]) -> Result<(), E>>(
        &self,
        piece: &mut Vec<u8>,
        sink: &mut Sink<F>,
        convert: impl Fn(usize, Dtype, &[u8], &mut [[u8; W]]),
    ) -> Result<(), WriteError<E>> {
        let Shape {
            inputs, outputs, ..
        } = *self.shape;
        let filled: usize = self.tensors.iter().map(|(_, part)| part.rows.len()).sum();
        let is_padded = filled < outputs || self.shape.of.len() < inputs;
        // Whole tiles, where there is room for one.
        let most = (self.piece / (outputs * W).max(1)).max(1);
        let most = (most / TILE * TILE).max(most.min(TILE));
        let mut lines = Box::new([[[0; W]; RUN]; TILE]);
        for first in (0..inputs).step_by(most) {
            let count = most.min(inputs - first);
            piece.resize(count * outputs * W, 0);
            if is_padded {
                piece.fill(0);
            }
            let own = first.min(self.shape.of.len())..(first + count).min(self.shape.of.len());
            self.turn(&own, &mut lines, piece.as_chunks_mut().0, &convert);
            sink.put(piece)?;
        }
        Ok(())
    }

    /// Writes the numbers of these inputs to `out`, `[inputs, outputs]`; `lines` is scratch.
    fn turn<const W: usize>(
        &self,
        inputs: &Range<usize>,
        lines: &mut [[[u8; W]; RUN]; TILE],
        out: &mut [[u8; W]],
        convert: &impl Fn(usize, Dtype, &[u8], &mut [[u8; W]]),
    ) {
        let outputs = self.shape.outputs;
        for (tensor, part) in &self.tensors {
            for row in (0..part.rows.len()).step_by(TILE) {
                let rows = TILE.min(part.rows.len() - row);
                for input in inputs.clone().step_by(RUN) {
                    let run = input..inputs.end.min(input + RUN);
                    for (at, line) in lines[..rows].iter_mut().enumerate() {
                        let read = self.line(tensor, part, row + at, &run);
                        convert(read.column, read.dtype, read.bytes, &mut line[..run.len()]);
                    }
                    let place = (input - inputs.start) * outputs + part.at + row;
                    for (at, out) in out[place..].chunks_mut(outputs).take(run.len()).enumerate() {
                        let numbers = out.iter_mut().zip(&lines[..rows]);
                        numbers.for_each(|(out, line)| *out = line[at]);
                    }
                }
            }
        }
    }

    /// Row `row` of a part, and of it these inputs of the matrix.
    fn line<'t>(
        &self,
        tensor: &'t Tensor,
        part: &Part,
        row: usize,
        inputs: &Range<usize>,
    ) -> Line<'t> {
        let size = tensor.dtype.size();
        let start = (part.rows.start + row) * tensor.shape[1] + self.shape.of.start;
        Line {
            column: part.at + row,
            dtype: tensor.dtype,
            bytes: &tensor.bytes[(start + inputs.start) * size..(start + inputs.end) * size],
        }
    }
}
