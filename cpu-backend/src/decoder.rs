//! The forward pass: the tokens of a step in, candidates out.

use std::sync::{Mutex, PoisonError};

use engine::{PageId, TokenId, TokenMask};
use model::Decoder;

use crate::attention::{Attention, Heads, Scratch, Tile};
use crate::cache::{Cache, Slot};
use crate::candidates::{Ask, Picked};
use crate::kernels::{Blocks, Kernels, LANES, Sum, row_mut};
use crate::mlp::{self, Choice, Feed, Memory};
use crate::pool::Pool;
use crate::rotary::Rotary;
use crate::weights::{GROUP, Layer, Linear, Mlp, Packed};

/// Rows below which work beside the products is not worth waking the workers for.
const FEW: usize = 8;

/// A decoder with its weights and the memory it works in.
#[derive(Debug)]
pub(crate) struct Forward {
    weights: Packed,
    heads: Heads,
    hidden: usize,
    choice: Choice,
    epsilon: f32,
    logit_rows: usize,
    pub(crate) cache: Cache,
    rotary: Rotary,
    pool: Pool,
    kernels: Arithmetic,
    state: State,
    workers: Vec<Mutex<Worker>>,
}

/// The kernels in use.
#[derive(Clone, Copy)]
struct Arithmetic(&'static dyn Kernels);

/// The activations of a step; each as [`Blocks`] of its tokens.
#[derive(Default, Debug)]
struct State {
    /// The residual stream.
    hidden: Vec<f32>,
    /// The same normed, or rows picked from it.
    normed: Vec<f32>,
    /// Queries, keys and values side by side.
    projected: Vec<f32>,
    /// What each task of attention gave: see [`Attention::attend`].
    attended: Vec<f32>,
    /// The same in the order of the heads.
    gathered: Vec<f32>,
    mlp: Memory,
    logits: Vec<f32>,
    scales: Vec<f32>,
}

/// Memory of one worker.
#[derive(Default, Debug)]
pub(crate) struct Worker {
    attention: Scratch,
    pub(crate) mlp: mlp::Scratch,
    key: Vec<f32>,
    value: Vec<f32>,
    masked: Vec<f32>,
}

/// One row of a step.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    /// Its tokens, a range of the step's.
    pub(crate) tokens: std::ops::Range<usize>,
    /// The position of the first.
    pub(crate) position: usize,
    /// Its pages, a range of the step's.
    pub(crate) pages: std::ops::Range<usize>,
}

/// A step, checked: the tokens of all rows one after the other.
#[derive(Default, Debug)]
pub(crate) struct Work {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) pages: Vec<PageId>,
    pub(crate) masks: Vec<TokenMask>,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) asks: Vec<Ask>,
}

impl Forward {
    /// A decoder with these weights and room for `pages` pages, whose work `pool` does.
    pub(crate) fn new(
        decoder: &Decoder,
        weights: Packed,
        kernels: &'static dyn Kernels,
        pool: Pool,
        pages: u32,
        logit_rows: usize,
    ) -> Self {
        Self {
            weights,
            heads: Heads::of(decoder),
            hidden: decoder.hidden as usize,
            choice: Choice::of(&decoder.mlp),
            epsilon: decoder.norm_epsilon,
            logit_rows,
            cache: Cache::new(decoder, pages),
            rotary: Rotary::new(decoder),
            workers: (0..pool.threads()).map(|_| Mutex::default()).collect(),
            pool,
            kernels: Arithmetic(kernels),
            state: State::default(),
        }
    }

