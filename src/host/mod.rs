//! The host: the composition root. It owns the parts, takes their news as inputs, records what the machine decides
//! and hands its effects over.

pub mod agent;
pub mod bodies;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod event;
pub mod facts;
pub mod folder;
pub mod inbound_lane;
pub mod lanes;
pub mod log;
pub mod operator;
pub mod perform;
pub mod space;
pub mod startup;
pub mod status;
pub mod texts;
pub mod unchanged;
pub mod words;
