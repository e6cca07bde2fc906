//! `lamplighter man`: the manual pages, made from the same text as `--help`.
//!
//! Invariant: every command that `--help` lists has a page, at any depth; hidden ones have none.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::error::{CommandError, code};
use crate::base::disk::replace;
use crate::base::{Clock, OsDisk};
use crate::host::clock::OsClock;
use crate::host::config::ENVIRONMENT;

/// User commands.
const SECTION: &str = "1";
/// What stands at the bottom of each page.
const SOURCE: &str = concat!("lamplighter ", env!("CARGO_PKG_VERSION"));
/// What stands at the top of each page.
const MANUAL: &str = "Lamplighter";

/// What exit codes mean, as in [`code`].
const EXIT_STATUS: [(u8, &str); 6] = [
    (0, "It succeeded, also when nobody read the output to its end."),
    (code::FAILURE, "What was asked for did not succeed, or a check found something."),
    (code::USAGE, "The command line or the configuration is wrong. The systemd units do not start it again."),
    (code::UNAVAILABLE, "There is no daemon or no engine, or another daemon runs on the data folder."),
    (
        code::SOFTWARE,
        "The daemon ended because of a fault of its own; the input that led there is on record.",
    ),
    (code::IO, "A file could not be read or written."),
];

/// Files that a user may want to know.
const FILES: [(&str, &str); 5] = [
    (
        "DIR/lamplighter.toml",
        "The configuration; `lamplighter init` writes one with every key and its default.",
    ),
    ("DIR/journal/", "Every decision, in segments (*.ltj)."),
    ("DIR/sessions/GROUP/SESSION/", "The messages of a session, in two SQLite databases."),
    ("DIR/run/", "Sockets and locks of the running daemon."),
    ("~/.local/share/lamplighter/", "The data folder, unless another one is named with --data."),
];

/// Writes a page for every command into a folder.
///
/// # Errors
/// When a page cannot be written.
pub fn man(command: Command, folder: &Path) -> Result<(), CommandError> {
    let cannot = |doing: &str, path: &Path, error: io::Error| {
        CommandError::new(code::IO, format!("cannot {doing} {}: {error}", path.display()), "")
    };
    fs::create_dir_all(folder).map_err(|error| cannot("make", folder, error))?;
    let pages = pages(command, &date())?;
    for (name, text) in &pages {
        let path = folder.join(name);
        replace(&OsDisk, &path, text).map_err(|error| cannot("write", &path, error))?;
    }
    Ok(writeln!(io::stdout(), "wrote {} pages into {}", pages.len(), folder.display())?)
}

/// The day that the pages bear: of `SOURCE_DATE_EPOCH`, with which the same source gives the same pages, or today.
fn date() -> String {
    let named = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse().ok());
    let seconds = named.unwrap_or_else(|| OsClock.wall().0.div_euclid(1_000_000));
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| "1970-01-01".to_owned(), |at| at.strftime("%F").to_string())
}

/// The file names and texts of all pages, as of a day (`YYYY-MM-DD`).
///
/// # Errors
/// Never: they are written to memory.
pub fn pages(command: Command, date: &str) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    // The page of `help` would say nothing.
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut all = Vec::new();
    collect(&command, None, date, &mut all)?;
    Ok(all)
}

fn collect(
    command: &Command,
    above: Option<&str>,
    date: &str,
    all: &mut Vec<(PathBuf, Vec<u8>)>,
) -> io::Result<()> {
    let page = Man::new(command.clone()).section(SECTION).date(date).source(SOURCE).manual(MANUAL);
    let name = page.get_filename();
    all.push((name.into(), text(command, &page, above)?));
    let own = command.get_display_name().unwrap_or_else(|| command.get_name());
    for below in command.get_subcommands().filter(|it| !it.is_hide_set()) {
        collect(below, Some(own), date, all)?;
    }
    Ok(())
}

fn text(command: &Command, page: &Man, above: Option<&str>) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    page.render_title(&mut out)?;
    page.render_name_section(&mut out)?;
    page.render_synopsis_section(&mut out)?;
    page.render_description_section(&mut out)?;
    page.render_options_section(&mut out)?;
    if command.get_subcommands().any(|it| !it.is_hide_set()) {
        page.render_subcommands_section(&mut out)?;
    }
    examples(command).to_writer(&mut out)?;
    match above {
        None => of_all().to_writer(&mut out)?,
        Some(above) => see_also(above).to_writer(&mut out)?,
    }
    Ok(out)
}

