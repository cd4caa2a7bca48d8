//! Stands in for `neuronx-cc` in tests.

fn main() {}
