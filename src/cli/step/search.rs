//! What a stepper stops at: breakpoints, and texts that are searched for.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::panes::readable;
use crate::base::MessageNo;
use crate::machine::state::{ComponentId, Source, State};
use crate::replay::cursor::Passing;

/// A reason to stop at a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Breakpoint {
    /// The input has this name.
    Kind(String),
    /// The input is about this session: its name, group/name, or number.
    Session(String),
    /// The input or an effect names this message, or something about it may have changed.
    Message(String),
    /// The input, an effect or a message's text contains this, whatever the case of its letters.
    Text(String),
}

/// How breakpoints are written.
pub const FORMS: &str = "kind=NAME, session=S, message=ID or text=TEXT";

impl fmt::Display for Breakpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(it) => write!(f, "kind={it}"),
            Self::Session(it) => write!(f, "session={it}"),
            Self::Message(it) => write!(f, "message={it}"),
            Self::Text(it) => write!(f, "text={it}"),
        }
    }
}

impl FromStr for Breakpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("\"{text}\" is no breakpoint; expected {FORMS}");
        let (name, value) = text.trim().split_once('=').ok_or_else(bad)?;
        if value.is_empty() {
            return Err(bad());
        }
        let value = value.to_owned();
        match name {
            "kind" => Ok(Self::Kind(value)),
            "session" => Ok(Self::Session(value)),
            "message" => Ok(Self::Message(value)),
            "text" => Ok(Self::Text(value)),
            _ => Err(bad()),
        }
    }
}

/// Tells at which records of a search to stop.
#[derive(Clone, Debug)]
pub struct Matcher {
    wanted: Vec<Wanted>,
    /// The place of the record that was looked at last.
    last: Option<usize>,
}

#[derive(Clone, Debug)]
struct Wanted {
    what: Breakpoint,
    /// The text in lower case, or the message's id as `Debug` writes it.
    needle: String,
    /// The machine's numbers of the message, as far as they are known.
    numbers: BTreeSet<MessageNo>,
}

impl Matcher {
    /// Stops at any of these.
    pub fn new(wanted: &[Breakpoint]) -> Self {
        let wanted = wanted.iter().map(|what| {
            let needle = match what {
                Breakpoint::Text(text) => text.to_lowercase(),
                Breakpoint::Message(id) => format!("{id:?}"),
                Breakpoint::Kind(_) | Breakpoint::Session(_) => String::new(),
            };
            Wanted { what: what.clone(), needle, numbers: BTreeSet::new() }
        });
        Self { wanted: wanted.collect(), last: None }
    }

    /// The first of them that is met at a record.
    pub fn hit(&mut self, passing: &Passing<'_>) -> Option<&Breakpoint> {
        // Behind a jump the numbers that came up in between are looked up.
        let follows = passing.index.checked_sub(1) == self.last && self.last.is_some();
        self.last = Some(passing.index);
        let mut found = None;
        for (index, wanted) in self.wanted.iter_mut().enumerate() {
            // All are asked, because each keeps its numbers up to date.
            if wanted.is_met(passing, follows) {
                found = found.or(Some(index));
            }
        }
        found.and_then(|index| self.wanted.get(index)).map(|wanted| &wanted.what)
    }
}

impl Wanted {
    fn is_met(&mut self, passing: &Passing<'_>, follows: bool) -> bool {
        let step = &passing.step;
        match &self.what {
            Breakpoint::Kind(name) => step.input.name() == name,
            Breakpoint::Session(text) => step.session.is_some_and(|no| step.state.is_named(no, text)),
            Breakpoint::Text(_) => {
                let lower = |text: String| text.to_lowercase().contains(&self.needle);
                lower(step.input.name().to_owned())
                    || lower(readable(&format!("{:?}", step.input)))
                    || step.effects.iter().any(|it| lower(readable(&format!("{} {it:?}", it.name()))))
                    || passing.texts.iter().any(|(_, text)| lower(text.clone()))
            }
            Breakpoint::Message(id) => {
                learn(&mut self.numbers, step.state, id, !follows, step.touched);
                let touched = step.touched.iter().any(|component| match component {
                    ComponentId::Inbound(no)
                    | ComponentId::Outbound(no)
                    | ComponentId::Question(no)
                    | ComponentId::Missed(no) => self.numbers.contains(no),
                    _ => false,
                });
                let names = |text: String| text.contains(&self.needle);
                touched
                    || names(format!("{:?}", step.input))
                    || step.effects.iter().any(|it| names(format!("{it:?}")))
            }
        }
    }
}

/// Adds the numbers that a message has: among what was touched, or among all when asked.
fn learn(
    numbers: &mut BTreeSet<MessageNo>,
    state: &State,
    id: &str,
    all: bool,
    touched: &BTreeSet<ComponentId>,
) {
    let is_it = |component: &ComponentId| match component {
        ComponentId::Inbound(no) => {
            // A row is named by the platform's id and the agent group.
            let full = format!("{id}:{}", state.directory().group);
            state.inbound(*no).filter(|it| it.id == id || it.id == full).map(|_| *no)
        }
        ComponentId::Outbound(no) => match &state.outbound(*no)?.source {
            Source::Row { id: own, .. } if own == id => Some(*no),
            _ => None,
        },
        _ => None,
    };
    numbers.extend(touched.iter().filter_map(is_it));
    if all {
        numbers.extend(state.inbounds().keys().filter_map(|no| is_it(&ComponentId::Inbound(*no))));
        numbers.extend(state.outbounds().keys().filter_map(|no| is_it(&ComponentId::Outbound(*no))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breakpoint_reads_what_it_prints() {
        for text in ["kind=booted", "session=main/sess-1-a", "message=m1", "text=a=b"] {
            assert_eq!(text.parse::<Breakpoint>().map(|it| it.to_string()), Ok(text.to_owned()));
        }
        for bad in ["", "booted", "kind=", "colour=red"] {
            assert!(bad.parse::<Breakpoint>().unwrap_err().contains(FORMS), "{bad}");
        }
    }
}
