//! The host's handles: it writes inbound.db and reads outbound.db.
