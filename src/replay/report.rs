//! What a replay found, for people.

use std::fmt;

use crate::base::{At, RecordNo, SessionNo};
use crate::journal::record::DIGEST_SCHEMA;
use crate::machine::state::ComponentId;

/// Text of an expected or actual value is cut to so many characters: enough to see a difference, little
/// enough to read.
pub const VALUE_MAX: usize = 400;

/// Records of panicked steps that a report names one by one; a journal has one per crash.
const PANICS_NAMED: usize = 8;

/// Why a replay came out differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The record agrees with itself; the code decides otherwise now.
    CodeChanged,
    /// A record that stood between two others is not there.
    InputMissing,
    /// The bytes are not what was written: they cannot be decoded, or the record contradicts itself.
    DamagedRecord,
    /// It was written in a form that this build does not read.
    Schema,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CodeChanged => "code changed",
            Self::InputMissing => "input missing",
            Self::DamagedRecord => "damaged record",
            Self::Schema => "schema",
        })
    }
}

/// The first difference between what is on record and what replay did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The record.
    pub record: RecordNo,
    /// Its time.
    pub at: At,
    /// The session that its input is about, where it is about one.
    pub session: Option<SessionNo>,
    /// The name of its input; empty when there is none that could be read.
    pub input: &'static str,
    /// Where the difference is, as a path into the record.
    pub field: String,
    /// What is on record, at most [`VALUE_MAX`] characters.
    pub expected: String,
    /// What replay gave, at most [`VALUE_MAX`] characters.
    pub actual: String,
    /// What kind of difference it is.
    pub class: Class,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} at {}", self.record, self.at)?;
        if !self.input.is_empty() {
            write!(f, ", {}", self.input)?;
        }
        if let Some(session) = self.session {
            write!(f, " of {session}")?;
        }
        writeln!(f, ": {} differs ({})", self.field, self.class)?;
        writeln!(f, "  recorded: {}", self.expected)?;
        write!(f, "  replayed: {}", self.actual)
    }
}

/// What a replay found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Segments read.
    pub segments: u64,
    /// Records stepped.
    pub records: u64,
    /// Segments whose digests are made in another way: their effects were compared, their digests were not.
    pub foreign_digests: u64,
    /// Times that a segment does not follow on the one before, because one between them was dropped.
    pub gaps: u64,
    /// Records whose step panicked, and panicked again in replay.
    pub panicked: Vec<RecordNo>,
    /// What follows the last whole frame, in words, if anything does: a tail that was being written.
    pub tail: Option<String>,
    /// The first difference; nothing after it was read.
    pub divergence: Option<Divergence>,
}

impl Report {
    /// Whether everything came out as it is on record.
    pub fn is_clean(&self) -> bool {
        self.divergence.is_none()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = if self.is_clean() { "0 divergences" } else { "1 divergence" };
        let records = if self.records == 1 { "record" } else { "records" };
        write!(f, "replay: {} {records}, {found}", thousands(self.records))?;
        if self.foreign_digests > 0 {
            write!(
                f,
                "\n  digests were not compared in {} of {} segments: their schema is not {DIGEST_SCHEMA}",
                thousands(self.foreign_digests),
                thousands(self.segments)
            )?;
        }
        if self.gaps > 0 {
            let gaps = thousands(self.gaps);
            write!(
                f,
                "\n  {gaps} times a segment does not follow on the one before: one was dropped between them"
            )?;
        }
        for record in self.panicked.iter().take(PANICS_NAMED) {
            write!(f, "\n  record {record}: step panicked, as recorded")?;
        }
        if let Some(tail) = &self.tail {
            write!(f, "\n  {tail}")?;
        }
        if let Some(divergence) = &self.divergence {
            write!(f, "\n{divergence}")?;
        }
        Ok(())
    }
}

/// A count with a comma before every third digit from the right.
pub(crate) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// At most [`VALUE_MAX`] characters of a text.
pub(crate) fn bounded(text: &str) -> String {
    match text.char_indices().nth(VALUE_MAX - 1) {
        Some((end, last)) if end + last.len_utf8() < text.len() => format!("{}…", &text[..end]),
        _ => text.to_owned(),
    }
}

/// A component's name in the path of a divergence.
pub(crate) fn component_name(id: ComponentId) -> String {
    match id {
        ComponentId::Core => "Core".into(),
        ComponentId::Policy => "Policy".into(),
        ComponentId::Directory => "Directory".into(),
        ComponentId::Slots => "Slots".into(),
        ComponentId::Session(no) => format!("Session({no})"),
        ComponentId::Inbound(no) => format!("Inbound({no})"),
        ComponentId::Outbound(no) => format!("Outbound({no})"),
        ComponentId::Destination(no) => format!("Destination({no})"),
        ComponentId::Effect(id) => format!("Effect({id})"),
        ComponentId::Question(no) => format!("Question({no})"),
        ComponentId::Complaints => "Complaints".into(),
        ComponentId::Runtime => "Runtime".into(),
        ComponentId::Missed(no) => format!("Missed({no})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_thousands_separators() {
        assert_eq!(
            [0, 999, 1_000, 12_431, 1_234_567].map(thousands).join(" "),
            "0 999 1,000 12,431 1,234,567"
        );
    }

    #[test]
    fn a_long_value_is_cut_between_characters() {
        assert_eq!(bounded("kurz"), "kurz");
        let long = "ß".repeat(VALUE_MAX);
        assert_eq!(bounded(&long), long);
        let cut = bounded(&"ß".repeat(VALUE_MAX + 1));
        assert_eq!((cut.chars().count(), cut.ends_with('…')), (VALUE_MAX, true));
    }

    #[test]
    fn a_clean_report_is_one_line() {
        let report = Report { records: 12_431, segments: 2, ..Report::default() };
        assert_eq!(report.to_string(), "replay: 12,431 records, 0 divergences");
    }
}
