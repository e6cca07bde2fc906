//! Golden transcripts: commands, `----`, and what the machine did. `UPDATE=1` rewrites what it did.
//!
//! Commands: `policy k=v…`, `boot [alive] [plain]`, `arrive CHAT ID`, `CHAT: act, act…`, `heartbeat CHAT`,
//! `exit CHAT N|signal N|oom`, `vanished CHAT`, `late-exit CHAT`,
//! `channel up|down|accepts|transient|permanent|nobody|silent|doubtful`,
//! `locked CHAT`, `unwritable CHAT`, `inbound CHAT bad|good`, `arrive CHAT ID BYTES`,
//! `keep|late start|look|delivery|timers`,
//! `somebody CHAT`, `starts fail|work`, `stubborn on|off`, `writes wait|end|fail|work`, `space low|back`, `clock ±MS`,
//! `say CHAT ID TEXT`, `wait DURATION`, `stop CHAT`, `start CHAT`, `reset CHAT`, `retry CHAT ID`, `resend CHAT ID`,
//! `drop CHAT ID`, `runtime down|back|lists`, `shutdown`, `show`.
//! `boot away` starts without the runtime; `runtime lists` is what it finds when it is back.
//!
//! Acts change the session's folder: `begin` (what a runner does first), `claim ID…`, `complete ID…`, `fail ID`,
//! `release ID`, `give-back ID`, `miss ID [DURATION]`, `reply ID [CHAT]`, `requests N`, `read-notes`,
//! `ask ID DURATION LABEL…`, `take-answers`, `request ID ACTION`, `tool MS`, `tool-end`, `announce DURATION`,
//! `announce-end`, `touch`, `replaced`, `bad`, `busy`, `hot`, `slow`, `good`. A reading follows, unless the line begins
//! with `quietly`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::world::{Channel, World, WorldFact, chat, full};
use crate::base::Ms;
use crate::machine::effect::*;
use crate::machine::input::*;
use crate::machine::policy::InDoubt;
use crate::machine::state::{Hold, InState, Item, Wait};
use crate::machine::timers::TimerKey;

