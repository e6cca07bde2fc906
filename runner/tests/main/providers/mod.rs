//! Providers that run a real agent CLI against a model service of our own. Ignored by default, because the CLIs are
//! large; `scripts/test-providers` fetches them and runs these tests.
//!
//! With `RECORD=1` each test of claude and codex rewrites its recording in `fixtures/cassettes/`.

mod claude;
mod codex;
mod scrub;
mod whole;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lamplighter_runner::mailbox::{Event, Mailbox};
use lamplighter_runner::prompt::Prompt;
use lamplighter_runner::provider::{
    Answer, McpServer, Opening, Provider, ProviderEvent, Push, Query, Setup, TurnError, make,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::session::{Outcome, until};

/// Bounds every wait. A turn takes half a second where nothing else runs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file beside these tests.
fn helper(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/providers").join(name)
}

/// The model service. Ends with its value.
struct Model {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Model {
    fn start(folder: &Path, port: u16) -> Result<Self, Box<dyn Error>> {
        let log = folder.join("requests.ndjson");
        let mut child = Command::new("python3")
            .arg(helper("fake_model.py"))
            .args(["--port", &port.to_string(), "--log"])
            .arg(&log)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
        let port = line.trim().parse().map_err(|_| format!("the model service said {line:?}"))?;
        Ok(Self { child, port, log })
    }

    /// What it was asked, oldest first.
    fn requests(&self) -> Result<Vec<Value>, Box<dyn Error>> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }
}

impl Model {
    /// Waits until it was asked something that holds this text.
    fn until_asked(&self, text: &str) -> Outcome {
        until(&format!("a request with {text:?}"), || {
            let log = fs::read_to_string(&self.log).ok()?;
            log.lines().any(|line| line.contains(text)).then_some(())
        })
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody listens on.
fn free_port() -> Result<u16, Box<dyn Error>> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// One agent's folders, beside one model service.
struct Bench {
    name: &'static str,
    provider: &'static str,
    root: TempDir,
    port: u16,
    settings: BTreeMap<String, Value>,
    /// Whether what passes between the runner and the CLI is written down, though it is not kept.
    is_watched: bool,
    /// The name in the environment of claude's credential; whatever its value is, the service takes it.
    credential: &'static str,
}

impl Bench {
    fn new(provider: &'static str, name: &'static str) -> Result<(Self, Model), Box<dyn Error>> {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let model = Model::start(root.path(), 0)?;
        Ok((Self::at(provider, name, root, model.port)?, model))
    }

    fn at(
        provider: &'static str,
        name: &'static str,
        root: TempDir,
        port: u16,
    ) -> Result<Self, Box<dyn Error>> {
        for folder in ["agent", "workspace", "home"] {
            fs::create_dir(root.path().join(folder))?;
        }
        Ok(Self {
            name,
            provider,
            root,
            port,
            settings: BTreeMap::new(),
            is_watched: false,
            credential: "ANTHROPIC_API_KEY",
        })
    }

    fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.settings.insert(key.to_owned(), value.into());
        self
    }

    fn watched(mut self) -> Self {
        self.is_watched = true;
        self
    }

    /// Waits until the CLI has said a line that is wanted; needs [`Bench::watched`].
    fn until_said(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Outcome {
        until(what, || {
            let text = fs::read_to_string(self.path("recorded.ndjson")).ok()?;
            let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.any(|line| wanted(&line["out"])).then_some(())
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn program(&self) -> Result<PathBuf, Box<dyn Error>> {
        let variable = format!("LAMPLIGHTER_{}", self.provider.to_uppercase());
        let path = std::env::var(&variable)
            .map_err(|_| format!("{variable} is not set: run scripts/test-providers"))?;
        Ok(path.into())
    }

    fn is_recording(&self) -> bool {
        std::env::var_os("RECORD").is_some()
    }

    /// The executable, or a script that runs and records it.
    fn command(&self) -> Result<PathBuf, Box<dyn Error>> {
        let program = self.program()?;
        if !self.is_recording() && !self.is_watched {
            return Ok(program);
        }
        let script = self.path("record.sh");
        let [record, file] = [helper("record.py"), self.path("recorded.ndjson")];
        let text = format!(
            "#!/bin/sh\nexec python3 '{}' '{}' '{}' \"$@\"\n",
            record.display(),
            file.display(),
            program.display()
        );
        fs::write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(script)
    }

    fn setup(&self) -> Result<Setup, Box<dyn Error>> {
        let home = self.path("home").display().to_string();
        let url = format!("http://127.0.0.1:{}", self.port);
        let mut settings = self.settings.clone();
        settings.insert("command".into(), self.command()?.to_string_lossy().into());
        let env = match self.provider {
            "claude" => json!({
                "ANTHROPIC_BASE_URL": url, self.credential: "none", "CLAUDE_CONFIG_DIR": home, "HOME": home,
            }),
            _ => {
                let service = format!(
                    "model_providers.fake={{name=\"fake\",base_url=\"{url}/v1\",wire_api=\"responses\",\
                     env_key=\"FAKE_KEY\",request_max_retries=2,stream_max_retries=2}}"
                );
                settings.insert("config".into(), json!(["model_provider=fake", service]));
                json!({"FAKE_KEY": "none", "CODEX_HOME": home, "HOME": home})
            }
        };
        settings.insert("env".into(), env);
        let notes = self.path("notes").display().to_string();
        let server = McpServer {
            name: "notes".into(),
            command: "python3".into(),
            args: vec![helper("tool_server.py").display().to_string()],
            env: [("NOTES".to_owned(), notes)].into(),
        };
        Ok(Setup {
            settings: serde_json::to_value(settings)?,
            workspace: self.path("workspace"),
            agent: self.path("agent"),
            model: Some(if self.provider == "claude" { "claude-sonnet-4-5" } else { "fake-model" }.into()),
            effort: Some("low".into()),
            mcp_servers: vec![server],
            ..Setup::default()
        })
    }

    fn provider(&self) -> Result<Box<dyn Provider>, Box<dyn Error>> {
        Ok(make(self.provider, self.setup()?)?)
    }

    /// Begins a query.
    fn talk(&self, continuation: Option<&str>, first: Push) -> Result<Talk, Box<dyn Error>> {
        let mailbox = Arc::new(Mailbox::default());
        let opening = Opening {
            continuation: continuation.map(str::to_owned),
            instructions: format!("You are tested by {}.", first.id),
            first,
        };
        let query = self.provider()?.start(opening, mailbox.open_query()).map_err(|error| error.reason)?;
        Ok(Talk { query, mailbox, seen: Vec::new() })
    }

    /// Keeps the recording, when one is made.
    fn keep(&self) -> Outcome {
        if !self.is_recording() {
            return Ok(());
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/cassettes").join(self.provider);
        fs::create_dir_all(&folder)?;
        let text = fs::read_to_string(self.path("recorded.ndjson"))?;
        let text = scrub::scrub(&text, &self.root.path().display().to_string())?;
        Ok(fs::write(folder.join(format!("{}.ndjson", self.name)), text)?)
    }
}

/// A push with a text as the runner writes it.
fn push(id: &str, text: &str) -> Push {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    raw(
        id,
        &format!("<context timezone=\"UTC\" />\n<message id=\"{id}\" from=\"family\">{escaped}</message>"),
    )
}

/// A push with exactly this text.
fn raw(id: &str, text: &str) -> Push {
    Push { id: id.into(), prompt: Prompt { text: text.into(), triggers: Vec::new() } }
}

/// A query and what it has said.
struct Talk {
    query: Box<dyn Query>,
    mailbox: Arc<Mailbox>,
    seen: Vec<ProviderEvent>,
}

impl Talk {
    /// Reads events until one is wanted.
    fn until<T>(
        &mut self,
        what: &str,
        wanted: impl Fn(&ProviderEvent) -> Option<T>,
    ) -> Result<T, Box<dyn Error>> {
        let by = Instant::now() + PATIENCE;
        loop {
            let Event::Provider(event) = self.mailbox.take(Some(by)) else {
                return Err(format!("waited in vain for {what}; heard {:#?}", self.seen).into());
            };
            let found = wanted(&event);
            let is_end = matches!(event, ProviderEvent::Error(_));
            if event != ProviderEvent::Activity {
                self.seen.push(event);
            }
            match found {
                Some(found) => return Ok(found),
                None if is_end => {
                    return Err(format!("the end instead of {what}; heard {:#?}", self.seen).into());
                }
                None => {}
            }
        }
    }

    fn result(&mut self) -> Result<Answer, Box<dyn Error>> {
        self.until("a result", |event| match event {
            ProviderEvent::Result(answer) => Some(answer.clone()),
            _ => None,
        })
    }

    /// The text of a result that covers exactly these pushes.
    fn answers(&mut self, covers: &[&str]) -> Result<String, Box<dyn Error>> {
        let answer = self.result()?;
        if answer.covers != covers {
            return Err(format!("covers {:?}, not {covers:?}; heard {:#?}", answer.covers, self.seen).into());
        }
        Ok(answer.text.unwrap_or_default())
    }

    fn error(&mut self) -> Result<TurnError, Box<dyn Error>> {
        self.until("an error", |event| match event {
            ProviderEvent::Error(error) => Some(error.clone()),
            _ => None,
        })
    }

    fn continuation(&self) -> Result<String, Box<dyn Error>> {
        let tokens = self.seen.iter().rev().find_map(|event| match event {
            ProviderEvent::Init { continuation } => Some(continuation.clone()),
            _ => None,
        });
        Ok(tokens.ok_or("no init")?)
    }

    fn tool(&mut self, name: &str) -> Outcome {
        self.until(&format!("the tool {name}"), |event| match event {
            ProviderEvent::ToolStarted { name: found, .. } if found == name => Some(()),
            _ => None,
        })
    }

    fn started(&mut self, id: &str) -> Outcome {
        self.until(&format!("the start of {id}"), |event| match event {
            ProviderEvent::Started { id: found } if found == id => Some(()),
            _ => None,
        })
    }

    fn retries(&self) -> usize {
        self.seen.iter().filter(|event| matches!(event, ProviderEvent::Retrying { .. })).count()
    }
}