    /// Runs a step: fills the pages of its rows and gives one of `picked` for each ask.
    pub(crate) fn run(&mut self, work: &Work, picked: &mut Vec<Picked>) {
        picked.resize_with(work.asks.len(), Picked::default);
        if work.tokens.is_empty() {
            return;
        }
        self.embed(&work.tokens);
        let asked = work.asked();
        let mut pieces = &work.pieces[..];
        self.rotary.set(positions(pieces));
        for layer in 0..self.weights.layers.len() {
            let rows = pieces.iter().map(|piece| piece.tokens.len()).sum();
            self.project(layer, rows);
            self.write_cache(layer, pieces, &work.pages);
            if layer + 1 == self.weights.layers.len() {
                // What follows only matters to tokens that something is asked of.
                self.leave_only(&work.asks, rows);
                pieces = &asked;
                self.rotary.set(positions(pieces));
            }
            if pieces.is_empty() {
                break;
            }
            self.attend(layer, pieces, &work.pages);
            self.feed_forward(layer, pieces.iter().map(|piece| piece.tokens.len()).sum());
        }
        let asks = work.asks.chunks(self.logit_rows);
        for (block, (asks, picked)) in asks.zip(picked.chunks_mut(self.logit_rows)).enumerate() {
            self.pick(block * self.logit_rows, work, asks, picked);
        }
    }

    /// Looks up the tokens.
    fn embed(&mut self, tokens: &[TokenId]) {
        let rows = tokens.len();
        let hidden = &mut self.state.hidden;
        resize(hidden, self.hidden, rows);
        let mut embedding = vec![0.0; self.hidden.next_multiple_of(LANES)];
        for (row, TokenId(token)) in tokens.iter().enumerate() {
            let (values, _) = embedding.split_at_mut(self.hidden);
            self.weights.embed(*token as usize, values);
            for (to, from) in row_mut(hidden, rows, row).zip(embedding.chunks(LANES)) {
                to.copy_from_slice(from);
            }
        }
    }

    /// Projects the normed residual to queries, keys and values.
    fn project(&mut self, layer: usize, rows: usize) {
        let layer = &self.weights.layers[layer];
        let state = &mut self.state;
        let Arithmetic(kernels) = self.kernels;
        let norm = Norm {
            kernels,
            weights: &layer.attention_norm,
            epsilon: self.epsilon,
            size: self.hidden,
        };
        norm.apply(
            &mut self.pool,
            &state.hidden,
            rows,
            &mut state.scales,
            &mut state.normed,
        );
        resize(&mut state.projected, layer.input.matrix.columns(), rows);
        let data = &state.normed[..];
        let input = Blocks { data, rows };
        let out = &mut state.projected;
        multiply(
            &mut self.pool,
            kernels,
            input,
            &layer.input,
            out,
            Sum::Store,
        );
    }

    /// Writes the keys and values of all tokens to their pages.
    fn write_cache(&mut self, layer: usize, pieces: &[Piece], pages: &[PageId]) {
        let slots: Vec<Slot> = (pieces.iter())
            .flat_map(|piece| {
                let pages = &pages[piece.pages.clone()];
                piece
                    .positions()
                    .map(move |position| Slot::of(position, pages))
            })
            .collect();
        let heads = self.heads;
        let shape = self.cache.shape();
        let norm = self.weights.layers[layer].key_norm.as_deref();
        let data = &self.state.projected[..];
        let rows = slots.len();
        let projected = Blocks { data, rows };
        let (rotary, workers) = (&self.rotary, &self.workers);
        let write = |worker: usize, head: usize, cache: &mut [f32]| {
            let mut worker = lock(&workers[worker]);
            let Worker { key, value, .. } = &mut *worker;
            key.resize(heads.size, 0.0);
            value.resize(heads.size, 0.0);
            for (token, slot) in slots.iter().enumerate() {
                let column = (heads.queries + head) * heads.size;
                projected.copy_row(token, column, key);
                projected.copy_row(token, column + heads.keys * heads.size, value);
                rotary.turn(token, norm, key);
                shape.write(cache, *slot, key, value);
            }
        };
        let cache = self.cache.layer_mut(layer);
        for_each(&mut self.pool, rows, cache, shape.head_span(), &write);
    }

