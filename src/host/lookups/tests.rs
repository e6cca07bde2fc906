use rusqlite::Connection;

use super::*;
use crate::base::Wall;
use crate::host::control::Request;
use crate::host::facts::id_of;
use crate::session::host_side::{Change, ReadAsk, Unreadable, create};
use crate::session::rows::{Address, Delivered};
use crate::session::timestamp;

type Tested = Result<(), Box<dyn std::error::Error>>;

struct Sessions {
    _folder: tempfile::TempDir,
    places: Vec<(SessionNo, SessionName, PathBuf)>,
}

fn sessions(count: u32) -> Result<Sessions, Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    // No part of the path may be a link.
    let root = folder.path().canonicalize()?;
    let mut places = Vec::new();
    for no in 1..=count {
        let path = root.join(format!("s{no}"));
        create::create(&path)?;
        places.push((SessionNo(no), SessionName::new("agent", format!("s{no}"))?, path));
    }
    Ok(Sessions { _folder: folder, places })
}

impl Sessions {
    fn at(&self, n: usize) -> SessionFolder {
        SessionFolder::nested(&self.places[n].2)
    }

    fn says(&self, n: usize, ids: &[&str]) -> rusqlite::Result<()> {
        let db = Connection::open(self.at(n).outbound_db())?;
        for id in ids {
            let next = "(SELECT coalesce(max(seq), -1) + 2 FROM messages_out)";
            let columns = "id, seq, timestamp, kind, content";
            let sql =
                format!("INSERT INTO messages_out ({columns}) VALUES (?1, {next}, 't', 'chat', '{{}}')");
            db.execute(&sql, [id])?;
        }
        Ok(())
    }

    fn hears(&self, n: usize, id: &str) -> Tested {
        let mut writer = InboundWriter::open(&self.at(n))?;
        let at = timestamp::iso(Wall(1_700_000_000_000_000));
        writer.insert_if_absent(&NewInbound::new(id, "chat", at, Address::default(), "{}"))?;
        Ok(())
    }

    fn reading(&self, n: usize) -> Result<Box<Brought>, Unreadable> {
        let (no, name, _) = &self.places[n];
        let mut reader = OutboundReader::new(name.clone(), &self.at(n), Guard::default());
        let result = reader.read(&ReadAsk { cursor: None, ids: &[], max_rows: 256, max_bytes: 1 << 20 })?;
        Ok(Box::new(Brought { session: *no, look: None, result: Ok(result), copied: false, settled: None }))
    }

    fn search(&self, wanted: Wanted) -> Search {
        Search { wanted, places: self.places.clone(), seed: 0, guard: Guard::default() }
    }
}

fn no_end(search: &Search) -> Result<Ask, String> {
    search.run(SEARCH_MAX, &AtomicBool::new(false))
}

#[test]
fn a_reading_waits_for_a_lock_and_comes_back_whole() -> Tested {
    let it = sessions(1)?;
    it.says(0, &["r1", "r2"])?;
    let recorded = Delivered {
        message_out_id: "r1".into(),
        platform_message_id: None,
        delivered: true,
        delivered_at: timestamp::sqlite(Wall(1_700_000_000_000_000)),
    };
    InboundWriter::open(&it.at(0))?.apply(&[Change::RecordDelivered(recorded)])?;
    let holder = Connection::open(it.at(0).inbound_db())?;
    holder.execute_batch("BEGIN EXCLUSIVE")?;
    let check = Check::new(it.places[0].2.clone(), it.reading(0)?);
    let Err((check, first)) = check.run() else { return Err("it was looked up under a lock".into()) };
    let Err((check, second)) = check.run() else { return Err("it was looked up under a lock".into()) };
    assert!(first < second, "{first:?} {second:?}");
    holder.execute_batch("COMMIT")?;
    let Ok(brought) = check.run() else { return Err("nobody holds the lock".into()) };
    let ids: Vec<String> = brought.result?.rows.iter().map(id_of).collect();
    assert_eq!(ids, ["r1", "r2"]);
    let settled = brought.settled.ok_or("nobody looked")??;
    assert_eq!(settled.into_iter().collect::<Vec<_>>(), ["r1"]);
    Ok(())
}

#[test]
fn a_message_is_found_wherever_it_is_and_what_cannot_be_read_is_passed_over() -> Tested {
    let it = sessions(4)?;
    it.hears(2, "m1:agent")?;
    it.says(3, &["r1"])?;
    // The first cannot be read at all.
    std::fs::write(it.at(0).outbound_db(), vec![7; 8_192])?;
    std::fs::write(it.at(0).inbound_db(), vec![7; 8_192])?;
    let inbound = |id: &str| it.search(Wanted::Inbound([id.into(), format!("{id}:agent")]));
    let Ask::RetryMessage { session, row } = no_end(&inbound("m1"))? else {
        return Err("another ask".into());
    };
    assert_eq!((session, row.id.as_str()), (SessionNo(3), "m1:agent"));
    let Ask::ResendMessage { session, row } = no_end(&it.search(Wanted::Outbound("r1".into())))? else {
        return Err("another ask".into());
    };
    assert_eq!((session, row.id.as_str()), (SessionNo(4), "r1"));
    let missing = no_end(&it.search(Wanted::Outbound("typo".into()))).unwrap_err();
    assert_eq!(
        missing,
        "no outbound message has the id \"typo\" in any session but 1 that cannot be read now"
    );
    Ok(())
}

#[test]
fn a_search_ends_in_time_and_with_the_daemon() -> Tested {
    let it = sessions(2)?;
    it.says(1, &["r1"])?;
    let search = it.search(Wanted::Outbound("r1".into()));
    let late = search.run(Duration::ZERO, &AtomicBool::new(false)).unwrap_err();
    assert!(late.starts_with("looked for it in 0 of 2 sessions"), "{late}");
    assert_eq!(search.run(SEARCH_MAX, &AtomicBool::new(true)).unwrap_err(), "the daemon is stopping");
    Ok(())
}

#[test]
fn a_session_that_could_not_be_read_is_searched_last() -> Tested {
    use crate::host::clock::OsClock;
    use crate::host::folder::DataFolder;
    use crate::host::operator::{Question, question_of};
    use crate::machine::Machine;
    use crate::machine::input::{Input, Reading, SessionFound};

    let folder = tempfile::tempdir()?;
    let data = DataFolder::prepare(folder.path(), &OsClock)?;
    let mut machine = Machine::default();
    for n in 1..=3 {
        let found = SessionFound {
            name: SessionName::new("agent", format!("s{n}"))?,
            origin: Address::default(),
            pending: Vec::new(),
            delivered: Vec::new(),
            unreadable: None,
        };
        let _ = machine.step(crate::base::At(n), Input::SessionFound(found));
    }
    let first = *machine.state().sessions().keys().next().ok_or("no session")?;
    let reading =
        Reading::Unreadable { kind: crate::machine::input::Unreadable::Slow, detail: String::new() };
    let _ = machine.step(crate::base::At(9), Input::OutboundRead { session: first, reading });
    let request = Request::MessageResend { message: "r1".into() };
    let Question::Search(search) = question_of(machine.state(), &data, Guard::default(), request)? else {
        return Err("not a search".into());
    };
    assert_eq!(search.places.len(), 3);
    assert_eq!(search.places.last().map(|(no, ..)| *no), Some(first));
    Ok(())
}