#[test]
fn transcripts_are_as_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/scripts");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "txt"));
    paths.sort();
    assert!(paths.len() >= 57, "only {} scripts in {}", paths.len(), folder.display());
    let mut wrong = Vec::new();
    for path in paths {
        let old = std::fs::read_to_string(&path).unwrap();
        let new = run(&old);
        if new == old {
            continue;
        }
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, new).unwrap();
        } else {
            wrong.push(format!("{}:\n{new}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "transcripts differ (UPDATE=1 rewrites them):\n{}", wrong.join("\n"));
}

/// Runs a script and gives it back with what the machine did.
fn run(script: &str) -> String {
    let mut world = World::new();
    let mut out = String::new();
    for block in script.split("\n\n") {
        let commands: Vec<&str> = block.lines().take_while(|line| *line != "----").collect();
        let acts = commands.iter().any(|line| !line.starts_with('#') && !line.trim().is_empty());
        out.push_str(&commands.join("\n"));
        out.push('\n');
        if acts {
            for command in commands.iter().filter(|line| !line.starts_with('#')) {
                act(&mut world, command.trim());
            }
            out.push_str("----\n");
            for line in world.log.drain(..) {
                let _ = writeln!(out, "{line}");
            }
        }
        out.push('\n');
    }
    format!("{}\n", out.trim_end())
}

fn act(world: &mut World, line: &str) {
    if let Some((name, acts)) = line.split_once(": ") {
        let (quiet, name) = match name.strip_prefix("quietly ") {
            Some(name) => (true, name),
            None => (false, name),
        };
        let no = world.session_of(name).unwrap_or_else(|| panic!("no session of {name:?}: {line}"));
        acts.split(", ").for_each(|act| folder_act(world, name, act));
        if !quiet {
            world.read(no);
        }
        return;
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let of =
        |world: &World, name: &str| world.session_of(name).unwrap_or_else(|| panic!("no session: {line}"));
    match words.as_slice() {
        ["policy", settings @ ..] => settings.iter().for_each(|setting| set_policy(world, setting)),
        ["boot", flags @ ..] => {
            world.idempotent = !flags.contains(&"plain");
            world.adopts = flags.contains(&"adopted");
            world.away = flags.contains(&"away");
            world.boot(flags.contains(&"alive") || flags.contains(&"adopted"));
        }
        ["arrive", name, id] => world.arrive(name, id),
        ["arrive", name, id, bytes] => world.arrive_with(name, id, bytes.parse().unwrap()),
        ["say", name, id, text] => world.say(name, id, text),
        ["heartbeat", name] => {
            let session = of(world, name);
            world.input(Input::HeartbeatSeen { session });
        }
        ["exit", name, "signal", n] => world.exit(of(world, name), Exit::Signal(n.parse().unwrap())),
        ["exit", name, "oom"] => world.exit(of(world, name), Exit::OutOfMemory),
        ["vanished", name] => drop(world.running.remove(&of(world, name))),
        ["exit", name, n] => world.exit(of(world, name), Exit::Code(n.parse().unwrap())),
        ["late-exit", name] => {
            let session = of(world, name);
            let attempt = crate::base::Attempt(1);
            world.input(Input::ContainerExited { session, attempt, exit: Exit::Signal(9) });
        }
        ["channel", "up"] => world.channel_up(),
        ["channel", "down"] => world.input(Input::ChannelDown { channel: "chat".into() }),
        ["channel", mode] => {
            world.channel = match *mode {
                "accepts" => Channel::Accepts,
                "transient" => Channel::Fails(DeliveryFault::Transient),
                "permanent" => Channel::Fails(DeliveryFault::Permanent),
                "nobody" => Channel::Fails(DeliveryFault::NoRecipient),
                "silent" => Channel::Silent,
                "doubtful" => Channel::Fails(DeliveryFault::InDoubt),
                other => panic!("channel {other}"),
            }
        }
        ["somebody", name] => {
            let (chat, idempotent) = (Some(format!("chat:{name}")), world.idempotent);
            world.input(Input::ChannelUp { channel: "chat".into(), chat, idempotent });
        }
        ["starts", mode] => world.starts_fail = *mode == "fail",
        ["writes", "wait"] => world.held_writes = Some(Vec::new()),
        ["writes", "fail"] => world.writes_fail = true,
        ["writes", "work"] => world.writes_fail = false,
        ["writes", "end"] => {
            for written in world.held_writes.take().unwrap_or_default() {
                world.input(written);
            }
        }
        // News that is kept back until it is late; of timers, those that are set now.
        ["keep", "timers"] => {
            let due = |(key, deadline)| Input::TimerDue { key, deadline };
            let set = world.machine.state().timers().iter().map(due).collect();
            world.kept.insert("timers".into(), set);
        }
        ["keep", kind] => drop(world.keeps.insert((*kind).to_owned())),
        ["late", kind] => {
            world.keeps.remove(*kind);
            let news = world.kept.remove(*kind).unwrap_or_else(|| panic!("no {kind} was kept"));
            news.into_iter().for_each(|news| world.input(news));
        }
        ["locked", name] => {
            let session = of(world, name);
            world.input(Input::InboundLocked { session });
        }
        ["unwritable", name] => {
            let session = of(world, name);
            world.folder(session).inbound_unreadable = true;
            world.input(Input::InboundUnwritable { session, detail: "inbound.db is damaged".into() });
        }
        ["inbound", name, mode] => {
            let session = of(world, name);
            world.folder(session).inbound_unreadable = *mode == "bad";
        }
        ["space", mode] => world.space_low = *mode == "low",
        ["stubborn", mode] => world.stubborn = *mode == "on",
        ["clock", by] => {
            world.offset += by.parse::<i64>().unwrap() * 1_000;
            let offset = world.offset;
            world.input(Input::ClockSet { offset });
        }
        ["wait", span] => {
            let until = world.at + duration(span);
            world.wait(until);
        }
        ["runtime", "down"] => world.runtime_down(),
        ["runtime", "lists"] => world.runtime_lists(),
        ["runtime", "back"] => world.runtime_back(),
        ["shutdown"] => world.input(Input::ShutdownAsked),
        ["detach"] => world.input(Input::DetachAsked),
        ["too-large", name] => {
            let session = of(world, name);
            world.input(Input::FolderTooLarge { session, detail: "out/ takes more than 1024 MiB".into() });
        }
        ["stop", name] => ask(world, Ask::StopSession(of(world, name))),
        ["start", name] => ask(world, Ask::StartSession(of(world, name))),
        ["reset", name] => ask(world, Ask::ResetSession(of(world, name))),
        ["drop", name, id] => {
            let id = if id.starts_with('r') { (*id).to_owned() } else { full(id) };
            ask(world, Ask::DropMessage { session: of(world, name), id });
        }
        ["retry", name, id] => {
            let session = of(world, name);
            let row = PendingRow {
                id: full(id),
                seq: Some(2),
                trigger: true,
                tries: 6,
                due: Due::Now,
                origin: chat(name),
            };
            world.folder(session).inbound.insert(full(id), row.clone());
            ask(world, Ask::RetryMessage { session, row });
        }
        ["resend", name, id] => {
            let session = of(world, name);
            let row = world.folder(session).rows.iter().find(|r| r.id == *id).unwrap().clone();
            ask(world, Ask::ResendMessage { session, row });
        }
        ["show"] => show(world),
        [] => {}
        _ => panic!("unknown command: {line}"),
    }
}

fn ask(world: &mut World, ask: Ask) {
    world.input(Input::OperatorAsked { request: 1, ask });
}

fn folder_act(world: &mut World, name: &str, act: &str) {
    let no = world.session_of(name).unwrap();
    let wall = world.machine.state().wall_of(world.at);
    let attempt = world.running.get(&no).copied();
    let words: Vec<&str> = act.split_whitespace().collect();
    let folder = world.folder(no);
    match words.as_slice() {
        ["claim", ids @ ..] => ids.iter().for_each(|id| folder.ack(id, Ack::Processing)),
        ["complete", ids @ ..] => ids.iter().for_each(|id| folder.ack(id, Ack::Completed)),
        // What the tool that asked does with the answer.
        ["take-answers"] => {
            let answers: Vec<String> =
                folder.inbound.keys().filter(|id| id.starts_with("qr-")).cloned().collect();
            answers.into_iter().for_each(|id| folder.ack_row(id, Ack::Completed));
        }
        ["fail", id] => {
            folder.ack(id, Ack::Failed);
            folder.facts.push(WorldFact::Failed { id: full(id), reason: "cannot be used".into() });
        }
        ["release", id] => folder.release(id, false),
        ["give-back", id] => folder.release(id, true),
        ["miss", id] => folder.miss(id, None),
        ["miss", id, span] => folder.miss(id, Some(wall + duration(span))),
        ["reply", id] => folder.reply(id, chat(name)),
        ["reply", id, to] => folder.reply(id, chat(to)),
        ["ask", id, span, labels @ ..] => folder.ask(id, chat(name), duration(span), labels),
        ["request", id, action] => folder.request(id, action),
        ["requests", n] => {
            (1..=n.parse::<u32>().unwrap()).for_each(|n| folder.request(&format!("s{n}"), "self_mod"))
        }
        ["read-notes"] => {
            let notes: Vec<String> =
                folder.inbound.keys().filter(|id| id.starts_with("sys-")).cloned().collect();
            notes.into_iter().for_each(|id| folder.ack_row(id, Ack::Completed));
        }
        ["tool", ms] => {
            folder.tool = Some(Tool { mark: 1, declared: Some(Ms(ms.parse().unwrap())) });
        }
        ["announce", span] => folder.facts.push(WorldFact::Wait((wall + duration(span)).0)),
        ["announce-end"] => folder.facts.retain(|fact| !matches!(fact, WorldFact::Wait(_))),
        ["tool-end"] => folder.tool = None,
        ["touch"] => folder.heartbeat_changed = true,
        // What a runner does first: it says its attempt and removes claims that it did not make.
        ["begin"] => {
            folder.facts.retain(|fact| !matches!(fact, WorldFact::Attempt(_)));
            folder.facts.extend(attempt.map(WorldFact::Attempt));
            folder.acks.retain(|_, ack| ack.status != Ack::Processing);
        }
        ["bad"] => folder.unreadable = Some(Unreadable::Bad),
        ["busy"] => folder.unreadable = Some(Unreadable::Busy),
        ["hot"] => folder.unreadable = Some(Unreadable::HotJournal),
        ["slow"] => folder.unreadable = Some(Unreadable::Slow),
        ["good"] => folder.unreadable = None,
        ["replaced"] => folder.replace(),
        _ => panic!("unknown act: {act}"),
    }
}

fn set_policy(world: &mut World, setting: &str) {
    let (key, value) = setting.split_once('=').unwrap();
    match key {
        "slots" => world.policy.slots = value.parse().unwrap(),
        "in_doubt" => world.policy.in_doubt = if value == "hold" { InDoubt::Hold } else { InDoubt::Resend },
        "no_recipient_keep" => world.policy.no_recipient_keep = duration(value),
        "give_up" => world.policy.delivery_give_up = duration(value),
        _ => panic!("policy {key}"),
    }
}

fn duration(text: &str) -> Ms {
    let split = text.find(|c: char| c.is_alphabetic()).unwrap();
    let n: u64 = text[..split].parse().unwrap();
    match &text[split..] {
        "ms" => Ms(n),
        "s" => Ms::secs(n),
        "m" => Ms::minutes(n),
        "h" => Ms::minutes(n * 60),
        "d" => Ms::days(n),
        unit => panic!("unit {unit}"),
    }
}

fn short(id: &str) -> &str {
    id.split(':').next().unwrap_or(id)
}

/// One effect on one line, without what differs from run to run or bores.
pub fn describe(effect: &Effect) -> String {
    let text = match effect {
        Effect::CreateSession { session, .. } => format!("{session}"),
        Effect::WriteInbound { session, id, trigger, body, .. } => {
            let note = match body {
                Body::Arrived { .. } => return format!("write-inbound {session} {}", short(id)),
                Body::Answer { id, option, arrival, .. } => {
                    let from = arrival.as_ref().map_or("nobody", |it| it.id.as_str());
                    format!("answer to {id}: option {option} by {from}")
                }
                Body::Note(AgentNote::NotDelivered { id, end }) => format!("note {id} {}", end.name()),
                Body::Note(AgentNote::AndMore { count, id, end }) => {
                    format!("note {count} more, last {id} {}", end.name())
                }
            };
            format!("{session} {note} trigger={}", u8::from(*trigger))
        }
        Effect::UpdateInbound { session, id, change, .. } => {
            let change = match change {
                InboundChange::Complete => "completed".to_owned(),
                InboundChange::Fail => "failed".to_owned(),
                InboundChange::Reschedule { tries, process_after } => {
                    let when = if process_after.is_some() { "later" } else { "now" };
                    format!("pending tries={tries} {when}")
                }
            };
            format!("{session} {} {change}", short(id))
        }
        Effect::RecordDelivery { session, id, delivered, .. } => {
            format!("{session} {id} {}", if *delivered { "delivered" } else { "failed" })
        }
        Effect::ProjectDestinations { session, .. }
        | Effect::StartContainer { session, .. }
        | Effect::ResetOutbound { session } => format!("{session}"),
        Effect::AcceptInbound { receipt, duplicate, .. } => {
            format!("#{receipt}{}", if *duplicate { " duplicate" } else { "" })
        }
        Effect::RefuseInbound { receipt, reason, .. } => format!("#{receipt} {reason:?}"),
        Effect::StopContainer { session, reason, .. } => format!("{session} {}", reason.name()),
        Effect::Look { session, why } => format!("{session} {why:?}"),
        Effect::Deliver { session, to, payload, number, .. } => {
            let what = match payload {
                Payload::Row { id, .. } => id.clone(),
                Payload::Notice(Notice::Parked { id, tries }) => {
                    format!("notice-parked {} tries={tries}", short(id))
                }
                Payload::Notice(Notice::TooLate { id, .. }) => format!("notice-too-late {id}"),
                Payload::Notice(Notice::Failed { id, reason }) => {
                    format!("notice-failed {} {reason:?}", short(id))
                }
            };
            format!("{session} {what} to {} try={number}", to.platform_id.as_deref().unwrap_or("-"))
        }
        Effect::DiscardOutbox { session, id } => format!("{session} {id}"),
        Effect::SetTyping { to, on } => format!("{} {on}", to.platform_id.as_deref().unwrap_or("-")),
        Effect::TellSettled { id, outcome, .. } => format!("{} {outcome:?}", short(id)),
        Effect::Answer { reply, .. } => format!("{reply:?}"),
        Effect::Complain { session, cause, count, detail } => {
            let who = session.map_or(String::new(), |s| format!("{s} "));
            format!("{who}{cause:?} x{count}: {detail}")
        }
    };
    format!("{} {text}", effect.name())
}

pub fn timer(key: TimerKey) -> String {
    let of = match key {
        TimerKey::Destination(no) => no.to_string(),
        TimerKey::DeliverAfter(no) | TimerKey::Question(no) | TimerKey::DeliveryOverdue(no) => no.to_string(),
        TimerKey::WithheldAtLarge => return key.name().to_owned(),
        TimerKey::MessageDue(no)
        | TimerKey::ClaimSilence(no)
        | TimerKey::Ceiling(no)
        | TimerKey::IdleStop(no)
        | TimerKey::Healthy(no)
        | TimerKey::ContainerOverdue(no)
        | TimerKey::StartBackoff(no)
        | TimerKey::LookAgain(no)
        | TimerKey::LookOverdue(no)
        | TimerKey::Withheld(no) => no.to_string(),
        TimerKey::RuntimeSettled => return key.name().to_owned(),
    };
    format!("{} {of}", key.name())
}

/// The whole state in short: sessions with their messages, destinations with their queues.
fn show(world: &mut World) {
    let state = world.machine.state();
    let mut lines = vec![format!("= at {}", world.at)];
    if let Some(outage) = state.outage() {
        let stand = match (outage.back, outage.unlisted) {
            (Some(_), _) => "back",
            (None, true) => "away, and nothing is known of what runs",
            (None, false) => "away",
        };
        lines.push(format!("= runtime {stand}, since {}", outage.back.unwrap_or(outage.since)));
    }
    for (no, session) in state.sessions() {
        let mut line = format!("= {no} {}", session.phase.name());
        for message in session.inbox.iter().filter_map(|m| state.inbound(*m)) {
            let stand = match &message.state {
                InState::Writing { .. } => "writing".to_owned(),
                InState::Queued { wait: Wait::Now } => "queued".to_owned(),
                InState::Queued { wait: Wait::Backoff { since, wait } | Wait::Missed { since, wait } } => {
                    format!("waits-until {}", *since + *wait)
                }
                InState::Queued { wait } => {
                    format!("{wait:?}").split(' ').next().unwrap_or("?").to_lowercase()
                }
                InState::Claimed { .. } => "claimed".to_owned(),
                InState::Settling { .. } => "settling".to_owned(),
                InState::Withheld { count, .. } => format!("withheld x{count}"),
            };
            let _ = write!(line, "; {} {stand} tries={}", short(&message.id), message.tries);
        }
        lines.push(line);
    }
    for (no, destination) in state.destinations() {
        let items: Vec<String> = destination
            .queue
            .iter()
            .map(|item| match item {
                Item::Message(no) => no.to_string(),
                Item::Settled { id, .. } => format!("end of {}", short(id)),
            })
            .collect();
        let hold = match destination.hold {
            Hold::None => "",
            Hold::Retry { .. } | Hold::Failing { .. } => " retry",
            Hold::Trying { .. } => " trying",
            Hold::ChannelDown { .. } => " down",
            Hold::NoRecipient { .. } => " nobody",
        };
        lines.push(format!("= {no}{hold}: {}", items.join(", ")));
    }
    for (no, question) in state.questions() {
        let stand = format!("{:?}", question.state);
        let stand = stand.split(' ').next().unwrap_or("?").to_lowercase();
        lines.push(format!("= question {} {stand} ({no})", question.id));
    }
    world.log.extend(lines);
}
