//! `lamplighter fork`

use std::io::{self, Write};

use super::args::ForkArgs;
use super::error::{CommandError, code};
use super::given::{RECORD_HINT, record_no};
use crate::base::printable::one_line;
use crate::host::config::changed_policy;
use crate::machine::policy::Policy;
use crate::replay::fork::{self, Change, Fork, ForkError, Row, Side};

/// Columns of one timeline.
const WIDTH: usize = 56;

impl From<ForkError> for CommandError {
    fn from(error: ForkError) -> Self {
        let (code, hint) = match &error {
            ForkError::Replay(error) => (code::USAGE, error.hint()),
            ForkError::State(_) => {
                (code::FAILURE, "name an earlier record, or use the build that recorded it")
            }
            ForkError::Edit { .. } => {
                (code::USAGE, "`lamplighter export --format jsonl` shows the names of fields")
            }
            ForkError::NoRecord(_) => (code::USAGE, RECORD_HINT),
        };
        Self::new(code, &error, hint)
    }
}

fn usage(text: String, hint: &str) -> CommandError {
    CommandError::new(code::USAGE, text, hint)
}

fn pair(text: &str) -> Result<(String, String), CommandError> {
    let (name, value) =
        text.split_once('=').ok_or_else(|| usage(format!("{text:?} sets nothing"), "write NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// `fork`
///
/// # Errors
/// When the journal cannot be read, or the change does not fit.
pub fn fork(args: &ForkArgs) -> Result<(), CommandError> {
    let mut sets = Vec::new();
    for text in &args.set {
        let (name, value) = pair(text)?;
        let key = name.strip_prefix("policy.").ok_or_else(|| {
            usage(
                format!("{name:?} is no key of the policy"),
                "only policy.KEY can be set; the rest decides nothing",
            )
        })?;
        sets.push((key.to_owned(), value));
    }
    changed_policy(&Policy::default(), &sets)
        .map_err(|why| usage(why, "`lamplighter init` writes a file that shows every key"))?;
    let policy = |policy: &Policy| changed_policy(policy, &sets).unwrap_or_else(|_| policy.clone());
    let mut edit = Vec::new();
    for both in args.edit.chunks(2) {
        let [number, text] = both else { continue };
        let (path, value) = pair(text)?;
        edit.push((record_no(number)?, path, value));
    }
    let change = Change {
        at: record_no(&args.at)?,
        policy: if sets.is_empty() { None } else { Some(&policy) },
        drop: args.drop.iter().map(|text| record_no(text)).collect::<Result<_, _>>()?,
        edit,
    };
    let found = fork::fork(&args.path, &change, args.rows)?;
    print(&mut io::stdout().lock(), &found)
}

fn print(out: &mut impl Write, found: &Fork) -> Result<(), CommandError> {
    if found.rows.is_empty() {
        writeln!(out, "no difference: {} inputs, all with the same effects", found.inputs)?;
    } else {
        writeln!(out, "  {:<13} {:<WIDTH$} | in the fork", "", "on record")?;
        found.rows.iter().try_for_each(|row| print_row(out, row))?;
        if found.more > 0 {
            writeln!(out, "and {} more rows; --rows shows more", found.more)?;
        }
    }
    if found.left_out > 0 {
        let n = found.left_out;
        writeln!(out, "{n} recorded inputs speak of what the fork has not done; they were left out")?;
    }
    for effect in &found.open {
        writeln!(out, "open in the fork, with no end on record: {}", one_line(&effect.to_string()))?;
    }
    if let Some(why) = &found.damaged {
        writeln!(out, "the journal cannot be walked on: {why}")?;
    }
    Ok(())
}

fn print_row(out: &mut impl Write, row: &Row) -> io::Result<()> {
    let mark = if row.is_same() { ' ' } else { '*' };
    let (left, right) = (lines(row.recorded.as_ref()), lines(row.forked.as_ref()));
    for n in 0..left.len().max(right.len()) {
        let of = |lines: &[String]| cut(lines.get(n).map_or("", String::as_str));
        let at = if n == 0 { row.at.to_string() } else { String::new() };
        let mark = if n == 0 { mark } else { ' ' };
        let line = format!("{mark} {at:<13} {:<WIDTH$} | {}", of(&left), of(&right));
        writeln!(out, "{}", one_line(line.trim_end()))?;
    }
    Ok(())
}

fn lines(side: Option<&Side>) -> Vec<String> {
    let Some(side) = side else { return vec!["-".to_owned()] };
    let mut lines = vec![format!("{:<8} {}", side.record.to_string(), side.input)];
    lines.extend(side.effects.iter().map(|effect| format!("         -> {effect}")));
    lines
}

fn cut(text: &str) -> String {
    if text.chars().count() <= WIDTH {
        return text.to_owned();
    }
    text.chars().take(WIDTH - 1).chain(['…']).collect()
}
