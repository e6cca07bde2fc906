//! container.json: what the host tells about the agent (contract 18).
//!
//! Invariant: a file that cannot be read gives the defaults and a line in the log, never an end; so does a
//! single key of the wrong type. Only what a provider needs and cannot use is an error, and the provider says
//! so.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::log::Log;
use crate::machine::batch;
use crate::provider::McpServer;
use crate::script;

/// Largest file that is read; a real one has a few KiB.
const MAX_BYTES: u64 = 1024 * 1024;
/// The provider of a file that names none (contract 18).
const DEFAULT_PROVIDER: &str = "claude";
/// The name of our own tool server; no other may pose as it.
pub const OWN_SERVER: &str = "lamplighter";

/// What the runner uses of container.json.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// In lower case.
    pub provider: String,
    /// What the agent is called.
    pub assistant_name: Option<String>,
    /// Its group's id.
    pub agent_group_id: Option<String>,
    /// Most triggers in one prompt, 1 to [`batch::MAX_ROWS`].
    pub max_triggers: usize,
    /// Passed to the provider.
    pub model: Option<String>,
    /// Passed to the provider.
    pub effort: Option<String>,
    /// Tool servers beside our own; one of its name is left out.
    pub mcp_servers: Vec<McpServer>,
    /// How long the script of a task may take; at most, and by default, what the contract gives it.
    pub script_timeout: Duration,
    /// The key that is named like the provider: its own settings.
    pub settings: Value,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            provider: DEFAULT_PROVIDER.to_owned(),
            assistant_name: None,
            agent_group_id: None,
            max_triggers: batch::DEFAULT_TRIGGERS,
            model: None,
            effort: None,
            mcp_servers: Vec::new(),
            script_timeout: script::DEFAULT_TIMEOUT,
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

    /// Reads a container.json from elsewhere than its file.
    ///
    /// # Errors
    /// When it is no JSON object, or too large.
    pub fn parse(text: &mut dyn Read) -> Result<Self, String> {
        object(text).map(|object| Self::from_object(&object).0)
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
        let assistant_name = text("assistantName");
        let agent_group_id = text("agentGroupId");
        let (model, effort) = (text("model"), text("effort"));
        let max_triggers = match object.get("maxMessagesPerPrompt") {
            None | Some(Value::Null) => batch::DEFAULT_TRIGGERS,
            Some(value) => value.as_i64().map(triggers).unwrap_or_else(|| {
                ignored.push("maxMessagesPerPrompt");
                batch::DEFAULT_TRIGGERS
            }),
        };
        let script_timeout = match object.get("taskScriptTimeoutMs") {
            None | Some(Value::Null) => script::DEFAULT_TIMEOUT,
            Some(value) => {
                let wanted = value.as_u64().map(|ms| Duration::from_millis(ms).min(script::DEFAULT_TIMEOUT));
                wanted.unwrap_or_else(|| {
                    ignored.push("taskScriptTimeoutMs");
                    script::DEFAULT_TIMEOUT
                })
            }
        };
        let mcp_servers = match object.get("mcpServers") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Object(servers)) => {
                let read: Vec<Option<McpServer>> =
                    servers.iter().map(|(name, value)| mcp_server(name, value)).collect();
                if read.iter().any(Option::is_none) {
                    ignored.push("mcpServers");
                }
                read.into_iter().flatten().collect()
            }
            Some(_) => {
                ignored.push("mcpServers");
                Vec::new()
            }
        };
        let settings = object.get(&provider).cloned().unwrap_or_default();
        let config = Self {
            provider,
            assistant_name,
            agent_group_id,
            max_triggers,
            model,
            effort,
            mcp_servers,
            script_timeout,
            settings,
        };
        (config, ignored)
    }
}

/// What channels can do, by their name, as the first of these files says that exists; null when it does not say.
pub fn capabilities(candidates: &[PathBuf]) -> Value {
    let found = candidates.iter().find_map(|path| read(path).ok().flatten());
    found.and_then(|mut object| object.remove("capabilities")).unwrap_or_default()
}

/// A server of the wrong form, or of the name of ours, is `None`.
fn mcp_server(name: &str, value: &Value) -> Option<McpServer> {
    if name == OWN_SERVER {
        return None;
    }
    let texts = |key: &str| match value.get(key) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
        Some(_) => None,
    };
    let env = match value.get("env") {
        None | Some(Value::Null) => Some(BTreeMap::new()),
        Some(Value::Object(env)) => {
            env.iter().map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
        }
        Some(_) => None,
    };
    let command = value.get("command")?.as_str().filter(|command| !command.is_empty())?;
    Some(McpServer { name: name.to_owned(), command: command.to_owned(), args: texts("args")?, env: env? })
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
    object(file).map(Some)
}

fn object(from: impl Read) -> Result<Map<String, Value>, String> {
    let mut text = String::new();
    from.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_BYTES {
        return Err(format!("it has more than {MAX_BYTES} bytes"));
    }
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(object),
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
    fn tool_servers_are_read_and_none_poses_as_ours() -> Result<(), Box<dyn std::error::Error>> {
        let config = loaded(
            r#"{"model":"m1","effort":"high","taskScriptTimeoutMs":50,"mcpServers":{
                "web":{"command":"/bin/web","args":["-q"],"env":{"K":"V"}},
                "lamplighter":{"command":"/bin/evil"},"bad":{"cmd":"x"},"worse":{"command":"x","args":[1]}}}"#,
        )?;
        let web = McpServer {
            name: "web".into(),
            command: "/bin/web".into(),
            args: vec!["-q".into()],
            env: BTreeMap::from([("K".into(), "V".into())]),
        };
        assert_eq!(config.mcp_servers, [web]);
        assert_eq!((config.model.as_deref(), config.effort.as_deref()), (Some("m1"), Some("high")));
        assert_eq!(config.script_timeout, Duration::from_millis(50));
        Ok(())
    }

    #[test]
    fn what_cannot_be_read_gives_the_defaults() -> Result<(), Box<dyn std::error::Error>> {
        for text in ["", "{", "[]", "null"] {
            assert_eq!(loaded(text)?, Config::default(), "{text}");
        }
        let config = loaded(r#"{"provider":7,"maxMessagesPerPrompt":"ten","groupName":"g"}"#)?;
        assert_eq!(config, Config::default());
        Ok(())
    }

    #[test]
    fn the_number_of_triggers_has_bounds() {
        let wanted = [0, 1, -1, 7, i64::MAX].map(triggers);
        assert_eq!(wanted, [batch::DEFAULT_TRIGGERS, 1, batch::MAX_ROWS, 7, batch::MAX_ROWS]);
    }
}
