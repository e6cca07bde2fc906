//! The host: the composition root. It owns the parts, takes their news as inputs, records what the machine decides
//! and hands its effects over.

pub mod facts;
pub mod inbound_lane;
pub mod lanes;
pub mod words;
