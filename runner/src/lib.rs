//! The in-container half of lamplighter: claims messages, drives an agent provider, writes its replies.
//!
//! One thread owns both database handles and runs the loop of [`runner`]; the watcher, the signal reader and
//! the provider's thread only post into the [`mailbox`].
//!
//! ```text
//!  wake::watch ──┐                         ┌── inbound.db  (read-only)
//!  signals ──────┼─► mailbox ─► runner ────┤
//!  provider ─────┘      one look, one turn └── outbound.db (fenced by the attempt), .heartbeat
//! ```
//!
//! The pure parts know neither file nor clock: [`batch`] chooses the rows of a turn, [`content`] reads them,
//! [`prompt`] writes the prompt, [`blocks`] reads the answer, [`address`] resolves names, [`facts`] words
//! what the host is told, and [`wake::policy`] decides how often to look beside the watch.

#![warn(missing_docs)]

pub mod address;
pub mod batch;
pub mod blocks;
pub mod config;
pub mod content;
pub mod facts;
pub mod heartbeat;
pub mod launch;
pub mod log;
pub mod mailbox;
pub mod options;
pub mod prompt;
pub mod provider;
pub mod runner;
mod turn;
pub mod wake;
