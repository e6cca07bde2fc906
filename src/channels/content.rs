//! What a row of messages_out says (contract 12), read once and given to every channel in the same form.
//!
//! Invariant: pure; what cannot be used is refused with a reason that its agent can act on.

use serde_json::Value;

use super::Capabilities;
use crate::base::Ms;
use crate::base::ids::is_safe_name;
use crate::session::rows::{MAX_QUESTION_WAIT, QUESTION_WAIT, is_option_label};

/// Options of one question; more are no choice but a list.
const OPTIONS_MAX: usize = 64;
/// Longest question id in bytes: it is a part of the id of the answer's row, which names a folder.
const QUESTION_ID_MAX: usize = 160;
/// Lines of a card's children; a card is no document.
const CARD_LINES_MAX: usize = 64;

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// In what form.
    pub form: Form,
    /// As plain text: enough for a channel that can show nothing else.
    pub text: String,
    /// Names of the files that go with it, in the row's outbox folder.
    pub files: Vec<String>,
}

/// The forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// A text.
    Text,
    /// A question with options.
    Question(Question),
    /// A card.
    Card,
    /// Another text for a message.
    Edit {
        /// The platform's id of the message.
        message: String,
    },
    /// An emoji on a message.
    Reaction {
        /// The platform's id of the message.
        message: String,
        /// The emoji.
        emoji: String,
    },
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Its questionId.
    pub id: String,
    /// Its title; may be empty.
    pub title: String,
    /// What is asked; may be empty.
    pub question: String,
    /// From what is chosen; never empty.
    pub options: Vec<Choice>,
    /// How long it waits.
    pub timeout: Ms,
}

/// One option of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What people read.
    pub label: String,
    /// What the agent is told.
    pub value: String,
}

impl Content {
    /// A plain text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { form: Form::Text, text: text.into(), files: Vec::new() }
    }

    /// Reads the content of a row.
    ///
    /// # Errors
    /// Why it cannot be used, for the agent.
    pub fn parse(content: &str) -> Result<Self, String> {
        let json: Value =
            serde_json::from_str(content).map_err(|error| format!("it is not JSON: {error}"))?;
        let files = files(&json)?;
        if let Some(operation) = json.get("operation") {
            return Ok(Self { files, ..self::operation(&json, operation.as_str().unwrap_or_default())? });
        }
        match json.get("type").map(|kind| kind.as_str().unwrap_or_default()) {
            Some("ask_question") => {
                let question = Question::parse(&json)?;
                Ok(Self { text: question.to_string(), form: Form::Question(question), files })
            }
            Some("card") => Ok(Self { text: card(&json)?, form: Form::Card, files }),
            Some(other) => Err(format!("nothing here shows content of type {other:?}")),
            None => match text(&json, "text").or_else(|| text(&json, "markdown")) {
                Some(text) => Ok(Self { files, ..Self::text(text) }),
                None if files.is_empty() => Err("it has neither text nor files".into()),
                None => Ok(Self { files, ..Self::text("") }),
            },
        }
    }

    /// Message ids as the platform has them: a row's id without the agent group behind it.
    pub fn strip_group(&mut self, group: &str) {
        if let Form::Edit { message } | Form::Reaction { message, .. } = &mut self.form
            && let Some(plain) = message.strip_suffix(group).and_then(|rest| rest.strip_suffix(':'))
        {
            *message = plain.to_owned();
        }
    }

    /// What a channel would have to be able to do and cannot.
    pub fn lacks(&self, can: Capabilities) -> Option<&'static str> {
        let form = match self.form {
            Form::Text => None,
            Form::Question(_) => (!can.questions).then_some("questions"),
            Form::Card => (!can.cards).then_some("cards"),
            Form::Edit { .. } => (!can.edits).then_some("edits"),
            Form::Reaction { .. } => (!can.reactions).then_some("reactions"),
        };
        form.or_else(|| (!self.files.is_empty() && !can.files).then_some("files"))
    }
}

impl Question {
    /// Reads a question.
    ///
    /// # Errors
    /// Why nobody could answer it.
    pub fn parse(json: &Value) -> Result<Self, String> {
        let id = text(json, "questionId").unwrap_or_default();
        if !is_safe_name(&id) || id.len() > QUESTION_ID_MAX {
            return Err(format!(
                "a question needs a questionId of 1 to {QUESTION_ID_MAX} bytes without separators"
            ));
        }
        let list =
            json.get("options").and_then(Value::as_array).ok_or("a question needs a list of options")?;
        if list.is_empty() || list.len() > OPTIONS_MAX {
            return Err(format!("a question needs 1 to {OPTIONS_MAX} options"));
        }
        let options: Option<Vec<Choice>> = list.iter().map(Choice::parse).collect();
        let options = options.ok_or("each option of a question needs a label of one line")?;
        let timeout = match json.get("timeoutMs").and_then(Value::as_u64) {
            Some(ms) => Ms(ms.max(1)).min(MAX_QUESTION_WAIT),
            None => QUESTION_WAIT,
        };
        let [title, question] = ["title", "question"].map(|key| text(json, key).unwrap_or_default());
        Ok(Self { id, title, question, options, timeout })
    }
}

