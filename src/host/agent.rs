//! What an attempt needs before it starts: the agent's folder and `container.json`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::config::AgentConfig;
use crate::base::disk::replace;
use crate::base::{OsDisk, Private};

/// The file with the agent's instructions in its folder; Claude Code reads it.
const INSTRUCTIONS: &str = "CLAUDE.local.md";

/// Makes the agent's folder, with its instructions, if it is not there.
///
/// # Errors
/// As the operating system reports them.
pub fn prepare_folder(folder: &Path, agent: &AgentConfig) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let file = folder.join(INSTRUCTIONS);
    match &agent.instructions {
        Some(text) if !file.exists() => replace(&OsDisk, &file, format!("{}\n", text.trim_end()).as_bytes()),
        _ => Ok(()),
    }
}

/// `container.json` (contract 18): what the runner is told. Values of the environment are never part of it.
pub fn container_json(agent: &AgentConfig) -> String {
    let mut keys = Map::new();
    let mut put = |key: &str, value: Value| keys.insert(key.to_owned(), value);
    put("provider", agent.provider.to_lowercase().into());
    put("assistantName", agent.name.clone().into());
    put("groupName", agent.name.clone().into());
    put("agentGroupId", agent.folder.clone().into());
    put("maxMessagesPerPrompt", agent.max_messages_per_prompt.into());
    put("mcpServers", agent.mcp_servers.clone().unwrap_or_else(|| json!({})));
    for (key, value) in [("model", &agent.model), ("effort", &agent.effort)] {
        if let Some(value) = value {
            put(key, value.clone().into());
        }
    }
    if let Some(mock) = &agent.mock {
        put("mock", mock.clone());
    }
    // A map of strings and numbers always serialises.
    serde_json::to_string_pretty(&Value::Object(keys)).unwrap_or_default() + "\n"
}

/// Why the agent's environment cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// The file cannot be read.
    #[error("cannot read agent.env_file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line is not KEY=VALUE. The line itself is not shown: it may hold a secret.
    #[error("{path}:{line}: not a line of the form KEY=VALUE")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
}

/// The variables that the configuration passes on: those named, from the daemon's own environment, then those of the
/// file, which win. A name that is not set is passed over.
///
/// # Errors
/// See [`EnvError`].
pub fn environment(
    agent: &AgentConfig,
    daemon: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<(String, Private<String>)>, EnvError> {
    let mut env: Vec<(String, Private<String>)> =
        agent.env.iter().filter_map(|name| Some((name.clone(), Private(daemon(name)?)))).collect();
    if let Some(path) = &agent.env_file {
        let text = fs::read_to_string(path).map_err(|source| EnvError::Io { path: path.clone(), source })?;
        env.extend(parse(&text).map_err(|line| EnvError::Line { path: path.clone(), line })?);
    }
    Ok(env)
}

/// Lines of `KEY=VALUE`, with comments, `export` and quotes as shells have them. The error is the line's number.
fn parse(text: &str) -> Result<Vec<(String, Private<String>)>, usize> {
    let mut env = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let (name, value) = line.split_once('=').ok_or(n + 1)?;
        let plain = !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let value = unquote(value.trim()).ok_or(n + 1)?;
        if !plain || value.contains('\0') {
            return Err(n + 1);
        }
        env.push((name.to_owned(), Private(value)));
    }
    Ok(env)
}

fn unquote(value: &str) -> Option<String> {
    for quote in ['"', '\''] {
        if let Some(rest) = value.strip_prefix(quote) {
            let inner = rest.strip_suffix(quote)?;
            return Some(if quote == '"' {
                inner.replace("\\\"", "\"").replace("\\\\", "\\")
            } else {
                inner.to_owned()
            });
        }
    }
    Some(value.split(" #").next().unwrap_or(value).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn env_files_are_read_as_shells_write_them() {
        let env = parse("# c\nexport A=1\nB=\"two words\"\nC='x=y' \nD=plain # why\nE=\n").unwrap();
        let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (k.as_str(), v.0.as_str())).collect();
        assert_eq!(env, [("A", "1"), ("B", "two words"), ("C", "x=y"), ("D", "plain"), ("E", "")]);
        assert_eq!(parse("A=1\nno equals sign\n").unwrap_err(), 2);
        assert_eq!(parse("1A=x").unwrap_err(), 1);
        assert_eq!(parse("A=\"open").unwrap_err(), 1);
    }

    #[test]
    fn a_bad_line_is_named_without_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("env");
        fs::write(&path, "SECRET-TOKEN-123\n").unwrap();
        let agent = AgentConfig { env_file: Some(path), ..AgentConfig::default() };
        let error = environment(&agent, &|_| None).unwrap_err().to_string();
        assert!(error.contains(":1:") && !error.contains("SECRET"), "{error}");
    }

    #[test]
    fn container_json_has_the_contracts_keys_and_no_values_of_the_environment() {
        let agent = AgentConfig {
            model: Some("m".into()),
            env: vec!["KEY".into()],
            mock: Some(json!({"rules": []})),
            ..AgentConfig::default()
        };
        let value: Value = serde_json::from_str(&container_json(&agent)).unwrap();
        assert_eq!(value["provider"], "mock");
        assert_eq!(value["maxMessagesPerPrompt"], 10);
        assert!(value.get("effort").is_none() && value.get("env").is_none());
    }
}
