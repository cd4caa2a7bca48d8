//! Weights by role: what a decoder needs, whatever a checkpoint calls it.

use crate::dtype::Dtype;

/// What a tensor is for. Matrices are `[out, in]`, row-major, as Hugging Face stores them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// `[vocabulary, hidden]`.
    Embedding,
    /// `[hidden]`.
    FinalNorm,
    /// `[vocabulary, hidden]`; the embedding itself where the head is tied.
    Head,
    /// One layer's, counted from 0.
    Layer(u32, LayerRole),
}

/// What a tensor of a layer is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LayerRole {
    /// `[hidden]`, before attention.
    AttentionNorm,
    /// `[heads * head_size, hidden]`.
    Query,
    /// `[heads * head_size]`.
    QueryBias,
    /// `[kv_heads * head_size, hidden]`.
    Key,
    /// `[kv_heads * head_size]`.
    KeyBias,
    /// `[kv_heads * head_size, hidden]`.
    Value,
    /// `[kv_heads * head_size]`.
    ValueBias,
    /// `[head_size]`, on each query head.
    QueryNorm,
    /// `[head_size]`, on each key head.
    KeyNorm,
    /// `[hidden, heads * head_size]`.
    Output,
    /// `[hidden]`.
    OutputBias,
    /// `[hidden]`, before the MLP.
    MlpNorm,
    /// `[size, hidden]`.
    Gate,
    /// `[size]`.
    GateBias,
    /// `[size, hidden]`.
    Up,
    /// `[size]`.
    UpBias,
    /// `[hidden, size]`.
    Down,
    /// `[hidden]`.
    DownBias,
}

/// A tensor as the checkpoint stores it.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// How its numbers are stored, little-endian.
    pub dtype: Dtype,
    /// Its sizes, slowest first.
    pub shape: &'a [usize],
    /// Its numbers; as long as shape and dtype say.
    pub bytes: &'a [u8],
}

/// A checkpoint's weights, memory-mapped: every role that its decoder has, in the shape that it says.
#[derive(Debug)]
pub struct Weights {}

impl Weights {
    /// The tensor for `role`. Asking for a role that the decoder does not have is a mistake of the caller's, and panics.
    pub fn tensor(&self, role: Role) -> Tensor<'_> {
        unimplemented!("lands with the checkpoint: {role:?}")
    }
}
