//! Who may send what where. Every decision of that kind is made here and nowhere else.
//!
//! Today there is one agent group: each chat of a channel has one session of it, and a session may send to its own
//! chat only.

use super::effect::Denial;
use super::input::{OutKind, OutRow};
use super::state::{Directory, Session};
use crate::base::SessionNo;
use crate::session::rows::Address;

/// The channel type of rows that go to an agent or the host itself (contract 4.1).
pub const AGENT_CHANNEL: &str = "agent";

/// The session that a chat talks to, if it has one yet.
pub fn session_of(directory: &Directory, channel: &str, chat: &str) -> Option<SessionNo> {
    directory.chats.get(&(channel.to_owned(), chat.to_owned())).copied()
}

/// Where a row of messages_out goes.
///
/// # Errors
/// Why the agent may not send it.
pub fn target_of(session: &Session, row: &OutRow) -> Result<Address, Denial> {
    match &row.kind {
        OutKind::Malformed(why) => return Err(Denial::Malformed(why.clone())),
        OutKind::System(action) => return Err(Denial::UnsupportedAction(action.clone())),
        OutKind::Message | OutKind::Question(_) => {}
    }
    let (Some(channel), Some(chat)) = (&row.to.channel_type, &row.to.platform_id) else {
        return Err(Denial::NoAddress);
    };
    let own = session.origin.channel_type.as_ref() == Some(channel)
        && session.origin.platform_id.as_ref() == Some(chat);
    if own { Ok(row.to.clone()) } else { Err(Denial::NotADestination) }
}

/// The address that notes of the host to an agent come from: the agent's own group.
pub fn note_origin(group: &str) -> Address {
    Address {
        channel_type: Some(AGENT_CHANNEL.to_owned()),
        platform_id: Some(group.to_owned()),
        thread_id: None,
    }
}

/// Whether an address is one that a channel delivers to, rather than an agent.
pub fn is_chat(address: &Address) -> bool {
    address.channel_type.as_deref().is_some_and(|channel| channel != AGENT_CHANNEL)
        && address.platform_id.is_some()
}
