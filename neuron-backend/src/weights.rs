//! What a device holds from the start: weights as a rank's modules take them, and rotary tables.
//!
//! A checkpoint has matrices as `[out, in]`; a module takes `[in, out]`, cut to what its rank
//! computes, and perhaps one byte a number. They are made a piece at a time, so that a rank needs
//! no more of the host's memory than a piece; and a tensor is read once for all ranks and dropped when
//! the last has it, past the system's cache, because the driver needs contiguous memory of the host,
//! and failed on a host whose cache was full of checkpoint (`neuron.md` 4.2).

mod made;
mod number;
mod shelf;
mod transpose;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use graph::narrow::{Narrow, e4m3};
use graph::{Content, Cut, Form, FormError, Slot};
use model::{Decoder, ReadError, Role, Tensor, Weights};

use made::{Made, Part, Shape};
use number::{convert, largest_of, to_bf16};
use shelf::Shelf;
use transpose::Columns;

/// Bytes that are handed over at once, at the most.
pub const PIECE: usize = 16 << 20;

/// A checkpoint, for all ranks of a form. Each rank has a [`Writer`], in a thread of its own if it
/// likes. Ranks should go through the contents in step: a tensor stays in memory until the last of
/// them has it.
#[derive(Debug)]
pub struct Source<'a> {
    decoder: &'a Decoder,
    shelf: Shelf<'a>,
    form: &'a Form,
    cut: Cut,
    /// Bytes of a piece: [`PIECE`], or fewer in tests.
    piece: usize,
    /// How many ranks have yet to read a tensor.
    unread: HashMap<Role, AtomicU32>,
}

/// Writes what one rank holds.
#[derive(Debug)]
pub struct Writer<'a> {
    source: &'a Source<'a>,
    rank: u32,
    piece: Vec<u8>,
    /// Those of the matrix that was written last.
    scales: Option<(Slot, Vec<f32>)>,
}

/// Why a rank's weights were not written.
#[derive(Debug)]
pub enum WriteError<E> {
    /// The checkpoint cannot be read.
    Read(ReadError),
    /// What the sink said.
    Sink(E),
}

impl<E> From<ReadError> for WriteError<E> {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

/// What pieces are handed to, and how many bytes were.
struct Sink<F> {
    sink: F,
    written: u64,
}

impl<'a> Source<'a> {
    /// The weights of `decoder`, for modules of this `form`.
    ///
    /// # Errors
    /// Why they cannot be cut among so many ranks.
    pub fn new(
        decoder: &'a Decoder,
        weights: &'a Weights,
        form: &'a Form,
    ) -> Result<Self, FormError> {
        let roles = decoder.roles().map(|(role, _)| role).chain([Role::Head]);
        let unread = roles.map(|role| (role, AtomicU32::new(form.ranks)));
        Ok(Self {
            decoder,
            shelf: Shelf::new(weights),
            form,
            cut: Cut::of(decoder, form.ranks)?,
            piece: PIECE,
            unread: unread.collect(),
        })
    }

    /// The writer of `rank`, which is below the form's.
    pub fn writer(&self, rank: u32) -> Writer<'_> {
        Writer {
            source: self,
            rank,
            piece: Vec::new(),
            scales: None,
        }
    }

    /// The format of one byte that a slot's matrices are in, if they are in one.
    fn narrow(&self, slot: Slot) -> Option<Narrow> {
        let weights = slot.format(self.form.weights);
        Narrow::of(self.form).filter(|_| weights.is_scaled())
    }

    /// Begins to read what these contents are made of, in their order, ahead of the writers.
    ///
    /// # Errors
    /// The host has no threads for it.
    pub fn read_ahead(
        &mut self,
        contents: impl IntoIterator<Item = Content>,
    ) -> Result<(), ReadError> {
        let roles = contents.into_iter().flat_map(|content| match content {
            Content::Weight(slot) => Made::of(self.decoder, &self.cut, slot, 0).roles(),
            _ => Vec::new(),
        });
        let roles: Vec<_> = roles.collect();
        self.shelf.read_ahead(roles)
    }

    /// Lets no writer read any more: what is written would be of no use.
    pub fn give_up(&self) {
        self.shelf.close();
    }

    /// A rank has read these tensors. Those that no other has yet to read are let go.
    fn let_go(&self, parts: &[Part]) {
        for part in parts {
            let Some(unread) = self.unread.get(&part.role) else {
                continue;
            };
            let one_less = |unread: u32| unread.checked_sub(1);
            let before = unread.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
            if before == Ok(1) {
                self.shelf.let_go(part.role);
            }
        }
    }
}

