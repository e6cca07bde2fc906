//! The in-container half of lamplighter: claims messages, drives an agent provider, writes its replies.
//!
//! One thread owns both database handles and runs the loop of [`runner`]; the watcher, the signal reader, scripts and
//! the provider's threads only post into the [`mailbox`]. What is decided is decided by the [`machine`], which knows
//! neither file nor clock nor text.
//!
//! ```text
//!  wake::watch ──┐                         ┌──────────┐
//!  signals ──────┤             Input ────▶ │ machine  │        ┌── inbound.db  (read-only)
//!  scripts ──────┼─► mailbox ─► runner     └──────────┘ desk ──┤
//!  provider ─────┘             ◀──── Effect                    └── outbound.db (fenced by the attempt), .heartbeat
//! ```
//!
//! The other pure parts: [`content`] reads rows, [`prompt`] and [`addendum`] write what the agent reads, [`blocks`]
//! reads its answer, [`address`] resolves names, [`facts`] words what the host is told, and [`wake::policy`] decides
//! how often to look beside the watch.

#![warn(missing_docs)]

pub mod addendum;
pub mod address;
pub mod blocks;
pub mod config;
pub mod content;
pub mod continuation;
pub mod desk;
pub mod dispatch;
pub mod facts;
pub mod heartbeat;
pub mod init;
pub mod json;
pub mod launch;
pub mod log;
pub mod machine;
pub mod mailbox;
pub mod mcp;
pub mod options;
pub mod pending;
pub mod precompact;
pub mod prompt;
pub mod provider;
pub mod runner;
pub mod script;
pub mod wake;
