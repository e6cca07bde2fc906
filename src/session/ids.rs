//! The ids of contract 8: made from a time in milliseconds and a random number, both given by the caller.
//!
//! Invariant: nothing here reads a clock or makes a random number.

use crate::base::ids::base36;

/// How many base-36 digits the random part has (`<r6>`).
const RANDOM_DIGITS: usize = 6;
/// One more than the greatest random part.
const RANDOM_SPAN: u64 = 36u64.pow(RANDOM_DIGITS as u32);

/// `<prefix>-<ms>-<r6>`; of `random` only what fits six digits is used.
fn stamped(prefix: &str, ms: u64, random: u64) -> String {
    format!("{prefix}-{ms}-{}", base36(random % RANDOM_SPAN, RANDOM_DIGITS))
}

/// An outbound message, or the platform's part of an inbound one that has none.
pub fn message(ms: u64, random: u64) -> String {
    stamped("msg", ms, random)
}

/// An inbound message of the chat command line, before the group is appended; also an outbound command
/// request.
pub fn cli(ms: u64, random: u64) -> String {
    stamped("cli", ms, random)
}

/// A note of the host, or an outbound system action.
pub fn system(ms: u64, random: u64) -> String {
    stamped("sys", ms, random)
}

/// A scheduled task, and each of its recurrences.
pub fn task(ms: u64, random: u64) -> String {
    stamped("task", ms, random)
}

/// A routed channel message: the platform's own id and the agent group.
pub fn routed(platform_message_id: &str, agent_group: &str) -> String {
    format!("{platform_message_id}:{agent_group}")
}

/// The platform's own id of a routed message, without the agent group that [`routed`] appended.
pub fn platform_part<'a>(id: &'a str, agent_group: &str) -> &'a str {
    id.strip_suffix(agent_group).and_then(|rest| rest.strip_suffix(':')).unwrap_or(id)
}

/// The answer to a question of the agent.
pub fn question_answer(question_id: &str, ms: u64) -> String {
    format!("qr-{question_id}-{ms}")
}

/// The answer to a command request of the agent.
pub fn cli_response(request_id: &str) -> String {
    format!("cli-resp-{request_id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_forms_of_the_contract() {
        assert_eq!(cli(1_700_000_000_000, 0), "cli-1700000000000-000000");
        assert_eq!(message(5, RANDOM_SPAN - 1), "msg-5-zzzzzz");
        assert_eq!(message(5, RANDOM_SPAN), "msg-5-000000");
        assert_eq!(question_answer("q1", 7), "qr-q1-7");
        assert_eq!(cli_response("r1"), "cli-resp-r1");
    }

    #[test]
    fn the_group_is_taken_off_a_routed_id_and_only_the_group() {
        let id = routed("tg:42", "main");
        assert_eq!(id, "tg:42:main");
        assert_eq!(platform_part(&id, "main"), "tg:42");
        assert_eq!(platform_part("a2a-1-x", "main"), "a2a-1-x");
        assert_eq!(platform_part("xmain", "main"), "xmain");
    }
}
