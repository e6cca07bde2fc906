//! The rules of the provider `mock`: which prompt gets which answer. Pure.
//!
//! In container.json:
//!
//! ```json
//! {"provider": "mock", "mock": {"rules": [
//!   {"pattern": "weather", "reply": "sunny: $text", "to": "family", "delay_ms": 200},
//!   {"pattern": "overload", "error": "transient", "retry_after_ms": 1000},
//!   {"pattern": "crash", "crash": 9, "once": true},
//!   {"pattern": "hang", "silence": true},
//!   {"pattern": "build", "tool_ms": 500, "reply": "built"},
//!   {"pattern": "held", "until": "go", "reply": "went on when the file go was in the workspace"}
//! ]}}
//! ```

use lamplighter::base::Ms;
use regex_lite::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::Value;

use super::{ErrorClass, ProviderError};

/// Most rules; a list for a test has a handful.
const MAX_RULES: usize = 256;
/// Largest compiled pattern in bytes; regex-lite is linear in the text times this.
const MAX_PATTERN_BYTES: usize = 64 * 1024;
/// Longest name of a file that is waited for, in bytes, as file systems have it.
const MAX_NAME_BYTES: usize = 255;
/// Longest `delay_ms` and `tool_ms`, and wait for the file of `until`.
pub const MAX_WAIT: Ms = Ms::days(1);

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Looked for in the whole prompt.
    pub pattern: Regex,
    /// How long to wait before anything else.
    pub delay: Ms,
    /// After that, the file of the workspace that must be there before anything else: so a turn lasts until whoever
    /// watches it has seen what there was to see, however slow the machine is.
    pub until: Option<String>,
    /// For so long a tool is in flight that declares so much.
    pub tool: Option<Ms>,
    /// Whether the rule is spent after its first use, across restarts.
    pub once: bool,
    /// What happens then.
    pub action: Action,
}

/// How a turn ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// With a text; `$text` in it stands for the message's text, `$prompt` for the
    /// whole prompt, escaped once more. Without one, with an echo.
    Reply {
        /// The text; blocks in it are sent as they stand.
        text: Option<String>,
        /// To whom a text without blocks goes; without it, to where the message came from.
        to: Option<String>,
        /// The text is left as it is, with or without blocks.
        raw: bool,
    },
    /// With an error.
    Error {
        /// Its class.
        class: ErrorClass,
        /// How long the runner shall wait.
        retry_after: Option<Ms>,
    },
    /// With the process, at once and with this code.
    Crash(i32),
    /// Not at all.
    Silence,
}

/// All rules; the first that matches wins.
#[derive(Clone, Debug, Default)]
pub struct Rules(Vec<Rule>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    pattern: String,
    reply: Option<String>,
    to: Option<String>,
    #[serde(default)]
    delay_ms: u64,
    until: Option<String>,
    error: Option<String>,
    retry_after_ms: Option<u64>,
    crash: Option<i32>,
    #[serde(default)]
    once: bool,
    #[serde(default)]
    raw: bool,
    #[serde(default)]
    silence: bool,
    tool_ms: Option<u64>,
}

