//! The texts of the four panes: what came in, what would have been done, the state afterwards, and how it changed.
//!
//! Invariant: no control character of a message or a journal reaches the terminal.

use std::collections::BTreeSet;
use std::fmt::Debug;

use crate::base::{EffectId, RecordNo, SessionNo};
use crate::machine::state::{ComponentId, Owner, State};
use crate::replay::cursor::Moment;
use crate::replay::report::component_name;

/// Lines around a change that are shown with it.
const CONTEXT: usize = 2;
/// The most lines on either side that are matched with each other; beyond it all of them count as changed.
const MATCHED_MAX: usize = 400;
/// The longest line that short values are joined to.
const JOINED_MAX: usize = 72;

/// How a line is set off. Never the only sign: the text says it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Not at all.
    Plain,
    /// Names what follows.
    Title,
    /// Was not there before; begins with `+`.
    Added,
    /// Is not there any more; begins with `-`.
    Removed,
    /// Needs somebody's eye.
    Warning,
}

/// One line of a pane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// How it is set off.
    pub tone: Tone,
    /// The text.
    pub text: String,
}

impl Line {
    fn new(tone: Tone, text: impl AsRef<str>) -> Self {
        Self { tone, text: harmless(text.as_ref()) }
    }
}

/// What happened, with the texts that came with it.
pub fn input(moment: &Moment) -> Vec<Line> {
    let mut lines = Vec::new();
    if let Some(found) = &moment.divergence {
        let title = format!("DIVERGES: {} differs ({})", found.field, found.class);
        lines.push(Line::new(Tone::Warning, title));
        lines.push(Line::new(Tone::Warning, format!("  recorded: {}", found.expected)));
        lines.push(Line::new(Tone::Warning, format!("  replayed: {}", found.actual)));
    }
    // First, because they say most to a person.
    for (digest, text) in &moment.texts {
        lines.push(Line::new(Tone::Title, format!("text with digest {digest}")));
        lines.extend(text.lines().map(|text| Line::new(Tone::Plain, format!("  {text}"))));
    }
    lines.push(Line::new(Tone::Title, moment.input.name()));
    lines.extend(pretty(&moment.input).iter().map(|text| Line::new(Tone::Plain, format!("  {text}"))));
    lines
}

/// What was asked for. Nothing of it is done.
pub fn effects(moment: &Moment) -> Vec<Line> {
    let mut lines = Vec::new();
    for (id, effect) in moment.effects() {
        lines.push(Line::new(Tone::Title, format!("{id} would have: {}", effect.name())));
        lines.extend(pretty(effect).iter().map(|text| Line::new(Tone::Plain, format!("  {text}"))));
    }
    if lines.is_empty() {
        lines.push(Line::new(Tone::Plain, "would have: nothing"));
    }
    lines
}

/// The state of what was touched; or of one session and all that is its own, what was touched with a `*`.
pub fn state(moment: &Moment, session: Option<SessionNo>) -> Vec<Line> {
    let shown = match session {
        None => moment.touched.clone(),
        Some(session) => all_of(&moment.after, session),
    };
    let mut lines = Vec::new();
    for id in shown {
        let mark = if session.is_some() && moment.touched.contains(&id) { "* " } else { "" };
        match component(&moment.after, id) {
            Some(text) => {
                lines.push(Line::new(Tone::Title, format!("{mark}{}", component_name(id))));
                lines.extend(text.iter().map(|text| Line::new(Tone::Plain, format!("  {text}"))));
            }
            None => lines.push(Line::new(Tone::Title, format!("{mark}{} is gone", component_name(id)))),
        }
    }
    if lines.is_empty() {
        let text = match session {
            None => "nothing was touched".to_owned(),
            Some(session) => format!("{session} is not there yet, or not any more"),
        };
        lines.push(Line::new(Tone::Plain, text));
    }
    lines
}

/// How what was touched differs from before.
pub fn diff(moment: &Moment) -> Vec<Line> {
    let mut lines = Vec::new();
    for &id in &moment.touched {
        let (before, after) = (component(&moment.before, id), component(&moment.after, id));
        if before == after {
            lines.push(Line::new(Tone::Title, format!("{} as before", component_name(id))));
            continue;
        }
        let what = match (&before, &after) {
            (None, _) => " is new",
            (_, None) => " is gone",
            _ => "",
        };
        lines.push(Line::new(Tone::Title, format!("{}{what}", component_name(id))));
        lines.extend(changes(&before.unwrap_or_default(), &after.unwrap_or_default()));
    }
    if lines.is_empty() {
        lines.push(Line::new(Tone::Plain, "nothing was touched"));
    }
    lines
}

