//! A step as the modules of a bundle take it: which are launched one after another, with which
//! integers and masks, and where the answers stand in what they give.
//!
//! Nothing here knows of a device. A packed step is plain data in memory that is used again, so a
//! warm packer allocates nothing.

mod packed;
mod shape;

use engine::{PageId, Step, TokenId, Want};
use model::Decoder;

use crate::bucket::{Bucket, Form, Head};
use crate::cut::Cut;
use crate::form::FormError;

use packed::Answer;
pub use packed::{Launch, Load, Packed, UnpackError};
use shape::{Shape, Shapes};

/// Lays steps out for the modules of a bundle.
#[derive(Debug)]
pub struct Packer {
    shapes: Shapes,
    waiting: Waiting,
    /// What the next launch takes.
    chosen: Vec<Piece>,
}

/// Rows that are still to be launched, in row order.
#[derive(Default, Debug)]
struct Waiting {
    /// Those of several tokens that ask for the last position at most.
    chunks: Vec<Piece>,
    /// Those that ask for each position.
    each: Vec<Piece>,
    /// Those of one token.
    decode: Vec<Piece>,
    /// Which of the last go first if they do not fit one launch: scratch.
    order: Vec<usize>,
}

/// The rest of a row.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Its place in the step.
    row: usize,
    /// The first entry of the row's answer.
    answer: usize,
    /// Tokens that were launched before.
    done: u32,
    /// Tokens that were not.
    left: u32,
    /// Pages that hold the positions before those.
    pages: u32,
}

/// Why a step cannot be packed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PackError {
    /// No bucket takes the pages of a row.
    #[error(
        "row {row} reads {pages} KV pages before its own tokens, and the largest bucket that gives \
         {what} takes {most}: ask for a shorter context, or prepare the model for a longer one"
    )]
    Pages {
        /// Its place in the step.
        row: usize,
        /// Pages that it reads.
        pages: u32,
        /// What it asks for.
        what: &'static str,
        /// The most pages that a bucket takes.
        most: u32,
    },
    /// There is no bucket of the kind that a row needs.
    #[error(
        "row {row} asks for {what} and no bucket of the bundle gives them: prepare the model with \
         one"
    )]
    Absent {
        /// Its place in the step.
        row: usize,
        /// What it asks for.
        what: &'static str,
    },
    /// There is no bucket that copies pages.
    #[error(
        "{copies} KV pages are to be copied and no bucket of the bundle copies: prepare the model \
         with one"
    )]
    Copies {
        /// Pages to copy.
        copies: usize,
    },
}

impl Packer {
    /// A packer for a bundle of these `buckets`: [`Launch::bucket`] is a place among them. Buckets
    /// that give embeddings are left alone, as no step asks for one.
    ///
    /// # Errors
    /// Why `decoder` cannot be lowered in this form, or to one of the buckets.
    pub fn new(decoder: &Decoder, form: &Form, buckets: &[Bucket]) -> Result<Self, FormError> {
        form.check(decoder)?;
        let cut = Cut::of(decoder, form.ranks)?;
        buckets.iter().try_for_each(|bucket| bucket.check(form))?;
        Ok(Self {
            shapes: Shapes::new(decoder, form, &cut, buckets),
            waiting: Waiting::default(),
            chosen: Vec::new(),
        })
    }

    /// Packs `step`, which [`engine::Checker`] has passed, into `packed`: page copies, then rows of
    /// several tokens, then rows of one.
    ///
    /// A row of several tokens goes where a token takes the least time, in pieces if one module does
    /// not hold it. Rows of one token go together, in the order that they have in the step, into
    /// the fastest module that holds them all; if none does, those that read most go first.
    ///
    /// # Errors
    /// Which row finds no bucket, and why. `packed` has no launches then.
    pub fn pack(&mut self, step: &Step<'_>, packed: &mut Packed) -> Result<(), PackError> {
        packed.clear(&self.shapes);
        let result = self.fill(step, packed);
        if result.is_err() {
            packed.clear(&self.shapes);
        }
        result
    }

    fn fill(&mut self, step: &Step<'_>, packed: &mut Packed) -> Result<(), PackError> {
        let Self {
            shapes,
            waiting,
            chosen,
        } = self;
        packed.keep_masks(step.masks);
        copy(shapes, step, packed)?;
        waiting.sort_out(shapes, step, packed);
        for (head, pieces) in [
            (Head::Last, &mut waiting.chunks),
            (Head::Each, &mut waiting.each),
        ] {
            while let Some(shape) = shapes.least_time_a_token(pieces, head)? {
                shape.take_first(pieces, chosen);
                launch(shapes, shape, step, chosen, packed);
                shapes.give_back(shape, step, chosen, pieces);
            }
        }
        while let Some(shape) = shapes.holds_most(&waiting.decode)? {
            shape.take_hungriest(&mut waiting.decode, &mut waiting.order, chosen);
            launch(shapes, shape, step, chosen, packed);
        }
        Ok(())
    }
}

