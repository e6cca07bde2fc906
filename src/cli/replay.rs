//! `lamplighter replay`, `why` and `state`: what a journal tells when it is folded through the machine. They need no
//! daemon and change nothing.

use std::fmt::Debug;
use std::io::{self, Write};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::args::{ReplayArgs, StateArgs, WhyArgs};
use super::error::{CommandError, code};
use super::given::{self, record_no};
use super::upgrade::ago;
use crate::base::printable::one_line;
use crate::host::operator::find_session;
use crate::machine::state::State;
use crate::replay::report::{Divergence, Report};
use crate::replay::segments::Segments;
use crate::replay::{self, Dropped, Mention, StateError, Subject, Watched, verify_source};

/// Shorter journals are replayed before a bar can be seen.
const BAR_MIN: u64 = 8 << 20;
/// Messages listed when a piece of text is found in several; the newest ones.
const MENTIONS_MAX: usize = 20;
/// Characters of a text in that list.
const MENTION_SHOWN: usize = 60;

/// `replay`
///
/// # Errors
/// When a journal cannot be read, or diverges.
pub fn replay(args: &ReplayArgs) -> Result<(), CommandError> {
    let out = &mut io::stdout().lock();
    let mut clean = true;
    for path in &args.paths {
        let segments = Segments::open_since(path, args.since.map(ago))?;
        let bar = bar(segments.bytes()?);
        let report = verify_source(&mut Watched { source: segments, read: |bytes| bar.inc(bytes) })?;
        bar.finish_and_clear();
        clean &= report.is_clean();
        if args.json {
            writeln!(out, "{}", report_json(path, &report))?;
            continue;
        }
        if args.paths.len() > 1 {
            writeln!(out, "{}", path.display())?;
        }
        writeln!(out, "{report}")?;
    }
    if clean { Ok(()) } else { Err(CommandError::silent(code::FAILURE)) }
}

