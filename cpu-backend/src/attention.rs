//! Attention over KV pages, read in place.
//!
//! A task is one KV head of a tile: a few consecutive tokens of one row, with all query heads that
//! share the KV head. Keys of a page are a panel of the product kernel and values are another, so
//! attention is two products with an exponential between. Masked positions weigh exactly 0, and
//! adding 0 changes no sum: what a token attends to does not depend on the tile it is in.

use std::ops::Range;

use engine::PageId;
use model::Decoder;

use crate::cache::Shape;
use crate::kernels::{Blocks, Kernels, LANES, Panels, Sum, row_mut};
use crate::plan::PAGE;
use crate::rotary::Rotary;

/// Queries that are computed together at the most, where one token does not bring more: the rows of
/// the product kernel's tile.
const QUERIES: usize = 6;

/// Blocks of a head's dimensions that are summed together: 128 dimensions, as many as heads have.
const HEAD_BLOCKS: usize = 8;

/// How heads are shared out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    /// Query heads.
    pub(crate) queries: usize,
    /// Key and value heads.
    pub(crate) keys: usize,
    /// Dimensions of a head.
    pub(crate) size: usize,
    /// Positions a token sees, itself included.
    window: Option<usize>,
}

/// Some consecutive tokens of one row.
#[derive(Clone, Debug)]
pub(crate) struct Tile {
    /// The tokens of the step.
    pub(crate) tokens: Range<usize>,
    /// The position of the first.
    pub(crate) position: usize,
    /// The row's pages, a range of the step's.
    pub(crate) pages: Range<usize>,
}

/// Memory of one worker.
#[derive(Default, Debug)]
pub(crate) struct Scratch {
    queries: Vec<f32>,
    query: Vec<f32>,
    scores: Vec<f32>,
    sums: Vec<f32>,
    starts: Vec<usize>,
}

/// What all tasks of one layer share.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub(crate) kernels: &'a dyn Kernels,
    pub(crate) heads: Heads,
    /// Queries, keys and values side by side, as projected.
    pub(crate) projected: Blocks<'a>,
    pub(crate) query_norm: Option<&'a [f32]>,
    pub(crate) rotary: &'a Rotary,
    /// The layer's pages.
    pub(crate) cache: &'a [f32],
    pub(crate) shape: Shape,
    /// The pages of all rows.
    pub(crate) pages: &'a [PageId],
}

impl Heads {
    pub(crate) fn of(decoder: &Decoder) -> Self {
        let attention = &decoder.attention;
        Self {
            queries: attention.heads as usize,
            keys: attention.kv_heads as usize,
            size: attention.head_size as usize,
            window: attention.window.map(|window| window as usize),
        }
    }

    /// Query heads that share a KV head.
    pub(crate) fn group(self) -> usize {
        self.queries / self.keys
    }

    /// Tokens of a tile at the most.
    pub(crate) fn tile(self) -> usize {
        (QUERIES / self.group()).max(1)
    }

    /// Positions that the token at `position` sees.
    fn visible(self, position: usize) -> Range<usize> {
        let start = self
            .window
            .map_or(0, |window| (position + 1).saturating_sub(window));
        start..position + 1
    }
}

