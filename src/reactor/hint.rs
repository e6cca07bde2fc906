//! What a file event says about a session: a pure table from (file name, kind of change) to a hint.
//!
//! Invariant: nothing that the host's own reads cause is a hint (opening, closing after reading, attributes
//! of the database), or a read would cause the next one (floor N1).
//! Invariant: a hint only says "look"; the journal is removed on rollback too, so the cursor decides (floor
//! S6).

use crate::session::layout::{HEARTBEAT, JOURNAL_SUFFIX, OUTBOUND_DB};

/// What happened to one name, in words that no watcher library owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// The name came to be.
    Created,
    /// The name is gone.
    Removed,
    /// Bytes were written or the length was changed.
    Written,
    /// Somebody who could write closed the file.
    ClosedAfterWrite,
    /// Times, owner or rights changed.
    Touched,
    /// The name was moved away, or the watched folder itself was.
    MovedFrom,
    /// Something was moved to this name.
    MovedTo,
}

impl Change {
    /// All of them, for tables.
    pub const ALL: [Self; 7] = [
        Self::Created,
        Self::Removed,
        Self::Written,
        Self::ClosedAfterWrite,
        Self::Touched,
        Self::MovedFrom,
        Self::MovedTo,
    ];
}

/// What an event means for its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hint {
    /// The journal was removed: a writer in journal mode DELETE committed or rolled back. Its lock is about
    /// to go.
    Committed,
    /// The journal was closed after writing: the end of a transaction in the modes TRUNCATE and PERSIST, and
    /// the moment before [`Hint::Committed`] in mode DELETE.
    Finished,
    /// The journal was written: a transaction is on its way. Alone it means little, but some mounts report
    /// writes and no removals (floor N14).
    Writing,
    /// The database's name stands for another file now, or for none.
    Replaced,
    /// The database's writer closed it: all that is heard of a transaction that had no journal file.
    Closed,
    /// The liveness file was touched.
    Heartbeat,
    /// The watched folder itself is gone or has another name.
    Folder,
}

/// Which of the watched names an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Database,
    Journal,
    Heartbeat,
}

fn known(name: &[u8]) -> Option<Name> {
    let database = OUTBOUND_DB.as_bytes();
    match name.strip_prefix(database) {
        Some(b"") => Some(Name::Database),
        Some(rest) if rest == JOURNAL_SUFFIX.as_bytes() => Some(Name::Journal),
        _ => (name == HEARTBEAT.as_bytes()).then_some(Name::Heartbeat),
    }
}

/// Whether a change of the file `name`, of whatever kind, is an event about rows: proof that they are announced, also
/// where it is no hint.
pub fn is_of_rows(name: &[u8]) -> bool {
    matches!(known(name), Some(Name::Database | Name::Journal))
}

/// The hint in a change of the file `name` inside a watched folder; `None` for names and changes that say
/// nothing.
pub fn of_file(name: &[u8], change: Change) -> Option<Hint> {
    use Change::{ClosedAfterWrite, Created, MovedFrom, MovedTo, Removed, Touched, Written};
    match (known(name)?, change) {
        (Name::Journal, Removed | MovedFrom) => Some(Hint::Committed),
        (Name::Journal, ClosedAfterWrite) => Some(Hint::Finished),
        (Name::Journal, Written) => Some(Hint::Writing),
        (Name::Journal, Created | Touched | MovedTo) => None,
        // The database is written before the journal goes, with nothing committed yet: no hint.
        (Name::Database, Written | Touched) => None,
        (Name::Database, Created | Removed | MovedFrom | MovedTo) => Some(Hint::Replaced),
        (Name::Database, ClosedAfterWrite) => Some(Hint::Closed),
        (Name::Heartbeat, Removed | MovedFrom) => None,
        (Name::Heartbeat, Created | Written | ClosedAfterWrite | Touched | MovedTo) => Some(Hint::Heartbeat),
    }
}

/// The hint in a change of the watched folder itself.
pub fn of_folder(change: Change) -> Option<Hint> {
    matches!(change, Change::Removed | Change::MovedFrom).then_some(Hint::Folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_and_change_has_its_line_in_the_table() {
        let mut table = String::new();
        for name in ["outbound.db", "outbound.db-journal", ".heartbeat"] {
            for change in Change::ALL {
                let hint =
                    of_file(name.as_bytes(), change).map_or("-".to_owned(), |hint| format!("{hint:?}"));
                table.push_str(&format!("{name} {change:?} {hint}\n"));
            }
        }
        assert_eq!(
            table,
            "outbound.db Created Replaced\n\
             outbound.db Removed Replaced\n\
             outbound.db Written -\n\
             outbound.db ClosedAfterWrite Closed\n\
             outbound.db Touched -\n\
             outbound.db MovedFrom Replaced\n\
             outbound.db MovedTo Replaced\n\
             outbound.db-journal Created -\n\
             outbound.db-journal Removed Committed\n\
             outbound.db-journal Written Writing\n\
             outbound.db-journal ClosedAfterWrite Finished\n\
             outbound.db-journal Touched -\n\
             outbound.db-journal MovedFrom Committed\n\
             outbound.db-journal MovedTo -\n\
             .heartbeat Created Heartbeat\n\
             .heartbeat Removed -\n\
             .heartbeat Written Heartbeat\n\
             .heartbeat ClosedAfterWrite Heartbeat\n\
             .heartbeat Touched Heartbeat\n\
             .heartbeat MovedFrom -\n\
             .heartbeat MovedTo Heartbeat\n"
        );
    }

    #[test]
    fn the_database_and_its_journal_are_of_rows_and_nothing_else_is() {
        for (name, rows) in [
            ("outbound.db", true),
            ("outbound.db-journal", true),
            (".heartbeat", false),
            ("outbound.db-wal", false),
            ("probe", false),
        ] {
            assert_eq!(is_of_rows(name.as_bytes()), rows, "{name}");
        }
    }

    #[test]
    fn other_names_say_nothing() {
        for name in
            ["inbound.db", "inbound.db-journal", "outbound.db-wal", "outbound.db-journal~", "outbox", ""]
        {
            for change in Change::ALL {
                assert_eq!(of_file(name.as_bytes(), change), None, "{name}");
            }
        }
    }

    #[test]
    fn a_folder_that_goes_or_moves_is_a_hint_and_one_that_is_touched_is_none() {
        let hints: Vec<_> = Change::ALL.into_iter().filter(|change| of_folder(*change).is_some()).collect();
        assert_eq!(hints, [Change::Removed, Change::MovedFrom]);
    }
}
