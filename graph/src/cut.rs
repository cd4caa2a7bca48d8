//! What one rank of a tensor-parallel group computes.

use std::ops::Range;

use model::Decoder;

use crate::form::FormError;

/// The most columns that the device's top-K takes in a row: the limit of `AwsNeuronTopK`
/// ("max8 .. must be between 8 and 16384").
pub const TOP_K_COLUMNS: u32 = 16_384;

/// Tokens of one word of a mask: a rank's part of the vocabulary starts with a whole word.
const MASK_WORD: u32 = 32;

/// The sizes that each rank has of what is cut. All ranks run the same module, so all have the
/// same sizes; where something does not divide, the last ranks' parts are padded with zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut {
    /// Ranks that compute together.
    pub ranks: u32,
    /// Query heads of a rank.
    pub heads: u32,
    /// Key and value heads of a rank, at least 1.
    pub kv_heads: u32,
    /// Ranks that hold the same key and value heads: 1 unless there are more ranks than such heads.
    pub kv_copies: u32,
    /// Width inside the MLP of a rank, padding included.
    pub size: u32,
    /// Tokens of a rank's part of the vocabulary, padding included: a multiple of 32 in each fold.
    pub vocabulary: u32,
    /// Equal pieces that a rank's logits are folded into for the first top-K, each of at most
    /// [`TOP_K_COLUMNS`].
    pub folds: u32,
}

impl Cut {
    /// How `decoder` is cut among `ranks`.
    ///
    /// Query heads are shared out evenly. Key and value heads are too, or, where there are more
    /// ranks than such heads, each is held by equally many ranks. The MLP and the vocabulary are
    /// cut into parts of equal size, rounded up.
    ///
    /// # Errors
    /// [`FormError::Ranks`] where heads cannot be shared out among so many; it names the numbers
    /// of ranks that can.
    pub fn of(decoder: &Decoder, ranks: u32) -> Result<Self, FormError> {
        let attention = &decoder.attention;
        let (heads, kv_heads) = (attention.heads, attention.kv_heads);
        if !shares(heads, kv_heads, ranks) {
            let working = (1..=heads).filter(|degree| shares(heads, kv_heads, *degree));
            return Err(FormError::Ranks {
                ranks,
                heads,
                kv_heads,
                working: working.collect(),
            });
        }
        let part = decoder.vocabulary.div_ceil(ranks);
        let folds = part.div_ceil(TOP_K_COLUMNS).max(1);
        Ok(Self {
            ranks,
            heads: heads / ranks,
            kv_heads: (kv_heads / ranks).max(1),
            kv_copies: (ranks / kv_heads).max(1),
            size: decoder.mlp.size().div_ceil(ranks),
            vocabulary: part.next_multiple_of(MASK_WORD * folds),
            folds,
        })
    }

    /// The first key and value head of `rank`; it has [`Cut::kv_heads`] from there on.
    pub fn kv_head_of(&self, rank: u32) -> u32 {
        rank / self.kv_copies * self.kv_heads
    }

    /// The key and value heads of `rank`.
    pub fn kv_heads_of(&self, rank: u32) -> Range<u32> {
        let first = self.kv_head_of(rank);
        first..first + self.kv_heads
    }

    /// The query heads of `rank`.
    pub fn heads_of(&self, rank: u32) -> Range<u32> {
        rank * self.heads..(rank + 1) * self.heads
    }

    /// The inner columns of the MLP of `whole` that `rank` has; what it lacks to [`Cut::size`] is
    /// padding.
    pub fn size_of(&self, rank: u32, whole: u32) -> Range<u32> {
        part(self.size, rank, whole)
    }

    /// The tokens of the vocabulary of `whole` that `rank` has; what it lacks to
    /// [`Cut::vocabulary`] is padding.
    pub fn vocabulary_of(&self, rank: u32, whole: u32) -> Range<u32> {
        part(self.vocabulary, rank, whole)
    }
}

/// The part of `whole` that falls to `rank` where each has `size`; empty past the end.
fn part(size: u32, rank: u32, whole: u32) -> Range<u32> {
    let at = |rank: u32| size.saturating_mul(rank).min(whole);
    at(rank)..at(rank + 1)
}

/// Whether so many ranks can share out these heads.
fn shares(heads: u32, kv_heads: u32, ranks: u32) -> bool {
    ranks > 0
        && heads.is_multiple_of(ranks)
        && (kv_heads.is_multiple_of(ranks) || ranks.is_multiple_of(kv_heads))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::form::tests::decoder;

    #[test]
    fn heads_are_shared_out_evenly() {
        let cut = Cut::of(&decoder(32, 8), 4).unwrap();
        assert_eq!((cut.heads, cut.kv_heads, cut.kv_copies), (8, 2, 1));
        assert_eq!(cut.heads_of(3), 24..32);
        assert_eq!(cut.kv_heads_of(3), 6..8);
    }

    #[test]
    fn more_ranks_than_key_heads_hold_each_head_equally_often() {
        let cut = Cut::of(&decoder(32, 8), 16).unwrap();
        assert_eq!((cut.heads, cut.kv_heads, cut.kv_copies), (2, 1, 2));
        let heads: Vec<_> = (0..16).map(|rank| cut.kv_head_of(rank)).collect();
        assert_eq!(heads, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]);
    }

    #[test]
    fn a_rank_holds_the_key_heads_of_its_query_heads() {
        for (heads, kv_heads) in [(32, 8), (9, 3), (12, 2), (16, 16), (8, 1)] {
            for ranks in (1..=heads).filter(|ranks| shares(heads, kv_heads, *ranks)) {
                let cut = Cut::of(&decoder(heads, kv_heads), ranks).unwrap();
                for rank in 0..ranks {
                    for (local, head) in cut.heads_of(rank).enumerate() {
                        let local = u32::try_from(local).unwrap() / (cut.heads / cut.kv_heads);
                        let whole = head / (heads / kv_heads);
                        assert_eq!(cut.kv_head_of(rank) + local, whole);
                    }
                }
            }
        }
    }

    #[test]
    fn a_degree_that_does_not_work_is_refused_with_those_that_do() {
        let refusal = Cut::of(&decoder(9, 3), 2).unwrap_err().to_string();
        assert!(refusal.contains("1, 3 or 9"), "{refusal}");
        assert!(Cut::of(&decoder(9, 3), 0).is_err());
        assert!(Cut::of(&decoder(12, 2), 3).is_err());
    }

    #[test]
    fn folds_are_no_wider_than_the_device_takes_and_hold_whole_mask_words() {
        let mut decoder = decoder(8, 8);
        for vocabulary in [
            1, 96, 16_384, 16_385, 49_151, 49_152, 128_256, 151_936, 262_144,
        ] {
            decoder.vocabulary = vocabulary;
            for ranks in [1, 2, 4, 8] {
                let cut = Cut::of(&decoder, ranks).unwrap();
                assert!(cut.vocabulary.is_multiple_of(32 * cut.folds));
                assert!(cut.vocabulary / cut.folds <= TOP_K_COLUMNS);
                let parts = (0..ranks).map(|rank| cut.vocabulary_of(rank, vocabulary).len());
                assert_eq!(parts.sum::<usize>(), vocabulary as usize);
            }
        }
    }
}
