//! Errors of commands: a text, a hint, an exit code.

use std::fmt::Display;
use std::io;

/// Exit codes. 0 is success, also when nobody reads the output any more.
pub mod code {
    /// What was asked for did not succeed, or a check found something.
    pub const FAILURE: u8 = 1;
    /// The command line or the configuration is wrong.
    pub const USAGE: u8 = 2;
    /// There is no daemon, or no engine: later there may be one.
    pub const UNAVAILABLE: u8 = 69;
    /// The machine panicked; the input is on record.
    pub const SOFTWARE: u8 = 70;
    /// A file could not be read or written.
    pub const IO: u8 = 74;
}

/// Why a command ended without success.
#[derive(Debug)]
pub struct CommandError {
    /// What went wrong; empty when everything was said already.
    pub text: String,
    /// What to do about it.
    pub hint: String,
    /// The exit code.
    pub code: u8,
}

impl CommandError {
    /// With a text and a hint.
    pub fn new(code: u8, text: impl Display, hint: impl Into<String>) -> Self {
        Self { text: text.to_string(), hint: hint.into(), code }
    }

    /// Everything was said already.
    pub fn silent(code: u8) -> Self {
        Self { text: String::new(), hint: String::new(), code }
    }
}

impl From<crate::host::folder::FolderError> for CommandError {
    fn from(error: crate::host::folder::FolderError) -> Self {
        let code = if error.is_never_run() { code::UNAVAILABLE } else { code::IO };
        Self::new(code, &error, error.hint())
    }
}

impl From<crate::host::config::ConfigError> for CommandError {
    fn from(error: crate::host::config::ConfigError) -> Self {
        Self::new(code::USAGE, &error, error.hint())
    }
}

impl From<crate::host::startup::StartError> for CommandError {
    fn from(error: crate::host::startup::StartError) -> Self {
        use crate::host::startup::StartError;
        if let StartError::Ended(ended) = error {
            return ended.into();
        }
        let code = match &error {
            StartError::Endpoint(_)
            | StartError::NoProgram(_)
            | StartError::Agent { .. }
            | StartError::NoCheckout { .. }
            | StartError::OtherImage { .. }
            | StartError::NoRunner { .. }
            | StartError::Env(_) => code::USAGE,
            StartError::Folder(crate::host::folder::FolderError::InUse { .. }) => code::UNAVAILABLE,
            error if error.is_engine_away() => code::UNAVAILABLE,
            _ => code::IO,
        };
        Self::new(code, &error, error.hint())
    }
}

impl From<crate::host::daemon::Ended> for CommandError {
    fn from(error: crate::host::daemon::Ended) -> Self {
        use crate::host::daemon::Ended;
        match &error {
            Ended::Panicked { .. } => {
                Self::new(code::SOFTWARE, &error, "the input is on record; please report it")
            }
            Ended::Journal(journal) => Self::new(code::IO, &error, journal.hint()),
            Ended::Record(_) => Self::new(
                code::IO,
                &error,
                "see that the disk is sound and has space; nothing was done unrecorded",
            ),
        }
    }
}

impl From<crate::host::control::ControlError> for CommandError {
    fn from(error: crate::host::control::ControlError) -> Self {
        use crate::host::control::ControlError;
        let code = match &error {
            ControlError::NoDaemon { .. }
            | ControlError::Unreachable { .. }
            | ControlError::Silent { .. } => code::UNAVAILABLE,
            _ => code::FAILURE,
        };
        Self::new(code, &error, error.hint())
    }
}

impl From<crate::replay::segments::ReplayError> for CommandError {
    fn from(error: crate::replay::segments::ReplayError) -> Self {
        Self::new(code::USAGE, &error, error.hint())
    }
}

impl From<io::Error> for CommandError {
    /// Output that nobody reads any more is success; everything else is not.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::silent(0)
        } else {
            // What is read or written elsewhere names its file.
            Self::new(code::IO, format!("cannot write the output: {error}"), "see that its disk has space")
        }
    }
}
