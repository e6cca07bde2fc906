//! Texts on their way: the machine decides by facts, the words wait here until they are written or delivered.
//!
//! Invariant: bounded by bytes; what does not fit is read again from the session's file when it is needed.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::SessionNo;

/// Bytes of texts kept. Arrivals are bounded by their channels beside it.
const KEPT_MAX: usize = 64 << 20;

/// A message that came and is not on disk yet.
#[derive(Clone, Debug)]
pub struct ArrivedBody {
    /// JSON text (contract 11).
    pub content: String,
    /// The text in it.
    pub text: String,
}

/// The texts.
#[derive(Debug, Default)]
pub struct Bodies {
    arrived: BTreeMap<(String, u64), ArrivedBody>,
    outbound: BTreeMap<(SessionNo, String), String>,
    bytes: usize,
}

impl Bodies {
    /// Keeps an arrival's text until its row is written.
    pub fn arrived(&mut self, channel: &str, receipt: u64, body: ArrivedBody) {
        self.arrived.insert((channel.to_owned(), receipt), body);
    }

    /// An arrival's text, while it waits for its row.
    pub fn waiting(&self, channel: &str, receipt: u64) -> Option<&str> {
        self.arrived.get(&(channel.to_owned(), receipt)).map(|body| body.text.as_str())
    }

    /// Takes an arrival's text.
    pub fn take_arrived(&mut self, channel: &str, receipt: u64) -> Option<ArrivedBody> {
        self.arrived.remove(&(channel.to_owned(), receipt))
    }

    /// Keeps an outbound row's text, if there is room.
    pub fn keep(&mut self, session: SessionNo, id: &str, content: &str) {
        if self.bytes + content.len() > KEPT_MAX {
            return;
        }
        self.bytes += content.len();
        if let Some(old) = self.outbound.insert((session, id.to_owned()), content.to_owned()) {
            self.bytes -= old.len();
        }
    }

    /// An outbound row's text.
    pub fn outbound(&self, session: SessionNo, id: &str) -> Option<&str> {
        self.outbound.get(&(session, id.to_owned())).map(String::as_str)
    }

    /// Drops the texts of a session's rows that are not among these: they were read and became no delivery.
    pub fn retain(&mut self, session: SessionNo, open: &BTreeSet<&str>) {
        let gone: Vec<String> = self
            .outbound
            .range((session, String::new())..)
            .take_while(|((of, _), _)| *of == session)
            .filter(|((_, id), _)| !open.contains(id.as_str()))
            .map(|((_, id), _)| id.clone())
            .collect();
        gone.iter().for_each(|id| self.forget(session, id));
    }

    /// Drops an outbound row's text: its delivery is over.
    pub fn forget(&mut self, session: SessionNo, id: &str) {
        if let Some(old) = self.outbound.remove(&(session, id.to_owned())) {
            self.bytes -= old.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_kept_within_the_bound_and_forgotten() {
        let mut bodies = Bodies::default();
        let big = "x".repeat(KEPT_MAX / 2);
        for id in ["a", "b", "c"] {
            bodies.keep(SessionNo(1), id, &big);
        }
        assert!(bodies.outbound(SessionNo(1), "b").is_some());
        assert!(bodies.outbound(SessionNo(1), "c").is_none());
        bodies.forget(SessionNo(1), "a");
        bodies.keep(SessionNo(1), "c", &big);
        assert!(bodies.outbound(SessionNo(1), "c").is_some());
    }

    #[test]
    fn what_became_no_delivery_makes_room_again() {
        let mut bodies = Bodies::default();
        let big = "x".repeat(KEPT_MAX / 4);
        bodies.keep(SessionNo(1), "other", &big);
        for id in ["a", "b", "c"] {
            bodies.keep(SessionNo(2), id, &big);
        }
        bodies.retain(SessionNo(2), &["b"].into());
        let kept = |bodies: &Bodies, id: &str| bodies.outbound(SessionNo(2), id).is_some();
        assert_eq!([kept(&bodies, "a"), kept(&bodies, "b"), kept(&bodies, "c")], [false, true, false]);
        assert!(bodies.outbound(SessionNo(1), "other").is_some());
        bodies.keep(SessionNo(2), "d", &big);
        bodies.keep(SessionNo(2), "e", &big);
        assert!(kept(&bodies, "d") && kept(&bodies, "e"));
    }
}
