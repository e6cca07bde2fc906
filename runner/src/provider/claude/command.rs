//! How claude is started: its arguments, its environment, its files. Pure.
//!
//! Invariant: whatever comes from outside is given as `--flag=value`, so that no value can pose as a flag.

use std::path::{Path, PathBuf};

use lamplighter::session::rows::MAX_QUESTION_WAIT;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::config::OWN_SERVER;
use crate::provider::child::{Launch, Patience, Settings};
use crate::provider::{McpServer, ProviderError, Setup};

/// The name of its settings in container.json.
pub const NAME: &str = "claude";
/// How many tokens a conversation may have before it is compacted, where nothing else is said: NanoClaw's value.
const AUTO_COMPACT_WINDOW: u64 = 165_000;
/// What an agent in a container must not use: schedules that end with the process, questions nobody sees, other
/// work trees, other agents of the same machine.
const DISALLOWED: &str = "Cron*,ScheduleWakeup,AskUserQuestion,EnterPlanMode,ExitPlanMode,EnterWorktree,ExitWorktree,\
                          SendMessage,ListAgents";
/// Whose settings claude reads: the agent's own and its folder's.
const SETTING_SOURCES: &str = "user,project";
/// What a call of our tools may take beyond the longest question, in milliseconds: they end by themselves before.
const CALL_SLACK_MS: u64 = 60_000;
/// How long the archiving of a conversation may hold up its compaction, in seconds.
const HOOK_TIMEOUT_S: u64 = 60;
/// What the process's environment has beside the runner's. The first four keep it from the network but for the
/// model service, from replacing itself, and have it say what state it is in.
const ENVIRONMENT: [(&str, Option<&str>); 6] = [
    ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", Some("1")),
    ("DISABLE_AUTOUPDATER", Some("1")),
    ("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS", Some("1")),
    ("CLAUDE_CODE_STARTUP_FAILURE_RESULTS", Some("1")),
    // A runner that is itself started by claude must not look like one of its tools.
    ("CLAUDECODE", None),
    ("CLAUDE_CODE_ENTRYPOINT", None),
];

/// What container.json says under `claude`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The executable: a path, or a name on PATH.
    pub command: Option<String>,
    /// `turn_timeout_s` and `tool_timeout_s`.
    pub patience: Patience,
    extra_args: Vec<String>,
    env: Vec<(String, String)>,
    auto_compact_window: Option<u64>,
    max_retries: Option<u64>,
    setting_sources: Option<String>,
}

impl Options {
    /// Reads the settings.
    ///
    /// # Errors
    /// [`ProviderError::Settings`], with the key.
    pub fn read(settings: Value) -> Result<Self, ProviderError> {
        let mut settings = Settings::new(NAME, settings)?;
        let options = Self {
            command: settings.text("command")?,
            patience: Patience::read(&mut settings)?,
            extra_args: settings.texts("extra_args")?,
            env: settings.named_texts("env")?.into_iter().collect(),
            auto_compact_window: settings.number("auto_compact_window", 1_000, 100_000_000)?,
            max_retries: settings.number("max_retries", 0, 100)?,
            setting_sources: settings.text("setting_sources")?,
        };
        settings.done()?;
        Ok(options)
    }
}

/// What the machine around it is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// Whether the runner is root: claude then skips its questions only in what it is told is a sandbox.
    pub is_root: bool,
    /// The runner's own executable, which archives a conversation before it is compacted.
    pub runner: Option<PathBuf>,
    /// Whether the environment has a compaction window of its own.
    pub has_window: bool,
}

/// Which conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conversation {
    /// A new one under this id.
    New(Uuid),
    /// That one again.
    Resumed(Uuid),
}

impl Conversation {
    /// Its id.
    pub fn id(self) -> Uuid {
        match self {
            Self::New(id) | Self::Resumed(id) => id,
        }
    }
}

/// Where the files lie that the process reads at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// What is appended to the system prompt; `None` when there is nothing to append.
    pub instructions: Option<PathBuf>,
    /// The tool servers.
    pub servers: PathBuf,
}

