//! Where: AWS Trainium and Inferentia.

pub mod artifact;
mod backend;
pub mod compile;
pub mod doctor;
pub mod fault;
pub mod gauges;
pub mod klog;
pub mod neff;
#[doc(hidden)]
pub mod nrt;
mod open;
pub mod plan;
mod prepare;
mod probe;
mod rank;
#[doc(hidden)]
pub mod ranks;
pub mod sysfs;
mod threads;
#[doc(hidden)]
pub mod weights;

pub use backend::Neuron;
pub use graph::{Activations, Bucket, KvFormat, LowerError, Target, WeightFormat, lower, text};
pub use open::{OpenError, Opening, check, open};
pub use prepare::{Event, Figures, PrepareError, Request, Summary, prepare, survey};
pub use probe::probe;
