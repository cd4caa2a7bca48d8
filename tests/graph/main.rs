//! Lowered modules, run by XLA on the CPU, against what transformers computes.

mod candidates;
mod device;
mod families;
mod rewrite;
mod saturation;
mod upload;
