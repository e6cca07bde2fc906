//! The provider `mock`: answers by rule, or echoes. For tests, demonstrations and trying a host out.
//!
//! Invariant: needs no network and no key, and its answer depends on nothing but prompt, rules and spent
//! markers.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lamplighter::base::Ms;
use serde_json::Value;

use super::rules::{Action, Rule, Rules};
use super::{ErrorClass, Provider, ProviderError, ProviderEvent, Query, Setup, TurnError};
use crate::blocks;
use crate::mailbox::{Sink, TurnOver};
use crate::prompt::{Prompt, Trigger};

/// What the token of a conversation begins with; the rest counts its turns.
const CONTINUATION: &str = "mock-";
/// What the tool of `tool_ms` is called: the one name whose declared time NanoClaw's host honours (contract
/// 14).
const TOOL: &str = "Bash";

/// Answers by rule, or echoes.
#[derive(Debug)]
pub struct Mock {
    rules: Rules,
    workspace: PathBuf,
    reply: Option<String>,
}

impl Mock {
    /// Reads its settings.
    ///
    /// # Errors
    /// [`ProviderError::Settings`].
    pub fn new(setup: Setup) -> Result<Self, ProviderError> {
        let rules = Rules::read(setup.settings.get("rules").unwrap_or(&Value::Null))?;
        Ok(Self { rules, workspace: setup.workspace, reply: setup.mock_reply })
    }

    fn plan(&self, prompt: Prompt, continuation: Option<String>) -> Plan {
        let rule = self.rules.matching(&prompt.text).find(|(index, rule)| {
            // A marker that cannot be written leaves the rule unspent: better again than never.
            !rule.once || spend(&self.workspace, *index).unwrap_or(true)
        });
        let turns = continuation.as_deref().and_then(|token| token.strip_prefix(CONTINUATION)?.parse().ok());
        let continuation = format!("{CONTINUATION}{}", turns.unwrap_or(0_u64).saturating_add(1));
        Plan { rule: rule.map(|(_, rule)| rule.clone()), reply: self.reply.clone(), continuation, prompt }
    }
}

impl Provider for Mock {
    fn start(
        &mut self,
        prompt: Prompt,
        continuation: Option<String>,
        sink: Sink,
    ) -> Result<Box<dyn Query>, TurnError> {
        let plan = self.plan(prompt, continuation);
        let stop = Arc::new(Stop::default());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("mock".to_owned())
            .spawn(move || {
                // Only says that nobody listens any more, which is the end of the turn too.
                let _ = plan.play(&sink, &stopped);
            })
            .map_err(|error| TurnError {
                class: ErrorClass::Transient,
                reason: format!("cannot start a thread: {error}"),
                retry_after: None,
            })?;
        Ok(Box::new(Turn { stop, thread: Some(thread) }))
    }
}

