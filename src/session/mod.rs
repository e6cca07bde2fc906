//! The session-folder contract: where the files of a session lie, what their tables hold, and a handle for
//! each side of each file. It is the wire contract of NanoClaw v2, so either side may be driven by the other
//! product.
//!
//! Invariant: the host writes inbound.db and reads outbound.db, the runner the reverse. [`host_side`] holds
//! an inbound writer and an outbound reader and nothing else, [`runner_side`] the opposite pair.
//! Invariant: no write-ahead log here. Its shared memory is not coherent between host and guest on every
//! mount.
//! Invariant: due times are compared as instants, never as text (contract 7 lists the mixed forms).
//! Invariant: no code of the host or of the runner lives here; both are built on it.

mod busy;
pub mod host_side;
pub mod ids;
pub mod layout;
pub mod rows;
pub mod runner_side;
pub mod schema;
pub mod seq;
pub mod timestamp;

pub use layout::SessionFolder;
pub use rows::{
    Ack, AckStatus, Address, Delivered, Destination, Fact, InboundRow, InboundStatus, NewInbound,
    NewOutbound, OutboundRow, Target, ToolInFlight,
};
