//! How attention is cut, so that no tensor of scores grows with the context.

/// What attention computes at once. Scores of `queries x positions` would be the largest tensors of
/// a step: a chunk of 2048 tokens over a context of 32,768 would have 4 GiB of them for 16 heads, if
/// they were computed in one piece, and the device would write and read each of them thrice.
/// Instead, tiles of own tokens attend to segments of positions, one after the other, and what each
/// segment gave is rescaled as a greater maximum is found (online softmax).
///
/// Every tile adds instructions, and a module with more of them takes more time and memory to
/// compile, so tiles are as large as what they need at one time stays on the chip: scores and their
/// exponentials beside each other, or keys and values, in the 24 MiB of a core. What does not fit
/// is written to the device's memory and read again; for keys and values of many rows that is
/// three times the traffic of a whole step. The usual sizes are to be measured on hardware.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tiles {
    /// Own tokens of a tile, at the most.
    pub queries: u32,
    /// Positions of a segment, at the most, where a row brings several tokens. A row of one token
    /// has few scores: there only [`Tiles::bytes`] counts.
    pub positions: u32,
    /// Bytes of a segment's scores, and of its keys, at the most.
    pub bytes: u64,
}

impl Default for Tiles {
    fn default() -> Self {
        Self {
            queries: 512,
            positions: 2048,
            bytes: 8 << 20,
        }
    }
}

/// A tile has no fewer own tokens than this for the sake of its bytes: the device multiplies 128
/// rows at once.
const FEW_QUERIES: u32 = 128;

/// What one rank attends to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) rows: u32,
    /// Own tokens of a row.
    pub(crate) tokens: u32,
    /// Pages before them.
    pub(crate) pages: u32,
    pub(crate) page_tokens: u32,
    /// Query heads.
    pub(crate) heads: u32,
    /// Bytes of a position's keys.
    pub(crate) key_bytes: u64,
}

/// How it is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cutting {
    /// Own tokens of a tile.
    pub(crate) queries: u32,
    /// Own positions of a segment.
    pub(crate) positions: u32,
    /// Pages of a segment.
    pub(crate) pages: u32,
}

impl Tiles {
    pub(crate) fn cut(&self, extent: &Extent) -> Cutting {
        let longest = extent.tokens.max(extent.pages * extent.page_tokens);
        let wanted = match extent.tokens {
            1 => longest,
            _ => longest.min(self.positions),
        };
        let rows = u64::from(extent.rows);
        let column = |queries: u32| rows * u64::from(extent.heads) * u64::from(queries) * 4;
        let mut queries = extent.tokens.min(self.queries).max(1);
        while queries > FEW_QUERIES && self.bytes / column(queries) < u64::from(wanted) {
            queries = queries.div_ceil(2);
        }
        let fitting = (self.bytes / column(queries)).min(self.bytes / (rows * extent.key_bytes));
        let positions = u32::try_from(fitting)
            .unwrap_or(u32::MAX)
            .min(wanted)
            .max(extent.page_tokens);
        let most = positions / extent.page_tokens;
        let segments = extent.pages.div_ceil(most).max(1);
        Cutting {
            queries,
            positions,
            pages: extent.pages.div_ceil(segments).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A quarter of Llama-3-8B.
    const EXTENT: Extent = Extent {
        rows: 1,
        tokens: 2048,
        pages: 1024,
        page_tokens: 32,
        heads: 8,
        key_bytes: 2 * 128 * 2,
    };

    #[test]
    fn a_chunk_attends_to_two_thousand_positions_at_once() {
        let cutting = Tiles::default().cut(&EXTENT);
        assert_eq!((cutting.queries, cutting.positions), (128, 2048));
        assert_eq!(cutting.pages, 64);
    }

    #[test]
    fn scores_and_keys_stay_within_their_bytes() {
        let tiles = Tiles::default();
        for heads in [1, 8, 32, 64] {
            for (rows, tokens) in [(1, 1), (1, 512), (1, 8192), (2, 128), (64, 1), (256, 1)] {
                let extent = Extent {
                    rows,
                    tokens,
                    heads,
                    ..EXTENT
                };
                let cutting = tiles.cut(&extent);
                let positions = u64::from(cutting.pages * extent.page_tokens);
                let rows = u64::from(rows);
                let scores = rows * u64::from(heads * cutting.queries) * positions * 4;
                assert!(scores <= tiles.bytes, "{extent:?}: {cutting:?}");
                assert!(rows * extent.key_bytes * positions <= tiles.bytes);
            }
        }
    }

    #[test]
    fn a_row_of_one_token_attends_to_a_long_context_at_once() {
        let extent = Extent {
            tokens: 1,
            pages: 512,
            ..EXTENT
        };
        assert_eq!(Tiles::default().cut(&extent).pages, 512);
    }

    #[test]
    fn a_chunk_of_which_all_scores_fit_is_one_tile() {
        let extent = Extent {
            tokens: 512,
            pages: 16,
            ..EXTENT
        };
        let cutting = Tiles::default().cut(&extent);
        assert_eq!((cutting.queries, cutting.pages), (512, 16));
    }

    #[test]
    fn segments_are_of_about_equal_size() {
        let extent = Extent {
            pages: 65,
            ..EXTENT
        };
        assert_eq!(Tiles::default().cut(&extent).pages, 33);
    }

    #[test]
    fn a_segment_has_at_least_a_page() {
        let tiles = Tiles {
            queries: 8,
            positions: 8,
            bytes: 1,
        };
        let cutting = tiles.cut(&EXTENT);
        assert_eq!(
            (cutting.queries, cutting.positions, cutting.pages),
            (8, 32, 1)
        );
    }
}