impl Choice {
    fn parse(json: &Value) -> Option<Self> {
        let label = json.as_str().map(str::to_owned).or_else(|| text(json, "label"))?;
        let value = text(json, "value").unwrap_or_else(|| label.clone());
        is_option_label(&label).then_some(Self { label, value })
    }
}

impl std::fmt::Display for Question {
    /// Title, question and the options with their numbers.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for part in [&self.title, &self.question] {
            if !part.is_empty() {
                writeln!(f, "{part}")?;
            }
        }
        for (number, choice) in (1..).zip(&self.options) {
            let end = if number == self.options.len() { "" } else { "\n" };
            write!(f, "  {number}. {}{end}", choice.label.trim())?;
        }
        Ok(())
    }
}

fn text(json: &Value, key: &str) -> Option<String> {
    json.get(key).and_then(Value::as_str).map(str::to_owned)
}

fn files(json: &Value) -> Result<Vec<String>, String> {
    let Some(list) = json.get("files").filter(|files| !files.is_null()) else { return Ok(Vec::new()) };
    let names =
        list.as_array().and_then(|list| list.iter().map(|it| it.as_str().map(str::to_owned)).collect());
    names.ok_or_else(|| "its files are not a list of names".to_owned())
}

fn operation(json: &Value, operation: &str) -> Result<Content, String> {
    let message = text(json, "messageId").filter(|id| !id.is_empty());
    let message = message.ok_or_else(|| format!("{operation:?} needs the messageId of a message"))?;
    match operation {
        "edit" => {
            let text =
                text(json, "text").or_else(|| text(json, "markdown")).ok_or("an edit needs its text")?;
            Ok(Content { form: Form::Edit { message }, ..Content::text(text) })
        }
        "reaction" => {
            let emoji =
                text(json, "emoji").filter(|it| !it.is_empty()).ok_or("a reaction needs its emoji")?;
            Ok(Content { text: emoji.clone(), form: Form::Reaction { message, emoji }, files: Vec::new() })
        }
        other => Err(format!("nothing here does the operation {other:?}")),
    }
}

/// The text of a card: its own, or what can be read of its parts.
fn card(json: &Value) -> Result<String, String> {
    if let Some(text) = text(json, "fallbackText").filter(|text| !text.trim().is_empty()) {
        return Ok(text);
    }
    let card = json.get("card").ok_or("a card needs a card or a fallbackText")?;
    let mut lines: Vec<String> = ["title", "description"].iter().filter_map(|key| text(card, key)).collect();
    for part in ["children", "actions"] {
        card.get(part).into_iter().for_each(|part| readable(part, 0, &mut lines));
    }
    lines.retain(|line| !line.trim().is_empty());
    if lines.is_empty() { Err("the card has nothing that can be read".into()) } else { Ok(lines.join("\n")) }
}

