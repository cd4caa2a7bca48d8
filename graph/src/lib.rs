//! How: the decoder as HLO, once for both compiled devices.

pub mod proto;

mod bucket;
mod cut;
mod element;
mod form;
mod layout;
mod target;

pub use bucket::{Activations, Bucket, Form, Head, KvFormat, WeightFormat};
pub use cut::{Cut, TOP_K_COLUMNS};
pub use element::Element;
pub use form::{FormError, MAX_CANDIDATES};
pub use layout::{Alias, Content, Ints, LayerSlot, Layout, Port, Slot};
pub use target::{Facts, Target, UnknownTarget};
