//! The buckets of a bundle, and which of them a row goes to.

use std::cmp::Reverse;

use engine::{PageId, Row, Step};
use model::Decoder;

use super::packed::Load;
use super::{PackError, Piece, int};
use crate::bucket::{Bucket, Form, Head, KvFormat, WeightFormat};
use crate::cut::Cut;
use crate::layout::Ints;

/// Operations that a device does in the time in which it reads a byte of its memory: 667e12 / 2.9e12
/// on Trainium2, 190e12 / 0.82e12 on Trainium1 and Inferentia2 (BF16; `neuron.md` 4.1). It decides
/// nothing but which of several buckets a row goes to.
const OPERATIONS_PER_BYTE: f64 = 230.0;

/// What there is to launch.
#[derive(Debug)]
pub(super) struct Shapes {
    /// By the time that they take, the shortest first.
    steps: Vec<Shape>,
    /// By what they hold, the least first.
    copies: Vec<Shape>,
    page_tokens: u32,
    pub(super) vocabulary: u32,
    pub(super) candidates: usize,
    /// Words that a rank has of a mask.
    pub(super) mask_words: usize,
}

/// A bucket. One that copies has as many pages as it copies, and no rows.
#[derive(Debug)]
pub(super) struct Shape {
    /// Its place in the list that the packer was made with.
    pub(super) place: usize,
    pub(super) ints: Ints,
    pub(super) entries: usize,
    pub(super) rows: u32,
    pub(super) tokens: u32,
    pub(super) pages: u32,
    pub(super) head: Head,
    /// The time that it takes, in operations.
    time: f64,
}

/// Places of the null page for tokens that are none: all but the first, in turn, so that as few as
/// can be go to the same. Nobody reads them.
pub(super) struct Pads {
    places: std::iter::Cycle<std::ops::Range<i32>>,
}

impl Pads {
    pub(super) fn next(&mut self) -> i32 {
        self.places.next().unwrap_or(1)
    }
}

impl Shapes {
    pub(super) fn new(decoder: &Decoder, form: &Form, cut: &Cut, buckets: &[Bucket]) -> Self {
        let shapes = buckets.iter().enumerate();
        let shapes = shapes.map(|(place, bucket)| Shape::new(decoder, form, place, *bucket));
        let (mut copies, mut steps): (Vec<_>, Vec<_>) = shapes.partition(|shape| shape.rows == 0);
        copies.sort_by_key(|shape| shape.pages);
        steps.sort_by(|one, other| one.time.total_cmp(&other.time));
        Self {
            steps,
            copies,
            page_tokens: form.page_tokens,
            vocabulary: decoder.vocabulary,
            candidates: form.candidates as usize,
            mask_words: cut.vocabulary as usize / 32,
        }
    }

    /// How many pages hold the positions before this one.
    pub(super) fn pages_before(&self, position: u32) -> u32 {
        position.div_ceil(self.page_tokens)
    }

    /// Where the cache has a position of the sequence that has these pages.
    pub(super) fn slot(&self, pages: &[PageId], position: u32) -> i32 {
        let PageId(page) = pages[(position / self.page_tokens) as usize];
        int((page + 1) * self.page_tokens + position % self.page_tokens)
    }

    pub(super) fn pads(&self) -> Pads {
        Pads {
            places: (1..int(self.page_tokens)).cycle(),
        }
    }

    /// The smallest bucket that copies so many pages, or else the largest; and how many it copies.
    pub(super) fn copies(&self, count: usize) -> Option<(&Shape, u32)> {
        let holds = |shape: &&Shape| shape.pages as usize >= count;
        let shape = self.copies.iter().find(holds).or(self.copies.last())?;
        Some((shape, shape.pages))
    }

    /// Whether a row of one token that reads so many pages can go with others of its kind.
    pub(super) fn decodes(&self, pages: u32) -> bool {
        self.decode().any(|shape| shape.pages >= pages)
    }

