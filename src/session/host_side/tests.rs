//! Tests of the host's handles, and what several of them share.

mod folders;
mod hostile;
mod inbound;
mod reading;

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;

use super::create;
use super::outbound::{Cause, Guard, OutboundReader, ReadAsk, Reading, Row, Unreadable};
use crate::base::{SessionName, Wall};
use crate::session::SessionFolder;
use crate::session::rows::{Address, NewInbound, NewOutbound};
use crate::session::runner_side::{OutboundError, OutboundWriter};

pub(super) type Outcome = Result<(), Box<dyn std::error::Error>>;

/// 2026-05-18T09:30:00Z.
pub(super) const NOW: Wall = Wall(1_779_096_600_000_000);

/// A session folder that vanishes with the test.
pub(super) struct Session {
    pub(super) folder: SessionFolder,
    pub(super) root: PathBuf,
    pub(super) temp: TempDir,
}

impl Session {
    pub(super) fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let temp = TempDir::new()?;
        let root = temp.path().canonicalize()?.join("group/sess-1-000001");
        let folder = create::create(&root)?;
        Ok(Self { folder, root, temp })
    }

    pub(super) fn name() -> Result<SessionName, String> {
        SessionName::new("group", "sess-1-000001")
    }

    pub(super) fn reader(&self) -> Result<OutboundReader, String> {
        Ok(OutboundReader::new(Self::name()?, &self.folder, Guard::default()))
    }

    /// The agent's own access to its file, which no rule of ours binds.
    pub(super) fn agent(&self) -> rusqlite::Result<Connection> {
        Connection::open(self.folder.outbound_db())
    }

    /// Writes answers with these ids as a well-behaved runner.
    pub(super) fn answer(&self, ids: &[&str]) -> Result<(), OutboundError> {
        OutboundWriter::open(&self.folder, None)?.transaction(NOW, |tx| {
            for id in ids {
                tx.insert(&outbound(id), 0)?;
            }
            Ok(())
        })
    }
}

pub(super) fn inbound(id: &str) -> NewInbound {
    NewInbound::new(
        id,
        "chat",
        "2026-05-18T09:30:00.000Z",
        Address::new("cli", "local", None),
        r#"{"text":"hi"}"#,
    )
}

pub(super) fn outbound(id: &str) -> NewOutbound {
    NewOutbound {
        id: id.into(),
        in_reply_to: None,
        deliver_after: None,
        kind: "chat".into(),
        address: Address::new("cli", "local", None),
        content: r#"{"text":"hello"}"#.into(),
    }
}

pub(super) const ALL: ReadAsk<'static> =
    ReadAsk { cursor: None, ids: &[], max_rows: 256, max_bytes: 256 * 1024 };

pub(super) fn ids(reading: &Reading) -> Vec<&str> {
    reading.rows.iter().map(|row| row.id().unwrap_or("?")).collect()
}

/// What is wrong with each row; empty for a message.
pub(super) fn faults(reading: &Reading) -> Vec<&str> {
    let why = |row| match row {
        &Row::Message(_) => "",
        Row::Malformed(row) => row.why.as_str(),
    };
    reading.rows.iter().map(why).collect()
}

/// Reads once in another thread and fails when that does not end: the hostile cases are about hanging. The
/// bound is far above any budget, so that a loaded machine does not matter.
pub(super) fn read_or_hang(
    mut reader: OutboundReader,
) -> Result<(OutboundReader, Result<Reading, Unreadable>), mpsc::RecvTimeoutError> {
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || {
        let reading = reader.read(&ALL);
        // The receiver is gone when the test has already failed.
        let _ = done.send((reader, reading));
    });
    result.recv_timeout(Duration::from_secs(30))
}

/// The cause of the first read's failure.
pub(super) fn cause(session: &Session) -> Result<Option<Cause>, Box<dyn std::error::Error>> {
    let (_, reading) = read_or_hang(session.reader()?)?;
    Ok(reading.err().map(|error| {
        assert!(!error.hint().is_empty());
        assert!(error.to_string().contains("group/sess-1-000001"), "{error}");
        error.cause
    }))
}
