//! Lowered modules, run by XLA on the CPU, against what transformers computes.

mod device;
mod families;
mod rewrite;
mod upload;
