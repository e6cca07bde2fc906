//! `lamplighter fixture`

use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use super::args::{AcceptArgs, FixtureCommand, RecordArgs, build};
use super::error::{CommandError, code};
use super::given;
use crate::base::{RecordNo, SessionName, SessionNo};
use crate::host::folder::DataFolder;
use crate::host::operator::find_session;
use crate::machine::state::State;
use crate::replay::compare::differences;
use crate::replay::fixture::{self, Cut, FixtureError};
use crate::replay::state_at;
use crate::session::SessionFolder;
use crate::session::host_side::{Guard, backup};

/// Differences shown before a fixture is written anew.
const SHOWN: usize = 20;

impl From<FixtureError> for CommandError {
    fn from(error: FixtureError) -> Self {
        let code = match &error {
            FixtureError::Replay(_) | FixtureError::Empty => code::USAGE,
            FixtureError::Folder { .. } | FixtureError::Rewrite(_) => code::IO,
            _ => code::FAILURE,
        };
        Self::new(code, &error, error.hint())
    }
}

/// `fixture`
///
/// # Errors
/// When nothing was written.
pub fn fixture(data: &Path, command: &FixtureCommand) -> Result<(), CommandError> {
    match command {
        FixtureCommand::Record(args) => record(data, args),
        FixtureCommand::Accept(args) => accept(args),
    }
}

fn record(data: &Path, args: &RecordArgs) -> Result<(), CommandError> {
    let journal = given::journal(args.journal.as_ref(), data)?;
    let record = |text: Option<&String>| text.map(|text| given::record_no(text)).transpose();
    let (from, to) = (record(args.from.as_ref())?, record(args.to.as_ref())?);
    let end = state_at(&journal, to.map(RecordNo::next)).map_err(FixtureError::from)?;
    let session = match &args.session {
        None => None,
        Some(name) => {
            Some(find_session(end.state(), name).map_err(|why| CommandError::new(code::FAILURE, why, ""))?)
        }
    };
    let cut = Cut { session, from, to, redact: args.redact, without_texts: args.no_bodies };
    let written = fixture::record(&journal, &cut, &args.dir, build())?;
    let out = &mut io::stdout().lock();
    let fixture::Written { segments, records, texts } = written;
    writeln!(out, "{}: {records} records in {segments} segments, {texts} texts", args.dir.display())?;
    if args.journal.is_none() && !args.redact {
        let data = DataFolder::open(data)?;
        for name in names(end.state(), session) {
            copy_session(out, &data, &name, &args.dir)?;
        }
    }
    Ok(())
}

fn names(state: &State, session: Option<SessionNo>) -> Vec<SessionName> {
    let all = state.sessions().iter();
    all.filter(|(no, _)| session.is_none_or(|session| session == **no))
        .map(|(_, it)| it.name.clone())
        .collect()
}

/// Copies a session's databases as they are now, each in one consistent state. One that cannot be read is named and
/// left out: the fixture replays without it.
fn copy_session(
    out: &mut impl Write,
    data: &DataFolder,
    name: &SessionName,
    dir: &Path,
) -> Result<(), CommandError> {
    let from = SessionFolder::nested(data.session(name));
    let to = SessionFolder::nested(dir.join("sessions").join(name.group()).join(name.session()));
    for (from, to) in [(from.inbound_db(), to.inbound_db()), (from.outbound_db(), to.outbound_db())] {
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        match backup(name, &from, &to, Guard::default()) {
            Ok(()) => writeln!(out, "{}", to.display())?,
            Err(error) => eprintln!("lamplighter: left out: {error}"),
        }
    }
    Ok(())
}

fn accept(args: &AcceptArgs) -> Result<(), CommandError> {
    let mut changed = Vec::new();
    let out = &mut io::stdout().lock();
    for path in &args.paths {
        let found = differences(path, None, SHOWN)?;
        if let Some(why) = found.damaged {
            return Err(CommandError::new(
                code::FAILURE,
                format!("{} is damaged: {why}", path.display()),
                "a fixture that is damaged on purpose is not to be written anew",
            ));
        }
        if found.decisions == 0 && found.states == 0 {
            writeln!(out, "{}: no difference", path.display())?;
            continue;
        }
        writeln!(
            out,
            "{}: {} decisions and {} states differ",
            path.display(),
            found.decisions,
            found.states
        )?;
        found.first.iter().try_for_each(|it| writeln!(out, "{it}"))?;
        changed.push(path);
    }
    if changed.is_empty() || (!args.yes && !asked()?) {
        return if changed.is_empty() { Ok(()) } else { Err(nothing_written()) };
    }
    for path in changed {
        write_anew(path)?;
        writeln!(out, "{}: written anew", path.display())?;
    }
    Ok(())
}

fn nothing_written() -> CommandError {
    CommandError::new(
        code::FAILURE,
        "nothing was written",
        "say yes, or use --yes, when the differences are meant",
    )
}

fn asked() -> Result<bool, CommandError> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    eprint!("Write what this build decides? [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "yes"))
}

/// Writes beside it first, then puts the new segments in the place of the old ones.
fn write_anew(path: &Path) -> Result<(), CommandError> {
    let (folder, only): (PathBuf, Option<&Path>) = match path.is_dir() {
        true => (path.to_owned(), None),
        false => (path.parent().map_or_else(PathBuf::new, Path::to_owned), Some(path)),
    };
    let fresh = folder.join(".accepted");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    fixture::accept(path, &fresh, build())?;
    for entry in fs::read_dir(&fresh)? {
        let entry = entry?;
        let target = match only {
            Some(path) => path.to_owned(),
            None => folder.join(entry.file_name()),
        };
        fs::rename(entry.path(), target)?;
    }
    Ok(fs::remove_dir(&fresh)?)
}