impl Writer<'_> {
    /// Hands what the rank holds as `content` to `sink`, in pieces of at most [`PIECE`] bytes, each
    /// with its place, from the first byte to the last; and gives how many bytes there were. That is
    /// none for what changes from step to step.
    ///
    /// A matrix's scales are best asked for right after it: they are known then.
    ///
    /// # Errors
    /// What `sink` gives, or why the checkpoint cannot be read.
    pub fn write<E>(
        &mut self,
        content: Content,
        sink: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<u64, WriteError<E>> {
        let mut sink = Sink { sink, written: 0 };
        match content {
            Content::Rank => sink.put(&self.rank.to_le_bytes())?,
            Content::RopeCos => self.write_rope(f32::cos, &mut sink)?,
            Content::RopeSin => self.write_rope(f32::sin, &mut sink)?,
            Content::Weight(slot) => self.write_weight(slot, &mut sink)?,
            Content::Scale(slot) => {
                let scales = self.scales_of(slot)?;
                let bytes: Vec<_> = scales.iter().flat_map(|one| one.to_le_bytes()).collect();
                sink.put(&bytes)?;
                self.scales = Some((slot, scales));
            }
            Content::Ints
            | Content::Masks
            | Content::Keys(_)
            | Content::Values(_)
            | Content::Candidates
            | Content::Embedding => (),
        }
        Ok(sink.written)
    }

    fn write_weight<E, F: FnMut(u64, &[u8]) -> Result<(), E>>(
        &mut self,
        slot: Slot,
        sink: &mut Sink<F>,
    ) -> Result<(), WriteError<E>> {
        let source = self.source;
        match Made::of(source.decoder, &source.cut, slot, self.rank) {
            Made::Vector { parts, len } => {
                self.write_vector(&parts, len, sink)?;
                source.let_go(&parts);
            }
            Made::Rows { part, rows } => {
                self.write_rows(&part, rows, sink)?;
                source.let_go(&[part]);
            }
            Made::Columns(shapes) => self.write_matrices(slot, &shapes, sink)?,
        }
        Ok(())
    }

    /// Writes matrices one after the other, and keeps their scales.
    fn write_matrices<E, F: FnMut(u64, &[u8]) -> Result<(), E>>(
        &mut self,
        slot: Slot,
        shapes: &[Shape],
        sink: &mut Sink<F>,
    ) -> Result<(), WriteError<E>> {
        let source = self.source;
        let known = self.scales.take_if(|(known, _)| *known == slot);
        let mut known = known.map(|(_, scales)| scales.into_iter());
        let mut all = Vec::new();
        for shape in shapes {
            let columns = Columns::new(&source.shelf, shape, source.piece)?;
            match source.narrow(slot) {
                None => columns.write(&mut self.piece, sink, |_, dtype, bytes, out| {
                    to_bf16(dtype, bytes, out);
                })?,
                Some(format) => {
                    let scales = match &mut known {
                        Some(known) => known.take(shape.outputs).collect(),
                        None => scales_of(&columns, shape, format),
                    };
                    self.write_narrow(format, &scales, &columns, sink)?;
                    all.extend(scales);
                }
            }
            source.let_go(&shape.parts);
        }
        self.scales = Some((slot, all));
        Ok(())
    }

    fn write_narrow<E, F: FnMut(u64, &[u8]) -> Result<(), E>>(
        &mut self,
        format: Narrow,
        scales: &[f32],
        columns: &Columns<'_>,
        sink: &mut Sink<F>,
    ) -> Result<(), WriteError<E>> {
        // Matched here and not for each number, so that the loops within know the format.
        match format {
            Narrow::Fp8 { max } => {
                columns.write(&mut self.piece, sink, |column, dtype, bytes, out| {
                    let scale = scales[column];
                    convert(dtype, bytes, out, |number| [e4m3(number / scale, max)]);
                })
            }
            Narrow::Int8 => columns.write(&mut self.piece, sink, |column, dtype, bytes, out| {
                let scale = scales[column];
                convert(dtype, bytes, out, |number| {
                    [Narrow::Int8.code(number, scale)]
                });
            }),
        }
    }

    /// The scales of a slot's matrices: one for each of their columns, of this rank's inputs. Products
    /// are scaled before the ranks add them up, so ranks need not agree.
    fn scales_of(&mut self, slot: Slot) -> Result<Vec<f32>, ReadError> {
        if let Some((_, scales)) = self.scales.take_if(|(known, _)| *known == slot) {
            return Ok(scales);
        }
        let source = self.source;
        let made = Made::of(source.decoder, &source.cut, slot, self.rank);
        let (Made::Columns(shapes), Some(format)) = (made, source.narrow(slot)) else {
            return Ok(Vec::new());
        };
        let mut scales = Vec::new();
        for shape in &shapes {
            let columns = Columns::new(&source.shelf, shape, source.piece)?;
            scales.extend(scales_of(&columns, shape, format));
        }
        Ok(scales)
    }

    /// A vector in F32, zero where no part is.
    fn write_vector<E, F: FnMut(u64, &[u8]) -> Result<(), E>>(
        &mut self,
        parts: &[Part],
        len: usize,
        sink: &mut Sink<F>,
    ) -> Result<(), WriteError<E>> {
        self.piece.clear();
        self.piece.resize(len * size_of::<f32>(), 0);
        let numbers = self.piece.as_chunks_mut().0;
        for part in parts {
            let tensor = self.source.shelf.tensor(part.role)?;
            let bytes = rows_of(&tensor, &part.rows);
            let out = &mut numbers[part.at..][..part.rows.len()];
            convert(tensor.dtype, bytes, out, f32::to_le_bytes);
        }
        sink.put(&self.piece)
    }

    /// Rows of a tensor as they are, in BF16, and rows of zeros.
    fn write_rows<E, F: FnMut(u64, &[u8]) -> Result<(), E>>(
        &mut self,
        part: &Part,
        rows: usize,
        sink: &mut Sink<F>,
    ) -> Result<(), WriteError<E>> {
        let tensor = self.source.shelf.tensor(part.role)?;
        let width = tensor.shape[1] * 2;
        let most = (self.source.piece / width).max(1);
        for first in (0..rows).step_by(most) {
            let count = most.min(rows - first);
            self.piece.clear();
            self.piece.resize(count * width, 0);
            let own = count.min(part.rows.len().saturating_sub(first));
            let start = part.rows.start + first;
            let bytes = rows_of(&tensor, &(start..start + own));
            let out = self.piece[..own * width].as_chunks_mut().0;
            to_bf16(tensor.dtype, bytes, out);
            sink.put(&self.piece)?;
        }
        Ok(())
    }

    /// What `turn` makes of the angle of each position and pair of dimensions, times the factor
    /// that YaRN has; in F32, as transformers computes it.
    fn write_rope<E, F: FnMut(u64, &[u8]) -> Result<(), E>>(
        &mut self,
        turn: fn(f32) -> f32,
        sink: &mut Sink<F>,
    ) -> Result<(), WriteError<E>> {
        let Source { decoder, form, .. } = self.source;
        let attention = &decoder.attention;
        let (frequencies, factor) = attention.rope.frequencies(attention.head_size);
        let most = self.source.piece / (frequencies.len() * size_of::<f32>()).max(1);
        let most = u32::try_from(most).unwrap_or(u32::MAX).max(1);
        let mut first = 0;
        while first < form.context {
            let last = form.context.min(first.saturating_add(most));
            self.piece.clear();
            for position in first..last {
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "transformers computes in F32 too"
                )]
                let angles = frequencies.iter().map(|step| step * position as f32);
                let numbers = angles.map(|angle| turn(angle) * factor);
                self.piece.extend(numbers.flat_map(f32::to_le_bytes));
            }
            sink.put(&self.piece)?;
            first = last;
        }
        Ok(())
    }
}

/// The scales of a matrix's columns.
fn scales_of(columns: &Columns<'_>, shape: &Shape, format: Narrow) -> Vec<f32> {
    let mut scales = vec![format.scale(0.0); shape.outputs];
    columns.each(|column, dtype, bytes| {
        scales[column] = format.scale(largest_of(dtype, bytes));
    });
    scales
}

/// The bytes of these rows of a tensor; a vector's rows are its numbers.
fn rows_of<'a>(tensor: &'a Tensor, rows: &Range<usize>) -> &'a [u8] {
    let width = tensor.shape[1..].iter().product::<usize>() * tensor.dtype.size();
    &tensor.bytes[rows.start * width..rows.end * width]
}

impl<F> Sink<F> {
    fn put<E>(&mut self, piece: &[u8]) -> Result<(), WriteError<E>>
    where
        F: FnMut(u64, &[u8]) -> Result<(), E>,
    {
        (self.sink)(self.written, piece).map_err(WriteError::Sink)?;
        self.written += piece.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
