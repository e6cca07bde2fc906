//! The provider `codex`: `codex app-server`, one process per query, spoken to in lines of JSON.
//!
//! Its settings, the key `codex` of container.json: `command` (the executable), `config` (lines as in config.toml),
//! `extra_args`, `env`, `turn_timeout_s`, `tool_timeout_s`. [`wire`] knows the language, [`command`] the
//! start; the process itself is `child`'s.
//!
//! Invariant: its input is closed only when nothing is open: codex ends at once then, in mid-turn too.

pub mod command;
pub mod wire;

use std::path::PathBuf;

use uuid::Uuid;

use super::{ErrorClass, Opening, Provider, ProviderError, Query, Setup, TurnError, child};
use crate::mailbox::Sink;
use command::Options;
use wire::{Thread, Wire};

/// The environment's path of the executable.
const VARIABLE: &str = "LAMPLIGHTER_CODEX";
/// Where an image beside NanoClaw's has the executable.
const LAST_PATH: &str = "/pnpm/codex";

/// The Codex CLI.
#[derive(Debug)]
pub struct Codex {
    options: Options,
    setup: Setup,
}

impl Codex {
    /// Reads its settings.
    ///
    /// # Errors
    /// [`ProviderError::Settings`].
    pub fn new(setup: Setup) -> Result<Self, ProviderError> {
        Ok(Self { options: Options::read(setup.settings.clone())?, setup })
    }

    fn program(&self) -> Result<PathBuf, TurnError> {
        let variable = std::env::var(VARIABLE).ok();
        let search = std::env::var("PATH").ok();
        let command = self.options.command.as_deref();
        child::find_program(command, (VARIABLE, variable.as_deref()), "codex", search.as_deref(), LAST_PATH)
    }
}

impl Provider for Codex {
    fn start(&mut self, opening: Opening, sink: Sink) -> Result<Box<dyn Query>, TurnError> {
        let id = opening.continuation.as_deref().map(Uuid::try_parse).transpose().map_err(|_| {
            // A name that is no UUID would silently begin another thread.
            let reason = "the kept conversation is none of codex's: its id is no UUID";
            TurnError::new(ErrorClass::SessionInvalid, reason)
        })?;
        let launch = command::launch(self.program()?, &self.options, &self.setup);
        let thread = Thread {
            id,
            folder: self.setup.agent.to_string_lossy().into_owned(),
            instructions: opening.instructions,
            model: self.setup.model.clone(),
            effort: self.setup.effort.clone(),
            servers: self.setup.mcp_servers.clone(),
        };
        let patience = self.options.patience;
        let wire = Wire::new(thread, Uuid::new_v4(), patience.turn, child::epoch_seconds);
        child::start(&launch, Box::new(wire), &opening.first, patience, None, sink)
    }
}
