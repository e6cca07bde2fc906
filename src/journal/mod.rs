//! The journal: every input and every decision, appended before anything is done about it.
//!
//! A folder holds the boot number and segments named by their first record. A segment is a header, a snapshot
//! of the state before its first record, and records; so each replays on its own.
//!
//! Invariant: a file is only ever appended to, and cut at its end; what was durable is never changed. It goes only
//! as a whole, the oldest first ([`retention`]).

pub mod body;
pub mod boot;
pub mod check;
pub mod frame;
pub mod reader;
pub mod record;
pub mod recovery;
pub mod retention;
mod scan;
pub mod segment;
pub mod wire;
pub mod writer;

pub use scan::Trouble;

#[cfg(test)]
mod tests;
