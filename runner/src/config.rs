//! container.json: what the host tells about the agent (contract 18).
//!
//! Invariant: a file that cannot be read gives the defaults and a line in the log, never an end; so does a
//! single key of the wrong type. Only what a provider needs and cannot use is an error, and the provider says
//! so.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::batch;
use crate::log::Log;

/// Largest file that is read; a real one has a few KiB.
const MAX_BYTES: u64 = 1024 * 1024;
/// The provider of a file that names none (contract 18).
const DEFAULT_PROVIDER: &str = "claude";

/// What the runner uses of container.json.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// In lower case.
    pub provider: String,
    /// What the agent is called.
    pub assistant_name: Option<String>,
    /// What its group is called.
    pub group_name: Option<String>,
    /// Its group's id.
    pub agent_group_id: Option<String>,
    /// Most triggers in one prompt, 1 to [`batch::MAX_ROWS`].
    pub max_triggers: usize,
    /// The key that is named like the provider: its own settings.
    pub settings: Value,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            provider: DEFAULT_PROVIDER.to_owned(),
            assistant_name: None,
            group_name: None,
            agent_group_id: None,
            max_triggers: batch::DEFAULT_TRIGGERS,
            settings: Value::Null,
        }
    }
}

impl Config {
    /// Reads the first of these files that exists.
    pub fn load(candidates: &[PathBuf], log: Log) -> Self {
        for path in candidates {
            match read(path) {
                Ok(None) => {}
                Ok(Some(object)) => {
                    let (config, ignored) = Self::from_object(&object);
                    for key in ignored {
                        log.warn(
                            "ignored a key of the wrong type",
                            &[("file", &path.display()), ("key", &key)],
                        );
                    }
                    return config;
                }
                Err(reason) => {
                    let fields: [(&str, &dyn std::fmt::Display); 2] =
                        [("file", &path.display()), ("reason", &reason)];
                    log.warn("cannot read container.json; going on with the defaults", &fields);
                    return Self::default();
                }
            }
        }
        log.warn("found no container.json; going on with the defaults", &[]);
        Self::default()
    }

    /// The keys that are known, and the names of those that have the wrong type.
    fn from_object(object: &Map<String, Value>) -> (Self, Vec<&'static str>) {
        let mut ignored = Vec::new();
        let mut text = |key: &'static str| match object.get(key) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(_) => {
                ignored.push(key);
                None
            }
        };
        let provider = text("provider").map_or(DEFAULT_PROVIDER.to_owned(), |name| name.to_lowercase());
        let (assistant_name, group_name) = (text("assistantName"), text("groupName"));
        let agent_group_id = text("agentGroupId");
        let max_triggers = match object.get("maxMessagesPerPrompt") {
            None | Some(Value::Null) => batch::DEFAULT_TRIGGERS,
            Some(value) => value.as_i64().map(triggers).unwrap_or_else(|| {
                ignored.push("maxMessagesPerPrompt");
                batch::DEFAULT_TRIGGERS
            }),
        };
        let settings = object.get(&provider).cloned().unwrap_or_default();
        let config = Self { provider, assistant_name, group_name, agent_group_id, max_triggers, settings };
        (config, ignored)
    }
}

/// 0 means the default and a negative number as many as fit (contract 9).
fn triggers(wanted: i64) -> usize {
    match wanted {
        0 => batch::DEFAULT_TRIGGERS,
        n => usize::try_from(n).unwrap_or(batch::MAX_ROWS).min(batch::MAX_ROWS),
    }
}

/// `None` when there is no such file.
fn read(path: &Path) -> Result<Option<Map<String, Value>>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_BYTES {
        return Err(format!("it has more than {MAX_BYTES} bytes"));
    }
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err("it is not a JSON object".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Level;

    fn loaded(text: &str) -> Result<Config, Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("container.json");
        std::fs::write(&path, text)?;
        Ok(Config::load(&[folder.path().join("missing"), path], Log::new(Level::Error)))
    }

    #[test]
    fn the_keys_of_the_contract_are_read() -> Result<(), Box<dyn std::error::Error>> {
        let config = loaded(
            r#"{"provider":"Mock","assistantName":"Lu","maxMessagesPerPrompt":3,"skills":"all",
                "mock":{"rules":[]}}"#,
        )?;
        assert_eq!((config.provider.as_str(), config.max_triggers), ("mock", 3));
        assert_eq!(config.assistant_name.as_deref(), Some("Lu"));
        assert_eq!(config.settings, serde_json::json!({"rules": []}));
        Ok(())
    }

    #[test]
    fn what_cannot_be_read_gives_the_defaults() -> Result<(), Box<dyn std::error::Error>> {
        for text in ["", "{", "[]", "null"] {
            assert_eq!(loaded(text)?, Config::default(), "{text}");
        }
        let config = loaded(r#"{"provider":7,"maxMessagesPerPrompt":"ten","groupName":"g"}"#)?;
        assert_eq!(config, Config { group_name: Some("g".into()), ..Config::default() });
        Ok(())
    }

    #[test]
    fn the_number_of_triggers_has_bounds() {
        let wanted = [0, 1, -1, 7, i64::MAX].map(triggers);
        assert_eq!(wanted, [batch::DEFAULT_TRIGGERS, 1, batch::MAX_ROWS, 7, batch::MAX_ROWS]);
    }
}
