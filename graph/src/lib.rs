//! How: the decoder as HLO, once for both compiled devices.

pub mod build;
pub mod proto;

mod bucket;
mod check;
mod cost;
mod cut;
mod element;
mod flow;
mod form;
mod layout;
mod memory;
mod target;
mod text;
mod view;

pub use bucket::{Activations, Bucket, Form, Head, KvFormat, WeightFormat};
pub use cut::{Cut, TOP_K_COLUMNS};
pub use element::Element;
pub use form::{FormError, MAX_CANDIDATES};
pub use layout::{Alias, Content, Ints, LayerSlot, Layout, Port, Slot};
pub use target::{Facts, Target, UnknownTarget};
pub use check::{Broken, Compile, Refusal, Rule, check};
pub use cost::{Cost, Ideal};
pub use memory::{Advice, Footprint, Memory, MemoryError, Parts, TooLarge};
pub use view::Malformed;
pub use text::text;
