//! From SQLite's values to rows. The agent may have stored any type under any name.
//!
//! Invariant: a value longer than its bound never leaves this module, and one longer than the connection's
//! limit is never loaded: its length is taken from the record's header.

use std::sync::LazyLock;

use rusqlite::types::ValueRef;

use crate::session::rows::{Address, MAX_CONTENT_BYTES, MAX_FIELD_BYTES, OutboundRow};

/// One row of `messages_out` as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// A message.
    Message(OutboundRow),
    /// A row that is no message, to be reported and passed over.
    Malformed(Malformed),
}

/// A row that is no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Its place in the order of rows.
    pub rowid: i64,
    /// Its id, when that much could be read.
    pub id: Option<String>,
    /// What is wrong with it.
    pub why: String,
}

impl Row {
    /// Its place in the order of rows.
    pub fn rowid(&self) -> i64 {
        match self {
            Self::Message(row) => row.rowid,
            Self::Malformed(row) => row.rowid,
        }
    }

    /// Its id, when that much could be read.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Message(row) => Some(&row.id),
            Self::Malformed(row) => row.id.as_deref(),
        }
    }

    /// How much it holds in memory.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Message(row) => row.content.len() + row.id.len() + size_of::<OutboundRow>(),
            Self::Malformed(row) => row.why.len() + size_of::<OutboundRow>(),
        }
    }
}

/// The columns of a message in the order of [`decode`], each with its bound in bytes.
const COLUMNS: [(&str, usize); 9] = [
    ("id", MAX_FIELD_BYTES),
    ("in_reply_to", MAX_FIELD_BYTES),
    ("timestamp", MAX_FIELD_BYTES),
    ("deliver_after", MAX_FIELD_BYTES),
    ("kind", MAX_FIELD_BYTES),
    ("platform_id", MAX_FIELD_BYTES),
    ("channel_type", MAX_FIELD_BYTES),
    ("thread_id", MAX_FIELD_BYTES),
    ("content", MAX_CONTENT_BYTES),
];

/// The usual query of rows from a rowid on, in order; parameters: rowid, limit. It loads values up to the
/// connection's limit and fails with "too big" beyond it.
pub(super) static ROWS_SQL: LazyLock<String> = LazyLock::new(|| {
    let columns: String = COLUMNS.iter().map(|(column, _)| format!(", {column}")).collect();
    format!("SELECT rowid, seq{columns} FROM messages_out WHERE rowid >= ?1 ORDER BY rowid LIMIT ?2")
});

/// The same for a file with values that are too big: each is loaded only within its bound, and its length
/// follows, taken from the record's header. It costs three times as much.
pub(super) static GUARDED_ROWS_SQL: LazyLock<String> = LazyLock::new(|| {
    let values: String = COLUMNS.iter().map(|(column, max)| format!(", {}", bounded(column, *max))).collect();
    let lengths: String = COLUMNS.iter().map(|(column, _)| format!(", octet_length({column})")).collect();
    format!("SELECT rowid, seq{values}{lengths} FROM messages_out WHERE rowid >= ?1 ORDER BY rowid LIMIT ?2")
});

/// The columns before those of [`COLUMNS`]: rowid and seq.
const FIRST: usize = 2;

/// SQL for a column's value, or NULL when it is longer than `max` bytes.
pub(super) fn bounded(column: &str, max: usize) -> String {
    format!("CASE WHEN octet_length({column}) <= {max} THEN {column} END")
}

/// Reads one row of [`ROWS_SQL`] or [`GUARDED_ROWS_SQL`]. Only a rowid that is no number fails: then the
/// table is not the contract's.
pub(super) fn decode(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let rowid: i64 = row.get(0)?;
    let id = field(row, 0)?.ok().flatten().filter(|id| !id.is_empty());
    Ok(match message(row, rowid)? {
        Ok(message) => Row::Message(message),
        Err(why) => Row::Malformed(Malformed { rowid, id, why }),
    })
}

/// The outer error is SQLite's, the inner one says what is wrong with the row.
fn message(row: &rusqlite::Row<'_>, rowid: i64) -> rusqlite::Result<Result<OutboundRow, String>> {
    let seq = match row.get_ref(1)? {
        ValueRef::Null => None,
        ValueRef::Integer(seq) => Some(seq),
        _ => return Ok(Err("seq is not a number".into())),
    };
    let mut fields = Vec::with_capacity(COLUMNS.len());
    for index in 0..COLUMNS.len() {
        match field(row, index)? {
            Ok(value) => fields.push(value),
            Err(why) => return Ok(Err(why)),
        }
    }
    let Ok([id, in_reply_to, timestamp, deliver_after, kind, platform_id, channel_type, thread_id, content]) =
        <[Option<String>; COLUMNS.len()]>::try_from(fields)
    else {
        return Ok(Err("the row has other columns".into()));
    };
    let (Some(id), Some(timestamp), Some(kind), Some(content)) = (id, timestamp, kind, content) else {
        return Ok(Err("id, timestamp, kind or content is NULL".into()));
    };
    if id.is_empty() {
        return Ok(Err("id is empty".into()));
    }
    let address = Address { channel_type, platform_id, thread_id };
    Ok(Ok(OutboundRow { rowid, id, seq, in_reply_to, timestamp, deliver_after, kind, address, content }))
}

/// The column of this index in [`COLUMNS`].
fn field(row: &rusqlite::Row<'_>, index: usize) -> rusqlite::Result<Result<Option<String>, String>> {
    let Some((name, max)) = COLUMNS.get(index) else { return Ok(Ok(None)) };
    let value = row.get_ref(FIRST + index)?;
    let length = FIRST + COLUMNS.len() + index;
    let bytes = match value {
        ValueRef::Text(bytes) => i64::try_from(bytes.len()).unwrap_or(i64::MAX),
        // Withheld, or really NULL and without a length; the usual query has no lengths.
        ValueRef::Null if length < row.as_ref().column_count() => {
            row.get::<_, Option<i64>>(length)?.unwrap_or(0)
        }
        _ => 0,
    };
    if usize::try_from(bytes).is_ok_and(|bytes| bytes > *max) {
        return Ok(Err(format!("{name} has {bytes} bytes, {max} are allowed")));
    }
    Ok(text(value).map_err(|why| format!("{name} {why}")))
}

/// Text or nothing. A NUL is refused because other programs would see the text end there.
pub(super) fn text(value: ValueRef<'_>) -> Result<Option<String>, &'static str> {
    match value {
        ValueRef::Null => Ok(None),
        ValueRef::Text(bytes) if bytes.contains(&0) => Err("contains NUL"),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(_) => Err("is not UTF-8"),
        },
        _ => Err("is not text"),
    }
}
