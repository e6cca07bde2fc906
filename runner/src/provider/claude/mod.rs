//! The provider `claude`: Claude Code, one process per query, spoken to in lines of JSON.
//!
//! Its settings, the key `claude` of container.json: `command` (the executable), `extra_args`, `env`,
//! `auto_compact_window` (tokens), `max_retries`, `setting_sources`, `turn_timeout_s`, `tool_timeout_s`.
//! [`wire`] knows the language, [`command`] the start; the process itself is `child`'s.
//!
//! Invariant: a conversation has one process at a time. claude takes no lock, and two would fork it.

pub mod command;
pub mod wire;
mod words;

use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::{ErrorClass, Opening, Provider, ProviderError, Query, Setup, TurnError, child};
use crate::mailbox::Sink;
use command::{Conversation, Files, Options, Surroundings};
use wire::Wire;

/// Where its files lie in the workspace.
const FOLDER: &str = ".lamplighter-claude";
/// The environment's path of the executable.
const VARIABLE: &str = "LAMPLIGHTER_CLAUDE";
/// Where NanoClaw's images have the executable.
const LAST_PATH: &str = "/pnpm/claude";

/// Claude Code.
#[derive(Debug)]
pub struct Claude {
    options: Options,
    setup: Setup,
    around: Surroundings,
}

impl Claude {
    /// Reads its settings.
    ///
    /// # Errors
    /// [`ProviderError::Settings`].
    pub fn new(setup: Setup) -> Result<Self, ProviderError> {
        let options = Options::read(setup.settings.clone())?;
        let around = Surroundings {
            is_root: rustix::process::geteuid().is_root(),
            // Without its path there is no archive, which is no reason not to answer.
            runner: std::env::current_exe().ok(),
            has_window: std::env::var_os("CLAUDE_CODE_AUTO_COMPACT_WINDOW").is_some(),
        };
        Ok(Self { options, setup, around })
    }

    fn program(&self) -> Result<PathBuf, TurnError> {
        let variable = std::env::var(VARIABLE).ok();
        let search = std::env::var("PATH").ok();
        let command = self.options.command.as_deref();
        child::find_program(command, (VARIABLE, variable.as_deref()), "claude", search.as_deref(), LAST_PATH)
    }

    fn files(&self, instructions: &str) -> io::Result<Files> {
        let folder = self.setup.workspace.join(FOLDER);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let servers = folder.join("servers.json");
        write(&servers, &command::servers(&self.setup.mcp_servers).to_string())?;
        let path = folder.join("instructions.md");
        let instructions = if instructions.trim().is_empty() {
            None
        } else {
            write(&path, instructions)?;
            Some(path)
        };
        Ok(Files { instructions, servers })
    }
}

/// Writes a file that only its owner reads: a tool server's environment may hold a secret.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}

impl Provider for Claude {
    fn start(&mut self, opening: Opening, sink: Sink) -> Result<Box<dyn Query>, TurnError> {
        let conversation = match opening.continuation.as_deref().map(Uuid::try_parse) {
            None => Conversation::New(Uuid::new_v4()),
            Some(Ok(id)) => Conversation::Resumed(id),
            Some(Err(_)) => {
                let reason = "the kept conversation is none of claude's: its id is no UUID";
                return Err(TurnError::new(ErrorClass::SessionInvalid, reason));
            }
        };
        let program = self.program()?;
        let files = self.files(&opening.instructions).map_err(|error| {
            let folder = self.setup.workspace.join(FOLDER);
            let reason = format!("cannot write claude's files in {}: {error}", folder.display());
            TurnError::new(ErrorClass::Transient, reason)
        })?;
        let launch = command::launch(program, &self.options, &self.setup, &self.around, conversation, &files);
        let servers = self.setup.mcp_servers.iter().map(|server| server.name.clone()).collect();
        let wire = Wire::new(conversation.id(), Uuid::new_v4(), servers, child::epoch_seconds);
        let patience = self.options.patience;
        child::start(&launch, Box::new(wire), &opening.first, patience, Some(wire::farewell()), sink)
    }

    fn native_commands(&self) -> bool {
        true
    }
}