    /// Keeps of all tokens only those that something is asked of.
    fn leave_only(&mut self, asks: &[Ask], rows: usize) {
        let kept: Vec<_> = asks.iter().map(|ask| ask.token).collect();
        let state = &mut self.state;
        for blocks in [&mut state.hidden, &mut state.projected] {
            let data = &blocks[..];
            Blocks { data, rows }.copy_rows(&kept, &mut state.normed);
            std::mem::swap(blocks, &mut state.normed);
        }
    }

    /// Adds what each token attends to to its residual.
    fn attend(&mut self, layer: usize, pieces: &[Piece], pages: &[PageId]) {
        let heads = self.heads;
        let tiles = tiles(pieces, heads.tile());
        let rows: usize = pieces.iter().map(|piece| piece.tokens.len()).sum();
        let Layer {
            query_norm, output, ..
        } = &self.weights.layers[layer];
        let state = &mut self.state;
        let Arithmetic(kernels) = self.kernels;
        let data = &state.projected[..];
        let attention = Attention {
            kernels,
            heads,
            projected: Blocks { data, rows },
            query_norm: query_norm.as_deref(),
            rotary: &self.rotary,
            cache: self.cache.layer(layer),
            shape: self.cache.shape(),
            pages,
        };
        let size = heads.tile() * heads.group() * self.cache.shape().head();
        let workers = &self.workers;
        state.attended.resize(tiles.len() * heads.keys * size, 0.0);
        self.pool
            .for_each_chunk(&mut state.attended, size, &|worker, task, out| {
                let tile = &tiles[task / heads.keys];
                let mut worker = lock(&workers[worker]);
                attention.attend(tile, task % heads.keys, &mut worker.attention, out);
            });
        resize(&mut state.gathered, heads.queries * heads.size, rows);
        let attended = &state.attended[..];
        let gather = |_: usize, block: usize, out: &mut [f32]| {
            gather(attended, size, heads, &tiles, block, out);
        };
        for_each(
            &mut self.pool,
            rows,
            &mut state.gathered,
            rows * LANES,
            &gather,
        );
        let data = &state.gathered[..];
        let input = Blocks { data, rows };
        multiply(
            &mut self.pool,
            kernels,
            input,
            output,
            &mut state.hidden,
            Sum::Add,
        );
    }

    /// Adds the MLP's output to the residual.
    fn feed_forward(&mut self, layer: usize, rows: usize) {
        let Layer { mlp_norm, mlp, .. } = &self.weights.layers[layer];
        let state = &mut self.state;
        let Arithmetic(kernels) = self.kernels;
        let norm = Norm {
            kernels,
            weights: mlp_norm,
            epsilon: self.epsilon,
            size: self.hidden,
        };
        norm.apply(
            &mut self.pool,
            &state.hidden,
            rows,
            &mut state.scales,
            &mut state.normed,
        );
        let data = &state.normed[..];
        let normed = Blocks { data, rows };
        let mut feed = Feed {
            pool: &mut self.pool,
            kernels,
            workers: &self.workers,
        };
        let (memory, hidden) = (&mut state.mlp, &mut state.hidden[..]);
        match mlp {
            Mlp::Gated(mlp) => feed.gated(mlp, normed, memory, hidden),
            Mlp::Experts { router, experts } => {
                feed.experts(router, experts, self.choice, normed, memory, hidden);
            }
        }
    }

