//! The lines of the chat socket: one JSON object a line, both ways.
//!
//! A client begins with `hello`, naming its chat and whether it receives replies. It sends `message` with an id of its
//! own: a repeated id is the same message. `accepted` says that the message is on disk, `refused` that it was not
//! taken. A reply comes as `message` with an id that the client acknowledges with `ack` once it has it; a reply that
//! was not acknowledged comes again with the same id, and the client drops the repeat. `settled` ends a turn: all
//! replies to that message were sent before it. `stuck` says why messages that were accepted are not worked on, once
//! for each time that this begins or is tried in vain, and again after each message that comes meanwhile.
//!
//! A reply is a text unless it has `question`, `edits` or `reacts_to`. Its `text` says all of it in plain words, so a
//! client need not know more: of a question title, text and numbered options. The next message of the chat whose first
//! line is the number or the label of an option answers it; it is `accepted` and `settled` like any other. `files` lie
//! on this machine, to be read and left where they are; `skipped` could not be sent.

use serde::{Deserialize, Serialize};

/// The protocol's version. A client that asks for another is refused.
pub const PROTOCOL: u32 = 1;
/// Longest line either way, in bytes: the bound of a message's content and room for its frame.
pub const LINE_MAX: usize = (1 << 20) + 4_096;
/// Longest message id in bytes.
pub const ID_MAX: usize = 128;

/// From a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum FromClient {
    /// Names the chat that the client is in.
    Hello {
        /// See [`PROTOCOL`].
        protocol: u32,
        /// The chat's name.
        chat: String,
        /// It wants the replies of this chat.
        #[serde(default)]
        receive: bool,
    },
    /// Something to say.
    Message {
        /// The client's id of it; made by the host when missing.
        #[serde(default)]
        id: Option<String>,
        /// The text.
        text: String,
        /// Who says it; the user of the client's process when missing.
        #[serde(default)]
        sender: Option<String>,
    },
    /// A reply has arrived.
    Ack {
        /// Its id.
        id: String,
    },
    /// Asks for a `pong`.
    Ping,
}

/// To a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToClient {
    /// Answers `hello`.
    Hello {
        /// See [`PROTOCOL`].
        protocol: u32,
    },
    /// The message is on disk.
    Accepted {
        /// The client's id of it.
        id: String,
        /// It was on disk before.
        duplicate: bool,
    },
    /// The message was not taken.
    Refused {
        /// The client's id of it.
        id: String,
        /// Why.
        reason: String,
    },
    /// A reply, to be acknowledged.
    Message {
        /// Its id.
        id: String,
        /// The chat's name.
        chat: String,
        /// The text.
        text: String,
        /// The client's id of the message that it answers.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        in_reply_to: Option<String>,
        /// The question that it is.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        question: Option<Box<QuestionLine>>,
        /// The id of the message that its text is to replace.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        edits: Option<String>,
        /// The id of the message that its text, an emoji, is a reaction to.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        reacts_to: Option<String>,
        /// Files that came with it.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        files: Vec<FileLine>,
        /// Files that should have come with it.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        skipped: Vec<SkippedLine>,
    },
    /// The agent works, or has stopped.
    Typing {
        /// The chat's name.
        chat: String,
        /// Works.
        on: bool,
    },
    /// The turn of a message ended.
    Settled {
        /// The client's id of the message.
        id: String,
        /// `completed`, `failed`, `parked` or `dropped`.
        outcome: String,
        /// Why, where there is something to say.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        reason: Option<String>,
    },
    /// The messages of the chat are kept and not worked on now.
    Stuck {
        /// The chat's name.
        chat: String,
        /// Why, and when it is tried again.
        reason: String,
        /// No try that is planned is likely to help.
        hopeless: bool,
    },
    /// Answers `ping`.
    Pong,
    /// A line could not be used.
    Error {
        /// Why.
        reason: String,
    },
}

/// A question, beside its plain text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuestionLine {
    /// Its id.
    pub id: String,
    /// Its title; may be empty.
    pub title: String,
    /// What is asked; may be empty.
    pub question: String,
    /// The labels of the options; the first has the number 1.
    pub options: Vec<String>,
    /// How long it waits for an answer, in milliseconds from when it was asked.
    pub timeout_ms: u64,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLine {
    /// Its name.
    pub name: String,
    /// Its absolute path.
    pub path: String,
    /// Its size.
    pub bytes: u64,
}

/// A file that could not be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedLine {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

impl ToClient {
    /// The line, with its end.
    pub fn line(&self) -> Vec<u8> {
        // Strings and numbers always serialise.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// Whether a text may name a chat: 1 to 64 of letters, digits, dot, dash and underscore, not beginning with a dot.
pub fn is_chat_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_their_documented_form() {
        let line: FromClient = serde_json::from_str(r#"{"type":"message","id":"a","text":"hi"}"#).unwrap();
        assert_eq!(line, FromClient::Message { id: Some("a".into()), text: "hi".into(), sender: None });
        let line = ToClient::Settled { id: "a".into(), outcome: "completed".into(), reason: None }.line();
        assert_eq!(line, b"{\"type\":\"settled\",\"id\":\"a\",\"outcome\":\"completed\"}\n");
        assert!(serde_json::from_str::<FromClient>(r#"{"type":"message","text":"x","colour":1}"#).is_err());
    }

    #[test]
    fn chat_names_are_plain() {
        assert!(is_chat_name("main") && is_chat_name("a.b-c_1"));
        assert!(
            !is_chat_name("")
                && !is_chat_name(".x")
                && !is_chat_name("a/b")
                && !is_chat_name(&"x".repeat(65))
        );
    }
}
