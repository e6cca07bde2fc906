//! The host: the composition root. It owns the parts, takes their news as inputs, records what the machine decides
//! and hands its effects over.

pub mod agent;
pub mod asking;
pub mod bodies;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod doctor;
pub mod ear;
pub mod ends;
pub mod event;
pub mod facts;
pub mod files;
pub mod folder;
pub mod found;
pub mod images;
pub mod inbound_lane;
pub mod lanes;
pub mod log;
pub mod lookups;
pub mod operator;
pub mod perform;
pub mod quota;
pub mod space;
pub mod startup;
pub mod status;
pub mod stuck;
pub mod takeover;
pub mod texts;
pub mod unchanged;
pub mod words;
