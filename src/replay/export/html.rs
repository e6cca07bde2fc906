//! One page that shows a journal as a timeline, with its data, script and style inside: it asks for nothing else.
//!
//! The data is JSON with every text, and every list of field names, written once and named by its number:
//!
//! ```text
//! null, true, 7     themselves
//! [4]               text 4
//! [-1, a, b]        a list
//! [2, a, b]         fields a and b, with the names that are shape 2
//! ```
//! A component's state is written as what changed since the record that touched it last, in full now and then.
//!
//! Invariant: no text of the journal stands in the page but inside that JSON, where `<` is always escaped.
//! Invariant: the page is bounded: what is left out is counted and the page says so.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::fields::{self, Node};
use super::spans::{Mark, Point, Tracker};
use super::{Choice, ExportError, walk_writing};
use crate::base::{MessageNo, RecordNo, SessionNo};
use crate::machine::state::{ComponentId, State};
use crate::replay::report::component_name;
use crate::replay::walk::{Step, Stop};

/// The page, in which three lines are replaced.
const PAGE: &str = include_str!("html.html");
const STYLE: &str = include_str!("html.css");
const SCRIPT: &str = include_str!("html.js");

/// Records on a page. A browser stays quick with so many; the file is some tens of megabytes then.
const RECORDS_MAX: usize = 200_000;
/// Details (inputs, effects, states, texts) on a page, in bytes.
const DETAILS_MAX: u64 = 64 << 20;
/// A component's state is written in full once in so many records that touch it.
const FULL_EVERY: u32 = 64;

/// Writes it.
pub(super) fn write(path: &Path, choice: &mut Choice<'_>, out: &mut dyn Write) -> Result<(), ExportError> {
    write_bounded(path, choice, out, RECORDS_MAX, DETAILS_MAX)
}

/// Writes it with other bounds.
pub(super) fn write_bounded(
    path: &Path,
    choice: &mut Choice<'_>,
    out: &mut dyn Write,
    records_max: usize,
    details_max: u64,
) -> Result<(), ExportError> {
    let (before, after) = PAGE.split_once("@DATA@").unwrap_or((PAGE, ""));
    out.write_all(before.replace("@STYLE@", STYLE).as_bytes())?;
    let mut page = Page::new(Escaped { out, written: 0 }, records_max, details_max);
    page.out.write_all(b"{\"records\":[")?;
    let mut tracker = Tracker::default();
    walk_writing(path, |stop| {
        match stop {
            Stop::Snapshot(state, _) => {
                page.snapshot(state);
                tracker.snapshot(state, &mut page.marks);
                page.take_marks(state, choice);
            }
            Stop::Text(text) => page.texts.push(fields::cut(text.text)),
            Stop::Step(step) => {
                tracker.step(&step, &mut page.marks);
                let wanted = choice.wants_step(&step);
                page.step(&step, wanted)?;
                page.take_marks(step.state, choice);
            }
            Stop::Tail(why) | Stop::Damaged(why) => page.end = Some(why.to_owned()),
        }
        Ok(())
    })?;
    tracker.finish(&mut page.marks);
    page.take_open(tracker.now());
    page.finish(path, choice.session)?;
    let out = page.out.out;
    out.write_all(after.replace("@SCRIPT@", SCRIPT).as_bytes())?;
    Ok(())
}

/// Output inside a script element: what could end it is written as JSON's own escape.
struct Escaped<'a> {
    out: &'a mut dyn Write,
    written: u64,
}

impl Write for Escaped<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while let Some(at) = rest.iter().position(|byte| *byte == b'<') {
            self.out.write_all(&rest[..at])?;
            // `<` stands only inside texts in JSON, so this is always the same value.
            self.out.write_all(b"\\u003c")?;
            rest = &rest[at + 1..];
        }
        self.out.write_all(rest)?;
        self.written += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Values that stand once and are named by their number.
struct Table<T> {
    numbers: BTreeMap<T, usize>,
}

impl<T: Ord + Clone> Table<T> {
    fn number(&mut self, value: &T) -> usize {
        if let Some(number) = self.numbers.get(value) {
            return *number;
        }
        let number = self.numbers.len();
        self.numbers.insert(value.clone(), number);
        number
    }

    fn in_order(&self) -> Vec<&T> {
        let mut all: Vec<_> = self.numbers.iter().collect();
        all.sort_by_key(|(_, number)| **number);
        all.into_iter().map(|(value, _)| value).collect()
    }
}

