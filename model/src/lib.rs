//! What runs: a decoder described as data, its checkpoint and its weights.

mod decoder;
mod dtype;
mod weights;

pub use decoder::{Activation, Attention, Decoder, Mlp, Rope, RopeScaling};
pub use dtype::Dtype;
pub use weights::{LayerRole, Role, Tensor, Weights};
