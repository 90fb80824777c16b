//! `yuan-quant`: convert checkpoints to containers.
fn main() {}
