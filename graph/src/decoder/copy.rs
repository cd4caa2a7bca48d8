//! Whole pages copied onto others.

use crate::build::Value;
use crate::decoder::Lowering;
use crate::layout::{Content, Ints};
use crate::lower::LowerError;

impl Lowering<'_> {
    /// The caches, in all layers, with pages copied. All are read before any is written.
    pub(crate) fn copy(&mut self) -> Result<Vec<Value>, LowerError> {
        let places = Ints::of(self.bucket);
        let read = self.ints(&places.tables)?;
        let written = self.ints(&places.slots)?;
        let layers = 0..self.decoder.layers;
        let caches = layers.flat_map(|layer| [Content::Keys(layer), Content::Values(layer)]);
        caches
            .map(|content| {
                let cache = self.input(content)?;
                let pages = self.pages_of(&cache)?;
                let b = &mut self.builder;
                let copies = b.gather_rows(&pages, &read)?;
                let pages = b.scatter_rows(&pages, &written, &copies)?;
                Ok(b.reshape(&pages, cache.dims())?)
            })
            .collect()
    }

    /// A cache with a page a row: large pieces, which the device moves well.
    pub(super) fn pages_of(&mut self, cache: &Value) -> Result<Value, LowerError> {
        let (page_tokens, pages) = (self.form.page_tokens, self.form.pages);
        let width = cache.dims()[1] * page_tokens;
        Ok(self.builder.reshape(cache, &[pages, width])?)
    }
}
