//! How: the decoder as HLO, once for both compiled devices.

pub mod proto;

mod bucket;
mod element;
mod layout;

pub use bucket::{Activations, Bucket, Form, Head, KvFormat, WeightFormat};
pub use element::Element;
pub use layout::{Content, Ints, LayerSlot, Port, Slot};