struct Page<'a> {
    out: Escaped<'a>,
    records_max: usize,
    details_max: u64,
    texts_table: Table<String>,
    shapes: Table<Vec<usize>>,
    /// The last state of each component that is there, and how often it was told in parts since.
    known: BTreeMap<ComponentId, (Node, u32)>,
    /// Texts that the next record brings.
    texts: Vec<String>,
    marks: Vec<Mark>,
    sessions: BTreeMap<SessionNo, Option<String>>,
    messages: BTreeMap<MessageNo, Value>,
    /// By number; those that have begun only are completed at their end.
    spans: BTreeMap<u64, Value>,
    records: usize,
    /// Records that are not on the page at all.
    records_left_out: u64,
    /// The first record whose details are not on the page.
    details_end: Option<RecordNo>,
    end: Option<String>,
}

impl<'a> Page<'a> {
    fn new(out: Escaped<'a>, records_max: usize, details_max: u64) -> Self {
        Self {
            out,
            records_max,
            details_max,
            texts_table: Table { numbers: BTreeMap::new() },
            shapes: Table { numbers: BTreeMap::new() },
            known: BTreeMap::new(),
            texts: Vec::new(),
            marks: Vec::new(),
            sessions: BTreeMap::new(),
            messages: BTreeMap::new(),
            spans: BTreeMap::new(),
            records: 0,
            records_left_out: 0,
            details_end: None,
            end: None,
        }
    }

    fn text(&mut self, text: &str) -> usize {
        self.texts_table.number(&text.to_owned())
    }

    fn value(&mut self, node: &Node) -> Value {
        match node {
            Node::Null => Value::Null,
            Node::Bool(it) => json!(it),
            Node::Int(it) => json!(it),
            // Larger than a number can be in a browser.
            Node::Big(it) => json!([self.text(&it.to_string())]),
            Node::Text(it) => json!([self.text(it)]),
            Node::List(items) => {
                let items = items.iter().map(|item| self.value(item));
                std::iter::once(json!(-1)).chain(items).collect()
            }
            Node::Map(fields) if fields.is_empty() => json!([-1]),
            Node::Map(fields) => {
                let keys: Vec<usize> = fields.iter().map(|(key, _)| self.text(key)).collect();
                let shape = self.shapes.number(&keys);
                let values = fields.iter().map(|(_, value)| self.value(value));
                std::iter::once(json!(shape)).chain(values).collect()
            }
        }
    }

    /// The state that the first record is applied to: what is told first is a change to it.
    fn snapshot(&mut self, state: &State) {
        self.known.clear();
        for (no, session) in state.sessions() {
            self.sessions.entry(*no).or_insert_with(|| Some(session.name.to_string()));
        }
    }

    fn step(&mut self, step: &Step<'_>, wanted: bool) -> io::Result<()> {
        let texts = std::mem::take(&mut self.texts);
        if !wanted {
            // The next record that is shown tells all of what this one changed.
            step.touched.iter().for_each(|id| drop(self.known.remove(id)));
            return Ok(());
        }
        if self.records == self.records_max {
            self.records_left_out += 1;
            return Ok(());
        }
        let detailed = self.out.written < self.details_max;
        if !detailed {
            self.details_end.get_or_insert(step.record);
            self.known.clear();
        }
        if let Some(no) = step.session {
            self.name_session(step.state, no);
        }
        let name = self.text(step.input.name());
        let input = match detailed {
            true => self.value(&Node::of(step.input).inside().bounded()),
            false => Value::Null,
        };
        let mut effects = Vec::with_capacity(step.effects.len());
        for effect in step.effects {
            let name = self.text(effect.name());
            let details = match detailed {
                true => self.value(&Node::of(effect).inside().bounded()),
                false => Value::Null,
            };
            effects.push(json!([name, details]));
        }
        let touched = match detailed {
            true => step.touched.iter().filter_map(|id| self.touched(step.state, *id)).collect(),
            false => Vec::new(),
        };
        let mut row = vec![
            json!(step.record.0),
            json!(step.at.0),
            json!(name),
            json!(step.session.map_or(0, |no| no.0)),
            input,
            Value::Array(effects),
            Value::Array(touched),
        ];
        let texts: Vec<usize> = texts.iter().filter(|_| detailed).map(|text| self.text(text)).collect();
        if !texts.is_empty() || step.divergence.is_some() {
            row.push(json!(texts));
            row.push(json!(step.divergence.map(|it| self.text(&it.to_string()))));
        }
        let comma: &[u8] = if self.records == 0 { b"\n" } else { b",\n" };
        self.out.write_all(comma)?;
        serde_json::to_writer(&mut self.out, &row)?;
        self.records += 1;
        Ok(())
    }

