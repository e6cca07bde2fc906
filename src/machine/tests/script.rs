//! Golden transcripts: commands, `----`, and what the machine did. `UPDATE=1` rewrites what it did.
//!
//! Commands: `policy k=v…`, `boot [alive] [plain]`, `arrive CHAT ID`, `CHAT: act, act…`, `heartbeat CHAT`,
//! `exit CHAT N|signal N`, `late-exit CHAT`, `channel up|down|accepts|transient|permanent|nobody|silent`,
//! `somebody CHAT`, `starts fail|work`, `stubborn on|off`, `writes wait|end`, `space low|back`, `clock ±MS`,
//! `wait DURATION`, `stop CHAT`, `start CHAT`, `retry CHAT ID`, `resend CHAT ID`, `drop CHAT ID`, `shutdown`, `show`.
//!
//! Acts change the session's folder: `begin` (what a runner does first), `claim ID…`, `complete ID…`, `fail ID`,
//! `release ID`, `give-back ID`, `reply ID [CHAT]`, `tool MS`, `tool-end`, `announce DURATION`, `touch`, `replaced`,
//! `bad`, `busy`, `good`. A reading follows, unless the line begins with `quietly`.

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
    assert!(paths.len() >= 17, "only {} scripts in {}", paths.len(), folder.display());
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
            world.boot(flags.contains(&"alive"));
        }
        ["arrive", name, id] => world.arrive(name, id),
        ["heartbeat", name] => {
            let session = of(world, name);
            world.input(Input::HeartbeatSeen { session });
        }
        ["exit", name, "signal", n] => world.exit(of(world, name), Exit::Signal(n.parse().unwrap())),
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
                other => panic!("channel {other}"),
            }
        }
        ["somebody", name] => {
            let (chat, idempotent) = (Some(format!("chat:{name}")), world.idempotent);
            world.input(Input::ChannelUp { channel: "chat".into(), chat, idempotent });
        }
        ["starts", mode] => world.starts_fail = *mode == "fail",
        ["writes", "wait"] => world.held_writes = Some(Vec::new()),
        ["writes", "end"] => {
            for written in world.held_writes.take().unwrap_or_default() {
                world.input(written);
            }
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
        ["shutdown"] => world.input(Input::ShutdownAsked),
        ["stop", name] => ask(world, Ask::StopSession(of(world, name))),
        ["start", name] => ask(world, Ask::StartSession(of(world, name))),
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
        ["fail", id] => {
            folder.ack(id, Ack::Failed);
            folder.facts.push(WorldFact::Failed { id: full(id), reason: "cannot be used".into() });
        }
        ["release", id] => folder.release(id, false),
        ["give-back", id] => folder.release(id, true),
        ["reply", id] => folder.reply(id, chat(name)),
        ["reply", id, to] => folder.reply(id, chat(to)),
        ["tool", ms] => {
            folder.tool = Some(Tool { mark: 1, declared: Some(Ms(ms.parse().unwrap())) });
        }
        ["announce", span] => folder.facts.push(WorldFact::Wait((wall + duration(span)).0)),
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
        ["good"] => folder.unreadable = None,
        ["replaced"] => folder.rows.clear(),
        _ => panic!("unknown act: {act}"),
    }
}

fn set_policy(world: &mut World, setting: &str) {
    let (key, value) = setting.split_once('=').unwrap();
    match key {
        "slots" => world.policy.slots = value.parse().unwrap(),
        "in_doubt" => world.policy.in_doubt = if value == "hold" { InDoubt::Hold } else { InDoubt::Resend },
        "no_recipient_keep" => world.policy.no_recipient_keep = duration(value),
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
                Body::Note(AgentNote::NotDelivered { id, end }) => format!("note {id} {}", end.name()),
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
        TimerKey::DeliverAfter(no) => no.to_string(),
        TimerKey::MessageDue(no)
        | TimerKey::ClaimSilence(no)
        | TimerKey::Ceiling(no)
        | TimerKey::IdleStop(no)
        | TimerKey::Healthy(no)
        | TimerKey::ContainerOverdue(no)
        | TimerKey::StartBackoff(no)
        | TimerKey::LookAgain(no)
        | TimerKey::LookOverdue(no) => no.to_string(),
    };
    format!("{} {of}", key.name())
}

/// The whole state in short: sessions with their messages, destinations with their queues.
fn show(world: &mut World) {
    let state = world.machine.state();
    let mut lines = vec![format!("= at {}", world.at)];
    for (no, session) in state.sessions() {
        let mut line = format!("= {no} {}", session.phase.name());
        for message in session.inbox.iter().filter_map(|m| state.inbound(*m)) {
            let stand = match &message.state {
                InState::Writing { .. } => "writing".to_owned(),
                InState::Queued { wait: Wait::Now } => "queued".to_owned(),
                InState::Queued { wait: Wait::Backoff { since, wait } } => {
                    format!("waits-until {}", *since + *wait)
                }
                InState::Queued { wait } => {
                    format!("{wait:?}").split(' ').next().unwrap_or("?").to_lowercase()
                }
                InState::Claimed { .. } => "claimed".to_owned(),
                InState::Settling { .. } => "settling".to_owned(),
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
            Hold::Retry { .. } => " retry",
            Hold::NoRecipient { .. } => " nobody",
        };
        lines.push(format!("= {no}{hold}: {}", items.join(", ")));
    }
    world.log.extend(lines);
}
