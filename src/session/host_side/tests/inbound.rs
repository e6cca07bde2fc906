//! Writing inbound.db: numbers, duplicates, changes, locks and a killed host.

use std::fs;

use rusqlite::Connection;

use super::{NOW, Outcome, Session, inbound};
use crate::base::{Ms, Wall};
use crate::session::host_side::{Change, InboundWriter, heal};
use crate::session::layout::journal_of;
use crate::session::rows::{Address, Delivered, Destination, InboundStatus, NewInbound, Target};
use crate::session::runner_side::{InboundReader, Opening};

#[test]
fn messages_are_numbered_even_and_a_second_insert_is_a_duplicate() -> Outcome {
    let session = Session::new()?;
    let mut writer = InboundWriter::open(&session.folder)?;
    let first = writer.insert_if_absent(&inbound("a"))?;
    let second = writer.insert_if_absent(&inbound("b"))?;
    let again = writer.insert_if_absent(&NewInbound { content: "other".into(), ..inbound("a") })?;
    assert_eq!((first.seq, first.duplicate), (Some(2), false));
    assert_eq!((second.seq, second.duplicate), (Some(4), false));
    assert_eq!((again.seq, again.duplicate), (Some(2), true));
    let stored = writer.message("a")?.ok_or("a is gone")?;
    assert_eq!(stored, NewInbound { series_id: Some("a".into()), ..inbound("a") });
    Ok(())
}

