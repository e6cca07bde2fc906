//! The `lamplighter-runner` binary.
fn main() {}