fn component(state: &State, id: ComponentId) -> Option<Vec<String>> {
    Some(match id {
        ComponentId::Core => pretty(state.core()),
        ComponentId::Policy => pretty(state.policy()),
        ComponentId::Directory => pretty(state.directory()),
        ComponentId::Slots => pretty(state.queue()),
        ComponentId::Session(no) => pretty(state.session(no)?),
        ComponentId::Inbound(no) => pretty(state.inbound(no)?),
        ComponentId::Outbound(no) => pretty(state.outbound(no)?),
        ComponentId::Destination(no) => pretty(state.destination(no)?),
        ComponentId::Effect(id) => pretty(state.effects().get(&id)?),
        ComponentId::Question(no) => pretty(state.question(no)?),
        ComponentId::Complaints => pretty(Some(state.complaints()).filter(|it| !it.is_empty())?),
        ComponentId::Runtime => pretty(state.outage()?),
        ComponentId::Missed(no) => pretty(state.missed(no)?),
    })
}

/// A session and all that is its own.
fn all_of(state: &State, session: SessionNo) -> BTreeSet<ComponentId> {
    let mut found = BTreeSet::new();
    if state.session(session).is_some() {
        found.insert(ComponentId::Session(session));
    }
    let inbounds = state.inbounds().iter().filter(|(_, it)| it.session == session);
    found.extend(inbounds.map(|(&no, _)| ComponentId::Inbound(no)));
    let outbounds = state.outbounds().iter().filter(|(_, it)| it.session == session);
    found.extend(outbounds.map(|(&no, _)| ComponentId::Outbound(no)));
    let destinations = state.destinations().iter().filter(|(_, it)| it.session == session);
    found.extend(destinations.map(|(&no, _)| ComponentId::Destination(no)));
    let effects = state.effects().iter().filter(|(_, owner)| session_of(state, **owner) == Some(session));
    found.extend(state.questions_of(session).map(|(no, _)| ComponentId::Question(no)));
    found.extend(effects.map(|(&id, _): (&EffectId, _)| ComponentId::Effect(id)));
    found
}

fn session_of(state: &State, owner: Owner) -> Option<SessionNo> {
    match owner {
        Owner::Folder(no)
        | Owner::Projection(no)
        | Owner::Start(no)
        | Owner::Look(no)
        | Owner::Reset(no, _) => Some(no),
        Owner::Row(no) | Owner::Update(no) => state.inbound(no).map(|it| it.session),
        Owner::Delivery(no) | Owner::Record(no) => state.outbound(no).map(|it| it.session),
    }
}

/// A value over several lines, with what holds a single value on one line.
fn pretty(value: &impl Debug) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in format!("{value:#?}").lines() {
        lines.push(line.to_owned());
        // What has closed may be the single value of what closes next.
        while join_last(&mut lines) {}
    }
    unwrapped(lines).iter().map(|line| readable(line)).collect()
}

/// What `Debug` wrote, with the numbers of records and attempts as they are written everywhere else: boot.n.
pub fn readable(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(found) =
        ["RecordNo(", "Attempt("].iter().filter_map(|name| Some(rest.find(name)? + name.len())).min()
    {
        let (before, behind) = rest.split_at(found);
        let digits = behind.len() - behind.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, behind) = behind.split_at(digits);
        out.push_str(before);
        out.push_str(
            &number.parse().map_or_else(|_| number.to_owned(), |number| RecordNo(number).to_string()),
        );
        rest = behind;
    }
    out + rest
}

/// Without the name around a single value: the value's own name says as much.
fn unwrapped(mut lines: Vec<String>) -> Vec<String> {
    let [first, inner @ .., last] = lines.as_mut_slice() else { return lines };
    if !first.ends_with('(') || last != ")" || inner.iter().filter(|it| !it.starts_with("     ")).count() != 2
    {
        return lines;
    }
    let inner: Vec<String> =
        inner.iter().map(|it| it.strip_prefix("    ").unwrap_or(it).to_owned()).collect();
    match inner.split_last() {
        Some((last, rest)) => rest.iter().cloned().chain([last.trim_end_matches(',').to_owned()]).collect(),
        None => lines,
    }
}

/// Joins `name: At(`, its only value and `)`; false when the last three lines are something else.
fn join_last(lines: &mut Vec<String>) -> bool {
    let [.., open, value, close] = lines.as_slice() else { return false };
    let (inner, end) = (value.trim().trim_end_matches(','), close.trim());
    let closes = matches!(end, ")" | "),");
    let is_single = !inner.ends_with(['(', '{', '[']) && !inner.starts_with([')', '}', ']']);
    if !open.ends_with('(') || !closes || !is_single || open.len() + inner.len() > JOINED_MAX {
        return false;
    }
    let joined = format!("{open}{inner}{end}");
    lines.truncate(lines.len() - 3);
    lines.push(joined);
    true
}