/// What `--help` shows as examples at its end.
fn examples(command: &Command) -> Roff {
    let mut roff = Roff::new();
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let lines: Vec<&str> = help.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if let Some((first, lines)) = lines.split_first() {
        roff.control("SH", [first.trim_end_matches(':').to_uppercase().as_str()]);
        roff.control("nf", []);
        for line in lines {
            roff.text([roman(*line)]);
        }
        roff.control("fi", []);
    }
    roff
}

/// What holds for all commands.
fn of_all() -> Roff {
    let mut roff = Roff::new();
    let item = |roff: &mut Roff, term: &str, text: &str| {
        roff.control("TP", []);
        roff.text([bold(term)]);
        roff.text([roman(text)]);
    };
    roff.control("SH", ["EXIT STATUS"]);
    for (code, text) in EXIT_STATUS {
        item(&mut roff, &code.to_string(), text);
    }
    roff.control("SH", ["ENVIRONMENT"]);
    item(&mut roff, "LAMPLIGHTER_DATA", "The data folder, where --data does not name one.");
    for (name, key) in ENVIRONMENT {
        item(&mut roff, name, &format!("Wins over {key} of the configuration; flags win over it."));
    }
    roff.control("SH", ["FILES"]);
    roff.text([roman("DIR is the data folder.")]);
    for (path, text) in FILES {
        item(&mut roff, path, text);
    }
    roff
}

fn see_also(above: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold(above), roman(format!("({SECTION})"))]);
    roff
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::CommandFactory;

    use super::*;
    use crate::cli::args::Cli;

    fn all() -> BTreeMap<String, String> {
        let found = pages(Cli::command(), "2026-01-31").unwrap().into_iter();
        found.map(|(name, text)| (name.display().to_string(), String::from_utf8(text).unwrap())).collect()
    }

    fn visible(command: &Command, name: &str, out: &mut Vec<(String, String)>) {
        out.push((format!("{name}.1"), command.get_about().unwrap().to_string()));
        for below in command.get_subcommands().filter(|it| !it.is_hide_set()) {
            visible(below, &format!("{name}-{}", below.get_name()), out);
        }
    }

    #[test]
    fn every_command_has_a_page_and_no_hidden_one_has() {
        let mut commands = Vec::new();
        visible(&Cli::command(), "lamplighter", &mut commands);
        assert!(commands.len() > 30, "looked at only {}", commands.len());
        let pages = all();
        let named: Vec<&String> = pages.keys().collect();
        let mut expected: Vec<&String> = commands.iter().map(|(name, _)| name).collect();
        expected.sort();
        assert_eq!(named, expected);
        for hidden in ["exec-child", "man", "help"] {
            assert!(!pages.contains_key(&format!("lamplighter-{hidden}.1")));
        }
    }

    #[test]
    fn a_page_has_its_sections_and_names_only_pages_that_are_there() {
        let pages = all();
        for (name, text) in &pages {
            let title = format!("1 2026-01-31 \"{SOURCE}\" {MANUAL}\n");
            assert!(text.contains(&title), "{name}: {}", text.lines().next().unwrap_or_default());
            for section in [".TH ", ".SH NAME\n", ".SH SYNOPSIS\n", ".SH DESCRIPTION\n", ".SH OPTIONS\n"] {
                assert!(text.contains(section), "{name} has no {section:?}");
            }
            assert!(text.lines().all(|line| !line.trim_start().starts_with(".SH EXTRA")), "{name}");
            for (at, _) in text.match_indices("(1)") {
                let before = text[..at].trim_end_matches("\\fR");
                let word = before.rsplit(|c: char| c.is_whitespace() || c == 'B').next().unwrap_or_default();
                let page = format!("{}.1", word.replace("\\-", "-"));
                assert!(pages.contains_key(&page), "{name} names {page:?}");
            }
        }
        let main = &pages["lamplighter.1"];
        for section in ["SUBCOMMANDS", "EXAMPLES", "\"EXIT STATUS\"", "ENVIRONMENT", "FILES"] {
            assert!(main.contains(&format!(".SH {section}\n")), "no {section}:\n{main}");
        }
        assert!(main.contains("LAMPLIGHTER_RUNTIME") && main.contains("lamplighter demo"));
        assert!(pages["lamplighter-run.1"].contains(".SH \"SEE ALSO\"\n\\fBlamplighter\\fR(1)"));
    }
}
