//! Words that every agent CLI's provider uses: what a model service did, and how a lost reply is asked for.

use crate::provider::{ErrorClass, Push};

/// Longest word of a CLI that is told on.
const MAX_WORD: usize = 40;
/// Most names in one message that asks for a reply again.
const MAX_NAMES: usize = 50;

/// A word of the CLI's own, such as `rate_limit`; whatever else it may hold is left out.
pub fn plain(word: &str) -> String {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let plain: String = word.chars().filter(is_plain).take(MAX_WORD).collect();
    if plain.is_empty() { "unknown".to_owned() } else { plain }
}

/// What the model service did, in words.
pub fn service(status: Option<u16>, kind: Option<&str>) -> String {
    let kind = kind.map(plain).filter(|kind| kind != "unknown");
    let hint = match status {
        Some(401 | 403) => "; check the credential",
        Some(404) => "; check the model's name",
        _ => "",
    };
    match (status, kind) {
        (Some(status), Some(kind)) => format!("the model service answers {status} ({kind}){hint}"),
        (Some(status), None) => format!("the model service answers {status}{hint}"),
        (None, Some(kind)) => format!("the model service failed ({kind})"),
        (None, None) => "the model service cannot be reached".to_owned(),
    }
}

/// Whether another try can help against what the model service did.
pub fn class(status: Option<u16>, kind: Option<&str>) -> ErrorClass {
    match (status, kind) {
        // A request that is too large is made smaller by the next turn, which compacts first.
        (Some(408 | 409 | 413 | 425 | 429), _) => ErrorClass::Transient,
        (Some(400..=499), _) => ErrorClass::Permanent,
        (Some(_), _) => ErrorClass::Transient,
        (
            None,
            Some(
                "authentication_failed"
                | "authentication_error"
                | "billing_error"
                | "invalid_request"
                | "invalid_request_error"
                | "model_not_found"
                | "not_found_error"
                | "permission_error",
            ),
        ) => ErrorClass::Permanent,
        (None, _) => ErrorClass::Transient,
    }
}

/// What the agent knows a push's messages by: the ids in the prompt, else the push's own.
pub fn names(push: &Push) -> String {
    // Texts from outside are escaped, so only the prompt's own elements begin like this.
    let ids =
        push.prompt.text.split("<message id=\"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0));
    let ids: Vec<&str> = ids.filter(|id| id.len() <= MAX_WORD).take(MAX_NAMES).collect();
    match ids.as_slice() {
        [] => format!("the message that was handed over as {}", push.id),
        [id] => format!("the message with id=\"{id}\""),
        ids => format!("the messages with id=\"{}\"", ids.join("\", \"")),
    }
}

/// Asks for a reply that was lost.
pub fn ask_again(names: &str) -> String {
    format!(
        "<notice kind=\"reply-lost\">\nThis is a note from your host, not from a person. After a restart, the reply to \
         {names} was not recorded, so nobody has received it. If your work on it is unfinished, go on with it. If it \
         is finished, do none of it again: give the complete final reply once more, in the usual form.\n</notice>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Prompt;

    #[test]
    fn a_status_decides_and_a_kind_only_without_one() {
        let cases = [
            (Some(429), None, ErrorClass::Transient),
            (Some(529), Some("overloaded"), ErrorClass::Transient),
            (Some(500), None, ErrorClass::Transient),
            (Some(413), None, ErrorClass::Transient),
            (Some(400), Some("rate_limit"), ErrorClass::Permanent),
            (Some(401), None, ErrorClass::Permanent),
            (Some(404), None, ErrorClass::Permanent),
            (None, Some("model_not_found"), ErrorClass::Permanent),
            (None, Some("unknown"), ErrorClass::Transient),
            (None, None, ErrorClass::Transient),
        ];
        for (status, kind, expected) in cases {
            assert_eq!(class(status, kind), expected, "{status:?} {kind:?}");
        }
    }

    #[test]
    fn the_agent_is_reminded_by_the_ids_that_it_knows() {
        let push =
            |text: &str| Push { id: "p".into(), prompt: Prompt { text: text.into(), triggers: Vec::new() } };
        assert_eq!(names(&push("x")), "the message that was handed over as p");
        let text =
            "<messages>\n<message id=\"4\" from=\"a\">&lt;message id=\"9\"</message>\n<message id=\"6\">";
        assert_eq!(names(&push(text)), "the messages with id=\"4\", \"6\"");
    }

    #[test]
    fn words_of_the_cli_cannot_smuggle_text() {
        assert_eq!(plain("rate_limit"), "rate_limit");
        assert_eq!(plain("my secret: <x>"), "mysecretx");
        assert_eq!(plain("\u{1f511}"), "unknown");
    }
}
