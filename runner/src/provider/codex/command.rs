//! How codex is started: its arguments, its environment. Pure.

use std::path::PathBuf;

use serde_json::Value;

use crate::provider::child::{Launch, Patience, Settings};
use crate::provider::{ProviderError, Setup};

/// The name of its settings in container.json.
pub const NAME: &str = "codex";
/// Keeps it from the network but for the model service, and from asking a person.
const CONFIG: [&str; 3] =
    ["check_for_update_on_startup=false", "features.plugins=false", "analytics.enabled=false"];

/// What container.json says under `codex`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The executable: a path, or a name on PATH.
    pub command: Option<String>,
    /// `turn_timeout_s` and `tool_timeout_s`. The first is also how long the service may be missed: codex itself never
    /// gives up on one that refuses connections.
    pub patience: Patience,
    config: Vec<String>,
    extra_args: Vec<String>,
    env: Vec<(String, String)>,
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
            config: settings.texts("config")?,
            extra_args: settings.texts("extra_args")?,
            env: settings.named_texts("env")?.into_iter().collect(),
        };
        settings.done()?;
        Ok(options)
    }
}

/// The whole start. `config` of the settings are lines as in codex's config.toml, and win over ours.
pub fn launch(program: PathBuf, options: &Options, setup: &Setup) -> Launch {
    let mut args = vec!["app-server".to_owned()];
    let given = options.config.iter().map(String::as_str);
    for line in CONFIG.into_iter().chain(given) {
        args.extend(["-c".to_owned(), line.to_owned()]);
    }
    args.extend(options.extra_args.iter().cloned());
    let env = options.env.iter().map(|(name, value)| (name.clone(), Some(value.clone())));
    Launch { program, args, env: env.collect(), folder: setup.agent.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_whole_start_is_as_written_here() -> Result<(), ProviderError> {
        let settings = json!({"config": ["model_provider=\"x\""], "extra_args": ["--y"], "env": {"A": "b"}});
        let options = Options::read(settings)?;
        let setup = Setup { agent: "/agent".into(), ..Setup::default() };
        let launch = launch("/bin/codex".into(), &options, &setup);
        let expected = "app-server -c check_for_update_on_startup=false -c features.plugins=false \
                        -c analytics.enabled=false -c model_provider=\"x\" --y";
        assert_eq!(launch.args.join(" "), expected);
        assert_eq!(launch.env, [("A".to_owned(), Some("b".to_owned()))]);
        assert_eq!(options.patience, Patience::default());
        Ok(())
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let found = Options::read(json!({"max_retries": 1})).map_err(|error| error.to_string());
        assert_eq!(
            found,
            Err("container.json: codex.max_retries: this runner knows no such setting".to_owned())
        );
    }
}
