//! `lamplighter journal`: the journal on disk. It needs no daemon.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::args::JournalCommand;
use super::error::{CommandError, code};
use super::table;
use crate::base::{OsDisk, RecordNo};
use crate::host::folder::DataFolder;
use crate::journal::frame::Kind;
use crate::journal::record::{Outcome, Record, decode_record};
use crate::journal::recovery::{self, Checked};
use crate::journal::segment::{self, SegmentReader};

/// `journal`
///
/// # Errors
/// When the journal cannot be read, or a check finds damage.
pub fn journal(data: &Path, command: JournalCommand) -> Result<(), CommandError> {
    let folder = DataFolder::open(data)?.journal();
    match command {
        JournalCommand::Ls(flag) => list(&folder, flag.json),
        JournalCommand::Check => check(&folder),
        JournalCommand::Repair => repair(data, &folder),
        JournalCommand::Tail { lines } => tail(&folder, lines),
        JournalCommand::Show { record } => {
            let no: RecordNo = record.parse().map_err(|error| CommandError::new(code::USAGE, error, ""))?;
            show(&folder, no)
        }
    }
}

fn checked(folder: &Path) -> Result<Vec<Checked>, CommandError> {
    recovery::check(folder).map_err(|error| CommandError::new(code::IO, &error, error.hint()))
}

fn list(folder: &Path, json: bool) -> Result<(), CommandError> {
    let segments = checked(folder)?;
    if json {
        let all: Vec<Value> = segments
            .iter()
            .map(|it| {
                json!({"path": it.path, "first": it.first.to_string(), "records": it.records,
                       "last": it.last.to_string(), "bytes": it.end, "trouble": it.trouble})
            })
            .collect();
        let text = serde_json::to_string_pretty(&all).map_err(io::Error::from)?;
        return Ok(writeln!(io::stdout(), "{text}")?);
    }
    let rows: Vec<Vec<String>> = segments
        .iter()
        .map(|it| {
            let name =
                it.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let last = if it.records > 0 { it.last.to_string() } else { "-".into() };
            let trouble = it.trouble.clone().unwrap_or_else(|| "whole".into());
            vec![name, it.first.to_string(), last, it.records.to_string(), it.end.to_string(), trouble]
        })
        .collect();
    Ok(table::write(
        &mut io::stdout().lock(),
        &["SEGMENT", "FIRST", "LAST", "RECORDS", "BYTES", "STATE"],
        &rows,
    )?)
}

fn check(folder: &Path) -> Result<(), CommandError> {
    let segments = checked(folder)?;
    let out = &mut io::stdout().lock();
    let mut damaged = false;
    for it in &segments {
        match &it.trouble {
            None => writeln!(out, "{}: {} records, whole", it.path.display(), it.records)?,
            Some(trouble) => {
                damaged |= trouble.starts_with("damaged");
                writeln!(out, "{}: {} records, {trouble}", it.path.display(), it.records)?;
            }
        }
    }
    let records: u64 = segments.iter().map(|it| it.records).sum();
    writeln!(out, "{} segments, {records} records", segments.len())?;
    if damaged { Err(CommandError::silent(code::FAILURE)) } else { Ok(()) }
}

fn repair(data: &Path, folder: &Path) -> Result<(), CommandError> {
    // Whoever repairs is the only writer.
    let _lock = DataFolder::open(data)?.lock()?;
    let recovered = recovery::repair(&OsDisk, folder)
        .map_err(|error| CommandError::new(code::IO, &error, error.hint()))?;
    let out = &mut io::stdout().lock();
    match &recovered.cut {
        Some(cut) => {
            let (path, at) = (cut.path.display(), cut.offset);
            writeln!(
                out,
                "{path} ends at offset {at} now; lost: {} bytes behind it, with {} whole records (kept in cut/)",
                cut.bytes, cut.records
            )?;
        }
        None => writeln!(out, "nothing was damaged")?,
    }
    if let Some(path) = &recovered.abandoned {
        writeln!(out, "set aside {}", path.display())?;
    }
    Ok(())
}

/// Gives every record to `take`, oldest first, as far as segments are whole.
fn each_record(folder: &Path, mut take: impl FnMut(Record)) -> Result<(), CommandError> {
    let segments = segment::list(folder)?;
    let mut last = RecordNo(0);
    for (_, path) in segments {
        let mut reader =
            SegmentReader::open(&path).map_err(|error| CommandError::new(code::IO, &error, error.hint()))?;
        let schema = reader.header().record_schema;
        while let Ok(Some(frame)) = reader.next_frame() {
            if frame.kind == Kind::Record && frame.number > last {
                let record = decode_record(schema, frame.body)
                    .map_err(|error| CommandError::new(code::IO, &error, error.hint()))?;
                last = record.number;
                take(record);
            }
        }
    }
    Ok(())
}

fn tail(folder: &Path, lines: usize) -> Result<(), CommandError> {
    let mut kept = VecDeque::new();
    each_record(folder, |record| {
        kept.push_back(record);
        if kept.len() > lines {
            kept.pop_front();
        }
    })?;
    let out = &mut io::stdout().lock();
    for record in kept {
        let effects: Vec<&str> = record.effects.iter().map(|effect| effect.name()).collect();
        let input = record.input.name();
        writeln!(out, "{} {} {input:<22} {}", record.at, record.number, effects.join(" "))?;
    }
    Ok(())
}

fn show(folder: &Path, no: RecordNo) -> Result<(), CommandError> {
    let mut found = None;
    each_record(folder, |record| {
        if record.number == no {
            found = Some(record);
        }
    })?;
    let Some(record) = found else {
        let text = format!("there is no record {no}");
        return Err(CommandError::new(code::FAILURE, text, "`lamplighter journal ls` shows which there are"));
    };
    let out = &mut io::stdout().lock();
    writeln!(out, "record   {} at {}", record.number, record.at)?;
    writeln!(out, "durable  {} when it was made", record.synced_through)?;
    if record.outcome == Outcome::Panicked {
        writeln!(out, "outcome  the machine panicked")?;
    }
    writeln!(out, "input    {:#?}", record.input)?;
    for (n, effect) in record.effects.iter().enumerate() {
        writeln!(out, "effect   {}.{n} {effect:#?}", record.number)?;
    }
    writeln!(out, "root     {:016x}", record.root)?;
    for (component, digest) in &record.touched {
        writeln!(out, "touched  {component:?} {digest:016x}")?;
    }
    Ok(())
}
