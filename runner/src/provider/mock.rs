//! The provider `mock`: answers by rule, or echoes. For tests, demonstrations and trying a host out.
//!
//! Invariant: needs no network and no key, and its answer depends on nothing but prompt, rules and spent
//! markers.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lamplighter::base::Ms;

use super::child::Settings;
use super::rules::{Action, MAX_WAIT, Rule, Rules};
use super::{
    Answer, ErrorClass, Opening, Provider, ProviderError, ProviderEvent, Push, Query, Setup, TurnError,
};
use crate::blocks;
use crate::mailbox::{QueryOver, Sink};
use crate::prompt::{self, Prompt, Trigger};

/// What the token of a conversation begins with; the rest counts its turns.
const CONTINUATION: &str = "mock-";
/// What the tool of `tool_ms` is called: the one name whose declared time NanoClaw's host honours (contract
/// 14).
const TOOL: &str = "Bash";
/// How often it is looked whether the file of a rule with `until` is there: nobody waits for such a turn but tests.
const LOOK_AGAIN: Ms = Ms(20);

/// Answers by rule, or echoes.
#[derive(Clone, Debug)]
pub struct Mock {
    rules: Rules,
    workspace: PathBuf,
    reply: Option<String>,
    /// Whether a push is taken while a turn is being played; it is then answered after that turn.
    follow_ups: bool,
}

impl Mock {
    /// Reads its settings.
    ///
    /// # Errors
    /// [`ProviderError::Settings`].
    pub fn new(setup: Setup) -> Result<Self, ProviderError> {
        let mut settings = Settings::new("mock", setup.settings)?;
        let rules = Rules::read(&settings.value("rules"))?;
        let follow_ups = settings.flag("follow_ups")?.unwrap_or(false);
        settings.done()?;
        Ok(Self { rules, workspace: setup.workspace, reply: setup.mock_reply, follow_ups })
    }

    fn plan(&self, push: Push, continuation: Option<String>) -> Plan {
        let Push { id, prompt } = push;
        let rule = self.rules.matching(&prompt.text).find(|(index, rule)| {
            // A marker that cannot be written leaves the rule unspent: better again than never.
            !rule.once || spend(&self.workspace, *index).unwrap_or(true)
        });
        let turns = continuation.as_deref().and_then(|token| token.strip_prefix(CONTINUATION)?.parse().ok());
        let continuation = format!("{CONTINUATION}{}", turns.unwrap_or(0_u64).saturating_add(1));
        Plan {
            id,
            rule: rule.map(|(_, rule)| rule.clone()),
            reply: self.reply.clone(),
            workspace: self.workspace.clone(),
            continuation,
            prompt,
        }
    }
}

impl Provider for Mock {
    fn start(&mut self, opening: Opening, sink: Sink) -> Result<Box<dyn Query>, TurnError> {
        let shared = Arc::new(Shared::default());
        let mut player = Player {
            mock: self.clone(),
            continuation: opening.continuation,
            shared: Arc::clone(&shared),
            sink,
        };
        shared.offer(opening.first, true);
        let thread = std::thread::Builder::new()
            .name("mock".to_owned())
            .spawn(move || {
                // Only says that nobody listens any more, which is the end of the query too.
                let _ = player.run();
            })
            .map_err(|error| {
                TurnError::new(ErrorClass::Transient, format!("cannot start a thread: {error}"))
            })?;
        Ok(Box::new(Conversation { shared, thread: Some(thread), follow_ups: self.follow_ups }))
    }

