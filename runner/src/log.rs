//! One line per event on stderr: `level message key=value …`.
//!
//! Invariant: no text of a message is ever given to it; callers log ids, counts, classes and reasons of their
//! own.

use std::fmt::{Display, Write as _};
use std::io::Write as _;

/// Longest value in a line, in characters; the rest is cut. Ids and paths stay below it.
const MAX_VALUE_CHARS: usize = 300;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Only of use when looking for a fault.
    Debug,
    /// What a normal run does.
    Info,
    /// Something was refused, dropped or is late.
    Warn,
    /// The runner or a turn cannot go on.
    Error,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }

    /// The level that a word names.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Debug, Self::Info, Self::Warn, Self::Error].into_iter().find(|level| level.word() == word)
    }
}

/// Keys and values of a line.
pub type Fields<'a> = &'a [(&'a str, &'a dyn Display)];

/// Where log lines go; passed to whoever logs.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    least: Level,
}

impl Log {
    /// A log that leaves out lines below `least`.
    pub fn new(least: Level) -> Self {
        Self { least }
    }

    /// Writes a line of level debug.
    pub fn debug(self, message: &str, fields: Fields<'_>) {
        self.write(Level::Debug, message, fields);
    }

    /// Writes a line of level info.
    pub fn info(self, message: &str, fields: Fields<'_>) {
        self.write(Level::Info, message, fields);
    }

    /// Writes a line of level warn.
    pub fn warn(self, message: &str, fields: Fields<'_>) {
        self.write(Level::Warn, message, fields);
    }

    /// Writes a line of level error.
    pub fn error(self, message: &str, fields: Fields<'_>) {
        self.write(Level::Error, message, fields);
    }

    fn write(self, level: Level, message: &str, fields: Fields<'_>) {
        if level >= self.least {
            let line = line(level, message, fields);
            // Nobody reads stderr any more: there is no better place to say so.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }
}

fn line(level: Level, message: &str, fields: Fields<'_>) -> String {
    let mut line = format!("{} {message}", level.word());
    for (key, value) in fields {
        let value: String = value.to_string().chars().take(MAX_VALUE_CHARS).collect();
        let plain =
            !value.is_empty() && value.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '"');
        // Writing to a String does not fail.
        let _ = if plain { write!(line, " {key}={value}") } else { write!(line, " {key}={value:?}") };
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line_whatever_its_values_hold() {
        let text = line(Level::Warn, "cannot read", &[("path", &"/a b\n"), ("n", &3), ("none", &"")]);
        assert_eq!(text, "warn cannot read path=\"/a b\\n\" n=3 none=\"\"\n");
    }

    #[test]
    fn levels_are_found_by_their_words() {
        assert_eq!(Level::from_word("info"), Some(Level::Info));
        assert_eq!(Level::from_word("loud"), None);
    }
}
