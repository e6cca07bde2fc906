//! `lamplighter init`

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::error::{CommandError, code};
use crate::host::config::FILE;

/// Every key with its default and why; a test proves that it says what the defaults are.
pub const TEMPLATE: &str = include_str!("init.toml");

/// Writes the commented configuration into the data folder. One that is there is left as it is.
///
/// # Errors
/// When there is one, or it cannot be written.
pub fn init(data: &Path) -> Result<(), CommandError> {
    let hint = "name a folder of your own, on a disk with space, with --data";
    let failed = |doing: &str, path: &Path, error: io::Error| {
        CommandError::new(code::IO, format!("cannot {doing} {}: {error}", path.display()), hint)
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .map_err(|error| failed("make the data folder", data, error))?;
    let path = data.join(FILE);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    match file {
        Ok(mut file) => {
            file.write_all(TEMPLATE.as_bytes()).map_err(|error| failed("write", &path, error))?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let text = format!("{} is there already and was left as it is", path.display());
            return Err(CommandError::new(
                code::FAILURE,
                text,
                "move it away first, or name another folder with --data",
            ));
        }
        Err(error) => return Err(failed("write", &path, error)),
    }
    Ok(writeln!(io::stdout(), "wrote {}", path.display())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::config::{Config, Overrides};

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = init(&file.join("data")).unwrap_err();
        assert_eq!(error.code, code::IO);
        assert!(error.text.contains("file/data") && !error.hint.is_empty(), "{error:?}");
    }

    fn load(text: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), text).unwrap();
        Config::load(None, folder.path(), &|_| None, &Overrides::default()).unwrap()
    }

    /// Lines of the form `# key = value` are what a user uncomments.
    fn uncommented() -> String {
        TEMPLATE
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest)
                    if rest
                        .split_once(" = ")
                        .is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')) =>
                {
                    rest
                }
                _ => line,
            })
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn the_template_changes_nothing_as_it_is() {
        assert_eq!(load(TEMPLATE), Config::default());
    }

    #[test]
    fn every_default_it_shows_is_the_default() {
        let text = uncommented();
        let without_examples: String = text
            .lines()
            .filter(|line| !line.ends_with("# example"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(load(&without_examples), Config::default());
        // And what is an example parses too.
        drop(load(&text));
    }

    #[test]
    fn every_key_is_shown() {
        let text = uncommented();
        let value: toml::Table = toml::from_str(&text).unwrap();
        let known = [
            ("log", 2),
            ("journal", 5),
            ("runtime", 4),
            ("agent", 16),
            ("policy", 15),
            ("reactor", 2),
            ("limits", 2),
        ];
        for (section, keys) in known {
            let found = value.get(section).and_then(|it| it.as_table()).map_or(0, |it| it.len());
            assert_eq!(found, keys, "[{section}]");
        }
    }
}
