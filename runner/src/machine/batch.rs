//! Chooses the rows of the next push, and remembers which rows are held back.
//!
//! Invariant: oldest first. A batch takes up to N triggers and the context rows before the last of them.
//! Invariant: no trigger, no batch. A row that is not due, or of the system, or held back hides nobody else.
//! Invariant: a command is alone, and what came before it goes before it.
//! Invariant: what was handed over together goes together again, as soon as all of it that is left is due, but for
//! what was set apart.

use std::collections::{BTreeMap, BTreeSet};

use lamplighter::base::{Ms, Wall};

use super::handed::{Members, Together};

/// Most triggers in one prompt, unless container.json says otherwise (contract 18).
pub const DEFAULT_TRIGGERS: usize = 10;
/// Most rows of one batch. Bounds prompt and transaction, and all releases of a batch fit among the facts.
pub const MAX_ROWS: usize = 48;
/// Waiting time after the first release of a message; doubled with each more (design 5).
const RETRY_FIRST: Ms = Ms::secs(5);
/// Longest waiting time between two tries.
const RETRY_LONGEST: Ms = Ms::minutes(5);
/// Longest waiting time that a provider may ask for; also the longest that a hold lasts when the clock is set back.
const HOLD_LONGEST: Ms = Ms::days(1);
/// So many tries of one message, then it is failed, where the host does not count itself.
pub const MAX_TRIES: u32 = 5;

/// What decisions need of a pending row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its id.
    pub id: String,
    /// May start a turn.
    pub trigger: bool,
    /// When it may be worked on; `None` for a time that cannot be read and so never comes (contract 7).
    pub due: Option<Wall>,
    /// Only for the first poll of a runner.
    pub on_wake: bool,
    /// As the host counted them.
    pub tries: u32,
    /// What it is.
    pub form: Form,
}

/// What a row is, as far as that decides anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// Goes into a prompt: chat, task without script, webhook.
    Plain,
    /// `/clear`.
    Clear,
    /// Another text that begins with a slash and is for the provider, if it knows commands.
    Command,
    /// A task whose script is asked first.
    Script,
    /// Of the system, and waited for by a tool; the row's time says until when at the latest.
    Awaited,
    /// Of the system, and nobody waits for it.
    Unclaimed,
    /// Can never be used, and why.
    Unusable(String),
}

/// What the rows at hand allow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The rows of the batch, oldest first; empty when no push may be made.
    pub rows: Vec<Row>,
    /// The push that these rows were before.
    pub again: Option<Together>,
    /// Context rows for which there was no place: they are over, and the prompt says how many.
    pub omitted: Vec<String>,
    /// A command whose turn has come; the batch is then empty.
    pub command: Option<Row>,
    /// Tasks whose scripts are to be asked.
    pub scripts: Vec<Row>,
    /// Rows that can never be used.
    pub unusable: Vec<Row>,
    /// Rows of the system that nobody waits for.
    pub unclaimed: Vec<String>,
    /// When the next row that is not due yet will be; `None` when none waits for a time.
    pub next_due: Option<Wall>,
}

/// How to choose.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// At least 1.
    pub max_triggers: usize,
    /// The provider knows commands.
    pub native_commands: bool,
    /// Only plain rows: the agent is at work, and a command waits for its turn.
    pub follow_up: bool,
    /// What was handed over before and is not with the agent now.
    pub handed: &'a [Together],
    /// Most rows of a batch that can be kept.
    pub room: usize,
    /// Most scripts whose tasks can be kept, beside a batch of so many rows.
    pub room_for_scripts: &'a dyn Fn(usize) -> usize,
}

