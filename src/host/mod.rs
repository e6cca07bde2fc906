//! The host: the composition root. It owns the parts, takes their news as inputs, records what the machine decides
//! and hands its effects over.

pub mod lanes;
pub mod words;