/// The lines that differ, with `-` and `+`, and a few around them.
fn changes(before: &[String], after: &[String]) -> Vec<Line> {
    let all = matched(before, after);
    let near = |index: usize| {
        let from = index.saturating_sub(CONTEXT);
        all.iter().skip(from).take(index - from + CONTEXT + 1).any(|(tone, _)| *tone != Tone::Plain)
    };
    let (mut lines, mut skipped) = (Vec::new(), false);
    for (index, (tone, text)) in all.iter().enumerate() {
        if !near(index) {
            skipped = true;
            continue;
        }
        if std::mem::take(&mut skipped) {
            lines.push(Line::new(Tone::Plain, "  …"));
        }
        let sign = match tone {
            Tone::Added => '+',
            Tone::Removed => '-',
            _ => ' ',
        };
        lines.push(Line::new(*tone, format!("{sign} {text}")));
    }
    lines
}

/// All lines of both sides in order, by the longest common subsequence of what lies between equal ends.
fn matched<'a>(before: &'a [String], after: &'a [String]) -> Vec<(Tone, &'a str)> {
    let head = before.iter().zip(after).take_while(|(a, b)| a == b).count();
    let tail =
        before[head..].iter().rev().zip(after[head..].iter().rev()).take_while(|(a, b)| a == b).count();
    let (old, new) = (&before[head..before.len() - tail], &after[head..after.len() - tail]);
    let mut found: Vec<(Tone, &str)> =
        before[..head].iter().map(|text| (Tone::Plain, text.as_str())).collect();
    if old.len() > MATCHED_MAX || new.len() > MATCHED_MAX {
        found.extend(old.iter().map(|text| (Tone::Removed, text.as_str())));
        found.extend(new.iter().map(|text| (Tone::Added, text.as_str())));
    } else {
        between(old, new, &mut found);
    }
    found.extend(before[before.len() - tail..].iter().map(|text| (Tone::Plain, text.as_str())));
    found
}

fn between<'a>(old: &'a [String], new: &'a [String], found: &mut Vec<(Tone, &'a str)>) {
    // common[i][j]: the longest common subsequence of old[i..] and new[j..].
    let mut common = vec![vec![0u32; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            found.push((Tone::Plain, &old[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            found.push((Tone::Removed, &old[i]));
            i += 1;
        } else {
            found.push((Tone::Added, &new[j]));
            j += 1;
        }
    }
}

/// A text whose control characters, and those that turn the direction of writing, are written out.
pub fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => out.push_str("    "),
            '"' | '\'' | '\\' => out.push(c),
            c if c.is_control() || c.escape_debug().len() > 1 => out.extend(c.escape_debug()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_difference_shows_what_went_and_came_with_what_is_near() {
        let (before, after) = (lines("a\nb\nc\nd\ne\nf\ng"), lines("a\nb\nc\nd\nE\nf\ng\nh"));
        let shown: Vec<String> = changes(&before, &after).into_iter().map(|line| line.text).collect();
        assert_eq!(shown.join("|"), "  …|  c|  d|- e|+ E|  f|  g|+ h");
        assert!(changes(&before, &before).is_empty());
        assert_eq!(changes(&[], &lines("x")), [Line::new(Tone::Added, "+ x")]);
    }

    #[test]
    fn a_value_in_a_value_stays_on_its_line() {
        #[derive(Debug)]
        #[expect(dead_code, reason = "read by Debug alone")]
        struct Outer {
            at: Option<crate::base::At>,
            many: Vec<u8>,
        }
        let text = pretty(&Outer { at: Some(crate::base::At(7)), many: vec![1] });
        assert_eq!(text, ["Outer {", "    at: Some(At(7)),", "    many: [", "        1,", "    ],", "}"]);
        assert_eq!(pretty(&Some(Outer { at: None, many: vec![1] }))[..2], ["Outer {", "    at: None,"]);
        assert_eq!(pretty(&Some((1, 2))), ["(", "    1,", "    2,", ")"]);
    }

    #[test]
    fn numbers_of_records_are_written_as_everywhere_else() {
        let text =
            format!("{:?}", (RecordNo((3 << 32) | 17), crate::base::Attempt((1 << 32) | 4), RecordNo(2)));
        assert_eq!(readable(&text), "(RecordNo(3.17), Attempt(1.4), RecordNo(0.2))");
        assert_eq!(readable("RecordNo( Attempt(x)"), "RecordNo( Attempt(x)");
    }

    #[test]
    fn a_text_from_outside_cannot_steer_the_terminal() {
        assert_eq!(harmless("a\u{1b}[2J\u{202e}\"ü\""), "a\\u{1b}[2J\\u{202e}\"ü\"");
        assert_eq!(harmless("日本\t"), "日本    ");
    }
}