#[test]
fn pending_rows_come_in_pages_and_without_those_that_are_done() -> Outcome {
    let session = Session::new()?;
    let mut writer = InboundWriter::open(&session.folder)?;
    for id in ["a", "b", "c", "d"] {
        writer.insert_if_absent(&inbound(id))?;
    }
    writer.apply(&[Change::SetStatus { id: "b".into(), status: InboundStatus::Completed }])?;
    let first = writer.pending_page(Some(true), 0, 2)?;
    assert_eq!(first.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    let rest = writer.pending_page(Some(true), first.last().map_or(0, |row| row.rowid), 2)?;
    assert_eq!(rest.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["d"]);
    assert_eq!(rest.first().map(|row| row.address.clone()), Some(Address::new("cli", "local", None)));
    let context = NewInbound { trigger: false, ..inbound("e") };
    writer.insert_if_absent(&context)?;
    for (trigger, expected) in [(Some(true), "a c d"), (Some(false), "e"), (None, "a c d e")] {
        let page = writer.pending_page(trigger, 0, 10)?;
        let ids: Vec<&str> = page.iter().map(|row| row.id.as_str()).collect();
        assert_eq!(ids.join(" "), expected);
    }
    Ok(())
}

#[test]
fn a_rescheduled_message_is_hidden_until_it_is_due() -> Outcome {
    let session = Session::new()?;
    let mut writer = InboundWriter::open(&session.folder)?;
    writer.insert_if_absent(&inbound("a"))?;
    let due = NOW + Ms::secs(5);
    let change = Change::Reschedule { id: "a".into(), tries: 1, process_after: Some(due) };
    assert_eq!(writer.apply(&[change])?, [1]);
    let mut reader = InboundReader::new(&session.folder, Opening::Fresh);
    let rows = reader.pending(10, &mut |_| false)?;
    let count = |now: Wall| rows.iter().filter(|row| row.is_due(now)).count();
    assert_eq!((rows.len(), count(NOW), count(Wall(due.0 - 1)), count(due)), (1, 0, 0, 1));
    Ok(())
}

#[test]
fn deliveries_destinations_and_routing_are_seen_by_the_runner() -> Outcome {
    let session = Session::new()?;
    let mut writer = InboundWriter::open(&session.folder)?;
    let delivered = Delivered {
        message_out_id: "o1".into(),
        platform_message_id: Some("42".into()),
        delivered: true,
        delivered_at: "2026-05-18 09:30:00".into(),
    };
    let failed = Delivered { delivered: false, platform_message_id: None, ..delivered.clone() };
    let destinations = vec![
        Destination {
            name: "family".into(),
            display_name: Some("Family".into()),
            target: Target::Channel { channel_type: "cli".into(), platform_id: "local".into() },
        },
        Destination {
            name: "helper".into(),
            display_name: None,
            target: Target::Agent { agent_group_id: "ag-1".into() },
        },
    ];
    let changed = writer.apply(&[
        Change::RecordDelivered(delivered.clone()),
        Change::RecordDelivered(failed),
        Change::ReplaceDestinations(destinations.clone()),
        Change::ReplaceDestinations(destinations.clone()),
        Change::SetRouting(Address::default()),
        Change::SetRouting(Address::new("cli", "local", Some("t".into()))),
    ])?;
    assert_eq!(changed, [1, 0, 2, 2, 1, 1]);
    assert_eq!(writer.delivered(&["o1", "o2"])?, std::slice::from_ref(&delivered));
    let mut reader = InboundReader::new(&session.folder, Opening::Kept);
    assert_eq!(reader.delivered("o1")?, Some(delivered));
    assert_eq!(reader.destinations()?, destinations);
    assert_eq!(reader.session_routing()?, Some(Address::new("cli", "local", Some("t".into()))));
    assert_eq!(writer.routing()?, reader.session_routing()?);
    Ok(())
}

#[test]
fn a_message_that_did_not_arrive_may_arrive_later_and_one_that_did_stays_so() -> Outcome {
    let session = Session::new()?;
    let mut writer = InboundWriter::open(&session.folder)?;
    let record = |delivered| {
        Change::RecordDelivered(Delivered {
            message_out_id: "o1".into(),
            platform_message_id: None,
            delivered,
            delivered_at: "2026-05-18 09:30:00".into(),
        })
    };
    for (delivered, expected) in [(false, false), (true, true), (false, true)] {
        writer.apply(&[record(delivered)])?;
        assert_eq!(writer.delivered(&["o1"])?[0].delivered, expected);
    }
    Ok(())
}

#[test]
fn a_read_lock_held_by_the_container_ends_a_write_with_locked_and_changes_nothing() -> Outcome {
    let session = Session::new()?;
    let mut writer = InboundWriter::open(&session.folder)?;
    writer.insert_if_absent(&inbound("a"))?;
    let container = Connection::open(session.folder.inbound_db())?;
    container.execute_batch("BEGIN; SELECT count(*) FROM messages_in")?;
    let refused = writer.insert_if_absent(&inbound("b"));
    assert!(refused.is_err_and(|error| error.is_locked()));
    container.execute_batch("COMMIT")?;
    assert_eq!(writer.insert_if_absent(&inbound("b"))?.seq, Some(4));
    Ok(())
}

#[test]
fn a_killed_hosts_half_transaction_is_healed_at_the_start() -> Outcome {
    let session = Session::new()?;
    let path = session.folder.inbound_db();
    InboundWriter::open(&session.folder)?.insert_if_absent(&inbound("a"))?;
    assert!(!heal(&session.folder)?);
    let killed = Connection::open(&path)?;
    killed.execute_batch(
        "PRAGMA cache_size = 1; PRAGMA cache_spill = 1; BEGIN IMMEDIATE;
         WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 500)
         INSERT INTO messages_in (id, kind, timestamp, content)
           SELECT 'lost' || x, 'chat', 't', printf('%.*c', 500, 'x') FROM n;",
    )?;
    let (database, journal) = (fs::read(&path)?, fs::read(journal_of(&path))?);
    drop(killed);
    fs::write(&path, database)?;
    fs::write(journal_of(&path), journal)?;
    // To the runner the host is away, and no more than that.
    let mut reader = InboundReader::new(&session.folder, Opening::Kept);
    assert!(reader.max_seq().is_err_and(|error| error.is_host_away()));
    assert!(heal(&session.folder)?);
    assert_eq!(reader.max_seq()?, 2);
    Ok(())
}
