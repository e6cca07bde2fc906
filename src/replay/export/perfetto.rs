//! Trace events as Chrome and Perfetto read them: a process for each session, its containers on a thread, turns and
//! deliveries as asynchronous spans, and an arrow from a message's arrival to the delivery of each of its replies.
//!
//! The journal is read twice: an arrow has to be begun at the arrival, and only the delivery tells that there is one.
//!
//! Invariant: every begin has an end, and times never go back.
//! Invariant: memory is bounded by what is open and one number for each answer.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::spans::{Kind, Mark, Message, Point, Span, Tracker};
use super::{Choice, ExportError, walk_writing};
use crate::base::{MessageNo, SessionNo};
use crate::machine::state::State;
use crate::replay::walk::{Step, Stop};

/// The process that stands for the host itself; sessions follow it by their number.
const HOST: u32 = 1;

/// The threads of a process.
const THREADS: [(u32, &str); 3] = [(1, "container"), (2, "messages"), (3, "records")];

/// Writes it.
pub(super) fn write(path: &Path, choice: &mut Choice<'_>, out: &mut dyn Write) -> Result<(), ExportError> {
    let answers = answers(path)?;
    let mut trace = Trace { out, first: true, known: BTreeSet::new(), answers };
    trace.out.write_all(b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[")?;
    trace.process(HOST, "host")?;
    let (mut tracker, mut marks) = (Tracker::default(), Vec::new());
    let mut wanted = BTreeSet::new();
    walk_writing(path, |stop| {
        let state = match stop {
            Stop::Snapshot(state, _) => {
                tracker.snapshot(state, &mut marks);
                state
            }
            Stop::Step(step) => {
                tracker.step(&step, &mut marks);
                if choice.wants_step(&step) {
                    trace.record(&step, tracker.now())?;
                }
                step.state
            }
            Stop::Text(_) => return Ok(()),
            Stop::Tail(why) | Stop::Damaged(why) => return trace.ends(why, tracker.now()),
        };
        for mark in marks.drain(..) {
            let session = session_of(&mark);
            // What began is ended also where its session is gone by then.
            if wanted.contains(&session) || choice.wants(state, session) {
                wanted.insert(session);
                trace.session(state, session)?;
                trace.mark(&mark, tracker.now())?;
            }
        }
        Ok(())
    })?;
    tracker.finish(&mut marks);
    for mark in marks.drain(..).filter(|mark| wanted.contains(&session_of(mark))) {
        trace.mark(&mark, tracker.now())?;
    }
    trace.out.write_all(b"\n]}\n")?;
    Ok(())
}

/// The delivery spans that brought an answer, by the message that they answer.
fn answers(path: &Path) -> Result<BTreeMap<MessageNo, Vec<u64>>, ExportError> {
    let (mut tracker, mut marks) = (Tracker::default(), Vec::new());
    let mut seen = BTreeSet::new();
    let mut answers: BTreeMap<MessageNo, Vec<u64>> = BTreeMap::new();
    walk_writing(path, |stop| {
        match stop {
            Stop::Snapshot(state, _) => tracker.snapshot(state, &mut marks),
            Stop::Step(step) => tracker.step(&step, &mut marks),
            Stop::Text(_) | Stop::Tail(_) | Stop::Damaged(_) => {}
        }
        for mark in marks.drain(..) {
            match mark {
                Mark::Message(message) if message.inbound => {
                    seen.insert(message.no);
                }
                Mark::Answered { delivery, inbound, .. } if seen.contains(&inbound) => {
                    answers.entry(inbound).or_default().push(delivery.id);
                }
                _ => {}
            }
        }
        Ok(())
    })?;
    Ok(answers)
}

fn session_of(mark: &Mark) -> SessionNo {
    match mark {
        Mark::Message(message) => message.session,
        Mark::Begin(span) | Mark::End(span, _) | Mark::Answered { delivery: span, .. } => span.session,
    }
}

fn process_of(session: SessionNo) -> u32 {
    session.0.saturating_add(HOST)
}

struct Trace<'a> {
    out: &'a mut dyn Write,
    first: bool,
    known: BTreeSet<SessionNo>,
    answers: BTreeMap<MessageNo, Vec<u64>>,
}

impl Trace<'_> {
    fn put(&mut self, event: &Value) -> io::Result<()> {
        let comma: &[u8] = if std::mem::take(&mut self.first) { b"\n" } else { b",\n" };
        self.out.write_all(comma)?;
        serde_json::to_writer(&mut *self.out, event)?;
        Ok(())
    }

    fn process(&mut self, pid: u32, name: &str) -> io::Result<()> {
        self.put(&json!({"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}))?;
        let sort = json!({"sort_index": pid});
        self.put(&json!({"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": sort}))?;
        for (tid, name) in THREADS {
            let args = json!({"name": name});
            self.put(&json!({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": args}))?;
        }
        Ok(())
    }

    fn session(&mut self, state: &State, no: SessionNo) -> io::Result<()> {
        if !self.known.insert(no) {
            return Ok(());
        }
        let name = state.session(no).map(|session| format!(" {}", session.name)).unwrap_or_default();
        self.process(process_of(no), &format!("{no}{name}"))
    }

    /// Every record is an instant of its session, or of the host.
    fn record(&mut self, step: &Step<'_>, now: Point) -> io::Result<()> {
        if let Some(no) = step.session {
            self.session(step.state, no)?;
        }
        let pid = step.session.map_or(HOST, process_of);
        let mut args = json!({"record": step.record.to_string()});
        if !step.effects.is_empty() {
            args["effects"] = step.effects.iter().map(|effect| effect.name()).collect();
        }
        if let Some(divergence) = step.divergence {
            args["divergence"] = divergence.to_string().into();
        }
        self.put(
            &json!({"ph": "i", "s": "t", "name": step.input.name(), "cat": "record", "pid": pid, "tid": 3,
            "ts": now.at.0, "args": args}),
        )
    }

    fn ends(&mut self, why: &str, now: Point) -> io::Result<()> {
        self.put(&json!({"ph": "i", "s": "g", "name": "the journal ends", "cat": "record", "pid": HOST,
            "tid": 3, "ts": now.at.0, "args": {"why": why}}))
    }

    fn mark(&mut self, mark: &Mark, now: Point) -> io::Result<()> {
        match mark {
            Mark::Message(message) if message.inbound => self.arrival(message),
            Mark::Message(_) => Ok(()),
            Mark::Begin(span) => self.begin(span),
            Mark::End(span, Some(end)) => {
                let args = json!({"how": end.how, "good": end.good, "ended_by": end.at.record.to_string()});
                self.end(span, end.at, &args)
            }
            Mark::End(span, None) => self.end(span, now, &json!({"open": true})),
            Mark::Answered { delivery, inbound, at } => {
                let known = self.answers.get(inbound).is_some_and(|ids| ids.contains(&delivery.id));
                if !known {
                    return Ok(());
                }
                let (pid, args) = (process_of(delivery.session), json!({"answers": inbound.to_string()}));
                self.moment(pid, &format!("{} delivered", delivery.label), *at, &args)?;
                self.put(&json!({"ph": "f", "bp": "e", "id": delivery.id, "name": "answer", "cat": "answer",
                    "pid": pid, "tid": 2, "ts": at.at.0}))
            }
        }
    }

    /// A slice of one microsecond: arrows hold on to slices only.
    fn moment(&mut self, pid: u32, name: &str, at: Point, args: &Value) -> io::Result<()> {
        self.put(&json!({"ph": "X", "dur": 1, "name": name, "cat": "message", "pid": pid, "tid": 2,
            "ts": at.at.0, "args": args}))
    }

    fn arrival(&mut self, message: &Message) -> io::Result<()> {
        let pid = process_of(message.session);
        let args = json!({"message": message.no.to_string(), "record": message.seen.record.to_string()});
        self.moment(pid, &format!("{} arrived", message.id), message.seen, &args)?;
        for id in self.answers.get(&message.no).cloned().unwrap_or_default() {
            self.put(&json!({"ph": "s", "id": id, "name": "answer", "cat": "answer", "pid": pid, "tid": 2,
                "ts": message.seen.at.0}))?;
        }
        Ok(())
    }

    fn begin(&mut self, span: &Span) -> io::Result<()> {
        let (pid, ts) = (process_of(span.session), span.begin.at.0);
        let mut args = json!({"record": span.begin.record.to_string()});
        if let Some(message) = span.message {
            args["message"] = message.to_string().into();
        }
        if let Some(attempt) = span.attempt {
            args["attempt"] = attempt.to_string().into();
        }
        if span.before {
            args["open_before"] = true.into();
        }
        let cat = span.kind.name();
        if span.kind == Kind::Container {
            let name = format!("container, {}", span.label);
            return self.put(&json!({"ph": "B", "name": name, "cat": cat, "pid": pid, "tid": 1, "ts": ts,
                "args": args}));
        }
        // Viewers name a track by its first span: the outer one names the track, the inner one the message.
        self.put(
            &json!({"ph": "b", "id": span.id, "name": cat, "cat": cat, "pid": pid, "tid": 2, "ts": ts}),
        )?;
        self.put(
            &json!({"ph": "b", "id": span.id, "name": span.label, "cat": cat, "pid": pid, "tid": 2, "ts": ts,
            "args": args}),
        )
    }

    fn end(&mut self, span: &Span, at: Point, args: &Value) -> io::Result<()> {
        let (pid, cat, ts) = (process_of(span.session), span.kind.name(), at.at.0);
        if span.kind == Kind::Container {
            let name = format!("container, {}", span.label);
            return self.put(&json!({"ph": "E", "name": name, "cat": cat, "pid": pid, "tid": 1, "ts": ts,
                "args": args}));
        }
        self.put(
            &json!({"ph": "e", "id": span.id, "name": span.label, "cat": cat, "pid": pid, "tid": 2, "ts": ts,
            "args": args}),
        )?;
        self.put(&json!({"ph": "e", "id": span.id, "name": cat, "cat": cat, "pid": pid, "tid": 2, "ts": ts}))
    }
}
