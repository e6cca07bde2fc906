//! How long an agent that owes an answer may say nothing. Pure.
//!
//! Invariant: it is bounded whatever the agent does. A tool may take longer than a thought, and as long as it declares;
//! yet one that nobody hears of again ends the turn too, so that its messages are given back.

use lamplighter::base::Ms;
use lamplighter::session::rows::{MAX_QUESTION_WAIT, QUESTION_WAIT};
use serde_json::Value;

use super::Settings;
use crate::config::OWN_SERVER;
use crate::provider::ProviderError;

/// How long a turn may give no sign of life. Text streams, tools and retries are all signs; what is left is the model
/// thinking in silence.
const TURN: Ms = Ms::minutes(10);
/// And with a tool in flight that does not say how long it takes: as long as NanoClaw's host waits (contract 15).
const TOOL: Ms = Ms::minutes(30);
/// What is added to a time that a tool declares: it ends by itself, and is then heard of.
const SLACK: Ms = Ms::minutes(1);
/// Longest setting of a turn's silence, in seconds.
const MAX_TURN_S: u64 = 24 * 60 * 60;
/// Longest setting of a tool's silence, in seconds.
const MAX_TOOL_S: u64 = 7 * 24 * 60 * 60;

/// The bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// With nothing in flight.
    pub turn: Ms,
    /// With a tool in flight that declares no time.
    pub tool: Ms,
}

impl Default for Patience {
    fn default() -> Self {
        Self { turn: TURN, tool: TOOL }
    }
}

impl Patience {
    /// Reads `turn_timeout_s` and `tool_timeout_s`.
    ///
    /// # Errors
    /// [`ProviderError::Settings`].
    pub fn read(settings: &mut Settings) -> Result<Self, ProviderError> {
        let turn = settings.number("turn_timeout_s", 1, MAX_TURN_S)?.map_or(TURN, Ms::secs);
        let tool = settings.number("tool_timeout_s", 1, MAX_TOOL_S)?.map_or(TOOL, Ms::secs);
        Ok(Self { turn, tool })
    }

    /// How long nothing may be heard while these tools are in flight: as long as the most patient of them needs.
    pub fn with(self, tools: impl IntoIterator<Item = Option<Ms>>) -> Ms {
        let most = Ms::secs(MAX_TOOL_S).0;
        let bound = |declared: Option<Ms>| match declared {
            Some(time) => self.turn.max(Ms(time.0.min(most) + SLACK.0)),
            None => self.tool,
        };
        tools.into_iter().map(bound).max().unwrap_or(self.turn)
    }
}

/// How long a call of our tool that asks a person waits, which is announced to the host as well; `None` for any other
/// tool.
pub fn question_time(tool: &str, arguments: &Value) -> Option<Ms> {
    let rest = tool.strip_prefix("mcp__")?.strip_prefix(OWN_SERVER)?;
    if rest != "__ask_user_question" {
        return None;
    }
    match arguments["timeout"].as_f64() {
        Some(seconds) => {
            let wait = std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default();
            let wait = Ms(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
            Some(wait.min(MAX_QUESTION_WAIT))
        }
        None => Some(QUESTION_WAIT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn silence_is_bounded_with_and_without_tools() {
        let patience = Patience { turn: Ms::secs(600), tool: Ms::secs(1_800) };
        assert_eq!(patience.with([]), Ms::secs(600));
        assert_eq!(patience.with([None]), Ms::secs(1_800));
        assert_eq!(patience.with([Some(Ms::secs(5))]), Ms::secs(600));
        assert_eq!(patience.with([Some(Ms::secs(3_600)), None]), Ms::secs(3_660));
        assert_eq!(patience.with([Some(Ms(u64::MAX))]), Ms::secs(MAX_TOOL_S + 60));
    }

    #[test]
    fn a_question_may_take_as_long_as_it_says_and_no_longer_than_any_may() {
        let time = |tool: &str, arguments: Value| question_time(tool, &arguments);
        let ask = "mcp__lamplighter__ask_user_question";
        assert_eq!(time(ask, json!({"timeout": 7200.5})), Some(Ms(7_200_500)));
        assert_eq!(time(ask, json!({"timeout": 1e300})), Some(Ms(0)), "which the tool refuses at once");
        assert_eq!(time(ask, json!({"timeout": 1e12})), Some(MAX_QUESTION_WAIT));
        assert_eq!(time(ask, json!({"timeout": -1})), Some(Ms(0)));
        assert_eq!(time(ask, json!({})), Some(QUESTION_WAIT));
        assert_eq!(time("mcp__lamplighter__send_message", json!({})), None);
        assert_eq!(time("mcp__other__ask_user_question", json!({})), None);
    }
}