    fn follow_ups(&self) -> bool {
        self.follow_ups
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

/// What the query's two sides share.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Pushes that wait for their turn.
    waiting: VecDeque<Push>,
    /// Whether a turn is being played.
    busy: bool,
    stop: bool,
    /// A rule plays dead.
    silent: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one assignment or one push: a side that panicked left nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a push, into a running turn only when `follow_ups` says so.
    fn offer(&self, push: Push, follow_ups: bool) -> bool {
        let mut state = self.state();
        let taken = !state.stop && (follow_ups || (!state.busy && state.waiting.is_empty()));
        if taken {
            state.waiting.push_back(push);
            self.changed.notify_all();
        }
        taken
    }

    fn stop(&self) {
        self.state().stop = true;
        self.changed.notify_all();
    }

    /// The next push; an error when asked to stop.
    fn next(&self) -> Result<Push, QueryOver> {
        let mut state = self.state();
        loop {
            if state.stop {
                return Err(QueryOver);
            }
            if let Some(push) = state.waiting.pop_front() {
                state.busy = true;
                return Ok(push);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for so long, for ever without a time, or until asked to stop. Returns the last as an error.
    fn wait(&self, time: Option<Ms>) -> Result<(), QueryOver> {
        let until = time.map(|time| Instant::now() + Duration::from(time));
        let mut state = self.state();
        while !state.stop {
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return Ok(()),
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        Err(QueryOver)
    }

    /// The turn is over as soon as its result can be heard: what is pushed then is taken.
    fn done(&self) {
        self.state().busy = false;
    }

    fn play_dead(&self) -> Result<(), QueryOver> {
        self.state().silent = true;
        self.wait(None)
    }
}

struct Conversation {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    follow_ups: bool,
}

impl Query for Conversation {
    fn push(&mut self, push: &Push) -> bool {
        self.shared.offer(push.clone(), self.follow_ups)
    }

    fn is_alive(&self) -> bool {
        !self.shared.state().silent && self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    fn end(&mut self) {
        self.abort();
    }

    fn abort(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            // A panic has printed itself; the query is over either way.
            let _ = thread.join();
        }
    }
}

/// Plays one push after the other.
struct Player {
    mock: Mock,
    continuation: Option<String>,
    shared: Arc<Shared>,
    sink: Sink,
}

impl Player {
    fn run(&mut self) -> Result<(), QueryOver> {
        loop {
            let push = self.shared.next()?;
            let plan = self.mock.plan(push, self.continuation.take());
            self.continuation = Some(plan.continuation.clone());
            plan.play(&self.sink, &self.shared)?;
        }
    }
}

struct Plan {
    id: String,
    rule: Option<Rule>,
    reply: Option<String>,
    workspace: PathBuf,
    continuation: String,
    prompt: Prompt,
}

impl Plan {
    fn play(self, sink: &Sink, shared: &Shared) -> Result<(), QueryOver> {
        let rule = self.rule.as_ref();
        if matches!(rule, Some(Rule { action: Action::Silence, .. })) {
            return shared.play_dead();
        }
        sink.send(ProviderEvent::Init { continuation: self.continuation.clone() })?;
        sink.send(ProviderEvent::Started { id: self.id.clone() })?;
        if let Some(rule) = rule {
            shared.wait(Some(rule.delay))?;
            if let Some(name) = &rule.until {
                let (file, limit) = (self.workspace.join(name), Instant::now() + Duration::from(MAX_WAIT));
                while !file.exists() && Instant::now() < limit {
                    shared.wait(Some(LOOK_AGAIN))?;
                }
            }
            if let Some(time) = rule.tool {
                let id = TOOL.to_lowercase();
                sink.send(ProviderEvent::ToolStarted {
                    id: id.clone(),
                    name: TOOL.to_owned(),
                    timeout: Some(time),
                })?;
                shared.wait(Some(time))?;
                sink.send(ProviderEvent::ToolEnded { id })?;
            }
        }
        let result = |text| {
            shared.done();
            ProviderEvent::Result(Answer { text, covers: vec![self.id.clone()], ..Answer::default() })
        };
        sink.send(match rule.map(|rule| &rule.action) {
            Some(Action::Crash(code)) => std::process::exit(*code),
            Some(Action::Silence) => return shared.play_dead(),
            Some(Action::Error { class, retry_after }) => ProviderEvent::Error(TurnError {
                class: *class,
                reason: "a rule of the provider mock".to_owned(),
                retry_after: *retry_after,
            }),
            Some(Action::Reply { text: Some(text), raw: true, .. }) => result(Some(self.filled(text))),
            Some(Action::Reply { text, to, .. }) => result(self.answer(text.as_deref(), to.as_deref())),
            None => result(self.answer(None, None)),
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
        let text = self.filled(text);
        if !blocks::parse(&text).blocks.is_empty() {
            return Some(text);
        }
        match to.or(asked.and_then(|trigger| trigger.from.as_deref())) {
            Some(to) => Some(block(to, &text)),
            None => Some(text),
        }
    }

    fn filled(&self, text: &str) -> String {
        // Escaped once more, so that no part of it can end the block.
        let text = text.replace("$prompt", &prompt::escape(&self.prompt.text));
        text.replace("$text", self.asked().map_or("", |trigger| &trigger.text))
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
    use serde_json::{Value, json};
    use std::time::Duration;

    fn push(texts: &[&str]) -> Push {
        let trigger = |text: &&str| Trigger { from: Some("family".into()), text: (*text).into() };
        let prompt = Prompt { text: texts.join("\n"), triggers: texts.iter().map(trigger).collect() };
        Push { id: texts.join("+"), prompt }
    }

    fn opening(texts: &[&str]) -> Opening {
        Opening { first: push(texts), ..Opening::default() }
    }

    fn mock(rules: Value, reply: Option<&str>, workspace: &Path) -> Result<Mock, ProviderError> {
        let mock_reply = reply.map(str::to_owned);
        let settings = json!({"rules": rules});
        Mock::new(Setup { settings, workspace: workspace.to_owned(), mock_reply, ..Setup::default() })
    }

    fn answer(mock: &Mock, texts: &[&str]) -> Option<String> {
        let plan = mock.plan(push(texts), None);
        match plan.rule.as_ref().map(|rule| rule.action.clone()) {
            Some(Action::Reply { text, to, .. }) => plan.answer(text.as_deref(), to.as_deref()),
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
    fn a_turn_that_waits_for_a_file_ends_when_it_is_there_or_when_it_is_stopped()
    -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let rules = json!([{"pattern": "a", "reply": "went on", "until": "go"}]);
        let mailbox = Arc::new(Mailbox::default());
        let begin = || -> Result<Box<dyn Query>, Box<dyn std::error::Error>> {
            let mut mock = mock(rules.clone(), None, folder.path())?;
            mock.start(opening(&["a"]), mailbox.open_query()).map_err(|_| "must start".into())
        };
        let next = |wait| mailbox.take(Some(Instant::now() + wait));
        let mut stopped = begin()?;
        for _ in ["begun", "started"] {
            assert_ne!(next(Duration::from_secs(10)), Event::Timeout);
        }
        assert_eq!(next(Duration::from_millis(100)), Event::Timeout);
        stopped.abort();
        let waits = begin()?;
        std::fs::write(folder.path().join("go"), "")?;
        loop {
            match next(Duration::from_secs(10)) {
                Event::Provider(ProviderEvent::Result(answer)) => {
                    assert!(answer.text.is_some_and(|text| text.contains("went on")));
                    break;
                }
                other => assert_ne!(other, Event::Timeout),
            }
        }
        drop(waits);
        Ok(())
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (settings, said) in [
            (json!({"follow_up": true}), "container.json: mock.follow_up: this runner knows no such setting"),
            (json!({"follow_ups": 1}), "container.json: mock.follow_ups: it is neither true nor false"),
            (json!([]), "container.json: mock: it is not an object"),
        ] {
            let found = Mock::new(Setup { settings, ..Setup::default() });
            assert_eq!(found.err().map(|error| error.to_string()).as_deref(), Some(said));
        }
    }

    #[test]
    fn a_silent_turn_says_nothing_and_can_be_ended() -> Result<(), Box<dyn std::error::Error>> {
        let mut mock = mock(json!([{"pattern": "", "silence": true}]), None, Path::new("/"))?;
        let mailbox = Arc::new(Mailbox::default());
        let turn = mock.start(opening(&["a"]), mailbox.open_query());
        let Ok(mut turn) = turn else { return Err("must start".into()) };
        let by = Instant::now() + Duration::from_millis(50);
        assert_eq!(mailbox.take(Some(by)), Event::Timeout);
        assert!(!turn.is_alive());
        turn.abort();
        Ok(())
    }

    #[test]
    fn one_query_answers_one_push_after_the_other() -> Result<(), Box<dyn std::error::Error>> {
        let settings = json!({"follow_ups": true, "rules": [{"pattern": "a", "reply": "1", "delay_ms": 50}]});
        let mut mock = Mock::new(Setup { settings, ..Setup::default() })?;
        let mailbox = Arc::new(Mailbox::default());
        let query = mock.start(opening(&["a"]), mailbox.open_query());
        let Ok(mut query) = query else { return Err("must start".into()) };
        assert!(query.push(&push(&["b"])));
        let mut covered = Vec::new();
        while covered.len() < 2 {
            let by = Instant::now() + Duration::from_secs(10);
            match mailbox.take(Some(by)) {
                Event::Provider(ProviderEvent::Result(answer)) => covered.extend(answer.covers),
                Event::Provider(_) => {}
                other => return Err(format!("{other:?}").into()),
            }
        }
        assert_eq!(covered, ["a", "b"]);
        assert!(query.is_alive());
        query.end();
        assert!(!query.is_alive() && !query.push(&push(&["c"])));
        Ok(())
    }

    #[test]
    fn the_conversation_goes_on_where_it_was() -> Result<(), ProviderError> {
        let mock = mock(json!([]), None, Path::new("/"))?;
        assert_eq!(mock.plan(push(&[]), None).continuation, "mock-1");
        assert_eq!(mock.plan(push(&[]), Some("mock-1".into())).continuation, "mock-2");
        assert_eq!(mock.plan(push(&[]), Some("junk".into())).continuation, "mock-1");
        Ok(())
    }
}
