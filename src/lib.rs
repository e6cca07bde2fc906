//! Lamplighter hosts containerised AI agents: it wakes a container when a message is due, carries messages both
//! ways through two SQLite files per session, sweeps up after it, and records every decision in a journal.

#![warn(missing_docs)]

pub mod base;
pub mod session;

#[cfg(feature = "host")]
pub mod channels;
#[cfg(feature = "host")]
pub mod cli;
#[cfg(feature = "host")]
pub mod containers;
#[cfg(feature = "host")]
pub mod host;
#[cfg(feature = "host")]
pub mod journal;
#[cfg(feature = "host")]
pub mod machine;
#[cfg(feature = "host")]
pub mod reactor;
#[cfg(feature = "host")]
pub mod replay;
