//! Snapshots as bytes: the components of a state in parts of bounded size, with the root over all of them.
//!
//! Invariant: a part holds whole items; the first part begins with the head, the last ends with the count of
//! items.

use std::borrow::Cow;
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::causes::{self, Causes};
use super::{EffectNo, Mirror, WireError, effect, state as wire};
use crate::base::{At, EffectId, SessionNo};
use crate::journal::record::{RecordError, Schema, put, take_wire, upcast};
use crate::machine::policy::Policy;
use crate::machine::shared_map::SharedMap;
use crate::machine::state::{Channel, Complaints, Core, Directory, Outage, Parts};

/// A part is closed when it has grown to this many bytes. One item is at most a few hundred KiB (a
/// destination with a full queue), so a part stays far below the 4 MiB of a frame.
pub const PART_TARGET: usize = 1 << 20;

/// One item of a snapshot. Append only, see [`super`].
// An item lives for a moment, one at a time; boxes would cost more than they save.
#[allow(clippy::large_enum_variant)]
#[derive(Serialize, Deserialize)]
enum Item<'a> {
    Head { core: wire::Core<'a>, policy: wire::Policy<'a>, group: Cow<'a, str>, root: u64 },
    Chat { channel: Cow<'a, str>, chat: Cow<'a, str>, session: u32 },
    Channel { name: Cow<'a, str>, channel: wire::Channel<'a> },
    Waiting(u32),
    Session(u32, wire::Session<'a>),
    Inbound(u64, wire::Inbound<'a>),
    Outbound(u64, wire::Outbound<'a>),
    Destination(u32, wire::Destination<'a>),
    Effect(EffectNo<'a>, wire::Owner<'a>),
    End { items: u64 },
    Question(u64, wire::Question<'a>),
    Complaint { cause: effect::Cause, last: i64, withheld: u32 },
    Causes(u64, Vec<causes::Wire>),
    Outage(wire::Outage<'a>),
    Missed(u64, wire::Missed<'a>),
}

/// What a snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The components of the state.
    pub parts: Parts,
    /// The digest of the whole state, as the snapshot names it.
    pub root: u64,
    /// What the open messages have been through.
    pub causes: Causes,
}

/// Encodes a snapshot of the components of a state whose root is `root`, in parts to be written in order.
pub fn encode_snapshot(state: &Parts, root: u64, causes: &Causes) -> Vec<Vec<u8>> {
    let mut out = Encoder::default();
    let directory = &state.directory;
    out.item(&Item::Head {
        core: state.core.to_wire(),
        policy: state.policy.to_wire(),
        group: Cow::Borrowed(&directory.group),
        root,
    });
    for ((channel, chat), session) in &directory.chats {
        out.item(&Item::Chat { channel: channel.to_wire(), chat: chat.to_wire(), session: session.0 });
    }
    for (name, channel) in &directory.channels {
        out.item(&Item::Channel { name: name.to_wire(), channel: channel.to_wire() });
    }
    state.queue.iter().for_each(|session| out.item(&Item::Waiting(session.0)));
    state.sessions.iter().for_each(|(no, it)| out.item(&Item::Session(no.0, it.to_wire())));
    state.inbound.iter().for_each(|(no, it)| out.item(&Item::Inbound(no.0, it.to_wire())));
    state.outbound.iter().for_each(|(no, it)| out.item(&Item::Outbound(no.0, it.to_wire())));
    state.destinations.iter().for_each(|(no, it)| out.item(&Item::Destination(no.0, it.to_wire())));
    state.effects.iter().for_each(|(id, it)| out.item(&Item::Effect(id.to_wire(), it.to_wire())));
    state.questions.iter().for_each(|(no, it)| out.item(&Item::Question(no.0, it.to_wire())));
    for (cause, &(last, withheld)) in &state.complaints {
        out.item(&Item::Complaint { cause: cause.to_wire(), last: last.to_wire(), withheld });
    }
    state.missed.iter().for_each(|(no, it)| out.item(&Item::Missed(no.0, it.to_wire())));
    causes.to_wire().for_each(|(no, it)| out.item(&Item::Causes(no, it)));
    state.outage.iter().for_each(|it| out.item(&Item::Outage(it.to_wire())));
    let items = out.items;
    out.item(&Item::End { items });
    out.parts.push(out.part);
    out.parts
}

#[derive(Default)]
struct Encoder {
    parts: Vec<Vec<u8>>,
    part: Vec<u8>,
    items: u64,
}

impl Encoder {
    fn item(&mut self, item: &Item<'_>) {
        if self.part.len() >= PART_TARGET {
            self.parts.push(std::mem::take(&mut self.part));
        }
        put(&mut self.part, item);
        self.items += 1;
    }
}

/// Puts a snapshot together from its parts, given in order.
#[derive(Clone, Debug, Default)]
pub struct SnapshotReader {
    head: Option<(Core, Policy, u64)>,
    directory: Directory,
    queue: VecDeque<SessionNo>,
    sessions: SharedMap<SessionNo, crate::machine::state::Session>,
    inbound: SharedMap<crate::base::MessageNo, crate::machine::state::Inbound>,
    outbound: SharedMap<crate::base::MessageNo, crate::machine::state::Outbound>,
    destinations: SharedMap<crate::base::DestinationNo, crate::machine::state::Destination>,
    effects: SharedMap<EffectId, crate::machine::state::Owner>,
    questions: SharedMap<crate::base::MessageNo, crate::machine::state::Question>,
    complaints: Complaints,
    missed: SharedMap<crate::base::MessageNo, crate::machine::state::Missed>,
    causes: Causes,
    outage: Option<Outage>,
    items: u64,
    complete: bool,
}

impl SnapshotReader {
    /// Takes the next part. `schema` is what the segment's header names.
    ///
    /// # Errors
    /// When the schema is not known, or the bytes do not hold a part of it.
    pub fn take(&mut self, schema: u32, mut part: &[u8]) -> Result<(), RecordError> {
        match upcast(schema)? {
            Schema::V1 => {
                while !part.is_empty() {
                    let item = take_wire::<Item<'static>>(&mut part, "a snapshot")?;
                    self.item(item)?;
                }
                Ok(())
            }
        }
    }

    /// Whether the last part was taken.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// What it holds.
    ///
    /// # Errors
    /// When parts are missing.
    pub fn finish(self) -> Result<Snapshot, RecordError> {
        let Some((core, policy, root)) = self.head else { return Err(damaged("its head is missing")) };
        if !self.complete {
            return Err(damaged("its end is missing"));
        }
        let parts = Parts {
            core,
            policy,
            directory: self.directory,
            queue: self.queue,
            sessions: self.sessions,
            inbound: self.inbound,
            outbound: self.outbound,
            destinations: self.destinations,
            effects: self.effects,
            questions: self.questions,
            complaints: self.complaints,
            outage: self.outage,
            missed: self.missed,
        };
        Ok(Snapshot { parts, root, causes: self.causes })
    }

    fn item(&mut self, item: Item<'_>) -> Result<(), RecordError> {
        if self.complete {
            return Err(damaged("it goes on after its end"));
        }
        if let Item::End { items } = item {
            self.complete = true;
            return if items == self.items {
                Ok(())
            } else {
                Err(damaged(&format!("it has {} items and says {items}", self.items)))
            };
        }
        self.items += 1;
        self.component(item)?;
        Ok(())
    }

    fn component(&mut self, item: Item<'_>) -> Result<(), WireError> {
        match item {
            Item::Head { core, policy, group, root } => {
                self.head = Some((Core::from_wire(core)?, Policy::from_wire(policy)?, root));
                self.directory.group = group.into_owned();
            }
            Item::Chat { channel, chat, session } => {
                let chat = (channel.into_owned(), chat.into_owned());
                self.directory.chats.insert(chat, SessionNo(session));
            }
            Item::Channel { name, channel } => {
                self.directory.channels.insert(name.into_owned(), Channel::from_wire(channel)?);
            }
            Item::Waiting(session) => self.queue.push_back(SessionNo(session)),
            Item::Session(no, it) => add(&mut self.sessions, no, it)?,
            Item::Inbound(no, it) => add(&mut self.inbound, no, it)?,
            Item::Outbound(no, it) => add(&mut self.outbound, no, it)?,
            Item::Destination(no, it) => add(&mut self.destinations, no, it)?,
            Item::Effect(id, it) => add(&mut self.effects, id, it)?,
            Item::Question(no, it) => add(&mut self.questions, no, it)?,
            Item::Complaint { cause, last, withheld } => {
                self.complaints.insert(Mirror::from_wire(cause)?, (At(last), withheld));
            }
            Item::Causes(no, it) => self.causes.take(no, it)?,
            Item::Outage(it) => self.outage = Some(Outage::from_wire(it)?),
            Item::Missed(no, it) => add(&mut self.missed, no, it)?,
            Item::End { .. } => {}
        }
        Ok(())
    }
}

/// The core at the head of a snapshot's first part. `schema` is what the segment's header names.
///
/// # Errors
/// When the schema is not known, or the bytes do not begin with a head of it.
pub fn read_core(schema: u32, mut part: &[u8]) -> Result<Core, RecordError> {
    match upcast(schema)? {
        Schema::V1 => match take_wire::<Item<'static>>(&mut part, "a snapshot")? {
            Item::Head { core, .. } => Ok(Core::from_wire(core)?),
            _ => Err(damaged("it does not begin with its head")),
        },
    }
}

fn add<'a, K: Mirror + Ord + 'a, V: Mirror + 'a>(
    map: &mut SharedMap<K, V>,
    key: K::Wire<'a>,
    value: V::Wire<'a>,
) -> Result<(), WireError> {
    map.insert(K::from_wire(key)?, V::from_wire(value)?);
    Ok(())
}

fn damaged(why: &str) -> RecordError {
    RecordError::Damaged { what: "a snapshot", why: why.to_owned() }
}
