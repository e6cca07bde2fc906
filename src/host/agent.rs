//! What an attempt needs before it starts: the agent's folder and `container.json`.
//!
//! Invariant: the agent's folder is the agent's to write, so nothing in it is followed, emptied or replaced: what the
//! host puts there is a new file under a name that nobody could guess, renamed into a place that was free.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use serde_json::{Map, Value, json};

use super::config::AgentConfig;
use crate::base::Private;

/// The file with the agent's instructions in its folder; Claude Code reads it.
const INSTRUCTIONS: &str = "CLAUDE.local.md";

/// Rights of what the host puts into the agent's folder, whatever mask the daemon was started with: another user, the
/// agent, reads it.
const FILE_MODE: u32 = 0o644;

/// Makes the agent's folder, with its instructions, if it is not there. Instructions that are there, whatever
/// they are, stay as they are.
///
/// # Errors
/// As the operating system reports them; when the folder is a link.
pub fn prepare_folder(folder: &Path, agent: &AgentConfig) -> io::Result<()> {
    if folder.symlink_metadata().is_err() {
        fs::create_dir_all(folder)?;
    }
    let Some(text) = &agent.instructions else { return Ok(()) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(CWD, folder, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::LOOP | Errno::NOTDIR => {
            io::Error::other("it is no folder of its own; put one there, not a link")
        }
        other => other.into(),
    })?;
    match rustix::fs::statat(&folder, INSTRUCTIONS, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(()),
        Err(Errno::NOENT) => place(&folder, INSTRUCTIONS, format!("{}\n", text.trim_end()).as_bytes()),
        Err(errno) => Err(errno.into()),
    }
}

/// Puts a file into a folder that an agent may be writing to. It belongs to whom the folder belongs to.
fn place(folder: &OwnedFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut chance = [0u8; 8];
    File::open("/dev/urandom")?.read_exact(&mut chance)?;
    let temp = format!(".{name}.{:016x}.tmp", u64::from_le_bytes(chance));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(FILE_MODE);
    let mut file = File::from(rustix::fs::openat(folder, &temp, flags, mode)?);
    let mut write = || -> io::Result<()> {
        rustix::fs::fchmod(&file, mode)?;
        let (own, of_folder) = (rustix::fs::fstat(&file)?, rustix::fs::fstat(folder)?);
        if own.st_uid != of_folder.st_uid {
            let (uid, gid) = (of_folder.st_uid, of_folder.st_gid);
            let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
            // Refused to all but root, and then it can be read all the same.
            let _ = rustix::fs::fchown(&file, Some(uid), Some(gid));
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(rustix::fs::renameat(folder, &temp, folder, name)?)
    };
    if let Err(error) = write() {
        // What was not finished is of no use to anybody.
        let _ = rustix::fs::unlinkat(folder, &temp, AtFlags::empty());
        return Err(error);
    }
    Ok(rustix::fs::fsync(folder)?)
}

/// `container.json` (contract 18): what the runner is told, and what the channels can do. Values of the
/// environment are never part of it.
pub fn container_json(agent: &AgentConfig, channels: &BTreeMap<&'static str, Vec<&'static str>>) -> String {
    let mut keys = Map::new();
    let mut put = |key: &str, value: Value| keys.insert(key.to_owned(), value);
    put("provider", agent.provider.to_lowercase().into());
    put("assistantName", agent.name.clone().into());
    put("groupName", agent.name.clone().into());
    put("agentGroupId", agent.folder.clone().into());
    put("maxMessagesPerPrompt", agent.max_messages_per_prompt.into());
    put("capabilities", json!(channels));
    put("mcpServers", agent.mcp_servers.clone().unwrap_or_else(|| json!({})));
    for (key, value) in [("model", &agent.model), ("effort", &agent.effort)] {
        if let Some(value) = value {
            put(key, value.clone().into());
        }
    }
    let providers = [
        ("mock", &agent.mock),
        ("claude", &agent.claude),
        ("codex", &agent.codex),
        ("cassette", &agent.cassette),
    ];
    for (name, settings) in providers {
        if let Some(settings) = settings {
            put(name, settings.clone());
        }
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
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn instructed() -> AgentConfig {
        AgentConfig { instructions: Some("be kind\n\n".into()), ..AgentConfig::default() }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn instructions_are_written_once_and_can_be_read_by_the_agent() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("groups/agent");
        prepare_folder(&folder, &instructed()).unwrap();
        let file = folder.join(INSTRUCTIONS);
        assert_eq!(fs::read_to_string(&file).unwrap(), "be kind\n");
        assert_eq!(names(&folder), [INSTRUCTIONS], "something is left over");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, FILE_MODE);
        fs::write(&file, "the agent's own").unwrap();
        prepare_folder(&folder, &instructed()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "the agent's own");
        if !rustix::process::geteuid().is_root() {
            println!("NOT DONE: giving a file away takes root");
            return;
        }
        // Of a folder that was given to the agent, the file is the agent's too.
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::chown(&folder, Some(10_001), Some(10_002)).unwrap();
        prepare_folder(&folder, &instructed()).unwrap();
        let found = fs::metadata(&file).unwrap();
        assert_eq!((found.uid(), found.gid()), (10_001, 10_002));
    }

    #[test]
    fn links_that_an_agent_planted_lead_nowhere() {
        let root = tempfile::tempdir().unwrap();
        let (folder, victim) = (root.path().join("agent"), root.path().join("victim"));
        fs::create_dir(&folder).unwrap();
        fs::write(&victim, "precious").unwrap();
        // A name that a writer without care would use for what is not finished.
        symlink(&victim, folder.join(format!(".{INSTRUCTIONS}.tmp"))).unwrap();
        prepare_folder(&folder, &instructed()).unwrap();
        assert_eq!(fs::read_to_string(folder.join(INSTRUCTIONS)).unwrap(), "be kind\n");
        // The name itself, also where it leads to nothing yet.
        for target in [&victim, &root.path().join("new")] {
            fs::remove_file(folder.join(INSTRUCTIONS)).unwrap();
            symlink(target, folder.join(INSTRUCTIONS)).unwrap();
            prepare_folder(&folder, &instructed()).unwrap();
            assert_eq!(fs::read_link(folder.join(INSTRUCTIONS)).unwrap(), *target);
        }
        // The folder itself.
        let elsewhere = root.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, root.path().join("link")).unwrap();
        let refused = prepare_folder(&root.path().join("link"), &instructed()).unwrap_err().to_string();
        assert!(refused.contains("not a link"), "{refused}");
        assert_eq!(names(&elsewhere), [""; 0]);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert!(!root.path().join("new").exists());
    }

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
            claude: Some(json!({"max_retries": 2})),
            ..AgentConfig::default()
        };
        let value: Value =
            serde_json::from_str(&container_json(&agent, &[("chat", vec!["files", "cards"])].into()))
                .unwrap();
        assert_eq!(value["provider"], "mock");
        assert_eq!(value["maxMessagesPerPrompt"], 10);
        assert_eq!((&value["mock"]["rules"], &value["claude"]["max_retries"]), (&json!([]), &json!(2)));
        assert_eq!(value["capabilities"], json!({"chat": ["files", "cards"]}));
        assert!(value.get("effort").is_none() && value.get("env").is_none());
    }
}
