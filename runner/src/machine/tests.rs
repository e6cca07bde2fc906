//! Golden transcripts of the turn loop, and random runs with its invariants as judge.
//!
//! A transcript is a file in `fixtures/turns`: lines that say what happens, `----`, and the effects. A small world
//! answers looks, claims and pushes as the loop around the machine does. `UPDATE=1` rewrites the effects.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use lamplighter::base::{At, Ms, Wall};
use proptest::prelude::*;

use super::*;
use crate::provider::ErrorClass;

const EPOCH: Wall = Wall(1_779_096_600_000_000);

/// What has become of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Pending,
    Claimed,
    Completed,
    Failed,
}

/// The files, the provider and the clock, as far as the machine sees them.
struct World {
    settings: Settings,
    state: State,
    at: At,
    wall: Wall,
    rows: Vec<Row>,
    fates: BTreeMap<String, Fate>,
    /// The pushes that the provider has and has not answered.
    open: Vec<Spec>,
    query: bool,
    exited: bool,
    script: Option<String>,
    refuse: bool,
    away: bool,
    /// Rows that a tool acks before the next claim.
    stolen: BTreeSet<String>,
    answers: u64,
    log: String,
    completions: BTreeMap<String, u32>,
    /// Under which push the agent has each message that starts a turn.
    known: BTreeMap<String, String>,
}

impl World {
    fn new(settings: Settings) -> Self {
        Self {
            settings,
            state: State::new(settings),
            at: At(0),
            wall: EPOCH,
            rows: Vec::new(),
            fates: BTreeMap::new(),
            open: Vec::new(),
            query: false,
            exited: false,
            script: None,
            refuse: false,
            away: false,
            stolen: BTreeSet::new(),
            answers: 0,
            log: String::new(),
            completions: BTreeMap::new(),
            known: BTreeMap::new(),
        }
    }