    /// A touched component: its name, whether the value is all of it (1), what changed (0) or gone (2), the value.
    fn touched(&mut self, state: &State, id: ComponentId) -> Option<Value> {
        let name = self.text(&component_name(id));
        let Some(now) = fields::component(state, id).map(|it| without_clock(id, it.bounded())) else {
            self.known.remove(&id);
            return Some(json!([name, 2]));
        };
        let changed = match self.known.get(&id) {
            Some((before, told)) if *told < FULL_EVERY => now.changed_since(before).map(|it| (it, told + 1)),
            _ => None,
        };
        let told = changed.as_ref().map_or(0, |(_, told)| *told);
        let value = match &changed {
            Some((Node::Map(fields), _)) if id == ComponentId::Core && fields.is_empty() => None,
            Some((part, _)) => Some(json!([name, 0, self.value(part)])),
            None => Some(json!([name, 1, self.value(&now)])),
        };
        self.known.insert(id, (now, told));
        value
    }

    fn name_session(&mut self, state: &State, no: SessionNo) {
        let name = || state.session(no).map(|session| session.name.to_string());
        let known = self.sessions.entry(no).or_insert_with(name);
        if known.is_none() {
            *known = name();
        }
    }

    fn take_marks(&mut self, state: &State, choice: &mut Choice<'_>) {
        for mark in std::mem::take(&mut self.marks) {
            let session = match &mark {
                Mark::Message(message) => message.session,
                Mark::Begin(span) | Mark::End(span, _) => span.session,
                Mark::Answered { .. } => continue,
            };
            let known = matches!(&mark, Mark::End(span, _) if self.spans.contains_key(&span.id));
            if !known && (self.records_left_out > 0 || !choice.wants(state, session)) {
                continue;
            }
            self.name_session(state, session);
            self.mark(mark, Point::default());
        }
    }

    fn take_open(&mut self, now: Point) {
        for mark in std::mem::take(&mut self.marks) {
            if matches!(&mark, Mark::End(span, _) if self.spans.contains_key(&span.id)) {
                self.mark(mark, now);
            }
        }
    }

    fn mark(&mut self, mark: Mark, now: Point) {
        match mark {
            Mark::Message(it) => {
                let id = self.text(&it.id);
                let (inbound, answers) = (u8::from(it.inbound), it.answers.map_or(0, |no| no.0));
                let row = json!([it.no.0, it.session.0, id, inbound, answers, it.seen.record.0]);
                self.messages.insert(it.no, row);
            }
            Mark::Begin(span) => {
                let row = json!([span.kind as u8, span.session.0]);
                self.spans.insert(span.id, row);
            }
            Mark::End(span, end) => {
                let label = self.text(&span.label);
                let (end, how, good) = match end {
                    Some(end) => (end.at, end.how, u8::from(end.good)),
                    None => (now, "open where the journal ends".to_owned(), 2),
                };
                let how = self.text(&how);
                let message = span.message.map_or(0, |no| no.0);
                let begin = span.begin;
                let row = json!([
                    span.kind as u8,
                    span.session.0,
                    label,
                    message,
                    begin.record.0,
                    begin.at.0,
                    end.record.0,
                    end.at.0,
                    how,
                    good,
                    u8::from(span.before)
                ]);
                self.spans.insert(span.id, row);
            }
            Mark::Answered { .. } => {}
        }
    }

    fn finish(&mut self, path: &Path, session: Option<&str>) -> io::Result<()> {
        let name = path
            .file_name()
            .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        let sessions: Vec<_> = self.sessions.iter().map(|(no, name)| json!([no.0, name])).collect();
        let spans: Vec<_> = self.spans.values().collect();
        let messages: Vec<_> = self.messages.values().collect();
        let rest = [
            ("sessions", json!(sessions)),
            ("spans", json!(spans)),
            ("messages", json!(messages)),
            ("shapes", json!(self.shapes.in_order())),
            ("name", json!(name)),
            ("session", json!(session)),
            ("end", json!(self.end)),
            ("recordsLeftOut", json!(self.records_left_out)),
            ("detailsEnd", json!(self.details_end.map(|no| no.to_string()))),
            ("texts", json!(self.texts_table.in_order())),
        ];
        self.out.write_all(b"\n]")?;
        for (key, value) in rest {
            write!(self.out, ",\n\"{key}\":")?;
            serde_json::to_writer(&mut self.out, &value)?;
        }
        self.out.write_all(b"}")
    }
}

/// Every record moves the clock and the number of the next record; both stand at its top anyway.
fn without_clock(id: ComponentId, node: Node) -> Node {
    match node {
        Node::Map(mut fields) if id == ComponentId::Core => {
            fields.retain(|(key, _)| key != "at" && key != "record");
            Node::Map(fields)
        }
        other => other,
    }
}
