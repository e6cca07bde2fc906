//! The words of claude's errors: how they are told apart, and how they are told on.

use crate::provider::ErrorClass;

/// Whether the CLI says that the conversation does not exist. The wordings are those that NanoClaw knows too.
pub fn is_unknown_session(said: &str) -> bool {
    let said = said.to_lowercase();
    let in_order =
        |first: &str, second: &str| said.split_once(first).is_some_and(|(_, rest)| rest.contains(second));
    said.contains("no conversation found")
        || said.contains("requires a valid session id")
        || in_order("enoent", ".jsonl")
        || in_order("session", "not found")
}

/// Whether another try can help when the process ended with these last words.
pub fn exit_class(stderr: &str) -> ErrorClass {
    const FOR_GOOD: [&str; 9] = [
        "unknown option",
        "error: option",
        "argument missing",
        "cannot be used with root",
        "invalid api key",
        "please run /login",
        "invalid mcp config",
        "invalid settings",
        "failed to authenticate",
    ];
    let said = stderr.to_lowercase();
    if FOR_GOOD.iter().any(|words| said.contains(words)) {
        ErrorClass::Permanent
    } else {
        ErrorClass::Crashed
    }
}

/// What the user is told of a compaction that was asked for.
pub fn compacted(before: u64, after: u64) -> String {
    format!("The conversation is compacted: {before} tokens became {after}.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_conversation_is_recognised_by_each_of_its_wordings() {
        for said in [
            "No conversation found with session ID: 1",
            "Error: ENOENT: no such file, open '/root/.claude/projects/x/1.jsonl'",
            "Session 1 was not found",
            "--resume requires a valid session ID or session title",
        ] {
            assert!(is_unknown_session(said), "{said}");
        }
        assert!(!is_unknown_session("not found: session") && !is_unknown_session(""));
    }

    #[test]
    fn a_wrong_flag_is_no_reason_to_try_again() {
        assert_eq!(exit_class("error: unknown option '--x'"), ErrorClass::Permanent);
        assert_eq!(exit_class(""), ErrorClass::Crashed);
    }
}