/// The tool servers in claude's form. Each is loaded at once: behind a search the agent would not know that it has
/// them. Ours ask people, who may take longer than claude would wait.
pub fn servers(servers: &[McpServer]) -> Value {
    let entries = servers.iter().map(|server| {
        let McpServer { name, command, args, env } = server;
        let mut entry = json!({"command": command, "args": args, "env": env, "alwaysLoad": true});
        if name == OWN_SERVER {
            entry["timeout"] = (MAX_QUESTION_WAIT.0 + CALL_SLACK_MS).into();
        }
        (name.clone(), entry)
    });
    json!({"mcpServers": entries.collect::<Map<String, Value>>()})
}

/// The whole start.
pub fn launch(
    program: PathBuf,
    options: &Options,
    setup: &Setup,
    around: &Surroundings,
    conversation: Conversation,
    files: &Files,
) -> Launch {
    let mut args: Vec<String> = Vec::new();
    for arg in ["-p", "--input-format=stream-json", "--output-format=stream-json", "--verbose"] {
        args.push(arg.into());
    }
    // Partial messages are signs of life while a long text streams.
    args.extend(["--include-partial-messages", "--replay-user-messages"].map(String::from));
    args.push(match conversation {
        Conversation::New(id) => format!("--session-id={id}"),
        Conversation::Resumed(id) => format!("--resume={id}"),
    });
    let mut flag = |name: &str, value: &str| args.push(format!("--{name}={value}"));
    if let Some(model) = &setup.model {
        flag("model", model);
    }
    if let Some(effort) = &setup.effort {
        flag("effort", effort);
    }
    if let Some(path) = &files.instructions {
        flag("append-system-prompt-file", &path.to_string_lossy());
    }
    // Else a resumed conversation keeps the destinations that it began with.
    flag("system-prompt-snapshot", "off");
    flag("mcp-config", &files.servers.to_string_lossy());
    flag("setting-sources", options.setting_sources.as_deref().unwrap_or(SETTING_SOURCES));
    flag("disallowedTools", DISALLOWED);
    if let Some(runner) = &around.runner {
        flag("settings", &hooks(runner).to_string());
    }
    args.extend(["--strict-mcp-config", "--dangerously-skip-permissions"].map(String::from));
    args.extend(options.extra_args.iter().cloned());
    Launch { program, args, env: environment(options, around), folder: setup.agent.clone() }
}

fn environment(options: &Options, around: &Surroundings) -> Vec<(String, Option<String>)> {
    let own = ENVIRONMENT.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
    let mut env: Vec<(String, Option<String>)> = own.into();
    let mut add = |name: &str, value: String| env.push((name.to_owned(), Some(value)));
    if around.is_root {
        add("IS_SANDBOX", "1".into());
    }
    if options.auto_compact_window.is_some() || !around.has_window {
        let window = options.auto_compact_window.unwrap_or(AUTO_COMPACT_WINDOW);
        add("CLAUDE_CODE_AUTO_COMPACT_WINDOW", window.to_string());
    }
    if let Some(retries) = options.max_retries {
        add("CLAUDE_CODE_MAX_RETRIES", retries.to_string());
    }
    for (name, value) in &options.env {
        add(name, value.clone());
    }
    env
}

fn hooks(runner: &Path) -> Value {
    let command = format!("{} precompact", quoted(&runner.to_string_lossy()));
    let hook = json!({"type": "command", "command": command, "timeout": HOOK_TIMEOUT_S});
    json!({"hooks": {"PreCompact": [{"hooks": [hook]}]}})
}

