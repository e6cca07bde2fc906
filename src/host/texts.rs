//! Which texts go to the journal, in frames of their own before the record that brings them.

use super::bodies::Bodies;
use super::config::BodiesKept;
use crate::base::RecordNo;
use crate::journal::body::{self, Text};
use crate::journal::frame::{self, Kind};
use crate::machine::input::{Input, Reading};

/// Makes the frames.
#[derive(Debug)]
pub struct Texts {
    kept: BodiesKept,
    body: Vec<u8>,
}

impl Texts {
    /// As the configuration says.
    pub fn new(kept: BodiesKept) -> Self {
        Self { kept, body: Vec::new() }
    }

    /// Appends the frames of the texts that an input brings. `record` is the input's.
    pub fn encode(&mut self, bodies: &Bodies, record: RecordNo, input: &Input, frames: &mut Vec<u8>) {
        if self.kept == BodiesKept::None {
            return;
        }
        match input {
            Input::MessageArrived(it)
            | Input::PossibleAnswer { arrival: it, .. }
            | Input::MessageArrivedAt { arrival: it, .. } => {
                if let Some(text) = bodies.waiting(&it.channel, it.receipt) {
                    self.one(record, it.facts.digest, text, frames);
                }
            }
            Input::OutboundRead { session, reading: Reading::Rows(rows) }
            | Input::Looked { session, reading: Reading::Rows(rows), .. } => {
                for row in &rows.rows {
                    if let Some(content) = bodies.outbound(*session, &row.id) {
                        self.one(record, row.digest, content, frames);
                    }
                }
            }
            _ => {}
        }
    }

    fn one(&mut self, record: RecordNo, digest: u64, text: &str, frames: &mut Vec<u8>) {
        if !text.is_empty() && body::encode(Text { digest, text }, &mut self.body) {
            frame::encode(Kind::Body, record, &self.body, frames);
        }
    }
}