    fn decode(&self) -> impl Iterator<Item = &Shape> {
        let decodes = |shape: &&Shape| shape.tokens == 1 && shape.head == Head::Last;
        self.steps.iter().filter(decodes)
    }

    /// The fastest bucket that holds all of these rows of one token. If there is none, the one that
    /// holds most of them, of those that take the pages of each. `None` if there are no rows.
    pub(super) fn holds_most(&self, pieces: &[Piece]) -> Result<Option<&Shape>, PackError> {
        let Some(hungriest) = pieces.iter().max_by_key(|piece| piece.pages) else {
            return Ok(None);
        };
        let able = || self.decode().filter(|shape| shape.pages >= hungriest.pages);
        let holds = |shape: &&Shape| shape.rows as usize >= pieces.len();
        // The first of equals, as the minimum gives, is the fastest.
        let most = || able().min_by_key(|shape| Reverse(shape.rows));
        match able().find(holds).or_else(most) {
            Some(shape) => Ok(Some(shape)),
            None => Err(self.refuse(hungriest, Head::Last)),
        }
    }

    /// The bucket with this head that takes the least time for each token it brings forward, of
    /// those that take the first of `pieces`. `None` if there are no pieces.
    pub(super) fn least_time_a_token(
        &self,
        pieces: &[Piece],
        head: Head,
    ) -> Result<Option<&Shape>, PackError> {
        let Some(first) = pieces.first() else {
            return Ok(None);
        };
        let able = |shape: &&Shape| shape.head == head && shape.pages >= first.pages;
        let time = |shape: &Shape| shape.time / f64::from(shape.brings(pieces));
        let shapes = self.steps.iter().filter(able);
        let least = shapes.min_by(|one, other| time(one).total_cmp(&time(other)));
        least.map(Some).ok_or_else(|| self.refuse(first, head))
    }

    fn refuse(&self, piece: &Piece, head: Head) -> PackError {
        let (row, pages) = (piece.row, piece.pages);
        let what = match head {
            Head::Each => "candidates at each position",
            _ => "candidates",
        };
        let shapes = self.steps.iter().filter(|shape| shape.head == head);
        match shapes.map(|shape| shape.pages).max() {
            None => PackError::Absent { row, what },
            Some(most) => PackError::Pages {
                row,
                pages,
                what,
                most,
            },
        }
    }

    /// Puts what the launched `pieces` have left before those that `wait`.
    pub(super) fn give_back(
        &self,
        shape: &Shape,
        step: &Step<'_>,
        pieces: &mut Vec<Piece>,
        wait: &mut Vec<Piece>,
    ) {
        for piece in &mut *pieces {
            let count = piece.left.min(shape.tokens);
            piece.done += count;
            piece.left -= count;
            let row: &Row = &step.rows[piece.row];
            piece.pages = self.pages_before(row.position + piece.done);
        }
        pieces.retain(|piece| piece.left > 0);
        wait.splice(0..0, pieces.drain(..));
    }
}

impl Shape {
    fn new(decoder: &Decoder, form: &Form, place: usize, bucket: Bucket) -> Self {
        let (rows, tokens, pages, head) = match bucket {
            Bucket::Copy { pairs } => (0, 0, pairs, Head::Last),
            Bucket::Step {
                rows,
                tokens,
                pages,
                head,
            } => (rows, tokens, pages, head),
        };
        Self {
            place,
            ints: Ints::of(bucket),
            entries: bucket.entries() as usize,
            rows,
            tokens,
            pages,
            head,
            time: time(decoder, form, bucket),
        }
    }

    /// What it would bring, all of it padding.
    pub(super) fn load(&self) -> Load {
        Load {
            padded_tokens: u64::from(self.rows) * u64::from(self.tokens),
            padded_pages: u64::from(self.rows) * u64::from(self.pages),
            ..Load::default()
        }
    }

