//! The changes that the host makes to inbound.db, one statement or a few for each.
//!
//! Invariant: everything here runs inside a transaction of [`InboundWriter`](super::InboundWriter).

use rusqlite::{Connection, OptionalExtension, params};

use crate::base::Wall;
use crate::session::rows::{Address, Delivered, Destination, InboundStatus, NewInbound, Target};
use crate::session::{seq, timestamp};

/// What became of an insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// The row's number; of the old row when it is a duplicate. Old rows may have none.
    pub seq: Option<i64>,
    /// Whether a row with this id was there already; it was left as it is.
    pub duplicate: bool,
}

/// One change of inbound.db.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Inserts a message unless its id is there.
    Insert(NewInbound),
    /// Sets a message's status.
    SetStatus {
        /// The message.
        id: String,
        /// Its new status.
        status: InboundStatus,
    },
    /// Makes a message pending again.
    Reschedule {
        /// The message.
        id: String,
        /// How often an attempt at it ended abnormally.
        tries: u32,
        /// Not due before this; `None` is now.
        process_after: Option<Wall>,
    },
    /// Records what became of an outbound message. One that has arrived stays so, whatever a later delivery came
    /// to; one that has not may arrive later (`message resend`).
    RecordDelivered(Delivered),
    /// Replaces all names that the agent may write to.
    ReplaceDestinations(Vec<Destination>),
    /// Sets where the session's own answers go; all parts missing when it has no chat.
    SetRouting(Address),
}

/// Inserts a message unless its id is there.
pub(super) fn insert(db: &Connection, message: &NewInbound) -> rusqlite::Result<Inserted> {
    let known: Option<Option<i64>> = db
        .prepare_cached("SELECT seq FROM messages_in WHERE id = ?1")?
        .query_row([&message.id], |row| row.get(0))
        .optional()?;
    if let Some(seq) = known {
        return Ok(Inserted { seq, duplicate: true });
    }
    let max: Option<i64> =
        db.prepare_cached("SELECT max(seq) FROM messages_in")?.query_row([], |row| row.get(0))?;
    let seq = seq::next_inbound(max.unwrap_or(0));
    db.prepare_cached(
        "INSERT INTO messages_in (id, seq, kind, timestamp, status, process_after, recurrence, series_id, \
         tries, trigger, platform_id, channel_type, thread_id, content, source_session_id, on_wake) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 0, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
    )?
    .execute(params![
        message.id,
        seq,
        message.kind,
        message.timestamp,
        message.status.as_str(),
        message.process_after,
        message.recurrence,
        message.series_id.as_ref().unwrap_or(&message.id),
        message.trigger,
        message.address.platform_id,
        message.address.channel_type,
        message.address.thread_id,
        message.content,
        message.source_session_id,
        message.on_wake,
    ])?;
    Ok(Inserted { seq: Some(seq), duplicate: false })
}

/// Makes one change and returns how many rows it changed.
pub(super) fn apply(db: &Connection, change: &Change) -> rusqlite::Result<usize> {
    match change {
        Change::Insert(message) => Ok(usize::from(!insert(db, message)?.duplicate)),
        Change::SetStatus { id, status } => db
            .prepare_cached("UPDATE messages_in SET status = ?2 WHERE id = ?1")?
            .execute(params![id, status.as_str()]),
        Change::Reschedule { id, tries, process_after } => db
            .prepare_cached(
                "UPDATE messages_in SET status = 'pending', tries = ?2, process_after = ?3 WHERE id = ?1",
            )?
            .execute(params![id, tries, process_after.map(timestamp::iso)]),
        Change::RecordDelivered(delivered) => db
            .prepare_cached(
                "INSERT INTO delivered (message_out_id, platform_message_id, status, delivered_at) \
                 VALUES (?1, ?2, ?3, ?4) \
                 ON CONFLICT (message_out_id) DO UPDATE \
                 SET platform_message_id = ?2, status = ?3, delivered_at = ?4 WHERE status <> 'delivered'",
            )?
            .execute(params![
                delivered.message_out_id,
                delivered.platform_message_id,
                delivered.status(),
                delivered.delivered_at
            ]),
        Change::ReplaceDestinations(destinations) => replace_destinations(db, destinations),
        Change::SetRouting(address) => db
            .prepare_cached(
                "INSERT INTO session_routing (id, channel_type, platform_id, thread_id) \
                 VALUES (1, ?1, ?2, ?3) \
                 ON CONFLICT (id) DO UPDATE SET channel_type = ?1, platform_id = ?2, thread_id = ?3",
            )?
            .execute(params![address.channel_type, address.platform_id, address.thread_id]),
    }
}

fn replace_destinations(db: &Connection, destinations: &[Destination]) -> rusqlite::Result<usize> {
    db.execute("DELETE FROM destinations", [])?;
    let mut statement = db.prepare_cached(
        "INSERT INTO destinations (name, display_name, type, channel_type, platform_id, agent_group_id) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for Destination { name, display_name, target } in destinations {
        let none = None::<&str>;
        match target {
            Target::Channel { channel_type, platform_id } => {
                statement.execute(params![name, display_name, "channel", channel_type, platform_id, none])?
            }
            Target::Agent { agent_group_id } => {
                statement.execute(params![name, display_name, "agent", none, none, agent_group_id])?
            }
        };
    }
    Ok(destinations.len())
}
