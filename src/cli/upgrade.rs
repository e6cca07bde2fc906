//! `lamplighter upgrade-check`

use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use super::args::UpgradeArgs;
use super::error::{CommandError, code};
use super::given;
use super::replay::divergence_json;
use crate::base::{Clock, Wall};
use crate::host::clock::OsClock;
use crate::host::config::Span;
use crate::replay::compare::{Differences, differences};

/// The instant so long ago.
pub(super) fn ago(span: Span) -> Wall {
    let micros = i64::try_from(span.0.0).unwrap_or(i64::MAX).saturating_mul(1_000);
    Wall(OsClock.wall().0.saturating_sub(micros))
}

/// `upgrade-check`
///
/// # Errors
/// When the journal cannot be read, or this build decides something differently.
pub fn upgrade_check(data: &Path, args: &UpgradeArgs) -> Result<(), CommandError> {
    let journal = given::journal(args.journal.as_ref(), data)?;
    let found = differences(&journal, args.since.map(ago), args.show)?;
    let out = &mut io::stdout().lock();
    if args.json {
        let first: Vec<_> = found.first.iter().map(divergence_json).collect();
        let json = json!({"records": found.records, "decisions": found.decisions, "states": found.states,
                          "damaged": found.damaged, "first": first});
        writeln!(out, "{json}")?;
    } else {
        print(out, &found)?;
    }
    if found.is_clean() { Ok(()) } else { Err(CommandError::silent(code::FAILURE)) }
}

fn print(out: &mut impl Write, found: &Differences) -> io::Result<()> {
    for divergence in &found.first {
        writeln!(out, "{divergence}")?;
    }
    let shown = found.first.len() as u64;
    if found.decisions > shown {
        writeln!(out, "and {} more", found.decisions - shown)?;
    }
    if let Some(why) = &found.damaged {
        writeln!(out, "the journal cannot be read on: {why}")?;
    }
    let Differences { records, decisions, states, .. } = found;
    match (decisions, states) {
        (0, 0) => writeln!(out, "{records} records: this build decides all of them as they are on record"),
        (0, _) => writeln!(
            out,
            "{records} records: this build decides all of them as they are on record, and remembers {states} otherwise"
        ),
        _ => writeln!(out, "{records} records: this build decides {decisions} of them otherwise"),
    }
}