    fn give(&mut self, input: Input) {
        let mut inputs = std::collections::VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let effects = self.state.step(Now { at: self.at, wall: self.wall }, input);
            for effect in effects {
                inputs.extend(self.perform(effect));
            }
            if inputs.is_empty() {
                self.check();
            }
        }
    }

    fn fate(&mut self, id: &str, fate: Fate) {
        let before = self.fates.insert(id.to_owned(), fate);
        assert!(!matches!(before, Some(Fate::Completed | Fate::Failed)), "{id} was over and became {fate:?}");
        if fate == Fate::Completed {
            *self.completions.entry(id.to_owned()).or_default() += 1;
        }
    }

    /// A message that the agent may have comes again under the same push, or not at all.
    fn hand_over(&mut self, push: &Spec) {
        let Content::Messages { ids, .. } = &push.content else { return };
        for id in ids.iter().filter(|id| !id.starts_with('c')) {
            let before = self.known.insert(id.clone(), push.id.clone());
            assert!(before.is_none_or(|before| before == push.id), "{id} comes again in another push");
        }
    }

    fn perform(&mut self, effect: Effect) -> Option<Input> {
        self.note(&effect);
        if let Effect::Start { push, .. } | Effect::Push(push) = &effect {
            self.hand_over(push);
        }
        match effect {
            Effect::Look => {
                if std::mem::take(&mut self.away) {
                    return Some(Input::LookFailed);
                }
                let pending = |row: &&Row| self.fates.get(&row.id) == Some(&Fate::Pending);
                let rows = self.rows.iter().filter(pending).cloned().collect();
                Some(Input::Looked { rows, all: true })
            }
            Effect::Claim { ids, failed, omitted } => {
                for (id, _) in &failed {
                    self.fate(id, Fate::Failed);
                }
                omitted.iter().for_each(|id| self.fate(id, Fate::Completed));
                for id in std::mem::take(&mut self.stolen) {
                    if self.fates.get(&id) == Some(&Fate::Pending) {
                        self.fate(&id, Fate::Completed);
                    }
                }
                let free = |id: &String| self.fates.get(id) == Some(&Fate::Pending);
                let ids: Vec<String> = ids.into_iter().filter(free).collect();
                ids.iter().for_each(|id| self.fate(id, Fate::Claimed));
                Some(Input::Claimed { ids })
            }
            Effect::Consume { id } | Effect::Gate { id } | Effect::Clear { id } => {
                if id.starts_with('x') {
                    self.known.clear();
                }
                self.fate(&id, Fate::Completed);
                None
            }
            Effect::RunScript { id } => {
                assert!(self.script.replace(id).is_none(), "two scripts at once");
                None
            }
            Effect::KillScript => {
                self.script = None;
                None
            }
            Effect::Start { push, .. } => {
                assert!(!std::mem::replace(&mut self.query, true), "two queries at once");
                self.open.push(push);
                None
            }
            Effect::Push(push) => {
                assert!(self.query, "a push without a query");
                let taken = !std::mem::take(&mut self.refuse);
                let id = push.id.clone();
                if taken {
                    self.open.push(push);
                }
                Some(Input::Pushed { id, taken })
            }
            Effect::EndQuery | Effect::AbortQuery => {
                assert!(std::mem::take(&mut self.query), "no query to end");
                self.open.clear();
                None
            }
            Effect::Settle { rows, .. } => {
                rows.iter().for_each(|id| self.fate(id, Fate::Completed));
                None
            }
            Effect::Return { verdicts } => {
                for verdict in verdicts {
                    self.fate(&verdict.id, if verdict.failed { Fate::Failed } else { Fate::Pending });
                }
                None
            }
            Effect::Exit => {
                self.exited = true;
                None
            }
            Effect::DropContinuation => {
                self.known.clear();
                None
            }
            Effect::KeepContinuation { .. }
            | Effect::Forget { .. }
            | Effect::Announce
            | Effect::Touch { .. } => None,
        }
    }

    /// What the machine holds is what is claimed, each row once; what is pushed is what the provider has.
    fn check(&self) {
        let working = self.state.working();
        let held: BTreeSet<&String> = working.claimed.iter().collect();
        assert_eq!(held.len(), working.claimed.len(), "a row is held twice: {working:?}");
        let claimed: BTreeSet<&String> =
            self.fates.iter().filter(|(_, fate)| **fate == Fate::Claimed).map(|(id, _)| id).collect();
        assert_eq!(held, claimed, "held and claimed differ");
        if self.exited {
            assert!(claimed.is_empty() && !self.query, "something is left at the end");
        }
    }

    fn put(&mut self, word: &str) {
        let (id, due) = match word.split_once('@') {
            Some((id, "never")) => (id, None),
            Some((id, wait)) => (id, Some(self.wall + duration(wait))),
            None => (word, Some(Wall::default())),
        };
        let form = match id.as_bytes().first() {
            Some(b'/') => Form::Command,
            Some(b'x') => Form::Clear,
            Some(b's') => Form::Script,
            Some(b'u') => Form::Unusable("its text is number, not text".to_owned()),
            Some(b'a') => Form::Awaited,
            Some(b'n') => Form::Unclaimed,
            _ => Form::Plain,
        };
        let (on_wake, trigger) = (id.starts_with('w'), !id.starts_with('c'));
        self.rows.push(Row { id: id.to_owned(), trigger, due, on_wake, tries: 0, form });
        self.fates.insert(id.to_owned(), Fate::Pending);
    }

    /// Lets time pass, with a tick at each deadline.
    fn wait(&mut self, wait: Ms) {
        let (end, end_wall) = (self.at + wait, self.wall + wait);
        while !self.exited {
            let (at, wall) = self.state.deadlines();
            let due = wall.map(|wall| At(self.at.0 + (wall.0 - self.wall.0).max(0)));
            let Some(next) = [at, due].into_iter().flatten().min().filter(|next| *next <= end) else { break };
            let next = next.max(self.at);
            self.wall = Wall(self.wall.0 + (next.0 - self.at.0));
            self.at = next;
            let mark = self.log.len();
            self.give(Input::Tick);
            let said = self.log.split_off(mark);
            if !said.is_empty() {
                let _ = write!(self.log, "[{}]\n{said}", self.at);
            }
        }
        (self.at, self.wall) = (end, end_wall);
    }

    fn answer(&mut self, covers: Vec<String>, said: Said) {
        self.answers += 1;
        self.open.retain(|push| !covers.contains(&push.id));
        self.give(Input::Answered { answer: self.answers, covers, said });
    }

    fn fail(&mut self, class: ErrorClass, retry_after: Option<Ms>) {
        if class == ErrorClass::Permanent {
            // What failed for good is handed over in other pushes, on purpose.
            self.known.clear();
        }
        self.give(Input::Failed(TurnError { class, reason: "of the script".to_owned(), retry_after }));
    }

    fn end_script(&mut self, wake: bool) {
        if let Some(id) = self.script.take() {
            self.give(Input::ScriptEnded { id, wake });
        }
    }

    fn note(&mut self, effect: &Effect) {
        let join = |ids: &[String]| ids.join(" ");
        let line = match effect {
            Effect::Touch { .. } | Effect::Announce => {
                let working = self.state.working();
                match effect {
                    Effect::Announce => format!(
                        "announce claimed=[{}] pushed=[{}] started=[{}] tools={} waits={}",
                        join(&working.claimed),
                        join(&working.pushed),
                        join(&working.started),
                        self.state.tools().count(),
                        self.state.provider_wait().is_some(),
                    ),
                    _ => "touch".to_owned(),
                }
            }
            Effect::Look => "look".to_owned(),
            Effect::Claim { ids, failed, omitted } => {
                let failed: Vec<String> =
                    failed.iter().map(|(id, why)| format!(" {id} fails: {why}")).collect();
                let omitted =
                    if omitted.is_empty() { String::new() } else { format!(" omitted {}", join(omitted)) };
                format!("claim {}{}{omitted}", join(ids), failed.concat())
            }
            Effect::Start { fresh, push } => {
                format!("start{} {}", if *fresh { " fresh" } else { "" }, shown(push))
            }
            Effect::Push(push) => format!("push {}", shown(push)),
            Effect::Settle { answer, rows, raw } => {
                let answer = answer.map_or("nothing".to_owned(), |answer| format!("answer {answer}"));
                let raw = if *raw { " raw" } else { "" };
                format!("settle with {answer}{raw}: {}", join(rows))
            }
            Effect::Return { verdicts } => {
                let verdict = |verdict: &Verdict| {
                    let how = if verdict.failed { "fail" } else { "release" };
                    let wait = verdict
                        .not_before
                        .map(|until| Ms(u64::try_from((until.0 - self.wall.0) / 1_000).unwrap_or(0)));
                    let wait = wait.map(|wait| format!(" for {wait}")).unwrap_or_default();
                    format!("{how} {} ({}: {}){wait}", verdict.id, verdict.class, verdict.reason)
                };
                verdicts.iter().map(verdict).collect::<Vec<_>>().join("\n")
            }
            Effect::KeepContinuation { continuation } => format!("keep-continuation {continuation}"),
            Effect::Consume { id } => format!("consume {id}"),
            Effect::Clear { id } => format!("clear {id}"),
            Effect::RunScript { id } => format!("run-script {id}"),
            Effect::Gate { id } => format!("gate {id}"),
            Effect::Forget { answer } => format!("forget answer {answer}"),
            Effect::KillScript => "kill-script".to_owned(),
            Effect::EndQuery => "end-query".to_owned(),
            Effect::AbortQuery => "abort-query".to_owned(),
            Effect::DropContinuation => "drop-continuation".to_owned(),
            Effect::Exit => "exit".to_owned(),
        };
        let _ = writeln!(self.log, "{line}");
    }

    fn run(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let verb = words.next().unwrap_or_default();
        let rest: Vec<&str> = words.collect();
        let first = rest.first().copied().unwrap_or_default();
        match verb {
            // Each word is a push, whose messages are joined with a plus.
            "begin" => {
                let mut handed = Handed::default();
                for push in rest.iter().map(|word| word.split('+').collect::<Vec<_>>()) {
                    let triggers: Vec<&str> =
                        push.iter().copied().filter(|id| !id.starts_with('c')).collect();
                    handed.add(&push, &triggers, 0);
                    handed.goes_out(&push);
                }
                self.give(Input::Begun { handed });
            }
            // The process is killed and the next begins: claims are gone, what was handed over is known.
            "crash" => {
                let handed = self.state.handed().map(|fact| Handed::read(&fact)).unwrap_or_default();
                self.state = State::new(self.settings);
                (self.query, self.script, self.exited) = (false, None, false);
                self.open.clear();
                for fate in self.fates.values_mut().filter(|fate| **fate == Fate::Claimed) {
                    *fate = Fate::Pending;
                }
                self.give(Input::Begun { handed });
            }
            "put" => {
                rest.iter().for_each(|word| self.put(word));
                self.give(Input::Changed);
            }
            "started" => self.give(Input::Started { id: push_id(first) }),
            "answer" => {
                let has = |word: &str| rest.contains(&word);
                let said = Said {
                    messages: usize::from(has("sent")),
                    unknown: usize::from(has("unknown")),
                    bare: has("bare"),
                    by_tool: has("tool"),
                    empty: has("empty"),
                    local_command: has("local"),
                };
                let covers = match first {
                    "nudge" => self.open.iter().map(|push| push.id.clone()).collect(),
                    "-" => Vec::new(),
                    ids => ids.split(',').map(push_id).collect(),
                };
                self.answer(covers, said);
            }
            "fail" => {
                let class = match first {
                    "transient" => ErrorClass::Transient,
                    "permanent" => ErrorClass::Permanent,
                    "crashed" => ErrorClass::Crashed,
                    _ => ErrorClass::SessionInvalid,
                };
                self.fail(class, rest.get(1).map(|wait| duration(wait)));
            }
            "init" => self.give(Input::Init { continuation: first.to_owned() }),
            "activity" => self.give(Input::Activity),
            "tool" => {
                let timeout = rest.get(1).map(|wait| duration(wait));
                self.give(Input::ToolStarted { id: first.to_owned(), name: first.to_owned(), timeout });
            }
            "tool-end" => self.give(Input::ToolEnded { id: first.to_owned() }),
            "retrying" => {
                self.give(Input::Retrying { reason: "overloaded".to_owned(), wait: duration(first) })
            }
            "script" => self.end_script(first == "wakes"),
            "refuse" => self.refuse = true,
            "away" => self.away = true,
            "steal" => self.stolen.extend(owned(&rest)),
            "stop" => self.give(Input::StopAsked),
            "wait" => self.wait(duration(first)),
            other => panic!("{other} is no word of transcripts"),
        }
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Pushes are named by their messages, joined with a plus.
fn push_id(word: &str) -> String {
    handed::push_id(&word.split('+').collect::<Vec<_>>())
}

fn shown(push: &Spec) -> String {
    match &push.content {
        Content::Messages { ids, omitted } => {
            let omitted = if *omitted == 0 { String::new() } else { format!(" ({omitted} omitted)") };
            // The id says nothing new where it follows from the messages.
            let triggers: Vec<&str> =
                ids.iter().map(String::as_str).filter(|id| !id.starts_with('c')).collect();
            let known = handed::push_id(&triggers) == push.id;
            let id = if known { String::new() } else { format!(" as {}", push.id.replace('\n', "+")) };
            format!("{}{omitted}{id}", ids.join(" "))
        }
        Content::Command { id } => format!("command {id}"),
        Content::Nudge { problem } => match problem {
            Problem::Bare => "nudge".to_owned(),
            Problem::Unknown => "nudge unknown".to_owned(),
            Problem::Empty => "nudge empty".to_owned(),
        },
    }
}

fn duration(word: &str) -> Ms {
    let split = word.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(word.len());
    let number: u64 = word[..split].parse().unwrap_or_default();
    match &word[split..] {
        "ms" => Ms(number),
        "m" => Ms::minutes(number),
        _ => Ms::secs(number),
    }
}

fn settings(words: &str) -> Settings {
    let has = |word: &str| words.split_whitespace().any(|known| known == word);
    let max = words.split_whitespace().find_map(|word| word.strip_prefix("max=")?.parse().ok());
    Settings {
        max_triggers: max.unwrap_or(10),
        native_commands: !has("no-commands"),
        follow_ups: !has("no-follow-ups"),
        gives_up: has("gives-up"),
    }
}

/// The transcript with its effects as they are now.
fn replayed(text: &str) -> String {
    let mut out = String::new();
    let mut world = World::new(settings(""));
    let mut in_effects = false;
    for line in text.lines() {
        match line {
            "" => in_effects = false,
            _ if in_effects => continue,
            "----" => {
                in_effects = true;
                let _ = writeln!(out, "----\n{}", std::mem::take(&mut world.log));
                continue;
            }
            _ if line.starts_with("settings") => {
                world = World::new(settings(line));
                let _ = writeln!(out, "{line}\n");
                continue;
            }
            _ if line.starts_with('#') => {}
            _ => world.run(line),
        }
        if !line.is_empty() {
            let _ = writeln!(out, "{line}");
        }
    }
    out.trim_end().to_owned() + "\n"
}

#[test]
fn transcripts_are_as_recorded() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/turns");
    let mut files: Vec<_> =
        std::fs::read_dir(folder)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.sort();
    assert!(files.len() >= 40, "only {} transcripts", files.len());
    for file in files {
        let text = std::fs::read_to_string(&file)?;
        let now = replayed(&text);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, now)?;
        } else {
            assert_eq!(text, now, "{}", file.display());
        }
    }
    Ok(())
}

