//! What operators ask for, resolved: names become numbers, ids become rows.

use std::collections::BTreeSet;

use super::control::Request;
use super::facts;
use super::folder::DataFolder;
use crate::base::{SessionName, SessionNo};
use crate::machine::input::{Ask, Due, PendingRow};
use crate::machine::state::State;
use crate::session::SessionFolder;
use crate::session::host_side::{Guard, InboundWriter, OutboundReader, ReadAsk};
use crate::session::rows::NewInbound;

/// Rows of one page when a message is looked for in a session's outbound.db.
const PAGE: usize = 256;

/// The session of a name: `group/session`, the session's own name, or its number as status shows it.
///
/// # Errors
/// When there is none, or more than one.
pub fn find_session(state: &State, text: &str) -> Result<SessionNo, String> {
    let found: Vec<SessionNo> =
        state.sessions().keys().copied().filter(|&no| state.is_named(no, text)).collect();
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(format!("there is no session {text:?}; `lamplighter session ls` lists them")),
        _ => Err(format!("{text:?} names several sessions; use group/session")),
    }
}

/// The question to the machine.
///
/// # Errors
/// When what it names cannot be found.
pub fn ask_of(state: &State, data: &DataFolder, request: Request) -> Result<Ask, String> {
    match request {
        Request::SessionStop { session } => find_session(state, &session).map(Ask::StopSession),
        Request::SessionStart { session } => find_session(state, &session).map(Ask::StartSession),
        Request::SessionReset { session } => find_session(state, &session).map(Ask::ResetSession),
        Request::MessageRetry { message } => {
            let (session, row) = find_inbound(state, data, &message)?;
            Ok(Ask::RetryMessage { session, row: pending(row) })
        }
        Request::MessageDrop { message } => {
            let session = find_open(state, &message)?;
            Ok(Ask::DropMessage { session, id: full_id(state, session, &message) })
        }
        Request::MessageResend { message } => find_outbound(state, data, &message),
        Request::Status | Request::SessionShow { .. } | Request::Shutdown => {
            Err("this is not a question to the machine".into())
        }
    }
}

fn same(state: &State, id: &str, text: &str) -> bool {
    id == text || id.strip_suffix(&format!(":{}", state.directory().group)) == Some(text)
}

fn full_id(state: &State, session: SessionNo, text: &str) -> String {
    let known = state.session(session);
    known
        .and_then(|s| s.inbox.iter().find_map(|no| state.inbound(*no).filter(|m| same(state, &m.id, text))))
        .map_or_else(|| text.to_owned(), |message| message.id.clone())
}

fn find_open(state: &State, text: &str) -> Result<SessionNo, String> {
    let inbound = state.inbounds().values().find(|m| same(state, &m.id, text)).map(|m| m.session);
    let outbound = || {
        state.outbounds().values().find_map(|m| match &m.source {
            crate::machine::state::Source::Row { id, .. } if id == text => Some(m.session),
            _ => None,
        })
    };
    inbound.or_else(outbound).ok_or_else(|| format!("no open message has the id {text:?}"))
}

fn find_inbound(state: &State, data: &DataFolder, text: &str) -> Result<(SessionNo, NewInbound), String> {
    let suffixed = format!("{text}:{}", state.directory().group);
    for (&no, session) in state.sessions() {
        let Ok(writer) = InboundWriter::open(&SessionFolder::nested(data.session(&session.name))) else {
            continue;
        };
        for id in [text, suffixed.as_str()] {
            if let Some(row) = writer.message(id).map_err(|error| error.to_string())? {
                return Ok((no, row));
            }
        }
    }
    Err(format!("no inbound message has the id {text:?}"))
}

fn pending(row: NewInbound) -> PendingRow {
    PendingRow { id: row.id, seq: None, trigger: row.trigger, tries: 0, due: Due::Now, origin: row.address }
}

fn find_outbound(state: &State, data: &DataFolder, text: &str) -> Result<Ask, String> {
    for (&no, session) in state.sessions() {
        let folder = SessionFolder::nested(data.session(&session.name));
        let mut reader = OutboundReader::new(session.name.clone(), &folder, Guard::default());
        let mut cursor = None;
        loop {
            let ask = ReadAsk { cursor: cursor.as_ref(), ids: &[], max_rows: PAGE, max_bytes: 1 << 20 };
            // A session that cannot be read now is not the one, or cannot be sent from now.
            let Ok(reading) = reader.read(&ask) else { break };
            if let Some(row) = reading.rows.iter().find(|row| row.id() == Some(text)) {
                return Ok(Ask::ResendMessage { session: no, row: facts::of_row(row, data.installation()) });
            }
            if !reading.more {
                break;
            }
            cursor = reading.cursor;
        }
    }
    Err(format!("no outbound message has the id {text:?}"))
}

/// Which of these outbound messages have a `delivered` row.
///
/// # Errors
/// When inbound.db cannot be read.
pub fn delivered(data: &DataFolder, name: &SessionName, ids: &[&str]) -> Result<BTreeSet<String>, String> {
    let writer =
        InboundWriter::open(&SessionFolder::nested(data.session(name))).map_err(|error| error.to_string())?;
    let rows = writer.delivered(ids).map_err(|error| error.to_string())?;
    Ok(rows.into_iter().map(|row| row.message_out_id).collect())
}
