//! The machine's own tests: golden transcripts in `fixtures/scripts`, random input sequences, and what a snapshot
//! shares with the state.

mod bounds;
mod handover;
mod properties;
mod script;
mod world;
