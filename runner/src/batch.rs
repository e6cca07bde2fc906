//! Chooses the rows of the next turn. Pure.
//!
//! Invariant: oldest first. A turn takes up to N triggers and the context rows before the last of them.
//! Invariant: no trigger, no turn, whether the agent is warm or not.
//! Invariant: a row that is not due, of kind `system`, or held back hides nobody else.

use std::collections::{BTreeMap, BTreeSet};

use lamplighter::base::{Ms, Wall};
use lamplighter::session::{InboundRow, timestamp};

/// Most triggers in one prompt, unless container.json says otherwise (contract 18).
pub const DEFAULT_TRIGGERS: usize = 10;
/// Most rows of one turn. Bounds prompt and transaction, and all releases of a turn fit among the facts.
pub const MAX_ROWS: usize = 48;
/// Waiting time after the first release of a message; doubled with each more (design 5).
const RETRY_FIRST: Ms = Ms::secs(5);
/// Longest waiting time between two tries.
const RETRY_LONGEST: Ms = Ms::minutes(5);
/// Longest waiting time that a provider may ask for; also the longest that a hold lasts when the clock is set
/// back.
const HOLD_LONGEST: Ms = Ms::days(1);
/// So many tries of one message, then it is failed. The host counts too and parks earlier or at the same
/// time; the runner's own count is for hosts that know nothing of releases.
pub const MAX_TRIES: u32 = 5;

/// What the rows at hand allow.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// The rows of the turn, oldest first; empty when no turn may start.
    pub rows: Vec<InboundRow>,
    /// Context rows for which there was no place: they end with the turn, and the prompt says how many.
    pub omitted: Vec<String>,
    /// When the next trigger that is not due yet will be; `None` when none waits for a time.
    pub next_due: Option<Wall>,
}

/// Chooses from pending rows, oldest first, whether due or not. `max_triggers` is at least 1.
pub fn choose(pending: Vec<InboundRow>, held: &Held, max_triggers: usize, now: Wall) -> Choice {
    let mut choice = Choice::default();
    let mut ready = Vec::new();
    for row in pending {
        if row.kind == "system" {
            continue;
        }
        let due_by_row = row.process_after.as_deref().map_or(Some(Wall::default()), timestamp::parse);
        // A due time that cannot be read never comes (contract 7).
        let Some(due) = due_by_row.map(|due| due.max(held.until(&row.id, now))) else { continue };
        if due <= now {
            ready.push(row);
        } else if row.trigger {
            choice.next_due = Some(choice.next_due.map_or(due, |soonest| soonest.min(due)));
        }
    }
    let triggers = max_triggers.clamp(1, MAX_ROWS);
    let last = ready.iter().enumerate().filter(|(_, row)| row.trigger).take(triggers).last();
    let Some(end) = last.map(|(index, _)| index + 1) else { return choice };
    ready.truncate(end);
    let mut surplus = ready.len().saturating_sub(MAX_ROWS);
    for row in ready {
        if surplus > 0 && !row.trigger {
            surplus -= 1;
            choice.omitted.push(row.id);
        } else {
            choice.rows.push(row);
        }
    }
    choice
}

/// The messages that this runner gave back, and until when it leaves them alone. A host that knows releases
/// moves the row's own due time; the other kind does not, and would see the same message fail in a tight
/// loop.
#[derive(Clone, Debug, Default)]
pub struct Held(BTreeMap<String, Hold>);

#[derive(Clone, Copy, Debug)]
struct Hold {
    until: Wall,
    tries: u32,
}

impl Held {
    /// Until when a message is left alone; long past for one that is not held.
    pub fn until(&self, id: &str, now: Wall) -> Wall {
        let believable = |hold: &&Hold| hold.until <= now + HOLD_LONGEST;
        self.0.get(id).filter(believable).map_or(Wall::default(), |hold| hold.until)
    }

    /// How often a message was given back since the runner started.
    pub fn tries(&self, id: &str) -> u32 {
        self.0.get(id).map_or(0, |hold| hold.tries)
    }

