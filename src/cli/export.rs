//! `lamplighter export`: a journal in a form for other tools. It needs no daemon and changes no journal.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::args::{ExportArgs, ExportFormat};
use super::error::{CommandError, code};
use crate::replay::export::{self, ExportError, Form};

/// `export`
///
/// # Errors
/// When the journal cannot be read, the output cannot be written, or there is no such session.
pub fn export(args: &ExportArgs) -> Result<(), CommandError> {
    match &args.out {
        None => {
            let mut out = BufWriter::new(io::stdout().lock());
            write(args, &mut out)?;
            Ok(out.flush()?)
        }
        Some(file) => to_file(args, file),
    }
}

/// Writes beside the file first, so that it is whole or not there.
fn to_file(args: &ExportArgs, file: &Path) -> Result<(), CommandError> {
    let mut name = file.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".part");
    let part = file.with_file_name(name);
    let wrong = |error: io::Error| {
        CommandError::new(code::IO, format!("cannot write {}: {error}", file.display()), "")
    };
    let mut out = BufWriter::new(File::create(&part).map_err(wrong)?);
    let written = write(args, &mut out).and_then(|()| out.flush().map_err(wrong));
    drop(out);
    if let Err(error) = written {
        // What was wrong with the export is told; that a part is left is not worth another error.
        let _ = fs::remove_file(&part);
        return Err(error);
    }
    fs::rename(&part, file).map_err(wrong)
}

fn write(args: &ExportArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    let form = match args.format {
        ExportFormat::Jsonl => Form::Jsonl,
        ExportFormat::Perfetto => Form::Perfetto,
        ExportFormat::Html => Form::Html,
    };
    export::export(&args.path, form, args.session.as_deref(), out).map_err(|error| match error {
        ExportError::Replay(error) => error.into(),
        ExportError::Write(error) => error.into(),
        ExportError::NoSession(_) => {
            let hint = "name it as group/session, by the session's folder, or by its number, for example s1";
            CommandError::new(code::FAILURE, error, hint)
        }
    })
}
