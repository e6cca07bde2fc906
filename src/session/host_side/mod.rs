//! The host's handles: it writes inbound.db and reads outbound.db, and it makes session folders.
//!
//! Invariant: outbound.db is never opened for writing here, except that [`create`] makes a new one before
//! anybody else sees it, and that [`outbound`] rolls back a private copy.

mod changes;
pub mod create;
mod inbound;
pub mod outbound;
#[cfg(test)]
mod tests;

pub use changes::{Change, Inserted};
pub use inbound::{InboundWriteError, InboundWriter, PendingRow, heal};
pub use outbound::{
    Cause, Cursor, Guard, GuardError, Kind, MAX_ROWS, Malformed, OutboundReader, Owner, ReadAsk, Reading,
    Row, Unreadable, backup, install_guards, recover,
};
