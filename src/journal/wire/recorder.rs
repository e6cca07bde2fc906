//! Makes the record of each step while the daemon runs.
//!
//! Invariant: the input is on record as it was given, and is encoded before the machine sees it; so a step
//! that panics can be recorded too.

use super::Mirror;
use super::causes::Causes;
use super::digest::Digests;
use crate::base::{At, RecordNo};
use crate::journal::record::{Draft, Outcome, RecordError, encode_draft, put};
use crate::machine::input::Input;
use crate::machine::state::State;
use crate::machine::{Machine, Turn};

/// Makes records, one after the other, into buffers that are used again.
#[derive(Debug)]
pub struct Recorder {
    digests: Digests,
    input: Vec<u8>,
    body: Vec<u8>,
    /// The name of the noted input, and the number and time that its step has.
    name: &'static str,
    number: RecordNo,
    at: At,
    causes: Causes,
}

impl Recorder {
    /// For a machine in a given state.
    pub fn new(state: &State) -> Self {
        Self::with(Digests::of(state), Causes::default())
    }

    /// For a machine whose digests are known, and what its open messages have been through, as a load gives them.
    pub fn with(digests: Digests, causes: Causes) -> Self {
        let (input, body) = (Vec::new(), Vec::new());
        Self { digests, input, body, name: "", number: RecordNo(0), at: At(0), causes }
    }

    /// Notes the input of the step that comes next. To be called before it.
    pub fn note(&mut self, machine: &Machine, at: At, input: &Input) {
        let core = machine.state().core();
        self.number = match input {
            Input::Booted(it) => RecordNo::first_of(it.boot),
            _ => core.record,
        };
        self.at = at.max(core.at);
        self.name = input.name();
        self.input.clear();
        put(&mut self.input, &input.to_wire());
    }

    /// The body of the record of the step that was noted and has been made. Everything up to `synced_through`
    /// is durable.
    ///
    /// # Errors
    /// When it does not fit into a frame.
    pub fn record(
        &mut self,
        machine: &Machine,
        turn: &Turn,
        synced_through: RecordNo,
    ) -> Result<&[u8], RecordError> {
        debug_assert_eq!((turn.record, turn.at), (self.number, self.at), "the input was not noted");
        self.digests.update(machine.state(), &turn.touched);
        self.causes.note(machine.state(), &turn.touched, (turn.record, turn.at), self.name);
        let draft = Draft {
            number: turn.record,
            at: turn.at,
            outcome: Outcome::Stepped,
            input: &self.input,
            effects: &turn.effects,
            touched: self.digests.last(),
            root: self.digests.root(),
            synced_through,
        };
        encode_draft(&draft, &mut self.body)?;
        Ok(&self.body)
    }

    /// The body of the record of a step that was noted and panicked. The machine is not to be used any more.
    ///
    /// # Errors
    /// When it does not fit into a frame.
    pub fn panicked(&mut self, synced_through: RecordNo) -> Result<(RecordNo, &[u8]), RecordError> {
        let draft = Draft {
            number: self.number,
            at: self.at,
            outcome: Outcome::Panicked,
            input: &self.input,
            effects: &[],
            touched: &[],
            root: self.digests.root(),
            synced_through,
        };
        encode_draft(&draft, &mut self.body)?;
        Ok((self.number, &self.body))
    }

    /// What the open messages have been through up to the last record.
    pub fn causes(&self) -> &Causes {
        &self.causes
    }

    /// The digest of the whole state after the last record.
    pub fn root(&self) -> u64 {
        self.digests.root()
    }
}
