//! The runner's handles: it reads inbound.db and writes outbound.db.
//!
//! Invariant: the inbound handle is opened read-only and has no method that writes.

mod inbound;
mod outbound;
#[cfg(test)]
mod tests;

pub use inbound::{ContextRow, InboundError, InboundReader, Opening};
pub use outbound::{Inserted, OutboundError, OutboundTx, OutboundWriter};
