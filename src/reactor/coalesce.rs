//! The fold of hints: however many events a session has, it keeps one small set of marks.
//!
//! Invariant: the fold is commutative, associative and idempotent, so a doubled or reordered event changes
//! nothing; only the reading of the marks takes them away.
//! Invariant: one set per session, so a flood of events cannot grow the memory.

use super::hint::Hint;

/// How soon a session wants to be read. The order is that of urgency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// Nothing happened.
    #[default]
    None,
    /// A transaction is on its way; read if nothing else is heard.
    Late,
    /// A transaction may have ended; read unless its end is announced at once.
    Soon,
    /// Read now.
    Now,
}

/// What is known to have happened in a session since its marks were last taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Marks {
    /// How soon to read outbound.db.
    pub read: Urgency,
    /// The liveness file was touched.
    pub heartbeat: bool,
    /// The folder itself went, moved or came back.
    pub folder: bool,
}

impl Marks {
    /// After a full look: everything may have happened, nobody knows.
    pub const ALL: Self = Self { read: Urgency::Now, heartbeat: true, folder: true };

    /// The marks of one hint.
    pub fn of(hint: Hint) -> Self {
        let none = Self::default();
        match hint {
            Hint::Committed | Hint::Replaced => Self { read: Urgency::Now, ..none },
            Hint::Finished => Self { read: Urgency::Soon, ..none },
            Hint::Writing | Hint::Closed => Self { read: Urgency::Late, ..none },
            Hint::Heartbeat => Self { heartbeat: true, ..none },
            Hint::Folder => Self { read: Urgency::Now, folder: true, ..none },
        }
    }

    /// Both sets together.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            read: self.read.max(other.read),
            heartbeat: self.heartbeat || other.heartbeat,
            folder: self.folder || other.folder,
        }
    }

    /// Whether nothing happened.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HINTS: [Hint; 7] = [
        Hint::Committed,
        Hint::Finished,
        Hint::Writing,
        Hint::Replaced,
        Hint::Closed,
        Hint::Heartbeat,
        Hint::Folder,
    ];

    fn fold(hints: &[Hint]) -> Marks {
        hints.iter().fold(Marks::default(), |held, hint| held.with(Marks::of(*hint)))
    }

    #[test]
    fn the_table_of_single_hints() {
        let rows: Vec<String> = HINTS
            .iter()
            .map(|hint| {
                let marks = Marks::of(*hint);
                format!("{hint:?} {:?} {} {}", marks.read, marks.heartbeat, marks.folder)
            })
            .collect();
        assert_eq!(
            rows,
            [
                "Committed Now false false",
                "Finished Soon false false",
                "Writing Late false false",
                "Replaced Now false false",
                "Closed Late false false",
                "Heartbeat None true false",
                "Folder Now false true",
            ]
        );
    }

    proptest! {
        #[test]
        fn order_and_repetition_change_nothing(
            mut picks in prop::collection::vec(0usize..HINTS.len(), 0..20),
        ) {
            let hints: Vec<Hint> = picks.iter().map(|pick| HINTS[*pick]).collect();
            let marks = fold(&hints);
            let doubled: Vec<Hint> = hints.iter().chain(&hints).copied().collect();
            prop_assert_eq!(fold(&doubled), marks);
            picks.reverse();
            let reversed: Vec<Hint> = picks.iter().map(|pick| HINTS[*pick]).collect();
            prop_assert_eq!(fold(&reversed), marks);
            prop_assert_eq!(marks.is_empty(), hints.is_empty());
        }

        #[test]
        fn no_hint_takes_another_away(picks in prop::collection::vec(0usize..HINTS.len(), 1..20)) {
            let hints: Vec<Hint> = picks.iter().map(|pick| HINTS[*pick]).collect();
            let all = fold(&hints);
            for hint in &hints {
                prop_assert_eq!(all.with(Marks::of(*hint)), all);
            }
            prop_assert_eq!(all.with(Marks::ALL), Marks::ALL);
        }
    }
}
