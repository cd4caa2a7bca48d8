//! Where: AWS Trainium and Inferentia.

pub mod artifact;
pub mod compile;
pub mod neff;
#[doc(hidden)]
pub mod nrt;
pub mod plan;
mod prepare;
#[doc(hidden)]
pub mod ranks;
#[doc(hidden)]
pub mod weights;

pub use graph::{Activations, Bucket, KvFormat, LowerError, Target, WeightFormat, lower, text};
pub use prepare::{Event, Figures, PrepareError, Request, Summary, prepare, survey};