/// Chooses from pending rows, oldest first, whether due or not.
pub fn choose(pending: Vec<Row>, held: &Held, rules: Rules<'_>, now: Wall) -> Choice {
    let mut choice = Choice::default();
    let mut ready = Vec::new();
    let members = Members::of(rules.handed);
    let mut again: Vec<Again> = rules.handed.iter().map(|_| Again::default()).collect();
    let mut soonest = |due: Wall| {
        choice.next_due = Some(choice.next_due.map_or(due, |soonest| soonest.min(due)));
    };
    for row in pending {
        match row.form {
            Form::Awaited => {
                row.due.filter(|due| *due > now).into_iter().for_each(&mut soonest);
                continue;
            }
            Form::Unclaimed => {
                choice.unclaimed.push(row.id);
                continue;
            }
            _ => {}
        }
        let Some(due) = row.due.map(|due| due.max(held.until(&row.id, now))) else { continue };
        if due > now && row.trigger {
            soonest(due);
        }
        let is_of_a_batch = match row.form {
            Form::Plain => true,
            Form::Command => !rules.native_commands,
            _ => false,
        };
        let push =
            if is_of_a_batch { members.push_of(&row.id).and_then(|at| again.get_mut(at)) } else { None };
        if let Some(push) = push {
            push.triggers |= row.trigger && due <= now;
            push.waits |= row.trigger && due > now && due <= now + RETRY_LONGEST;
            push.rows.extend((due <= now).then_some(row));
        } else if due > now {
            // Its time comes.
        } else if matches!(row.form, Form::Unusable(_)) {
            choice.unusable.push(row);
        } else if row.form == Form::Script && row.trigger {
            choice.scripts.push(row);
        } else {
            ready.push(row);
        }
    }
    choice.unusable.truncate(MAX_ROWS);
    if let Some(at) = again.iter().position(|push| push.triggers && !push.waits) {
        choice.rows = again.swap_remove(at).rows;
        choice.again = rules.handed.get(at).cloned();
        choice.scripts.clear();
        return choice;
    }
    choose_new(&mut choice, ready, rules);
    choice.scripts.truncate(rules.max_triggers.min((rules.room_for_scripts)(choice.rows.len())));
    choice
}

/// What is left of a push that was handed over before.
#[derive(Default)]
struct Again {
    rows: Vec<Row>,
    /// One of its messages is due.
    triggers: bool,
    /// One of its messages is not due yet, but before long. Those whose time is far off were set apart by the host,
    /// which tries one of a batch alone to find out which of them ends the turn.
    waits: bool,
}

/// Makes a batch, or finds a command, of rows that are due and were not handed over before.
fn choose_new(choice: &mut Choice, mut ready: Vec<Row>, rules: Rules<'_>) {
    let is_command = |row: &Row| match row.form {
        Form::Clear => row.trigger,
        Form::Command => row.trigger && rules.native_commands,
        _ => false,
    };
    if let Some(at) = ready.iter().position(is_command) {
        let alone = !ready.iter().take(at).any(|row| row.trigger);
        if alone && !rules.follow_up {
            choice.command = Some(ready.swap_remove(at));
            return;
        }
        ready.truncate(at);
    }
    let most = rules.room.min(MAX_ROWS);
    let triggers = rules.max_triggers.max(1).min(most);
    let last = ready.iter().enumerate().filter(|(_, row)| row.trigger).take(triggers).last();
    let Some(end) = last.map(|(index, _)| index + 1) else { return };
    ready.truncate(end);
    let mut surplus = ready.len().saturating_sub(most);
    for row in ready {
        if surplus > 0 && !row.trigger {
            surplus -= 1;
            choice.omitted.push(row.id);
        } else {
            choice.rows.push(row);
        }
    }
}

