//! What is compiled ahead: one module for each bucket, all of them for the same [`Form`].

use serde::{Deserialize, Serialize};

/// What all modules of one bundle share: how the decoder is cut among ranks, how its numbers are
/// held, and how large its KV cache is.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Form {
    /// Ranks that compute together (tensor parallelism). Every rank runs the same module.
    pub ranks: u32,
    /// How matrices are held.
    pub weights: WeightFormat,
    /// What activations are computed in between matrices; sums are always F32.
    pub activations: Activations,
    /// How keys and values are held.
    pub kv: KvFormat,
    /// The largest finite number of the device's E4M3: 240 on NeuronCore-v2 and v3, 448 elsewhere.
    pub fp8_max: u32,
    /// Positions of a KV page: a power of two.
    pub page_tokens: u32,
    /// Pages of the KV cache, the null page 0 included: the modules' page `p + 1` is the engine's
    /// page `p`.
    pub pages: u32,
    /// Positions of the longest sequence: rows of the rotary tables.
    pub context: u32,
    /// Candidates an entry holds, 1 to 256.
    pub candidates: u32,
}

/// How matrices are held on the device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightFormat {
    /// Two bytes a weight.
    Bf16,
    /// One byte a weight (E4M3), an F32 scale for each output channel.
    Fp8,
    /// One byte a weight, an F32 scale for each output channel.
    Int8,
}

/// What activations are held in between operations.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// Rounded to BF16 before every matrix, as the device multiplies fastest.
    Bf16,
    /// Matrices are widened to F32: slow on the device, and equal to the CPU backend.
    F32,
}

/// How keys and values are held on the device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvFormat {
    /// Two bytes a number.
    Bf16,
    /// One byte a number (E4M3), clamped to [`Form::fp8_max`], with a scale of 1.
    Fp8,
    /// Four bytes a number: the reference.
    F32,
}

/// The sizes of one module.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bucket {
    /// Rows that run: decode (one token a row) and prefill (one row of a chunk) are the same graph
    /// in other sizes.
    Step {
        /// Rows, padding included.
        rows: u32,
        /// Tokens a row brings, padding included.
        tokens: u32,
        /// KV pages before a row's own tokens that it may read, padding included. For a decode row
        /// and for a chunk alike: pages that hold positions below the row's first.
        pages: u32,
        /// What the step gives.
        head: Head,
    },
    /// Whole pages copied onto others, in every layer.
    Copy {
        /// Copies, padding (page 0 onto itself) included.
        pairs: u32,
    },
}

/// What a step gives for its rows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Head {
    /// Candidates after the last token of each row.
    Last,
    /// Candidates after every token of each row.
    Each,
    /// The normed hidden state of the last token of each row.
    Embedding,
}

impl Bucket {
    /// Entries that a step gives: the rows of its output.
    pub fn entries(self) -> u32 {
        match self {
            Self::Step {
                rows,
                tokens,
                head: Head::Each,
                ..
            } => rows * tokens,
            Self::Step { rows, .. } => rows,
            Self::Copy { .. } => 0,
        }
    }

    /// A short name, unique in a bundle: `decode-16x8`, `prefill-512x64`, ..
    pub fn name(self) -> String {
        match self {
            Self::Step {
                rows,
                tokens,
                pages,
                head,
            } => {
                let head = match head {
                    Head::Last => "",
                    Head::Each => "-each",
                    Head::Embedding => "-embedding",
                };
                match tokens {
                    1 => format!("decode-{rows}x{pages}{head}"),
                    _ => format!("prefill-{rows}x{tokens}x{pages}{head}"),
                }
            }
            Self::Copy { pairs } => format!("copy-{pairs}"),
        }
    }
}