/// Shown on a terminal only, and only when there is something to wait for.
fn bar(bytes: u64) -> ProgressBar {
    if bytes < BAR_MIN {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {binary_bytes}/{binary_total_bytes}, {eta} left");
    let bar = ProgressBar::new(bytes);
    if let Ok(style) = style { bar.with_style(style) } else { bar }
}

fn report_json(path: &Path, report: &Report) -> Value {
    let divergence = report.divergence.as_ref().map(divergence_json);
    json!({"path": path, "segments": report.segments, "records": report.records, "gaps": report.gaps,
           "foreign_digests": report.foreign_digests, "tail": report.tail, "divergence": divergence})
}

pub(super) fn divergence_json(it: &Divergence) -> Value {
    json!({"record": it.record.to_string(), "at_us": it.at.0, "session": it.session.map(|s| s.to_string()),
           "input": it.input, "field": it.field, "recorded": it.expected, "replayed": it.actual,
           "class": it.class.to_string()})
}

/// `why`, and `message show`
///
/// # Errors
/// When the journal cannot be read, or does not know the message.
pub fn why(data: &Path, args: &WhyArgs) -> Result<(), CommandError> {
    let journal = given::journal(args.journal.as_ref(), data)?;
    let message = &args.message;
    let subject = match &args.session {
        None => Subject::Id(message.clone()),
        Some(session) => {
            let seq = message.parse().map_err(|_| {
                let hint =
                    "with --session, MESSAGE is the number of its row in the session (messages_in.seq)";
                CommandError::new(code::USAGE, format!("{message:?} is no number"), hint)
            })?;
            Subject::Seq { session: session.clone(), seq }
        }
    };
    let mut found = replay::why(&journal, &subject)?;
    if found.lines.is_empty() && args.session.is_none() {
        // It is no id that the journal knows: it may be a piece of a text.
        let mentions = replay::mentions(&journal, message, MENTIONS_MAX)?;
        match &mentions[..] {
            [] => {}
            [one] => found = replay::why(&journal, &Subject::Id(one.id.clone()))?,
            several => return Err(ambiguous(message, several)),
        }
    }
    if found.lines.is_empty() {
        let text = format!("the journal knows no inbound message {message:?}");
        let ids = "the chat client prints ids with --json; a piece of text finds messages whose text is in the journal";
        let hint = match found.dropped {
            Some(Dropped { before, .. }) => {
                format!(
                    "{ids}; records before {before} were dropped with older segments (journal.keep_bytes, keep_days)"
                )
            }
            None => ids.to_owned(),
        };
        return Err(CommandError::new(code::FAILURE, text, hint));
    }
    let out = &mut io::stdout().lock();
    if let Some(Dropped { before, at }) = found.dropped.filter(|_| found.since_snapshot) {
        writeln!(out, "before {before} at {at}: dropped with older segments")?;
    }
    found.lines.iter().try_for_each(|line| writeln!(out, "{}", one_line(&line.to_string())))?;
    if found.still.is_empty() {
        writeln!(out, "over: nothing is open")?;
    }
    found
        .still
        .iter()
        .try_for_each(|line| writeln!(out, "now: {}", one_line(&line.to_string())))
        .map_err(CommandError::from)
}

fn ambiguous(piece: &str, several: &[Mention]) -> CommandError {
    let list: Vec<String> = several
        .iter()
        .map(|it| {
            let text: String = it.text.chars().take(MENTION_SHOWN).collect();
            format!("\n  {} {:<9} {}  {text:?}", it.at, it.record.to_string(), one_line(&it.id))
        })
        .collect();
    let text =
        format!("{piece:?} is no id, and the text of these messages or of their replies:{}", list.concat());
    CommandError::new(code::FAILURE, text, "name one of them by its id")
}

/// `state`
///
/// # Errors
/// When the journal cannot be read or does not replay up to there, or the session is unknown.
pub fn state(args: &StateArgs) -> Result<(), CommandError> {
    let at = args.at.as_deref().map(record_no).transpose()?;
    let machine = replay::state_at(&args.path, at).map_err(|error| match error {
        StateError::Replay(error) => error.into(),
        StateError::Diverged(_) => CommandError::new(
            code::FAILURE,
            error,
            "ask for an earlier record, or use the build that recorded it",
        ),
        StateError::NoSnapshot => CommandError::new(code::IO, error, "name a whole segment"),
    })?;
    let state = machine.state();
    let out = &mut io::stdout().lock();
    let core = state.core();
    writeln!(out, "before record {} at {}", core.record, core.at)?;
    match &args.session {
        Some(session) => print_session(out, state, session),
        None => print_all(out, state),
    }
}

fn print(out: &mut impl Write, name: &str, value: &impl Debug) -> Result<(), CommandError> {
    Ok(writeln!(out, "{name}: {value:#?}")?)
}

fn print_all(out: &mut impl Write, state: &State) -> Result<(), CommandError> {
    print(out, "core", state.core())?;
    print(out, "policy", state.policy())?;
    print(out, "directory", state.directory())?;
    print(out, "waiting for a slot", state.queue())?;
    state.sessions().iter().try_for_each(|(no, it)| print(out, &format!("session {no}"), it))?;
    state.inbounds().iter().try_for_each(|(no, it)| print(out, &format!("inbound {no}"), it))?;
    state.outbounds().iter().try_for_each(|(no, it)| print(out, &format!("outbound {no}"), it))?;
    state.destinations().iter().try_for_each(|(no, it)| print(out, &format!("destination {no}"), it))?;
    state.questions().iter().try_for_each(|(no, it)| print(out, &format!("question {no}"), it))?;
    state.all_missed().iter().try_for_each(|(no, it)| print(out, &format!("missed for {no}"), it))?;
    state.effects().iter().try_for_each(|(id, it)| print(out, &format!("effect {id}"), it))?;
    state.timers().iter().try_for_each(|(key, at)| Ok(writeln!(out, "timer {key:?}: {at}")?))
}

fn print_session(out: &mut impl Write, state: &State, session: &str) -> Result<(), CommandError> {
    let no = find_session(state, session).map_err(|why| CommandError::new(code::FAILURE, why, ""))?;
    if let Some(it) = state.session(no) {
        print(out, &format!("session {no}"), it)?;
        let inbox = it.inbox.iter().filter_map(|no| Some((no, state.inbound(*no)?)));
        inbox.into_iter().try_for_each(|(no, it)| print(out, &format!("inbound {no}"), it))?;
        let outbox = it.outbox.iter().filter_map(|no| Some((no, state.outbound(*no)?)));
        outbox.into_iter().try_for_each(|(no, it)| print(out, &format!("outbound {no}"), it))?;
    }
    state.questions_of(no).try_for_each(|(no, it)| print(out, &format!("question {no}"), it))?;
    let own = state.destinations().iter().filter(|(_, it)| it.session == no);
    own.into_iter().try_for_each(|(no, it)| print(out, &format!("destination {no}"), it))
}