    /// Those of `pieces` that go into it: the first that it has pages for.
    fn fitting<'a>(&self, pieces: &'a [Piece]) -> impl Iterator<Item = &'a Piece> {
        let pages = self.pages;
        let fits = pieces.iter().filter(move |piece| piece.pages <= pages);
        fits.take(self.rows as usize)
    }

    /// Tokens of `pieces` that one launch brings forward.
    fn brings(&self, pieces: &[Piece]) -> u32 {
        let fitting = self.fitting(pieces);
        fitting.map(|piece| piece.left.min(self.tokens)).sum()
    }

    /// Moves the first of `pieces` that it has pages for to `chosen`.
    pub(super) fn take_first(&self, pieces: &mut Vec<Piece>, chosen: &mut Vec<Piece>) {
        chosen.clear();
        pieces.retain(|piece| {
            let taken = piece.pages <= self.pages && chosen.len() < self.rows as usize;
            if taken {
                chosen.push(*piece);
            }
            !taken
        });
    }

    /// Moves those of `pieces` that read most to `chosen`, as many as it holds; `order` is scratch.
    /// Both keep their order.
    pub(super) fn take_hungriest(
        &self,
        pieces: &mut Vec<Piece>,
        order: &mut Vec<usize>,
        chosen: &mut Vec<Piece>,
    ) {
        chosen.clear();
        order.clear();
        order.extend(0..pieces.len());
        if pieces.len() > self.rows as usize {
            order.sort_unstable_by_key(|place| (Reverse(pieces[*place].pages), *place));
            order.truncate(self.rows as usize);
            order.sort_unstable();
        }
        let mut places = order.iter().copied().peekable();
        let mut place = 0;
        pieces.retain(|piece| {
            let taken = places.next_if_eq(&place).is_some();
            if taken {
                chosen.push(*piece);
            }
            place += 1;
            !taken
        });
    }
}

/// The time that a bucket takes, in operations: what it computes or what it reads, whichever takes
/// longer.
fn time(decoder: &Decoder, form: &Form, bucket: Bucket) -> f64 {
    let Bucket::Step {
        rows,
        tokens,
        pages,
        head,
    } = bucket
    else {
        return 0.0;
    };
    let mlp = &decoder.mlp;
    let attention = &decoder.attention;
    let [layers, hidden, size, vocabulary] = [
        decoder.layers,
        decoder.hidden,
        mlp.size(),
        decoder.vocabulary,
    ]
    .map(f64::from);
    let head_size = f64::from(attention.head_size);
    let query = f64::from(attention.heads) * head_size;
    let keys = f64::from(attention.kv_heads) * head_size;
    let (rows, tokens) = (f64::from(rows), f64::from(tokens));
    // As the lowering has it: the chosen experts' or all; see `decoder::experts`.
    let [experts, chosen] = [mlp.experts(), mlp.chosen()].map(f64::from);
    let pairs = rows * tokens * chosen;
    let passed = if pairs < experts { chosen } else { experts };
    let attending = hidden * (2.0 * query + 2.0 * keys);
    let (layer, read) = (
        attending + hidden * 3.0 * size * passed,
        attending + hidden * 3.0 * size * pairs.min(experts),
    );
    let before = f64::from(pages) * f64::from(form.page_tokens);
    let entries = match head {
        Head::Each => rows * tokens,
        Head::Last => rows,
        Head::Embedding => 0.0,
    };
    let weight = match form.weights {
        WeightFormat::Bf16 => 2.0,
        WeightFormat::Fp8 | WeightFormat::Int8 => 1.0,
    };
    let number = match form.kv {
        KvFormat::Bf16 => 2.0,
        KvFormat::Fp8 => 1.0,
        KvFormat::F32 => 4.0,
    };
    let attended = rows * tokens * (tokens + before);
    let products = rows * tokens * layers * layer + entries * hidden * vocabulary;
    let operations = 2.0 * products + 4.0 * layers * query * attended;
    let bytes = weight * (layers * read + hidden * vocabulary)
        + number * rows * before * layers * 2.0 * keys;
    operations.max(bytes * OPERATIONS_PER_BYTE)
}
