//! Every chore of the project as `cargo xtask VERB`.

fn main() {}