/// What can be read of a card's parts, links as `label: url`.
fn readable(part: &Value, depth: usize, lines: &mut Vec<String>) {
    /// Sections in sections; more is no card.
    const DEPTH_MAX: usize = 4;
    if depth > DEPTH_MAX || lines.len() >= CARD_LINES_MAX {
        return;
    }
    match part {
        Value::String(text) => lines.push(text.clone()),
        Value::Array(parts) => parts.iter().for_each(|part| readable(part, depth + 1, lines)),
        Value::Object(_) => {
            let said = ["text", "label", "title", "content", "value"].iter().find_map(|key| text(part, key));
            let link = text(part, "url").or_else(|| text(part, "href"));
            match (said, link) {
                (Some(said), Some(link)) => lines.push(format!("{said}: {link}")),
                (Some(said), None) | (None, Some(said)) => lines.push(said),
                (None, None) => {}
            }
            if let Some(children) = part.get("children") {
                readable(children, depth + 1, lines);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Capabilities = Capabilities {
        idempotent: true,
        threads: true,
        edits: true,
        reactions: true,
        files: true,
        questions: true,
        cards: true,
    };

    fn parsed(content: &str) -> Content {
        Content::parse(content).unwrap()
    }

    #[test]
    fn a_question_is_its_title_its_text_and_numbered_options() {
        let content = parsed(
            r#"{"type":"ask_question","questionId":"q1","title":"Lunch","question":"Which?","timeoutMs":1000,
                "options":[{"label":"Soup","selectedLabel":"Soup!","value":"soup"},"Salad"]}"#,
        );
        assert_eq!(content.text, "Lunch\nWhich?\n  1. Soup\n  2. Salad");
        let Form::Question(question) = content.form else { panic!() };
        assert_eq!(question.timeout, Ms(1_000));
        assert_eq!(question.options[1], Choice { label: "Salad".into(), value: "Salad".into() });
    }

    #[test]
    fn a_question_that_nobody_could_answer_is_refused_with_a_reason() {
        for (content, why) in [
            (r#"{"type":"ask_question","options":["a"]}"#, "questionId"),
            (r#"{"type":"ask_question","questionId":"a/b","options":["a"]}"#, "questionId"),
            (r#"{"type":"ask_question","questionId":"q","options":"a"}"#, "list of options"),
            (r#"{"type":"ask_question","questionId":"q","options":[]}"#, "1 to 64"),
            (r#"{"type":"ask_question","questionId":"q","options":[{"label":" "}]}"#, "label"),
        ] {
            let error = Content::parse(content).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_question_waits_no_longer_than_any_may() {
        let of = |timeout: &str| {
            parsed(&format!(r#"{{"type":"ask_question","questionId":"q","options":["a"]{timeout}}}"#)).form
        };
        let waits = |timeout: &str| match of(timeout) {
            Form::Question(question) => question.timeout,
            other => panic!("{other:?}"),
        };
        assert_eq!(waits(""), QUESTION_WAIT);
        assert_eq!(waits(r#","timeoutMs":18446744073709551615"#), MAX_QUESTION_WAIT);
        assert_eq!(waits(r#","timeoutMs":"soon""#), QUESTION_WAIT);
    }

    #[test]
    fn a_card_is_its_fallback_or_what_can_be_read_of_it() {
        assert_eq!(parsed(r#"{"type":"card","card":{},"fallbackText":"plain"}"#).text, "plain");
        let card = r#"{"type":"card","card":{"title":"T","description":"D",
            "children":["one",{"type":"text","text":"two"},{"type":"section","children":[{"text":"three"}]}],
            "actions":[{"label":"Open","url":"https://x.test/"}]}}"#;
        assert_eq!(parsed(card).text, "T\nD\none\ntwo\nthree\nOpen: https://x.test/");
        assert!(Content::parse(r#"{"type":"card","card":{}}"#).is_err());
    }

    #[test]
    fn edits_and_reactions_name_a_message_as_the_platform_has_it() {
        let mut edit = parsed(r#"{"operation":"edit","messageId":"m1:main","text":"new"}"#);
        edit.strip_group("main");
        assert_eq!(edit.form, Form::Edit { message: "m1".into() });
        let mut reaction = parsed(r#"{"operation":"reaction","messageId":"1.2.0","emoji":"👍"}"#);
        reaction.strip_group("main");
        assert_eq!(reaction.form, Form::Reaction { message: "1.2.0".into(), emoji: "👍".into() });
        assert!(Content::parse(r#"{"operation":"edit","text":"new"}"#).is_err());
        assert!(Content::parse(r#"{"operation":"pin","messageId":"m"}"#).is_err());
    }

    #[test]
    fn a_channel_is_asked_for_nothing_that_it_cannot_do() {
        let without = |change: fn(&mut Capabilities)| {
            let mut can = ALL;
            change(&mut can);
            can
        };
        let question = parsed(r#"{"type":"ask_question","questionId":"q","options":["a"]}"#);
        assert_eq!(question.lacks(ALL), None);
        assert_eq!(question.lacks(without(|can| can.questions = false)), Some("questions"));
        let card = parsed(r#"{"type":"card","fallbackText":"x"}"#);
        assert_eq!(card.lacks(without(|can| can.cards = false)), Some("cards"));
        let files = parsed(r#"{"files":["a"]}"#);
        assert_eq!(files.lacks(without(|can| can.files = false)), Some("files"));
        assert_eq!(parsed(r#"{"text":"x"}"#).lacks(Capabilities::default()), None);
    }

    #[test]
    fn content_of_an_unknown_type_or_without_anything_is_refused() {
        for content in [r#"{"type":"hologram"}"#, "{}", "[]", r#"{"text":"x","files":[1]}"#, "no JSON"] {
            assert!(Content::parse(content).is_err(), "{content}");
        }
        assert_eq!(parsed(r#"{"markdown":"*x*"}"#).text, "*x*");
    }
}