/// The messages that this runner gave back, and until when it leaves them alone. A host that knows releases moves the
/// row's own due time, but not at once; the other kind does not, and would see the same message fail in a tight loop.
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

    /// Notes that a message is given back, and returns when it may be tried again; `retry_after` is what the provider
    /// asked for.
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
    use crate::machine::handed::Handed;

    const NOW: Wall = Wall(1_779_096_600_000_000);
    const RULES: Rules<'_> = Rules {
        max_triggers: 10,
        native_commands: true,
        follow_up: false,
        handed: &[],
        room: MAX_ROWS,
        room_for_scripts: &|_| MAX_ROWS,
    };

    /// `t` a trigger, `c` context, `/` a command, `x` the command to clear, `s` a task with a script, `u` unusable.
    fn row(id: &str) -> Row {
        let form = match id.as_bytes().first() {
            Some(b'/') => Form::Command,
            Some(b'x') => Form::Clear,
            Some(b's') => Form::Script,
            Some(b'u') => Form::Unusable("why".into()),
            _ => Form::Plain,
        };
        let (id, trigger) = (id.to_owned(), !id.starts_with('c'));
        Row { id, trigger, due: Some(Wall::default()), on_wake: false, tries: 0, form }
    }

    fn rows(text: &str) -> Vec<Row> {
        text.split_whitespace().map(row).collect()
    }

    fn ids(rows: &[Row]) -> String {
        rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_batch_takes_the_oldest_triggers_and_the_context_before_them() {
        for (pending, max_triggers, expected) in [
            ("c1 t1 c2 t2 c3", 10, "c1 t1 c2 t2"),
            ("t1 t2 t3", 2, "t1 t2"),
            ("c1 t1 c2 t2", 1, "c1 t1"),
            ("c1 c2 c3", 10, ""),
            ("", 10, ""),
            ("u1 t1", 1, "t1"),
            ("s1 t1", 1, "t1"),
        ] {
            let choice = choose(rows(pending), &Held::default(), Rules { max_triggers, ..RULES }, NOW);
            assert_eq!(ids(&choice.rows), expected, "{pending}");
            assert!(choice.omitted.is_empty());
        }
    }

    #[test]
    fn a_command_is_alone_and_waits_for_what_came_before_it() {
        for (pending, batch, command) in [
            ("t1 x t2", "t1", None),
            ("c1 x t2", "", Some("x")),
            ("x t2", "", Some("x")),
            ("t1 / t2", "t1", None),
            ("/ x", "", Some("/")),
        ] {
            let choice = choose(rows(pending), &Held::default(), RULES, NOW);
            let found = choice.command.as_ref().map(|row| row.id.as_str());
            assert_eq!((ids(&choice.rows).as_str(), found), (batch, command), "{pending}");
        }
        let follow_up = choose(rows("c1 x t2"), &Held::default(), Rules { follow_up: true, ..RULES }, NOW);
        assert_eq!(follow_up, Choice::default());
        let other = Rules { native_commands: false, ..RULES };
        assert_eq!(ids(&choose(rows("/ t1"), &Held::default(), other, NOW).rows), "/ t1");
    }

    /// What was handed over as these pushes.
    fn pushes(pushes: &[&str]) -> Vec<Together> {
        let mut handed = Handed::default();
        for push in pushes {
            let rows: Vec<&str> = push.split_whitespace().collect();
            let triggers: Vec<&str> = rows.iter().copied().filter(|id| !id.starts_with('c')).collect();
            handed.add(&rows, &triggers, 0);
        }
        handed.without(&[])
    }

    #[test]
    fn what_was_handed_over_together_goes_together_again() {
        let handed = pushes(&["c1 t2", "t3 t4"]);
        let rules = Rules { handed: &handed, ..RULES };
        let again = |pending: Vec<Row>| {
            let choice = choose(pending, &Held::default(), rules, NOW);
            (ids(&choice.rows), choice.again)
        };
        let [first, second] = handed.as_slice() else { panic!("two pushes") };
        assert_eq!(again(rows("t1 c1 t2 t3 t4")), ("c1 t2".to_owned(), Some(first.clone())));
        assert_eq!(again(rows("t1 t3 t4")), ("t3 t4".to_owned(), Some(second.clone())));
        assert_eq!(again(rows("t1 t4")), ("t4".to_owned(), Some(second.clone())), "one of it is over");
        assert_eq!(again(rows("c1 t1 x3")), ("t1".to_owned(), None), "context alone is no push");
    }

    #[test]
    fn a_push_waits_until_all_of_it_is_due_and_hides_nobody() {
        let handed = pushes(&["c0 t1 t2"]);
        let rules = Rules { handed: &handed, ..RULES };
        let mut pending = rows("c0 t1 t2 t3");
        pending[2].due = Some(NOW + Ms::secs(5));
        let choice = choose(pending.clone(), &Held::default(), rules, NOW);
        assert_eq!((ids(&choice.rows), choice.next_due), ("t3".to_owned(), Some(NOW + Ms::secs(5))));
        let choice = choose(pending.clone(), &Held::default(), rules, NOW + Ms::secs(5));
        assert_eq!(ids(&choice.rows), "c0 t1 t2");
        pending[2].due = Some(NOW + Ms::minutes(60));
        let choice = choose(pending.clone(), &Held::default(), rules, NOW);
        assert_eq!(
            (ids(&choice.rows).as_str(), choice.again),
            ("c0 t1", handed.first().cloned()),
            "t1 is tried alone"
        );
        pending[1].due = Some(NOW + Ms::minutes(60));
        let choice = choose(pending.clone(), &Held::default(), rules, NOW);
        assert_eq!((ids(&choice.rows).as_str(), choice.again), ("t3", None), "both are set apart");
        pending[1].due = Some(Wall::default());
        pending[2].due = None;
        let choice = choose(pending, &Held::default(), rules, NOW);
        assert_eq!(ids(&choice.rows), "c0 t1", "a time that never comes is not waited for");
    }

    #[test]
    fn no_more_is_taken_than_can_be_kept() {
        let choice = |room| choose(rows("c1 c2 t1 t2"), &Held::default(), Rules { room, ..RULES }, NOW);
        assert_eq!(choice(0), Choice::default());
        assert_eq!((ids(&choice(1).rows), choice(1).omitted.len()), ("t1".to_owned(), 2));
        assert_eq!((ids(&choice(3).rows), choice(3).omitted.len()), ("c2 t1 t2".to_owned(), 1));
        let rules = Rules { room_for_scripts: &|rows| 2 - rows, ..RULES };
        assert_eq!(ids(&choose(rows("s1 s2 t1"), &Held::default(), rules, NOW).scripts), "s1");
    }

    #[test]
    fn rows_not_due_hide_nobody() {
        let mut pending = rows("t1 t2 t3");
        pending[0].due = Some(NOW + Ms::minutes(1));
        pending[1].due = None;
        let choice = choose(pending, &Held::default(), Rules { max_triggers: 1, ..RULES }, NOW);
        assert_eq!(ids(&choice.rows), "t3");
        assert_eq!(choice.next_due, Some(NOW + Ms::minutes(1)));
    }

    #[test]
    fn too_much_context_leaves_out_the_oldest_and_never_a_trigger() {
        let mut pending = rows("t0");
        pending.extend((0..100).map(|n| row(&format!("c{n}"))));
        pending.push(row("t1"));
        let choice = choose(pending, &Held::default(), RULES, NOW);
        assert_eq!((choice.rows.len(), choice.omitted.len()), (MAX_ROWS, 102 - MAX_ROWS));
        assert_eq!(choice.omitted.first().map(String::as_str), Some("c0"));
        assert_eq!(choice.rows.first().map(|row| row.id.as_str()), Some("t0"));
        assert_eq!(choice.rows.last().map(|row| row.id.as_str()), Some("t1"));
    }

    #[test]
    fn a_released_message_waits_twice_as_long_each_time() {
        let mut held = Held::default();
        assert_eq!(held.hold("t1", None, NOW), NOW + Ms::secs(5));
        assert_eq!(held.hold("t1", None, NOW), NOW + Ms::secs(10));
        assert_eq!(held.hold("t1", Some(Ms::secs(90)), NOW), NOW + Ms::secs(90));
        assert_eq!(held.tries("t1"), 3);
        let choice = choose(rows("t1 t2"), &held, RULES, NOW);
        assert_eq!(ids(&choice.rows), "t2");
        assert_eq!(choice.next_due, Some(NOW + Ms::secs(90)));
        let clock_set_back = Wall(NOW.0 - Ms::days(30).micros());
        assert_eq!(held.until("t1", clock_set_back), Wall::default());
        held.retain(&BTreeSet::from(["t2"]));
        assert_eq!(held.tries("t1"), 0);
    }

    /// Rows with times out of the past, in 5 s, in an hour and never; those of one number above 0 were one push.
    fn is_chosen_when_it_can_be(times: &[usize], triggers: &[bool], pushes: &[usize]) -> bool {
        let soon = Some(NOW + Ms::secs(5));
        let times_of = [Some(Wall::default()), soon, Some(NOW + Ms::minutes(60)), None];
        let make = |(n, (&time, &trigger)): (usize, (&usize, &bool))| {
            let due = times_of.get(time).copied().flatten();
            Row { due, ..row(&format!("{}{n}", if trigger { "t" } else { "c" })) }
        };
        let pending: Vec<Row> = times.iter().zip(triggers).enumerate().map(make).collect();
        let all = || pending.iter().zip(pushes.iter().copied());
        let mut handed = Handed::default();
        for push in 1..4 {
            let rows: Vec<&str> =
                all().filter(|(_, of)| *of == push).map(|(row, _)| row.id.as_str()).collect();
            let triggers: Vec<&str> = rows.iter().copied().filter(|id| id.starts_with('t')).collect();
            handed.add(&rows, &triggers, 0);
        }
        let handed = handed.without(&[]);
        let is_due = |row: &Row| row.due.is_some_and(|due| due <= NOW);
        let waits =
            |push: usize| push > 0 && all().any(|(row, of)| of == push && row.trigger && row.due == soon);
        let can = all().any(|(row, push)| row.trigger && is_due(row) && !waits(push));
        let choice = choose(pending.clone(), &Held::default(), Rules { handed: &handed, ..RULES }, NOW);
        can != choice.rows.is_empty() && choice.rows.iter().all(is_due)
    }

    proptest::proptest! {
        /// What is due is never held up by what is not: neither by other rows nor by what it was handed over with, but
        /// for those whose time comes before long.
        #[test]
        fn something_is_chosen_whenever_something_can_be(
            times in proptest::collection::vec(0..4_usize, 1..8),
            triggers in proptest::collection::vec(proptest::bool::ANY, 8),
            pushes in proptest::collection::vec(0..4_usize, 8),
        ) {
            proptest::prop_assert!(is_chosen_when_it_can_be(&times, &triggers, &pushes));
        }
    }
}
