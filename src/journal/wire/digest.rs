//! Digests: of each component, and of the whole state.
//!
//! A component's digest is xxh3-64 of its wire encoding. The root is the XOR, over all components, of xxh3-64
//! of the component's id followed by its digest; so it is kept up to date by what a step touched alone.
//!
//! Invariant: the root depends on the components and nothing else; [`Digests::of`] the same state gives the
//! same.
//! Invariant: a component that is gone has the digest 0 in a record and no place in the map.

use std::collections::{BTreeMap, BTreeSet};

use xxhash_rust::xxh3::xxh3_64;

use super::Mirror;
use crate::journal::record::put;
use crate::machine::state::{ComponentId, State};

/// The digests of a state.
#[derive(Clone, Debug, Default)]
pub struct Digests {
    map: BTreeMap<ComponentId, u64>,
    root: u64,
    /// Where components are encoded, kept to save an allocation each.
    buffer: Vec<u8>,
    /// What the last update found.
    changed: Vec<(ComponentId, u64)>,
}

impl Digests {
    /// All digests of a state, computed in full.
    pub fn of(state: &State) -> Self {
        let mut digests = Self::default();
        let all: BTreeSet<ComponentId> = components(state).collect();
        digests.update(state, &all);
        digests
    }

    /// Takes up what a step has touched, and gives the digests of it in the order of ids; 0 for what is gone.
    pub fn update(&mut self, state: &State, touched: &BTreeSet<ComponentId>) -> &[(ComponentId, u64)] {
        self.changed.clear();
        for &id in touched {
            let digest = self.digest(state, id);
            self.set(id, digest);
            self.changed.push((id, digest));
        }
        &self.changed
    }

    /// The digest of the whole state.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// What the last [`update`](Self::update) gave.
    pub fn last(&self) -> &[(ComponentId, u64)] {
        &self.changed
    }

    /// The root that would result if components had these digests instead of their own.
    pub fn root_with(&self, other: &[(ComponentId, u64)]) -> u64 {
        let mut root = self.root;
        let mut buffer = Vec::new();
        for &(id, digest) in other {
            let own = self.map.get(&id).copied().unwrap_or(0);
            root ^= keyed(&mut buffer, id, own) ^ keyed(&mut buffer, id, digest);
        }
        root
    }

    fn set(&mut self, id: ComponentId, digest: u64) {
        let old = if digest == 0 { self.map.remove(&id) } else { self.map.insert(id, digest) };
        let old = old.unwrap_or(0);
        if old != digest {
            self.root ^= keyed(&mut self.buffer, id, old) ^ keyed(&mut self.buffer, id, digest);
        }
    }

    /// The digest of one component, 0 if there is no such component.
    fn digest(&mut self, state: &State, id: ComponentId) -> u64 {
        self.buffer.clear();
        if !encode(state, id, &mut self.buffer) {
            return 0;
        }
        // 0 means that it is gone.
        xxh3_64(&self.buffer).max(1)
    }
}

/// What a component adds to the root; nothing when it is gone.
fn keyed(buffer: &mut Vec<u8>, id: ComponentId, digest: u64) -> u64 {
    if digest == 0 {
        return 0;
    }
    buffer.clear();
    put(buffer, &id.to_wire());
    buffer.extend_from_slice(&digest.to_le_bytes());
    xxh3_64(buffer)
}

/// Appends the wire encoding of a component; false if there is none.
fn encode(state: &State, id: ComponentId, out: &mut Vec<u8>) -> bool {
    fn put_some<T: Mirror>(out: &mut Vec<u8>, component: Option<&T>) -> bool {
        component.map(|component| put(out, &component.to_wire())).is_some()
    }
    match id {
        ComponentId::Core => put_some(out, Some(state.core())),
        ComponentId::Policy => put_some(out, Some(state.policy())),
        ComponentId::Directory => put_some(out, Some(state.directory())),
        ComponentId::Slots => put_some(out, Some(state.queue())),
        ComponentId::Session(no) => put_some(out, state.session(no)),
        ComponentId::Inbound(no) => put_some(out, state.inbound(no)),
        ComponentId::Outbound(no) => put_some(out, state.outbound(no)),
        ComponentId::Destination(no) => put_some(out, state.destination(no)),
        ComponentId::Effect(id) => put_some(out, state.effects().get(&id)),
        ComponentId::Question(no) => put_some(out, state.question(no)),
        ComponentId::Complaints => {
            put_some(out, Some(state.complaints()).filter(|complaints| !complaints.is_empty()))
        }
        ComponentId::Runtime => put_some(out, state.outage()),
        ComponentId::Missed(no) => put_some(out, state.missed(no)),
    }
}

/// The ids of all components of a state.
fn components(state: &State) -> impl Iterator<Item = ComponentId> + '_ {
    [ComponentId::Core, ComponentId::Policy, ComponentId::Directory, ComponentId::Slots]
        .into_iter()
        .chain(state.sessions().keys().copied().map(ComponentId::Session))
        .chain(state.inbounds().keys().copied().map(ComponentId::Inbound))
        .chain(state.outbounds().keys().copied().map(ComponentId::Outbound))
        .chain(state.destinations().keys().copied().map(ComponentId::Destination))
        .chain(state.effects().keys().copied().map(ComponentId::Effect))
        .chain(state.questions().keys().copied().map(ComponentId::Question))
        .chain([ComponentId::Complaints])
        .chain(state.outage().map(|_| ComponentId::Runtime))
        .chain(state.all_missed().keys().copied().map(ComponentId::Missed))
}
