//! What every layer stands on: identifiers, time, redaction and the ports to disk and clock.
//!
//! Invariant: imports nothing but std.

pub mod disk;
pub mod ids;
pub mod printable;
pub mod private;
pub mod time;

pub use disk::{Disk, OsDisk};
pub use ids::{Attempt, BootNo, DestinationNo, EffectId, MessageNo, RecordNo, SessionName, SessionNo};
pub use private::Private;
pub use time::{At, Clock, Ms, Wall};
