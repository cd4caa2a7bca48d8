//! The server: see `appliance --help`.

fn main() {}
