//! The KV pages: where the keys and values of each position lie, laid out as the kernels read them.

use engine::{PageCopy, PageId};
use model::Decoder;

use crate::kernels::LANES;
use crate::plan::PAGE;

/// All pages of all layers, in F32.
#[derive(Debug)]
pub(crate) struct Cache {
    layers: Vec<Vec<f32>>,
    shape: Shape,
}

/// The sizes of a layer's pages. For each KV head, for each page: its keys, a panel of [`PAGE`]
/// columns (positions) and one input a dimension; then its values, panels of [`LANES`] dimensions
/// with one input a position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Pages of a head.
    pages: usize,
    /// Dimensions of a head, padded to whole blocks.
    head: usize,
}

/// Where the keys and values of one token go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// The page.
    page: usize,
    /// The position in it.
    at: usize,
}

impl Cache {
    /// Room for `pages` pages of `decoder`. The memory is zero and taken from the system when first
    /// written.
    pub(crate) fn new(decoder: &Decoder, pages: u32) -> Self {
        let shape = Shape {
            pages: pages as usize,
            head: (decoder.attention.head_size as usize).next_multiple_of(LANES),
        };
        let size = decoder.attention.kv_heads as usize * shape.head_span();
        Self {
            layers: (0..decoder.layers).map(|_| vec![0.0; size]).collect(),
            shape,
        }
    }

    /// Copies whole pages, in every layer.
    pub(crate) fn copy(&mut self, copies: &[PageCopy]) {
        let span = self.shape.page_span();
        for layer in &mut self.layers {
            for head in layer.chunks_mut(self.shape.head_span()) {
                for copy in copies {
                    let [from, to] = [copy.from, copy.to].map(|page| page.0 as usize * span);
                    head.copy_within(from..from + span, to);
                }
            }
        }
    }

    /// The pages of one layer.
    pub(crate) fn layer(&self, layer: usize) -> &[f32] {
        &self.layers[layer]
    }

    /// The pages of one layer, to write; chunks of [`Shape::head_span`] are heads.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut [f32] {
        &mut self.layers[layer]
    }

    /// The sizes of a layer's pages.
    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }
}

impl Shape {
    /// Dimensions of a head, padded to whole blocks.
    pub(crate) fn head(self) -> usize {
        self.head
    }

    /// Elements of all pages of one head.
    pub(crate) fn head_span(self) -> usize {
        self.pages * self.page_span()
    }

    fn page_span(self) -> usize {
        2 * self.head * PAGE
    }

    /// Where the keys of a head's page start, counted from the layer's start.
    pub(crate) fn keys(self, head: usize, page: PageId) -> usize {
        (head * self.pages + page.0 as usize) * self.page_span()
    }

    /// Where its values start, behind its keys.
    pub(crate) fn values_after(self, keys: usize) -> usize {
        keys + self.head * PAGE
    }

    /// Writes a key and a value to the pages of their head.
    pub(crate) fn write(self, pages: &mut [f32], slot: Slot, key: &[f32], value: &[f32]) {
        let page = &mut pages[slot.page * self.page_span()..][..self.page_span()];
        let (keys, values) = page.split_at_mut(self.head * PAGE);
        let places = keys[slot.at..].iter_mut().step_by(PAGE);
        places.zip(key).for_each(|(place, key)| *place = *key);
        let panels = values.chunks_mut(PAGE * LANES);
        for (panel, value) in panels.zip(value.chunks(LANES)) {
            panel[slot.at * LANES..][..value.len()].copy_from_slice(value);
        }
    }
}

impl Slot {
    /// The place of `position` in a sequence with these pages.
    pub(crate) fn of(position: usize, pages: &[PageId]) -> Self {
        Self {
            page: pages[position / PAGE].0 as usize,
            at: position % PAGE,
        }
    }
}