/// As one word of a shell's command.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> Setup {
        let server = McpServer {
            name: "lamplighter".into(),
            command: "/opt/runner".into(),
            args: vec!["mcp".into()],
            env: [("A".to_owned(), "b".to_owned())].into(),
        };
        Setup {
            agent: "/agent".into(),
            model: Some("m-1".into()),
            effort: Some("high".into()),
            mcp_servers: vec![server],
            ..Setup::default()
        }
    }

    #[test]
    fn the_whole_start_is_as_written_here() -> Result<(), ProviderError> {
        let settings = json!({
            "extra_args": ["--add-dir=/data"], "env": {"ANTHROPIC_BASE_URL": "http://proxy"}, "max_retries": 3,
        });
        let options = Options::read(settings)?;
        let around = Surroundings { is_root: true, runner: Some("/opt/it's".into()), has_window: false };
        let files = Files { instructions: Some("/w/i.md".into()), servers: "/w/s.json".into() };
        let launch =
            launch("/bin/claude".into(), &options, &setup(), &around, Conversation::New(Uuid::nil()), &files);
        let args = "\
-p
--input-format=stream-json
--output-format=stream-json
--verbose
--include-partial-messages
--replay-user-messages
--session-id=00000000-0000-0000-0000-000000000000
--model=m-1
--effort=high
--append-system-prompt-file=/w/i.md
--system-prompt-snapshot=off
--mcp-config=/w/s.json
--setting-sources=user,project
--disallowedTools=Cron*,ScheduleWakeup,AskUserQuestion,EnterPlanMode,ExitPlanMode,EnterWorktree,ExitWorktree,\
SendMessage,ListAgents
--settings={\"hooks\":{\"PreCompact\":[{\"hooks\":[{\"command\":\"'/opt/it'\\\\''s' precompact\",\"timeout\":60,\
\"type\":\"command\"}]}]}}
--strict-mcp-config
--dangerously-skip-permissions
--add-dir=/data";
        assert_eq!(launch.args.join("\n"), args);
        let env: Vec<String> = launch
            .env
            .iter()
            .map(|(name, value)| format!("{name}={}", value.as_deref().unwrap_or("(unset)")))
            .collect();
        let expected = "\
CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1
DISABLE_AUTOUPDATER=1
CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS=1
CLAUDE_CODE_STARTUP_FAILURE_RESULTS=1
CLAUDECODE=(unset)
CLAUDE_CODE_ENTRYPOINT=(unset)
IS_SANDBOX=1
CLAUDE_CODE_AUTO_COMPACT_WINDOW=165000
CLAUDE_CODE_MAX_RETRIES=3
ANTHROPIC_BASE_URL=http://proxy";
        assert_eq!(env.join("\n"), expected);
        assert_eq!(launch.folder, Path::new("/agent"));
        Ok(())
    }

    #[test]
    fn what_is_not_given_is_not_said() -> Result<(), ProviderError> {
        let options = Options::read(Value::Null)?;
        let around = Surroundings { is_root: false, runner: None, has_window: true };
        let files = Files { instructions: None, servers: "/s".into() };
        let setup = Setup::default();
        let conversation = Conversation::Resumed(Uuid::nil());
        let launch = launch("claude".into(), &options, &setup, &around, conversation, &files);
        assert_eq!(launch.args.iter().filter(|arg| arg.starts_with("--resume=0000")).count(), 1);
        let absent = ["--model", "--effort", "--append-system-prompt-file", "--settings=", "--session-id"];
        assert!(!launch.args.iter().any(|arg| absent.iter().any(|flag| arg.starts_with(flag))));
        assert_eq!(launch.env.len(), ENVIRONMENT.len());
        Ok(())
    }

    #[test]
    fn our_tools_are_loaded_at_once() {
        let expected = json!({"mcpServers": {"lamplighter": {
            "command": "/opt/runner", "args": ["mcp"], "env": {"A": "b"}, "alwaysLoad": true, "timeout": 604_860_000,
        }}});
        assert_eq!(servers(&setup().mcp_servers), expected);
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (settings, said) in [
            (json!(7), "container.json: claude: it is not an object"),
            (json!({"comand": "x"}), "container.json: claude.comand: this runner knows no such setting"),
            (json!({"command": 1}), "container.json: claude.command: it is not a text, or empty"),
            (json!({"extra_args": ["a", 1]}), "container.json: claude.extra_args: it is not a list of texts"),
            (json!({"env": {"A": 1}}), "container.json: claude.env.A: it is not a name with a text"),
            (
                json!({"max_retries": "3"}),
                "container.json: claude.max_retries: it is not a whole number from 0 to 100",
            ),
        ] {
            let found = Options::read(settings).map_err(|error| error.to_string());
            assert_eq!(found, Err(said.to_owned()));
        }
    }
}
