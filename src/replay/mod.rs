//! Replay.
pub mod fold;
pub mod report;
