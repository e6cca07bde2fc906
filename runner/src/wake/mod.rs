//! How the runner learns that inbound.db changed: a watch, and a poll beside it.
//!
//! Invariant: a wake is a hint, a row is the truth. A lost, doubled or late event delays a look, it never
//! changes what a look finds.

pub mod policy;
pub mod watch;