    /// Notes that a message is given back, and returns when it may be tried again; `retry_after` is what the
    /// provider asked for.
    pub fn hold(&mut self, id: &str, retry_after: Option<Ms>, now: Wall) -> Wall {
        let tries = self.tries(id);
        let wait =
            RETRY_FIRST.doubled(tries, RETRY_LONGEST).max(retry_after.unwrap_or_default()).min(HOLD_LONGEST);
        let until = now + wait;
        self.0.insert(id.to_owned(), Hold { until, tries: tries.saturating_add(1) });
        until
    }

    /// Forgets every message that is not pending any more.
    pub fn retain(&mut self, pending: &BTreeSet<&str>) {
        self.0.retain(|id, _| pending.contains(id.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Wall = Wall(1_779_096_600_000_000);

    fn row(id: &str, trigger: bool) -> InboundRow {
        InboundRow { id: id.into(), kind: "chat".into(), trigger, ..InboundRow::default() }
    }

    fn rows(text: &str) -> Vec<InboundRow> {
        text.split_whitespace().map(|word| row(word, word.starts_with('t'))).collect()
    }

    fn ids(choice: &Choice) -> String {
        choice.rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_turn_takes_the_oldest_triggers_and_the_context_before_them() {
        for (pending, max, expected) in [
            ("c1 t1 c2 t2 c3", 10, "c1 t1 c2 t2"),
            ("t1 t2 t3", 2, "t1 t2"),
            ("c1 t1 c2 t2", 1, "c1 t1"),
            ("c1 c2 c3", 10, ""),
            ("", 10, ""),
        ] {
            let choice = choose(rows(pending), &Held::default(), max, NOW);
            assert_eq!(ids(&choice), expected, "{pending}");
            assert!(choice.omitted.is_empty());
        }
    }

    #[test]
    fn rows_of_the_system_and_rows_not_due_hide_nobody() {
        let mut pending = rows("t1 t2 t3 t4");
        pending[0].kind = "system".into();
        pending[1].process_after = Some("2026-05-18 09:31:00".into());
        pending[2].process_after = Some("someday".into());
        let choice = choose(pending, &Held::default(), 1, NOW);
        assert_eq!(ids(&choice), "t4");
        assert_eq!(choice.next_due, Some(Wall(NOW.0 + 60_000_000)));
    }

    #[test]
    fn too_much_context_leaves_out_the_oldest_and_never_a_trigger() {
        let mut pending = rows("t0");
        pending.extend((0..100).map(|n| row(&format!("c{n}"), false)));
        pending.push(row("t1", true));
        let choice = choose(pending, &Held::default(), 10, NOW);
        assert_eq!(choice.rows.len(), MAX_ROWS);
        assert_eq!(choice.omitted.len(), 102 - MAX_ROWS);
        assert_eq!(choice.omitted.first().map(String::as_str), Some("c0"));
        assert_eq!(choice.rows.first().map(|r| r.id.as_str()), Some("t0"));
        assert_eq!(choice.rows.last().map(|r| r.id.as_str()), Some("t1"));
    }

    #[test]
    fn a_released_message_waits_twice_as_long_each_time() {
        let mut held = Held::default();
        assert_eq!(held.hold("t1", None, NOW), NOW + Ms::secs(5));
        assert_eq!(held.hold("t1", None, NOW), NOW + Ms::secs(10));
        assert_eq!(held.hold("t1", Some(Ms::secs(90)), NOW), NOW + Ms::secs(90));
        assert_eq!(held.tries("t1"), 3);
        let choice = choose(rows("t1 t2"), &held, 10, NOW);
        assert_eq!(ids(&choice), "t2");
        assert_eq!(choice.next_due, Some(NOW + Ms::secs(90)));
        let clock_set_back = Wall(NOW.0 - Ms::days(30).micros());
        assert_eq!(held.until("t1", clock_set_back), Wall::default());
        held.retain(&BTreeSet::from(["t2"]));
        assert_eq!(held.tries("t1"), 0);
    }
}
