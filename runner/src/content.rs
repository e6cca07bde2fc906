//! Reads the JSON text of a row into what a prompt needs (contract 11). Pure.
//!
//! Invariant: no content ends the process. What cannot be used is a reason, and fails alone.

use lamplighter::session::InboundRow;

use crate::json::{self, Json};

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
    /// `task`.
    Task {
        /// What to do.
        prompt: String,
        /// Run first; its last line says whether the agent is asked at all (contract 11).
        script: Option<String>,
    },
    /// `webhook`.
    Webhook {
        /// Who called.
        source: String,
        /// About what.
        event: String,
        /// Indented JSON of the payload, or of the whole content when it has none.
        payload: String,
    },
    /// `system`. The loop shows none to an agent: they are for its tools. NanoClaw's form is kept all the same, so that
    /// whoever formats a row of any kind finds each.
    System {
        /// What was asked for.
        action: String,
        /// How it ended.
        status: String,
        /// JSON of what came of it.
        result: String,
    },
}

/// What a command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Forget the conversation.
    Clear,
    /// Whatever the provider makes of it.
    Provider,
}

/// Commands that would change the program behind the provider or open it to others: a chat has no business with them
/// (contract 22). They are ordinary text.
const NOT_FOR_PROVIDERS: [&str; 7] =
    ["help", "login", "logout", "doctor", "config", "start", "remote-control"];

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
            "task" => task(&object(&row.content)?)?,
            "webhook" => webhook(&object(&row.content)?),
            "system" => system(&object(&row.content)?),
            kind => return Err(format!("kind {:?} is not known to this runner", cut(kind))),
        };
        Ok(Self { row, body })
    }

    /// The script of a task that has one.
    pub fn script(&self) -> Option<&str> {
        match &self.body {
            Body::Task { script, .. } => script.as_deref(),
            _ => None,
        }
    }

    /// The command that a chat message is: its first word, when that is a slash and a name.
    pub fn command(&self) -> Option<Command> {
        let Body::Chat(chat) = &self.body else { return None };
        let word = chat.text.split_whitespace().next()?.to_lowercase();
        let name = word.strip_prefix('/')?;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | ':');
        if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(plain) {
            return None;
        }
        match name {
            "clear" => Some(Command::Clear),
            name if NOT_FOR_PROVIDERS.contains(&name) => None,
            _ => Some(Command::Provider),
        }
    }

    /// What the sender wrote or asked for, without any markup.
    pub fn text(&self) -> &str {
        match &self.body {
            Body::Chat(chat) => &chat.text,
            Body::Task { prompt, .. } => prompt,
            Body::Webhook { payload, .. } => payload,
            Body::System { result, .. } => result,
        }
    }
}

/// A kind as it may be shown in a reason.
fn cut(kind: &str) -> String {
    kind.chars().take(40).collect()
}

/// Text that is no JSON stands for itself; JSON that is no object has no place for a text.
fn object(content: &str) -> Result<Json, String> {
    match Json::parse(content) {
        Some(object @ Json::Object(_)) => Ok(object),
        Some(other) => Err(format!("content is JSON {}, not an object", name_of(&other))),
        None => Ok(Json::Object(vec![("text".to_owned(), Json::Text(content.to_owned()))])),
    }
}

fn name_of(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "true or false",
        Json::Number(_) => "number",
        Json::Text(_) => "text",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    }
}

/// A text field; missing and null are `None`, anything else but text is an error.
fn text_field(object: &Json, key: &str) -> Result<Option<String>, String> {
    match object.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Text(text)) => Ok(Some(text.clone())),
        Some(other) => Err(format!("{key} is {}, not text", name_of(other))),
    }
}

fn word<'a>(value: &'a Json, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Json::as_str).filter(|text| !text.is_empty())
}

