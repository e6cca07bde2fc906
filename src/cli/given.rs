//! What several commands take from their arguments.

use std::path::{Path, PathBuf};

use super::error::{CommandError, code};
use crate::base::RecordNo;
use crate::host::folder::DataFolder;

/// What to do about a number of a record that does not fit.
pub const RECORD_HINT: &str = "`lamplighter journal tail` shows the numbers of records";

/// The number of a record, as it is shown everywhere (boot.n).
///
/// # Errors
/// When the text is none.
pub fn record_no(text: &str) -> Result<RecordNo, CommandError> {
    text.parse().map_err(|error| CommandError::new(code::USAGE, error, RECORD_HINT))
}

/// The journal that was named, or the data folder's own.
///
/// # Errors
/// When none was named and there is no data folder.
pub fn journal(named: Option<&PathBuf>, data: &Path) -> Result<PathBuf, CommandError> {
    match named {
        Some(path) => Ok(path.clone()),
        None => Ok(DataFolder::open(data)?.journal()),
    }
}
