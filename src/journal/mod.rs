//! (module under construction)

pub mod record;
pub mod wire;
