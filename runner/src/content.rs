//! Reads the JSON text of a row into what a prompt needs (contract 11). Pure.
//!
//! Invariant: no content ends the process. What cannot be used is a reason, and fails alone.

use lamplighter::session::InboundRow;
use serde_json::{Map, Value};

/// A row whose content can go into a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The row as found.
    pub row: InboundRow,
    /// What its content says.
    pub body: Body,
}

/// What the content of a row says, by kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// `chat` and `chat-sdk`.
    Chat(Chat),
    /// `task`: what to do.
    Task(String),
    /// `webhook`.
    Webhook {
        /// Who called.
        source: String,
        /// About what.
        event: String,
        /// Indented JSON of the payload, or of the whole content when it has none.
        payload: String,
    },
}

/// A chat message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chat {
    /// What was said.
    pub text: String,
    /// By whom.
    pub sender: String,
    /// The message it answers.
    pub reply_to: Option<String>,
    /// Sender and text of that message, when both are known.
    pub quoted: Option<(String, String)>,
    /// What came with it.
    pub attachments: Vec<Attachment>,
}

/// A file that came with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// `image`, `file` and so on.
    pub kind: String,
    /// The file's name.
    pub name: String,
    /// Where it lies, relative to the workspace.
    pub local_path: Option<String>,
    /// Where it can be had.
    pub url: Option<String>,
}

impl Message {
    /// Reads a row.
    ///
    /// # Errors
    /// The reason why it can never be used; it quotes nothing of the content.
    pub fn read(row: InboundRow) -> Result<Self, String> {
        let body = match row.kind.as_str() {
            "chat" | "chat-sdk" => Body::Chat(chat(&object(&row.content)?)?),
            "task" => Body::Task(task(&object(&row.content)?)?),
            "webhook" => webhook(object(&row.content)?),
            kind => return Err(format!("kind {:?} is not known to this runner", cut(kind))),
        };
        Ok(Self { row, body })
    }

    /// What the sender wrote or asked for, without any markup.
    pub fn text(&self) -> &str {
        match &self.body {
            Body::Chat(chat) => &chat.text,
            Body::Task(prompt) => prompt,
            Body::Webhook { payload, .. } => payload,
        }
    }
}

/// A kind as it may be shown in a reason.
fn cut(kind: &str) -> String {
    kind.chars().take(40).collect()
}

/// Text that is no JSON stands for itself; JSON that is no object has no place for a text.
fn object(content: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(content) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(format!("content is JSON {}, not an object", name_of(&other))),
        Err(_) => Ok(Map::from_iter([("text".to_owned(), Value::from(content))])),
    }
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A text field; missing and null are `None`, anything else but text is an error.
fn text_field(object: &Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(format!("{key} is {}, not text", name_of(other))),
    }
}

fn word<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn chat(object: &Map<String, Value>) -> Result<Chat, String> {
    let text = text_field(object, "text")?.unwrap_or_default();
    let sender = object.get("sender").and_then(Value::as_str).filter(|text| !text.is_empty());
    let author = || object.get("author").and_then(|a| word(a, "fullName").or_else(|| word(a, "userName")));
    let reply = object.get("replyTo").unwrap_or(&Value::Null);
    let reply_to = match reply.get("id") {
        Some(Value::String(id)) if !id.is_empty() => Some(id.clone()),
        Some(Value::Number(id)) => Some(id.to_string()),
        _ => None,
    };
    let quoted = word(reply, "sender").zip(word(reply, "text")).map(|(s, t)| (s.to_owned(), t.to_owned()));
    let attachments = object.get("attachments").and_then(Value::as_array);
    Ok(Chat {
        text,
        sender: sender.or_else(author).unwrap_or("Unknown").to_owned(),
        reply_to,
        quoted,
        attachments: attachments.into_iter().flatten().map(attachment).collect(),
    })
}

fn attachment(value: &Value) -> Attachment {
    let name = word(value, "name").or_else(|| word(value, "filename")).unwrap_or("attachment");
    Attachment {
        kind: word(value, "type").unwrap_or("file").to_owned(),
        name: name.to_owned(),
        local_path: word(value, "localPath").map(str::to_owned),
        url: word(value, "url").map(str::to_owned),
    }
}

fn task(object: &Map<String, Value>) -> Result<String, String> {
    // The script decides whether the agent is asked at all; to ask without it would be wrong more often than
    // not.
    if object.get("script").is_some_and(|script| !matches!(script, Value::Null) && script != "") {
        return Err("the task has a script, and this runner runs no task scripts".to_owned());
    }
    match text_field(object, "prompt")?.or(text_field(object, "text")?) {
        Some(prompt) => Ok(prompt),
        None => Err("the task has no prompt".to_owned()),
    }
}

fn webhook(object: Map<String, Value>) -> Body {
    let named = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or("unknown").to_owned();
    let (source, event) = (named("source"), named("event"));
    let shown = object.get("payload").cloned().unwrap_or(Value::Object(object));
    // Writing a value that was just read does not fail.
    Body::Webhook { source, event, payload: serde_json::to_string_pretty(&shown).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: &str, content: &str) -> Result<Body, String> {
        let row = InboundRow { kind: kind.into(), content: content.into(), ..InboundRow::default() };
        Message::read(row).map(|message| message.body)
    }

    fn text_of(content: &str) -> Result<String, String> {
        match read("chat", content)? {
            Body::Chat(chat) => Ok(chat.text),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn text_that_is_no_json_stands_for_itself() {
        assert_eq!(text_of("plain words"), Ok("plain words".into()));
        assert_eq!(text_of("{broken"), Ok("{broken".into()));
        assert_eq!(text_of(r#"{"text":"hi"}"#), Ok("hi".into()));
        assert_eq!(text_of(r#"{"files":["a"]}"#), Ok(String::new()));
    }

    #[test]
    fn what_cannot_be_used_is_a_reason_that_quotes_nothing() {
        for (kind, content, reason) in [
            ("chat", "null", "content is JSON null, not an object"),
            ("chat", "42", "content is JSON number, not an object"),
            ("chat", r#"["secret"]"#, "content is JSON array, not an object"),
            ("chat", r#"{"text":{"secret":1}}"#, "text is object, not text"),
            ("chat-sdk", r#"{"text":7}"#, "text is number, not text"),
            ("task", r#"{"prompt":null}"#, "the task has no prompt"),
            ("task", r#"{"prompt":[]}"#, "prompt is array, not text"),
            ("dream", "{}", "kind \"dream\" is not known to this runner"),
        ] {
            assert_eq!(read(kind, content).err().as_deref(), Some(reason), "{content}");
        }
        assert!(read("task", r#"{"prompt":"p","script":"exit 1"}"#).is_err());
        assert!(read("task", r#"{"prompt":"p","script":null}"#).is_ok());
    }

    #[test]
    fn the_sender_falls_back_to_the_author_and_then_to_unknown() {
        for (content, sender) in [
            (r#"{"sender":"Ann","author":{"fullName":"B"}}"#, "Ann"),
            (r#"{"author":{"fullName":"Bea B","userName":"b"}}"#, "Bea B"),
            (r#"{"author":{"userName":"b"}}"#, "b"),
            (r#"{"sender":5}"#, "Unknown"),
        ] {
            let found = match read("chat", content) {
                Ok(Body::Chat(chat)) => chat.sender,
                other => format!("{other:?}"),
            };
            assert_eq!(found, sender);
        }
    }
}