    /// Computes the logits of `asks`, whose residuals start at row `first`, and picks from them.
    fn pick(&mut self, first: usize, work: &Work, asks: &[Ask], picked: &mut [Picked]) {
        let state = &mut self.state;
        let Arithmetic(kernels) = self.kernels;
        let rows = asks.len();
        let kept: Vec<_> = (first..first + rows).collect();
        let hidden = Blocks {
            data: &state.hidden,
            rows: work.asks.len(),
        };
        hidden.copy_rows(&kept, &mut state.gathered);
        let norm = Norm {
            kernels,
            weights: &self.weights.norm,
            epsilon: self.epsilon,
            size: self.hidden,
        };
        norm.apply(
            &mut self.pool,
            &state.gathered,
            rows,
            &mut state.scales,
            &mut state.normed,
        );
        let head = &self.weights.head;
        resize(&mut state.logits, head.matrix.columns(), rows);
        let data = &state.normed[..];
        let input = Blocks { data, rows };
        multiply(
            &mut self.pool,
            kernels,
            input,
            head,
            &mut state.logits,
            Sum::Store,
        );
        forbid_padding(&mut state.logits, head.matrix.columns(), rows);
        let data = &state.logits[..];
        let logits = Blocks { data, rows };
        let workers = &self.workers;
        self.pool.for_each_chunk(picked, 1, &|worker, row, picked| {
            let ask = &asks[row];
            let mask = ask.mask.map(|mask| &work.masks[mask]);
            let masked = &mut lock(&workers[worker]).masked;
            for picked in picked {
                picked.pick(kernels, logits, row, ask, mask, masked);
            }
        });
    }
}

impl Work {
    /// The tokens that something is asked of, each by itself, numbered anew.
    fn asked(&self) -> Vec<Piece> {
        let piece_of = |token: usize| self.pieces.iter().find(|one| one.tokens.contains(&token));
        let asked = self.asks.iter().enumerate().filter_map(|(index, ask)| {
            let piece = piece_of(ask.token)?;
            Some(Piece {
                tokens: index..index + 1,
                position: piece.position + ask.token - piece.tokens.start,
                pages: piece.pages.clone(),
            })
        });
        asked.collect()
    }
}

impl Piece {
    fn positions(&self) -> std::ops::Range<usize> {
        self.position..self.position + self.tokens.len()
    }
}

/// The positions of all tokens.
fn positions(pieces: &[Piece]) -> impl Iterator<Item = usize> {
    pieces.iter().flat_map(Piece::positions)
}

/// Cuts rows into tiles of at most `size` tokens.
fn tiles(pieces: &[Piece], size: usize) -> Vec<Tile> {
    let tiles = pieces.iter().flat_map(|piece| {
        let starts = piece.tokens.clone().step_by(size);
        starts.map(|start| Tile {
            tokens: start..piece.tokens.end.min(start + size),
            position: piece.position + start - piece.tokens.start,
            pages: piece.pages.clone(),
        })
    });
    tiles.collect()
}

/// Copies one block of heads out of what the tasks of attention gave, `size` elements each.
fn gather(
    attended: &[f32],
    size: usize,
    heads: Heads,
    tiles: &[Tile],
    block: usize,
    out: &mut [f32],
) {
    let group = heads.group();
    let mut outs = out.chunks_mut(LANES);
    for (index, tile) in tiles.iter().enumerate() {
        let rows = tile.tokens.len() * group;
        for (token, out) in (0..tile.tokens.len()).zip(&mut outs) {
            let mut column = block * LANES;
            let mut out = &mut out[..LANES.min(heads.queries * heads.size - column)];
            while !out.is_empty() {
                let (head, dimension) = (column / heads.size, column % heads.size);
                let length = out.len().min(heads.size - dimension);
                let (part, rest) = out.split_at_mut(length);
                let task = (index * heads.keys + head / group) * size;
                let data = &attended[task..][..size];
                Blocks { data, rows }.copy_row(token * group + head % group, dimension, part);
                column += length;
                out = rest;
            }
        }
    }
}

/// An RMS norm.
struct Norm<'a> {
    kernels: &'static dyn Kernels,
    weights: &'a [f32],
    epsilon: f32,
    /// How many columns there are, without the padding.
    size: usize,
}