/// Notes that a rule was used. Returns whether this was its first use.
fn spend(workspace: &Path, index: usize) -> io::Result<bool> {
    let marker = workspace.join(format!(".lamplighter-mock-rule-{index}"));
    match OpenOptions::new().write(true).create_new(true).open(marker) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Ends a wait early.
#[derive(Debug, Default)]
struct Stop {
    asked: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn ask(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits for so long, for ever without a time, or until asked to stop. Returns the last as an error.
    fn wait(&self, time: Option<Ms>) -> Result<(), TurnOver> {
        let until = time.map(|time| Instant::now() + Duration::from(time));
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        while !*asked {
            asked = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(asked).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return Ok(()),
                Some(left) => {
                    self.changed.wait_timeout(asked, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        Err(TurnOver)
    }
}

struct Turn {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl Query for Turn {
    /// Each prompt is answered by itself, so follow-ups make the next turn.
    fn push(&mut self, _: &Prompt) -> bool {
        false
    }

    fn end(&mut self) {
        self.abort();
    }

    fn abort(&mut self) {
        self.stop.ask();
        if let Some(thread) = self.thread.take() {
            // A panic has printed itself; the turn is over either way.
            let _ = thread.join();
        }
    }
}

struct Plan {
    rule: Option<Rule>,
    reply: Option<String>,
    continuation: String,
    prompt: Prompt,
}

impl Plan {
    fn play(self, sink: &Sink, stop: &Stop) -> Result<(), TurnOver> {
        let rule = self.rule.as_ref();
        if matches!(rule, Some(Rule { action: Action::Silence, .. })) {
            return stop.wait(None);
        }
        sink.send(ProviderEvent::Init { continuation: self.continuation.clone() })?;
        if let Some(rule) = rule {
            stop.wait(Some(rule.delay))?;
            if let Some(time) = rule.tool {
                sink.send(ProviderEvent::ToolStarted { name: TOOL.to_owned(), timeout: Some(time) })?;
                stop.wait(Some(time))?;
                sink.send(ProviderEvent::ToolEnded)?;
            }
        }
        sink.send(match rule.map(|rule| &rule.action) {
            Some(Action::Crash(code)) => std::process::exit(*code),
            Some(Action::Silence) => return stop.wait(None),
            Some(Action::Error { class, retry_after }) => ProviderEvent::Error(TurnError {
                class: *class,
                reason: "a rule of the provider mock".to_owned(),
                retry_after: *retry_after,
            }),
            Some(Action::Reply { text, to }) => {
                ProviderEvent::Result(self.answer(text.as_deref(), to.as_deref()))
            }
            None => ProviderEvent::Result(self.answer(None, None)),
        })
    }

    /// A literal text goes out once, to where the last matching message came from; an echo answers each
    /// message.
    fn answer(&self, text: Option<&str>, to: Option<&str>) -> Option<String> {
        let Some(text) = text.or(self.reply.as_deref()) else {
            let echoes = self.prompt.triggers.iter().filter_map(|trigger| {
                Some(block(to.or(trigger.from.as_deref())?, &format!("echo: {}", trigger.text)))
            });
            let echoes: Vec<String> = echoes.collect();
            return (!echoes.is_empty()).then(|| echoes.join("\n"));
        };
        let asked = self.asked();
        let text = text.replace("$text", asked.map_or("", |trigger| &trigger.text));
        if !blocks::parse(&text).blocks.is_empty() {
            return Some(text);
        }
        match to.or(asked.and_then(|trigger| trigger.from.as_deref())) {
            Some(to) => Some(block(to, &text)),
            None => Some(text),
        }
    }

    /// The message that the rule is about: the last one that its pattern matches by itself, else the last
    /// one.
    fn asked(&self) -> Option<&Trigger> {
        let matches =
            |trigger: &&Trigger| self.rule.as_ref().is_some_and(|rule| rule.pattern.is_match(&trigger.text));
        self.prompt.triggers.iter().rfind(matches).or(self.prompt.triggers.last())
    }
}

fn block(to: &str, body: &str) -> String {
    format!("<message to=\"{to}\">{body}</message>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::{Event, Mailbox};
    use serde_json::json;
    use std::time::Duration;

    fn prompt(texts: &[&str]) -> Prompt {
        let trigger = |text: &&str| Trigger { from: Some("family".into()), text: (*text).into() };
        Prompt { text: texts.join("\n"), triggers: texts.iter().map(trigger).collect() }
    }

    fn mock(rules: Value, reply: Option<&str>, workspace: &Path) -> Result<Mock, ProviderError> {
        let mock_reply = reply.map(str::to_owned);
        Mock::new(Setup { settings: json!({"rules": rules}), workspace: workspace.to_owned(), mock_reply })
    }

    fn answer(mock: &Mock, texts: &[&str]) -> Option<String> {
        let plan = mock.plan(prompt(texts), None);
        match plan.rule.as_ref().map(|rule| rule.action.clone()) {
            Some(Action::Reply { text, to }) => plan.answer(text.as_deref(), to.as_deref()),
            _ => plan.answer(None, None),
        }
    }

    #[test]
    fn without_a_rule_each_message_is_echoed_to_where_it_came_from() -> Result<(), ProviderError> {
        let mock = mock(json!([]), None, Path::new("/"))?;
        assert_eq!(
            answer(&mock, &["a", "b"]).as_deref(),
            Some("<message to=\"family\">echo: a</message>\n<message to=\"family\">echo: b</message>")
        );
        Ok(())
    }

    #[test]
    fn a_literal_answer_is_wrapped_only_when_it_has_no_block() -> Result<(), ProviderError> {
        let plain =
            mock(json!([{"pattern": "b", "reply": "got $text", "to": "work"}]), Some("hi"), Path::new("/"))?;
        assert_eq!(answer(&plain, &["a"]).as_deref(), Some("<message to=\"family\">hi</message>"));
        assert_eq!(answer(&plain, &["b1", "a"]).as_deref(), Some("<message to=\"work\">got b1</message>"));
        let wrapped = mock(json!([]), Some("<message to=\"x\">y</message>"), Path::new("/"))?;
        assert_eq!(answer(&wrapped, &["a"]).as_deref(), Some("<message to=\"x\">y</message>"));
        Ok(())
    }

    #[test]
    fn a_rule_for_once_is_spent_across_restarts() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let rules = json!([{"pattern": "a", "reply": "first", "once": true}]);
        for expected in ["<message to=\"family\">first</message>", "<message to=\"family\">echo: a</message>"]
        {
            let mock = mock(rules.clone(), None, folder.path())?;
            assert_eq!(answer(&mock, &["a"]).as_deref(), Some(expected));
        }
        Ok(())
    }

    #[test]
    fn a_silent_turn_says_nothing_and_can_be_ended() -> Result<(), Box<dyn std::error::Error>> {
        let mut mock = mock(json!([{"pattern": "", "silence": true}]), None, Path::new("/"))?;
        let mailbox = Arc::new(Mailbox::default());
        let turn = mock.start(prompt(&["a"]), None, mailbox.open_turn());
        let Ok(mut turn) = turn else { return Err("must start".into()) };
        let by = Instant::now() + Duration::from_millis(50);
        assert_eq!(mailbox.take(Some(by)), Event::Timeout);
        turn.abort();
        Ok(())
    }

    #[test]
    fn the_conversation_goes_on_where_it_was() -> Result<(), ProviderError> {
        let mock = mock(json!([]), None, Path::new("/"))?;
        assert_eq!(mock.plan(prompt(&[]), None).continuation, "mock-1");
        assert_eq!(mock.plan(prompt(&[]), Some("mock-1".into())).continuation, "mock-2");
        assert_eq!(mock.plan(prompt(&[]), Some("junk".into())).continuation, "mock-1");
        Ok(())
    }
}