impl Waiting {
    /// Puts each row where it belongs, and makes room for its answer.
    fn sort_out(&mut self, shapes: &Shapes, step: &Step<'_>, packed: &mut Packed) {
        let Self {
            chunks,
            each,
            decode,
            ..
        } = self;
        chunks.clear();
        each.clear();
        decode.clear();
        let mut answer = 0;
        for (place, row) in step.rows.iter().enumerate() {
            let piece = Piece {
                row: place,
                answer,
                done: 0,
                left: row.tokens.end - row.tokens.start,
                pages: shapes.pages_before(row.position),
            };
            answer += match row.want {
                Want::Nothing => 0,
                Want::Candidates { .. } => 1,
                Want::EachPosition { .. } => piece.left as usize,
            };
            match row.want {
                Want::EachPosition { .. } => each.push(piece),
                // A bucket of several tokens does for one token as well.
                _ if piece.left == 1 && shapes.decodes(piece.pages) => decode.push(piece),
                _ => chunks.push(piece),
            }
        }
        packed.answers.resize(answer, Answer::default());
    }
}

/// Launches the copies of pages. None reads what another writes, so they may be cut anywhere.
fn copy(shapes: &Shapes, step: &Step<'_>, packed: &mut Packed) -> Result<(), PackError> {
    let mut rest = step.copies;
    while !rest.is_empty() {
        let copies = rest.len();
        let (shape, pairs) = shapes.copies(copies).ok_or(PackError::Copies { copies })?;
        let (now, later) = rest.split_at(copies.min(pairs as usize));
        let ints = packed.open(shape);
        // Page 0 onto itself pads.
        for (place, copy) in now.iter().enumerate() {
            ints[shape.ints.tables.start + place] = page(copy.from);
            ints[shape.ints.slots.start + place] = page(copy.to);
        }
        packed.load.pages += now.len() as u64;
        packed.load.padded_pages += u64::from(pairs) - now.len() as u64;
        rest = later;
    }
    Ok(())
}

/// Launches `pieces` as the first rows of a module, as much of each as goes in.
fn launch(shapes: &Shapes, shape: &Shape, step: &Step<'_>, pieces: &[Piece], packed: &mut Packed) {
    let index = packed.launches.len();
    let mut load = shape.load();
    let ints = packed.open(shape);
    let places = &shape.ints;
    ints[places.lengths.clone()].fill(1);
    let mut pads = shapes.pads();
    for (place, piece) in pieces.iter().enumerate() {
        let row = &step.rows[piece.row];
        let first = row.position + piece.done;
        let count = piece.left.min(shape.tokens);
        load.fill(count, piece.pages);
        ints[places.starts.start + place] = int(first);
        ints[places.lengths.start + place] = int(count);
        let tokens = &step.tokens_of(row)[piece.done as usize..][..count as usize];
        let at = place * shape.tokens as usize;
        let out = &mut ints[places.tokens.start + at..][..tokens.len()];
        (out.iter_mut().zip(tokens)).for_each(|(out, token)| *out = int(token.0));
        let pages = step.pages_of(row);
        let out = &mut ints[places.slots.start + at..][..shape.tokens as usize];
        let (own, padding) = out.split_at_mut(tokens.len());
        (own.iter_mut().zip(first..)).for_each(|(out, at)| *out = shapes.slot(pages, at));
        padding.iter_mut().for_each(|out| *out = pads.next());
        let at = places.tables.start + place * shape.pages as usize;
        let out = &mut ints[at..][..piece.pages as usize];
        (out.iter_mut().zip(pages)).for_each(|(out, id)| *out = page(*id));
    }
    let padded = places.slots.start + pieces.len() * shape.tokens as usize..places.slots.end;
    ints[padded].iter_mut().for_each(|out| *out = pads.next());
    packed.load += load;
    pieces.iter().enumerate().for_each(|(place, piece)| {
        answer(shape, step, piece, place, packed, index);
    });
}

/// Says which entries of a launch answer a row of it, and masks them.
fn answer(
    shape: &Shape,
    step: &Step<'_>,
    piece: &Piece,
    place: usize,
    packed: &mut Packed,
    launch: usize,
) {
    let row = &step.rows[piece.row];
    let count = piece.left.min(shape.tokens);
    let each = shape.head == Head::Each;
    let (first, entries) = match each {
        true => (place * shape.tokens as usize, count as usize),
        false => (place, 1),
    };
    let (width, targets) = match &row.want {
        // A row that goes on in the next launch has no answer yet.
        Want::Candidates { width } if count == piece.left => (*width, None),
        Want::Nothing | Want::Candidates { .. } => return,
        Want::EachPosition { width, targets } => (*width, Some(targets)),
    };
    let placed = &mut packed.launches[launch];
    placed.answers += entries;
    if let Some(mask) = row.mask {
        placed.is_masked = true;
        packed.entry_masks[placed.entries.start + first..][..entries].fill(mask);
    }
    for at in 0..entries {
        let target = targets.map(|targets| {
            let TokenId(token) = step.tokens[targets.start as usize + piece.done as usize + at];
            let place = placed.ints.start + shape.ints.targets.start + first + at;
            packed.ints[place] = int(token);
            TokenId(token)
        });
        let offset = if each { piece.done as usize } else { 0 };
        packed.answers[piece.answer + offset + at] = Answer {
            launch,
            entry: first + at,
            width,
            target,
        };
    }
}

/// The modules' page for an engine's: page 0 is nobody's.
fn page(PageId(page): PageId) -> i32 {
    int(page + 1)
}

/// Tokens are below 2^24, places and pages below 2^31: [`Form`] is checked to be so.
fn int(number: u32) -> i32 {
    number.cast_signed()
}

#[cfg(test)]
mod tests;