impl Norm<'_> {
    /// Norms each row of `input` into `out`.
    fn apply(
        &self,
        pool: &mut Pool,
        input: &[f32],
        rows: usize,
        scales: &mut Vec<f32>,
        out: &mut Vec<f32>,
    ) {
        #[expect(
            clippy::cast_precision_loss,
            reason = "a row has less than 2^24 columns"
        )]
        let size = self.size as f32;
        scales.clear();
        scales.extend((0..rows).map(|row| {
            let square_sum = self.kernels.square_sum(Blocks { data: input, rows }, row);
            (square_sum / size + self.epsilon).sqrt().recip()
        }));
        out.resize(input.len(), 0.0);
        let block = rows * LANES;
        for_each(pool, rows, out, block, &|_, index, out| {
            let weights = &self.weights[index * LANES..][..LANES];
            let rows = out
                .chunks_mut(LANES)
                .zip(input[index * block..].chunks(LANES));
            for ((out, input), scale) in rows.zip(&*scales) {
                for ((out, input), weight) in out.iter_mut().zip(input).zip(weights) {
                    *out = input * scale * weight;
                }
            }
        });
    }
}

impl Linear {
    /// Multiplies by the panels from `first` on and adds the bias.
    pub(crate) fn product(
        &self,
        kernels: &dyn Kernels,
        input: Blocks<'_>,
        first: usize,
        out: &mut [f32],
        sum: Sum,
    ) {
        self.matrix.product(kernels, input, first, out, sum);
        let Some(bias) = &self.bias else { return };
        let blocks = out.chunks_mut(input.rows * LANES);
        for (block, bias) in blocks.zip(bias[first * LANES..].chunks(LANES)) {
            for row in block.chunks_mut(LANES) {
                row.iter_mut()
                    .zip(bias)
                    .for_each(|(out, bias)| *out += bias);
            }
        }
    }
}

/// Multiplies `input` by all of `linear`.
pub(crate) fn multiply(
    pool: &mut Pool,
    kernels: &dyn Kernels,
    input: Blocks<'_>,
    linear: &Linear,
    out: &mut [f32],
    sum: Sum,
) {
    let group = group(pool, linear.matrix.panels());
    pool.for_each_chunk(out, group * input.rows * LANES, &|_, task, out| {
        linear.product(kernels, input, task * group, out, sum);
    });
}

/// Panels of a task, so that the workers get equally many tasks of about [`GROUP`] panels.
pub(crate) fn group(pool: &Pool, panels: usize) -> usize {
    let share = panels.div_ceil(pool.threads());
    share.div_ceil(share.div_ceil(GROUP)).max(1)
}

/// Runs the chunks of `data` on the workers, or here where there are but few rows.
pub(crate) fn for_each<T: Send>(
    pool: &mut Pool,
    rows: usize,
    data: &mut [T],
    size: usize,
    work: &(dyn Fn(usize, usize, &mut [T]) + Sync),
) {
    if rows < FEW {
        let chunks = data.chunks_mut(size).enumerate();
        chunks.for_each(|(index, chunk)| work(0, index, chunk));
    } else {
        pool.for_each_chunk(data, size, work);
    }
}

/// Makes room for blocks of `columns` columns of `rows` rows.
pub(crate) fn resize(data: &mut Vec<f32>, columns: usize, rows: usize) {
    data.resize(columns.next_multiple_of(LANES) * rows, 0.0);
}

/// Makes columns behind the last impossible.
fn forbid_padding(logits: &mut [f32], columns: usize, rows: usize) {
    let lanes = columns % LANES;
    if lanes > 0 {
        let last = columns / LANES * rows * LANES;
        for row in logits[last..].chunks_mut(LANES) {
            row[lanes..].fill(f32::NEG_INFINITY);
        }
    }
}

/// Each worker locks its own memory, so nobody waits; a task that panicked left nothing in it that
/// the next relies on.
pub(crate) fn lock(worker: &Mutex<Worker>) -> std::sync::MutexGuard<'_, Worker> {
    worker.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Arithmetic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.name())
    }
}
