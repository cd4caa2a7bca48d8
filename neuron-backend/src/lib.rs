//! Where: AWS Trainium and Inferentia.

pub mod artifact;
pub mod compile;
pub mod neff;
#[doc(hidden)]
pub mod nrt;
