//! One JSON object a line: a record with what led to it and what it did, a text, or why the journal ends early.
//!
//! Invariant: memory is bounded by one record.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::fields::Node;
use super::{Choice, ExportError, walk_writing};
use crate::replay::report::component_name;
use crate::replay::walk::{Step, Stop};

#[derive(Serialize)]
struct Line<'a> {
    record: String,
    at_us: i64,
    at: String,
    input: &'static str,
    details: Node,
    session: Option<Named>,
    effects: Vec<EffectLine>,
    touched: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    divergence: Option<Differs<'a>>,
}

#[derive(Serialize)]
struct Named {
    number: String,
    name: Option<String>,
}

#[derive(Serialize)]
struct EffectLine {
    id: String,
    name: &'static str,
    details: Node,
}

#[derive(Serialize)]
struct Differs<'a> {
    field: &'a str,
    recorded: &'a str,
    replayed: &'a str,
    class: String,
}

#[derive(Serialize)]
struct TextLine {
    text: String,
    digest: String,
}

#[derive(Serialize)]
struct EndLine<'a> {
    end: &'a str,
}

/// Writes it.
pub(super) fn write(path: &Path, choice: &mut Choice<'_>, out: &mut dyn Write) -> Result<(), ExportError> {
    // Whose a text is, the record after it tells.
    let mut texts: Vec<TextLine> = Vec::new();
    walk_writing(path, |stop| match stop {
        Stop::Snapshot(..) => Ok(()),
        Stop::Text(it) => {
            let text = TextLine { text: it.text.to_owned(), digest: format!("{:016x}", it.digest) };
            texts.push(text);
            Ok(())
        }
        Stop::Step(step) => {
            let wanted = choice.wants_step(&step);
            for text in texts.drain(..).filter(|_| wanted) {
                put(out, &text)?;
            }
            if wanted { put(out, &line(&step)) } else { Ok(()) }
        }
        Stop::Tail(end) | Stop::Damaged(end) => put(out, &EndLine { end }),
    })
}

fn put(out: &mut dyn Write, line: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

fn line<'a>(step: &Step<'a>) -> Line<'a> {
    let session = step.session.map(|no| Named {
        number: no.to_string(),
        name: step.state.session(no).map(|session| session.name.to_string()),
    });
    let effects = step.effects().map(|(id, effect)| EffectLine {
        id: id.to_string(),
        name: effect.name(),
        details: Node::of(effect).inside(),
    });
    let divergence = step.divergence.map(|it| Differs {
        field: &it.field,
        recorded: &it.expected,
        replayed: &it.actual,
        class: it.class.to_string(),
    });
    Line {
        record: step.record.to_string(),
        at_us: step.at.0,
        at: step.at.to_string(),
        input: step.input.name(),
        details: Node::of(step.input).inside(),
        session,
        effects: effects.collect(),
        touched: step.touched.iter().map(|id| component_name(*id)).collect(),
        divergence,
    }
}
