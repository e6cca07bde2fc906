//! What operators ask for, resolved: names become numbers, ids become rows.
//!
//! Invariant: no file is opened here; what only a file knows is a search, which is made beside the loop.

use super::control::Request;
use super::folder::DataFolder;
use super::lookups::{Search, Wanted};
use crate::base::{MessageNo, SessionNo};
use crate::machine::input::Ask;
use crate::machine::state::{Source, State};
use crate::session::host_side::Guard;

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

/// What is to be done about a request.
#[derive(Debug)]
pub enum Question {
    /// To ask the machine.
    Ask(Ask),
    /// To look for the message first.
    Search(Search),
}

/// What is to be done about a request.
///
/// # Errors
/// When what it names is not known.
pub fn question_of(
    state: &State,
    data: &DataFolder,
    guard: Guard,
    request: Request,
) -> Result<Question, String> {
    let search = |wanted, first| Question::Search(search(state, data, guard, wanted, first));
    match request {
        Request::SessionStop { session } => {
            find_session(state, &session).map(|no| Question::Ask(Ask::StopSession(no)))
        }
        Request::SessionStart { session } => {
            find_session(state, &session).map(|no| Question::Ask(Ask::StartSession(no)))
        }
        Request::SessionReset { session } => {
            find_session(state, &session).map(|no| Question::Ask(Ask::ResetSession(no)))
        }
        Request::MessageRetry { message } => {
            let first = open_inbound(state, &message);
            let suffixed = format!("{message}:{}", state.directory().group);
            Ok(search(Wanted::Inbound([message, suffixed]), first))
        }
        Request::MessageDrop { message } => {
            let (session, id) = find_open(state, &message)?;
            Ok(Question::Ask(Ask::DropMessage { session, id }))
        }
        Request::MessageResend { message } => {
            let (id, first) = match row_of_number(state, &message) {
                Some((session, id)) => (id, Some(session)),
                None => {
                    let first = open_outbound(state, &message);
                    (message, first)
                }
            };
            Ok(search(Wanted::Outbound(id), first))
        }
        Request::Status | Request::SessionShow { .. } | Request::Shutdown { .. } => {
            Err("this is not a question to the machine".into())
        }
    }
}

/// Through all sessions: first the one that is known to have it, last those that could not be read when last tried.
fn search(
    state: &State,
    data: &DataFolder,
    guard: Guard,
    wanted: Wanted,
    first: Option<SessionNo>,
) -> Search {
    let mut order: Vec<_> = state.sessions().iter().collect();
    order.sort_by_key(|(no, session)| (first != Some(**no), session.trouble.is_some()));
    let place = |(no, session): (&SessionNo, &crate::machine::state::Session)| {
        (*no, session.name.clone(), data.session(&session.name))
    };
    let places = order.into_iter().map(|(no, session)| place((no, session))).collect();
    Search { wanted, places, seed: data.installation(), guard }
}

fn same(state: &State, id: &str, text: &str) -> bool {
    id == text || id.strip_suffix(&format!(":{}", state.directory().group)) == Some(text)
}

/// The open message of a text: an inbound one's id, or any one's number as status shows it, or else the id of an
/// outbound row. That one is last, because a container chooses it and could give it another message's name.
fn find_open(state: &State, text: &str) -> Result<(SessionNo, String), String> {
    let number = number_of(text);
    let by_id = state.inbounds().iter().find(|(_, message)| same(state, &message.id, text));
    if let Some((&no, message)) = by_id {
        let other = number.filter(|&number| number != no && is_open(state, number));
        return match other {
            None => Ok((message.session, message.id.clone())),
            Some(number) => Err(format!(
                "{text} is the id of an inbound message and the number of another one; name the first as {:?}, and \
                 the other as `lamplighter session show` has it when the first is settled ({number})",
                message.id
            )),
        };
    }
    if let Some(number) = number {
        if let Some(message) = state.inbound(number) {
            return Ok((message.session, message.id.clone()));
        }
        if let Some(message) = state.outbound(number) {
            return match &message.source {
                Source::Row { id, .. } => Ok((message.session, id.clone())),
                Source::Notice(_) => Err(format!("{text} is the host's own notice, which needs no dropping")),
            };
        }
    }
    let row = state.outbounds().values().find_map(|message| match &message.source {
        Source::Row { id, .. } if id == text => Some((message.session, id.clone())),
        _ => None,
    });
    row.ok_or_else(|| format!("no open message has the id or number {text:?}"))
}

/// The number that a text is, written as status shows it.
fn number_of(text: &str) -> Option<MessageNo> {
    let digits = text.strip_prefix('m')?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| plain).map(MessageNo)
}

fn is_open(state: &State, no: MessageNo) -> bool {
    state.inbound(no).is_some() || state.outbound(no).is_some()
}

/// The row id of an open outbound message that is named by its number.
fn row_of_number(state: &State, text: &str) -> Option<(SessionNo, String)> {
    let message = state.outbound(number_of(text)?)?;
    match &message.source {
        Source::Row { id, .. } => Some((message.session, id.clone())),
        Source::Notice(_) => None,
    }
}

fn open_inbound(state: &State, text: &str) -> Option<SessionNo> {
    state.inbounds().values().find(|m| same(state, &m.id, text)).map(|m| m.session)
}

fn open_outbound(state: &State, text: &str) -> Option<SessionNo> {
    state.outbounds().values().find_map(|m| match &m.source {
        Source::Row { id, .. } if id == text => Some(m.session),
        _ => None,
    })
}
