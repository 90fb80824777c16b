//! `yuan`: run a Yuan 2.0 model.
fn main() {}
