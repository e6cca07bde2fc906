//! The machine's own tests: golden transcripts in `fixtures/scripts` and random input sequences.

mod properties;
mod script;
mod world;