fn chat(object: &Json) -> Result<Chat, String> {
    let text = text_field(object, "text")?.unwrap_or_default();
    let author = || object.get("author").and_then(|a| word(a, "fullName").or_else(|| word(a, "userName")));
    let reply = object.get("replyTo").unwrap_or(&Json::Null);
    let reply_to = match reply.get("id") {
        Some(Json::Text(id)) if !id.is_empty() => Some(id.clone()),
        Some(Json::Number(id)) if *id != 0.0 => Some(json::number(*id)),
        _ => None,
    };
    let quoted = word(reply, "sender").zip(word(reply, "text")).map(|(s, t)| (s.to_owned(), t.to_owned()));
    let attachments = match object.get("attachments") {
        Some(Json::Array(attachments)) => attachments.as_slice(),
        _ => &[],
    };
    Ok(Chat {
        text,
        sender: word(object, "sender").or_else(author).unwrap_or("Unknown").to_owned(),
        reply_to,
        quoted,
        attachments: attachments.iter().map(attachment).collect(),
    })
}

fn attachment(value: &Json) -> Attachment {
    let name = word(value, "name").or_else(|| word(value, "filename")).unwrap_or("attachment");
    Attachment {
        kind: word(value, "type").unwrap_or("file").to_owned(),
        name: name.to_owned(),
        local_path: word(value, "localPath").filter(|path| stays_inside(path)).map(str::to_owned),
        url: word(value, "url").map(str::to_owned),
    }
}

/// Whether a path from outside, put behind the workspace, names something in it: no part of it leads up or begins
/// anew, and none has a character that would not be seen.
fn stays_inside(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.chars().any(char::is_control))
}

fn task(object: &Json) -> Result<Body, String> {
    let script = text_field(object, "script")?.filter(|script| !script.trim().is_empty());
    match text_field(object, "prompt")?.or(text_field(object, "text")?) {
        Some(prompt) => Ok(Body::Task { prompt, script }),
        None => Err("the task has no prompt".to_owned()),
    }
}

fn webhook(object: &Json) -> Body {
    let named = |key: &str| word(object, key).unwrap_or("unknown").to_owned();
    let shown = object.get("payload").filter(|payload| payload.is_truthy()).unwrap_or(object);
    Body::Webhook { source: named("source"), event: named("event"), payload: shown.pretty() }
}

fn system(object: &Json) -> Body {
    let named = |key: &str| word(object, key).unwrap_or("unknown").to_owned();
    let result = object.get("result").filter(|result| result.is_truthy()).unwrap_or(&Json::Null);
    Body::System { action: named("action"), status: named("status"), result: result.compact() }
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
        let task = |script: &str| read("task", &format!(r#"{{"prompt":"p","script":{script}}}"#));
        let script = Some("exit 1".to_owned());
        assert_eq!(task(r#""exit 1""#), Ok(Body::Task { prompt: "p".into(), script }));
        for none in ["null", "\" \""] {
            assert_eq!(task(none), Ok(Body::Task { prompt: "p".into(), script: None }));
        }
        assert_eq!(task("[]"), Err("script is array, not text".into()));
    }

    #[test]
    fn a_path_that_leads_out_of_the_workspace_is_none() {
        for path in ["inbox/m1/a.txt", "inbox/spaces:1/..a b.txt", "inbox/m1/ä\u{202e}\\"] {
            assert!(stays_inside(path), "{path}");
        }
        for path in
            ["", "/etc/passwd", "../x", "inbox/../../x", "inbox//x", "./x", "inbox/m1/", "inbox/a\nb", "a/\0"]
        {
            assert!(!stays_inside(path), "{path}");
        }
    }

    #[test]
    fn a_command_is_a_whole_word() {
        let command = |text: &str| {
            let content = serde_json::json!({"text": text}).to_string();
            let row = InboundRow { kind: "chat".into(), content, ..InboundRow::default() };
            Message::read(row).ok().and_then(|message| message.command())
        };
        for text in ["/clear", "  /Clear \n", "/CLEAR please"] {
            assert_eq!(command(text), Some(Command::Clear), "{text}");
        }
        for text in ["/compact", "/my:skill x", "/clearance"] {
            assert_eq!(command(text), Some(Command::Provider), "{text}");
        }
        for text in ["", "/", "clear", "/home/me/file", "/login", "/1", "// x", "say /clear"] {
            assert_eq!(command(text), None, "{text}");
        }
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