#[derive(Clone, Debug)]
enum Act {
    Put(u8),
    Answer { which: u8, how: u8 },
    Fail(u8),
    Script(bool),
    Refuse,
    Away,
    Steal,
    Tool(bool),
    Wait(u16),
    Crash,
    Stop,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..8_u8).prop_map(Act::Put),
        4 => (0..4_u8, 0..6_u8).prop_map(|(which, how)| Act::Answer { which, how }),
        2 => (0..4_u8).prop_map(Act::Fail),
        1 => any::<bool>().prop_map(Act::Script),
        1 => Just(Act::Refuse),
        1 => Just(Act::Away),
        1 => Just(Act::Steal),
        1 => any::<bool>().prop_map(Act::Tool),
        3 => (0..20_000_u16).prop_map(Act::Wait),
        1 => Just(Act::Crash),
    ]
}

impl World {
    fn act(&mut self, number: usize, act: &Act) {
        match act {
            Act::Put(kind) => {
                let letters = ["t", "c", "t", "s", "u", "x", "/", "n"];
                let letter = letters.get(usize::from(*kind)).copied().unwrap_or("t");
                self.put(&format!("{letter}{number}"));
                self.give(Input::Changed);
            }
            Act::Answer { which, how } => {
                let said = Said {
                    messages: usize::from(*how == 0),
                    unknown: usize::from(*how == 1),
                    bare: *how == 2,
                    by_tool: *how == 3,
                    empty: *how == 4,
                    local_command: false,
                };
                let covers: Vec<String> = match which {
                    0 => self.open.iter().map(|push| push.id.clone()).collect(),
                    1 => self.open.first().map(|push| push.id.clone()).into_iter().collect(),
                    2 => self.open.last().map(|push| push.id.clone()).into_iter().collect(),
                    _ => Vec::new(),
                };
                self.answer(covers, said);
            }
            Act::Fail(class) if self.query => {
                let classes = [
                    ErrorClass::Transient,
                    ErrorClass::Permanent,
                    ErrorClass::SessionInvalid,
                    ErrorClass::Crashed,
                ];
                self.fail(classes.get(usize::from(*class)).copied().unwrap_or(ErrorClass::Transient), None);
            }
            Act::Fail(_) => {}
            Act::Script(wakes) => self.end_script(*wakes),
            Act::Refuse => self.refuse = true,
            Act::Away => self.away = true,
            Act::Steal => {
                let pending = self.fates.iter().find(|(_, fate)| **fate == Fate::Pending);
                self.stolen.extend(pending.map(|(id, _)| id.clone()));
            }
            Act::Tool(true) => {
                self.give(Input::ToolStarted { id: "1".into(), name: "Bash".into(), timeout: None });
            }
            Act::Tool(false) => self.give(Input::ToolEnded { id: "1".into() }),
            Act::Wait(ms) => self.wait(Ms(u64::from(*ms))),
            Act::Crash => self.run("crash"),
            Act::Stop => self.give(Input::StopAsked),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    /// Whatever happens, and in whatever order: when the provider answers at last, every row that may start a turn is
    /// over, and none was completed twice (the world watches that).
    #[test]
    fn every_message_ends_once(
        acts in proptest::collection::vec(act(), 1..80),
        follow_ups in any::<bool>(),
        native_commands in any::<bool>(),
        max_triggers in 1..4_usize,
    ) {
        let mut world = World::new(Settings { max_triggers, native_commands, follow_ups, gives_up: false });
        world.give(Input::Begun { handed: Handed::default() });
        for (number, act) in acts.iter().enumerate() {
            world.act(number, act);
        }
        (world.refuse, world.away) = (false, false);
        for _ in 0..400 {
            world.wait(Ms::minutes(10));
            world.end_script(true);
            let covers = world.open.iter().map(|push| push.id.clone()).collect();
            world.answer(covers, Said { messages: 1, ..Said::default() });
        }
        let open: Vec<&String> = world.fates.iter()
            .filter(|(id, fate)| !id.starts_with('c') && matches!(fate, Fate::Pending | Fate::Claimed))
            .map(|(id, _)| id)
            .collect();
        prop_assert!(open.is_empty(), "still open: {:?}", open);
    }

    /// A stop ends the loop within its grace, with nothing claimed and no query left (the world watches that).
    #[test]
    fn a_stop_ends_with_nothing_held(acts in proptest::collection::vec(act(), 1..60)) {
        let mut world = World::new(settings(""));
        world.give(Input::Begun { handed: Handed::default() });
        for (number, act) in acts.iter().enumerate() {
            world.act(number, act);
        }
        world.act(0, &Act::Stop);
        world.wait(STOP_GRACE);
        prop_assert!(world.exited);
    }
}
