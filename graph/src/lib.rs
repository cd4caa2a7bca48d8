//! How: the decoder as HLO, once for both compiled devices.

pub mod build;
pub mod narrow;
pub mod proto;

mod bucket;
mod check;
mod cost;
mod cut;
mod decoder;
mod element;
mod flow;
mod form;
mod layout;
mod lower;
mod memory;
mod pack;
#[cfg(test)]
mod sketch;
mod target;
mod text;
mod tiles;
mod view;

pub use bucket::{Activations, Bucket, Form, Head, KvFormat, WeightFormat};
pub use check::{Broken, Compile, Refusal, Rule, check};
pub use cost::{Cost, Ideal};
pub use cut::{Cut, TOP_K_COLUMNS};
pub use element::Element;
pub use form::{FormError, MAX_CANDIDATES};
pub use layout::{Alias, Content, Ints, LayerSlot, Layout, Port, Slot};
pub use lower::{LowerError, Module, lower, lower_in_tiles};
pub use memory::{Advice, Footprint, Memory, MemoryError, Parts, TooLarge};
pub use pack::{Launch, Load, PackError, Packed, Packer, UnpackError};
pub use target::{Facts, Target, UnknownTarget};
pub use text::text;
pub use tiles::Tiles;
pub use view::Malformed;
