//! What a module takes and gives: names, shapes, element types, and which input is which output.

use std::ops::Range;

use model::Decoder;
use serde::{Deserialize, Serialize};

use crate::bucket::{Bucket, Form, Head, KvFormat, WeightFormat};
use crate::element::Element;

/// An input or an output of a module, as one rank has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Port {
    /// Its name in the NEFF.
    pub name: String,
    /// Sizes, slowest first.
    pub shape: Vec<u32>,
    /// The type of its elements.
    pub element: Element,
    /// What it holds.
    pub content: Content,
}

/// What an input or output holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// All small integers of a step: [`Ints`] says where.
    Ints,
    /// `[entries, vocabulary of a rank / 32]`: which tokens may be produced, a bit a token, as
    /// [`engine::TokenMask`] has them.
    Masks,
    /// `[1]`: the number of the rank. Written once.
    Rank,
    /// `[context, head_size / 2]` in F32. Written once.
    RopeCos,
    /// The same for sines.
    RopeSin,
    /// Of the weights. Written once.
    Weight(Slot),
    /// `[out]` in F32: what the products with this matrix are multiplied by. Written once.
    Scale(Slot),
    /// Keys of a layer: `[pages * page_tokens, kv_heads of a rank * head_size]`.
    Keys(u32),
    /// Values of a layer, the same.
    Values(u32),
    /// `[entries, 2 * candidates + 2]` in F32: ids (exact below 2^24), log-probabilities,
    /// normalizer, log-probability of the target.
    Candidates,
    /// `[entries, hidden]` in F32.
    Embedding,
}

/// A tensor of weights as a module takes it. Matrices are `[in, out]`: the transpose of what a
/// checkpoint holds, and cut to what one rank computes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// `[vocabulary, hidden]`, whole on every rank, always BF16.
    Embedding,
    /// `[hidden]` in F32.
    FinalNorm,
    /// `[hidden, vocabulary of a rank]`, columns past the vocabulary zero.
    Head,
    /// One layer's.
    Layer(u32, LayerSlot),
}

/// A tensor of a layer's weights.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerSlot {
    /// `[hidden]` in F32.
    AttentionNorm,
    /// `[hidden, (heads + 2 * kv_heads) of a rank * head_size]`: query, key, value side by side.
    Qkv,
    /// `[(heads + 2 * kv_heads) of a rank * head_size]` in F32.
    QkvBias,
    /// `[head_size]` in F32.
    QueryNorm,
    /// `[head_size]` in F32.
    KeyNorm,
    /// `[heads of a rank * head_size, hidden]`.
    Output,
    /// `[hidden]` in F32; zero but on rank 0.
    OutputBias,
    /// `[hidden]` in F32.
    MlpNorm,
    /// `[hidden, 2 * size of a rank]`: gate and up side by side.
    GateUp,
    /// `[2 * size of a rank]` in F32.
    GateUpBias,
    /// `[size of a rank, hidden]`.
    Down,
    /// `[hidden]` in F32; zero but on rank 0.
    DownBias,
}

/// Where a step's integers stand in its one input of S32: each a range of places.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ints {
    /// `[rows, tokens]`: token ids, padding 0.
    pub tokens: Range<usize>,
    /// `[rows]`: the position of each row's first token.
    pub starts: Range<usize>,
    /// `[rows]`: tokens that the row really brings; at least 1, also of padded rows.
    pub lengths: Range<usize>,
    /// `[rows, tokens]`: where in the cache each token's key and value go: `page * page_tokens +
    /// position % page_tokens`. Padding goes to places 1 .. of page 0, in turn, which nobody reads.
    pub slots: Range<usize>,
    /// `[rows, pages]`: the pages that hold the positions before the row's first, padding 0.
    pub tables: Range<usize>,
    /// `[entries]`: the token whose log-probability is asked, else 0.
    pub targets: Range<usize>,
    /// How many integers there are in all.
    pub len: usize,
}

impl Ints {
    /// Where the integers of a step of this bucket stand; for [`Bucket::Copy`], `tables` holds
    /// `[pairs]` pages that are read, and `slots` as many that are written.
    pub fn of(bucket: Bucket) -> Self {
        let mut len = 0;
        let mut take = |count: u32| {
            let start = len;
            len += count as usize;
            start..len
        };
        match bucket {
            Bucket::Step {
                rows,
                tokens,
                pages,
                head,
            } => {
                let targets = if head == Head::Embedding {
                    0
                } else {
                    bucket.entries()
                };
                Self {
                    tokens: take(rows * tokens),
                    starts: take(rows),
                    lengths: take(rows),
                    slots: take(rows * tokens),
                    tables: take(rows * pages),
                    targets: take(targets),
                    len,
                }
            }
            Bucket::Copy { pairs } => Self {
                tokens: take(0),
                starts: take(0),
                lengths: take(0),
                tables: take(pairs),
                slots: take(pairs),
                targets: take(0),
                len,
            },
        }
    }
}
