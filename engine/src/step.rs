//! The data that crosses to a device: rows, the tokens they bring, the pages they read.

use std::fmt;
use std::ops::Range;

/// A token of the model's vocabulary.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct TokenId(pub u32);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A page of the device's KV cache: room for [`Profile::page_tokens`](crate::Profile) positions of
/// one sequence, in every layer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct PageId(pub u32);

/// Copies the whole of one page onto another, before any row of the step runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageCopy {
    /// The page that is read.
    pub from: PageId,
    /// The page that is overwritten.
    pub to: PageId,
}

/// Which tokens of the vocabulary a row may produce: one bit a token, bit `i % 32` of word `i /
/// 32`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenMask {
    words: Box<[u32]>,
}

impl TokenMask {
    /// A mask over `vocabulary` tokens that allows only `allowed`; ids outside it are ignored.
    pub fn only(vocabulary: u32, allowed: impl IntoIterator<Item = TokenId>) -> Self {
        let mut words = vec![0_u32; vocabulary.div_ceil(32) as usize].into_boxed_slice();
        for TokenId(id) in allowed.into_iter().filter(|id| id.0 < vocabulary) {
            words[id as usize / 32] |= 1 << (id % 32);
        }
        Self { words }
    }

    /// Whether the mask allows `token`.
    pub fn allows(&self, token: TokenId) -> bool {
        let word = self.words.get(token.0 as usize / 32).copied().unwrap_or(0);
        word >> (token.0 % 32) & 1 == 1
    }

    /// How many tokens the mask allows.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// The bits, 32 tokens a word, lowest bit first.
    pub fn words(&self) -> &[u32] {
        &self.words
    }
}

/// What a row asks back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Want {
    /// Nothing: the row only fills KV pages.
    Nothing,
    /// The `width` most likely tokens to follow the row's last token, of equals the lowest ids: a
    /// greedy row asks for one. A device gives what it can,
    /// at most [`Profile::candidates`](crate::Profile); `u32::MAX` asks for all it can.
    Candidates {
        /// How many; at least 1.
        width: u32,
    },
    /// The same after each token of the row, and the log-probability of the token that is known
    /// to follow there.
    EachPosition {
        /// How many candidates a position; at least 1.
        width: u32,
        /// For each token of the row the one that follows: a range of [`Step::tokens`] as long as
        /// the row's own.
        targets: Range<u32>,
    },
}

/// Some consecutive tokens of one sequence: a decode row brings one, a prefill row a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Its tokens, a range of [`Step::tokens`]; never empty.
    pub tokens: Range<u32>,
    /// Its sequence's pages from position 0, a range of [`Step::pages`]; enough to hold
    /// `position + tokens.len()` positions. The row writes the KV of its own tokens and reads all
    /// before.
    pub pages: Range<u32>,
    /// The position of its first token in the sequence, from 0.
    pub position: u32,
    /// Which tokens it may produce: an index into [`Step::masks`]. Probabilities are over the
    /// allowed tokens only.
    pub mask: Option<u32>,
    /// What it asks back.
    pub want: Want,
}

/// Rows, the tokens they bring and the pages they read. Flat, borrowed, plain.
///
/// No two rows of a step belong to the same sequence, and no row writes a page that another row
/// of the step reads or writes.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Page copies, done before any row runs. No page is both read and written by them.
    pub copies: &'a [PageCopy],
    /// All tokens that the rows refer to.
    pub tokens: &'a [TokenId],
    /// All page lists that the rows refer to.
    pub pages: &'a [PageId],
    /// All masks that the rows refer to.
    pub masks: &'a [&'a TokenMask],
    /// The rows.
    pub rows: &'a [Row],
}

impl<'a> Step<'a> {
    /// The tokens of `row`.
    pub fn tokens_of(&self, row: &Row) -> &'a [TokenId] {
        &self.tokens[row.tokens.start as usize..row.tokens.end as usize]
    }

    /// The pages of `row`.
    pub fn pages_of(&self, row: &Row) -> &'a [PageId] {
        &self.pages[row.pages.start as usize..row.pages.end as usize]
    }

    /// The mask of `row`.
    pub fn mask_of(&self, row: &Row) -> Option<&'a TokenMask> {
        row.mask.map(|index| self.masks[index as usize])
    }
}

/// What a step gave back: for each row that asked, in row order, one *entry* (or one a token for
/// [`Want::EachPosition`]) of tokens with exact log-probabilities over the whole (masked)
/// vocabulary.
///
/// Within an entry the tokens stand in no particular order, each once.
#[derive(Clone, Default, Debug)]
pub struct Candidates {
    ids: Vec<TokenId>,
    logprobs: Vec<f32>,
    entries: Vec<EntryEnd>,
}

#[derive(Clone, Copy, Debug)]
struct EntryEnd {
    end: usize,
    normalizer: f32,
    target: Option<f32>,
}

/// One entry of [`Candidates`].
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The tokens.
    pub ids: &'a [TokenId],
    /// Their log-probabilities (natural logarithm).
    pub logprobs: &'a [f32],
    /// The log of the sum of the exponentials of all (allowed) logits: a logit is its
    /// log-probability plus this.
    pub normalizer: f32,
    /// For [`Want::EachPosition`], the log-probability of the target.
    pub target: Option<f32>,
}

impl Candidates {
    /// Forgets all entries and keeps the memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.logprobs.clear();
        self.entries.clear();
    }

    /// Adds one entry.
    pub fn push(
        &mut self,
        tokens: impl IntoIterator<Item = (TokenId, f32)>,
        normalizer: f32,
        target: Option<f32>,
    ) {
        for (id, logprob) in tokens {
            self.ids.push(id);
            self.logprobs.push(logprob);
        }
        self.entries.push(EntryEnd {
            end: self.ids.len(),
            normalizer,
            target,
        });
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry at `index`, counted over the rows that asked.
    pub fn entry(&self, index: usize) -> Option<Entry<'_>> {
        let EntryEnd {
            end,
            normalizer,
            target,
        } = *self.entries.get(index)?;
        let start = index
            .checked_sub(1)
            .map_or(0, |before| self.entries[before].end);
        let (ids, logprobs) = (&self.ids[start..end], &self.logprobs[start..end]);
        Some(Entry {
            ids,
            logprobs,
            normalizer,
            target,
        })
    }
}