impl Attention<'_> {
    /// Attends for the query heads of KV head `head`; `out` becomes blocks of a head's dimensions,
    /// with a row for each query: all heads of the first token, then of the second.
    pub(crate) fn attend(&self, tile: &Tile, head: usize, scratch: &mut Scratch, out: &mut [f32]) {
        self.write_queries(tile, head, scratch);
        let Scratch {
            queries,
            scores,
            sums,
            starts,
            ..
        } = scratch;
        let rows = tile.tokens.len() * self.heads.group();
        // The last tile of a row may have fewer tokens than others.
        let out = &mut out[..rows * self.shape.head()];
        let end = tile.position + tile.tokens.len();
        let first = self.heads.visible(tile.position).start / PAGE;
        let pages = &self.pages[tile.pages.clone()][first..end.div_ceil(PAGE)];
        starts.clear();
        starts.extend(pages.iter().map(|page| self.shape.keys(head, *page)));
        scores.resize(pages.len() * rows * PAGE, 0.0);
        let keys = Panels {
            data: self.cache,
            starts,
            depth: self.heads.size,
        };
        let data = &queries[..];
        self.kernels
            .product_f32(Blocks { data, rows }, keys, scores, Sum::Store);
        self.weigh(tile, first, scores, sums);
        self.add_values(end - first * PAGE, scores, starts, rows, out);
        for (row, sum) in sums.iter().enumerate() {
            let out = row_mut(out, rows, row);
            out.flatten().for_each(|value| *value /= sum);
        }
    }

    /// Writes the queries of a tile as blocks of a head's dimensions: normed, then rotated.
    fn write_queries(&self, tile: &Tile, head: usize, scratch: &mut Scratch) {
        let (size, group) = (self.heads.size, self.heads.group());
        let rows = tile.tokens.len() * group;
        let Scratch { queries, query, .. } = scratch;
        queries.resize(rows * self.shape.head(), 0.0);
        query.resize(size, 0.0);
        for row in 0..rows {
            let token = tile.tokens.start + row / group;
            let column = (head * group + row % group) * size;
            self.projected.copy_row(token, column, query);
            self.rotary.turn(token, self.query_norm, query);
            for (block, part) in row_mut(queries, rows, row).zip(query.chunks(LANES)) {
                block[..part.len()].copy_from_slice(part);
            }
        }
    }

    /// Replaces each score by its weight, 0 where the token does not see the position, and writes
    /// what the weights of each query add up to. The scores start with page `first`.
    fn weigh(&self, tile: &Tile, first: usize, scores: &mut [f32], sums: &mut Vec<f32>) {
        let group = self.heads.group();
        let rows = tile.tokens.len() * group;
        #[expect(clippy::cast_precision_loss, reason = "a head has few dimensions")]
        let scale = (self.heads.size as f32).sqrt().recip();
        sums.clear();
        for row in 0..rows {
            let visible = self.heads.visible(tile.position + row / group);
            let (start, end) = (visible.start - first * PAGE, visible.end - first * PAGE);
            for hidden in (0..start).chain(end..scores.len() / rows) {
                let at = (hidden / PAGE * rows + row) * PAGE + hidden % PAGE;
                scores[at] = f32::NEG_INFINITY;
            }
            let data = &*scores;
            let max = self.kernels.max(Blocks { data, rows }, row);
            sums.push(self.kernels.exp(scores, rows, row, max, scale));
        }
    }

    /// Sums the values of `positions` positions by their weights, page after page.
    fn add_values(
        &self,
        positions: usize,
        weights: &[f32],
        keys: &[usize],
        rows: usize,
        out: &mut [f32],
    ) {
        for (page, (data, keys)) in weights.chunks(rows * PAGE).zip(keys).enumerate() {
            let values = self.shape.values_after(*keys);
            let starts: [usize; HEAD_BLOCKS] =
                std::array::from_fn(|block| values + block * PAGE * LANES);
            let blocks = self.shape.head() / LANES;
            for (first, out) in (0..blocks)
                .step_by(HEAD_BLOCKS)
                .zip(out.chunks_mut(HEAD_BLOCKS * rows * LANES))
            {
                let starts = starts.map(|start| start + first * PAGE * LANES);
                let panels = Panels {
                    data: self.cache,
                    starts: &starts[..HEAD_BLOCKS.min(blocks - first)],
                    // What lies behind the last position was never written, or by somebody else.
                    depth: PAGE.min(positions - page * PAGE),
                };
                let sum = if page == 0 { Sum::Store } else { Sum::Add };
                self.kernels
                    .product_f32(Blocks { data, rows }, panels, out, sum);
            }
        }
    }
}
