//! What runs: a decoder described as data, its checkpoint and its weights.

mod bytes;
mod checkpoint;
mod config;
mod decoder;
mod dtype;
mod fields;
mod generation;
pub mod gguf;
mod map;
#[doc(hidden)]
pub mod parsers;
mod stream;
mod weights;

pub use bytes::{Bytes, Directory, Files, Flow, ReadError};
pub use checkpoint::{CheckpointError, HeaderError, IndexError};
pub use decoder::{Activation, Attention, Decoder, Mlp, Rope, RopeScaling};
pub use dtype::Dtype;
pub use fields::ConfigError;
pub use generation::GenerationDefaults;
pub use stream::{Progress, Rows, Stream};
pub use weights::{LayerRole, Role, Tensor, Weights};