impl Rules {
    /// Reads `mock.rules`; `null` means none.
    ///
    /// # Errors
    /// [`ProviderError::Settings`], which names the rule by its place.
    pub fn read(rules: &Value) -> Result<Self, ProviderError> {
        let settings = |key: String, reason: String| ProviderError::Settings { key, reason };
        let list = match rules {
            Value::Null => return Ok(Self::default()),
            Value::Array(list) if list.len() <= MAX_RULES => list,
            Value::Array(_) => {
                return Err(settings("mock.rules".into(), format!("more than {MAX_RULES} rules")));
            }
            _ => return Err(settings("mock.rules".into(), "expected an array of rules".into())),
        };
        let read = |(index, value): (usize, &Value)| {
            let wire = Wire::deserialize(value).map_err(|error| error.to_string());
            wire.and_then(rule).map_err(|reason| settings(format!("mock.rules[{index}]"), reason))
        };
        list.iter().enumerate().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// The rules that match, first to last, with their places.
    pub fn matching(&self, prompt: &str) -> impl Iterator<Item = (usize, &Rule)> {
        self.0.iter().enumerate().filter(move |(_, rule)| rule.pattern.is_match(prompt))
    }
}

fn rule(wire: Wire) -> Result<Rule, String> {
    let pattern = RegexBuilder::new(&wire.pattern).size_limit(MAX_PATTERN_BYTES).build();
    let pattern = pattern.map_err(|error| format!("pattern: {error}"))?;
    let class = match wire.error.as_deref() {
        None => None,
        Some("transient") => Some(ErrorClass::Transient),
        Some("permanent") => Some(ErrorClass::Permanent),
        Some("session-invalid") => Some(ErrorClass::SessionInvalid),
        Some("crashed") => Some(ErrorClass::Crashed),
        Some(other) => {
            return Err(format!(
                "error: {other:?} is none of \"transient\", \"permanent\", \"session-invalid\", \"crashed\""
            ));
        }
    };
    let wait = |ms: u64| Ms(ms).min(MAX_WAIT);
    let action = match (class, wire.crash, wire.silence, wire.reply) {
        (Some(class), None, false, None) => {
            Action::Error { class, retry_after: wire.retry_after_ms.map(wait) }
        }
        (None, Some(code), false, None) => Action::Crash(code),
        (None, None, true, None) => Action::Silence,
        (None, None, false, text) => Action::Reply { text, to: wire.to, raw: wire.raw },
        _ => return Err("only one of reply, error, crash and silence can be".to_owned()),
    };
    if let Some(name) = wire.until.as_deref()
        && (name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains('/') || name.starts_with('.'))
    {
        return Err(format!("until: {name:?} is no name of a file in the workspace"));
    }
    let (delay, tool) = (wait(wire.delay_ms), wire.tool_ms.map(wait));
    Ok(Rule { pattern, delay, until: wire.until, tool, once: wire.once, action })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn first(rules: Value, prompt: &str) -> Result<Option<(usize, Action)>, ProviderError> {
        let rules = Rules::read(&rules)?;
        Ok(rules.matching(prompt).next().map(|(index, rule)| (index, rule.action.clone())))
    }

    #[test]
    fn the_first_rule_that_matches_wins() -> Result<(), ProviderError> {
        let rules =
            json!([{"pattern": "^b"}, {"pattern": "a+", "crash": 9}, {"pattern": "a", "silence": true}]);
        assert_eq!(first(rules.clone(), "xaa")?, Some((1, Action::Crash(9))));
        assert_eq!(first(rules, "c")?, None);
        Ok(())
    }

    #[test]
    fn wrong_rules_are_named_by_their_place() {
        for (rules, message) in [
            (json!({}), "container.json: mock.rules: expected an array of rules"),
            (
                json!([{"pattern": "a"}, {"reply": "x"}]),
                "container.json: mock.rules[1]: missing field `pattern`",
            ),
            (
                json!([{"pattern": "a", "error": "odd"}]),
                "container.json: mock.rules[0]: error: \"odd\" is none of \"transient\", \"permanent\", \
                 \"session-invalid\", \"crashed\"",
            ),
            (
                json!([{"pattern": "a", "reply": "x", "crash": 1}]),
                "container.json: mock.rules[0]: only one of reply, error, crash and silence can be",
            ),
        ] {
            assert_eq!(Rules::read(&rules).err().map(|e| e.to_string()).as_deref(), Some(message));
        }
        assert!(Rules::read(&json!([{"pattern": "("}])).is_err());
        for name in ["", "../go", ".heartbeat"] {
            assert!(Rules::read(&json!([{"pattern": "a", "until": name}])).is_err(), "{name}");
        }
        assert!(Rules::read(&json!([{"pattern": "a", "dely_ms": 1}])).is_err(), "a misspelt key");
    }

    #[test]
    fn waits_are_bounded() -> Result<(), ProviderError> {
        let rules = Rules::read(&json!([{"pattern": "", "delay_ms": u64::MAX}]))?;
        assert_eq!(rules.matching("").next().map(|(_, rule)| rule.delay), Some(MAX_WAIT));
        Ok(())
    }
}
