//! Reading outbound.db, which the agent in the container can replace, rewrite, lock and link as it likes.
//!
//! Invariant: opening never writes, never creates, never follows a link, never waits on anything but a
//! regular file, and never recovers the other side's journal.
//! Invariant: each read ends within its bounds of time, rows and bytes, and holds no lock when it returns.
//! Invariant: a row that cannot be used is handed over as such; it is never left out and never stops those
//! after it.
//! Invariant: database files are opened through SQLite only: closing a second descriptor of a file would drop
//! the locks that SQLite holds on it in this process.

mod backup;
mod cause;
mod checks;
mod decode;
mod reader;
mod recover;
mod syscalls;

pub use backup::backup;
pub use cause::{Cause, Kind, Unreadable};
pub use checks::{Guard, Owner};
pub use decode::{Malformed, Row};
pub use reader::{Cursor, MAX_ROWS, OutboundReader, ReadAsk, Reading};
pub use recover::recover;
pub use syscalls::{GuardError, install_guards};
