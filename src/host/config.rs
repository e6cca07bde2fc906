//! The configuration: `lamplighter.toml` < environment < flags.
//!
//! Invariant: an unknown key is an error that names the line and the nearest known key; nothing is ignored silently.
//! Invariant: names of environment variables are configuration, their values never are.

mod docker;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use docker::DockerConfig;

use crate::base::Ms;
use crate::base::ids::is_safe_name;
use crate::machine::policy::{InDoubt, Policy};

/// The file's name in the data folder.
pub const FILE: &str = "lamplighter.toml";
/// The longest duration that a policy may name.
const SPAN_MAX: Ms = Ms::days(365);
/// The journal alone writes 1 MiB ahead, and twice that while it rotates: a smaller reserve could be used up between
/// two looks.
const DISK_RESERVE_MIN: u64 = 8 << 20;
/// Smallest bound of an `out/` that is of any use: an empty database and the files of a message.
const OUT_MAX_MIN: u64 = 8 << 20;
/// A hundred years: more is a mistake.
const KEEP_DAYS_MAX: u32 = 36_500;

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What is logged, and how.
    pub log: LogConfig,
    /// The journal.
    pub journal: JournalConfig,
    /// Where agents run.
    pub runtime: RuntimeConfig,
    /// The agent that all chats talk to.
    pub agent: AgentConfig,
    /// The machine's limits and waits.
    pub policy: PolicyConfig,
    /// How files are watched.
    pub reactor: ReactorConfig,
    /// What the daemon leaves alone, and what an agent may take.
    pub limits: LimitsConfig,
}

/// What is logged, and how.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// The least important messages that are shown.
    pub level: Level,
    /// For people or for programs.
    pub format: Format,
}

/// How important a message must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Only what needs somebody.
    Error,
    /// And what may need somebody.
    Warning,
    /// And what happens.
    #[default]
    Info,
    /// And how.
    Debug,
}

/// The form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Terminal,
    /// One JSON object a line.
    Json,
}

/// The journal.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JournalConfig {
    /// How hard it tries to survive a power cut.
    pub sync: SyncMode,
    /// A new segment is begun when one has so many bytes.
    pub segment_bytes: u64,
    /// Which texts of messages are kept beside the decisions about them.
    pub bodies: BodiesKept,
    /// Older segments are dropped when those that are not written to any more have more bytes.
    pub keep_bytes: u64,
    /// They are dropped when their last record is older than so many days; 0 keeps them as long as there is room.
    pub keep_days: u32,
}

/// Which texts of messages the journal keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BodiesKept {
    /// All up to [`journal::body::TEXT_MAX`](crate::journal::body::TEXT_MAX).
    Full,
    /// None: `why` cannot be asked by text, and pictures show none.
    None,
}

/// How hard the journal tries to survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncMode {
    /// Synced beside the loop.
    Group,
    /// Synced before anything is done.
    Always,
    /// Synced only where repeating would be seen outside.
    None,
}

/// Where agents run.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeConfig {
    /// Processes or containers. Never chosen by what happens to be there.
    pub kind: RuntimeKind,
    /// What becomes of attempts that the next daemon could take over, when this one is asked to stop.
    pub at_stop: AtStop,
    /// The process runtime.
    pub process: ProcessConfig,
    /// The Docker runtime.
    pub docker: DockerConfig,
}

/// What becomes of attempts when the daemon is asked to stop. Processes are always stopped: they end with the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AtStop {
    /// They go on, and the next daemon takes them over.
    #[default]
    Leave,
    /// They are stopped within `policy.stop_grace`.
    Stop,
}

/// Where agents run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    /// Child processes of the daemon.
    #[default]
    Process,
    /// Containers of a Docker engine.
    Docker,
}

/// The process runtime.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProcessConfig {
    /// The program and its arguments, in place of the runner beside the daemon. It runs in the session's `out/`, from
    /// where a path that is not absolute is seen; a plain name is looked for in the agent's `PATH`.
    pub command: Option<Vec<String>>,
}

/// The agent.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// What it is called.
    pub name: String,
    /// Its folder below `groups/`, and its id on the wire.
    pub folder: String,
    /// The provider that the runner drives.
    pub provider: String,
    /// Passed to the provider.
    pub model: Option<String>,
    /// Passed to the provider.
    pub effort: Option<String>,
    /// Written to `CLAUDE.local.md` in its folder when that is made.
    pub instructions: Option<String>,
    /// An IANA time zone.
    pub timezone: String,
    /// Messages that may wake it in one prompt.
    pub max_messages_per_prompt: u32,
    /// Its MCP servers: name → command, args, env, instructions.
    pub mcp_servers: Option<Value>,
    /// Rules of the mock provider.
    pub mock: Option<Value>,
    /// Settings of the provider `claude`, as `lamplighter-runner` knows them.
    pub claude: Option<Value>,
    /// Settings of the provider `codex`.
    pub codex: Option<Value>,
    /// Settings of the provider `cassette`.
    pub cassette: Option<Value>,
    /// The user that it is in a container, where the daemon is root.
    pub uid: u32,
    /// Names of the daemon's environment variables that it gets.
    pub env: Vec<String>,
    /// A file of KEY=VALUE lines that it gets; as it is loaded, seen from the folder of the configuration file.
    pub env_file: Option<PathBuf>,
}

/// The machine's limits and waits; see [`Policy`].
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// Containers running at once, 1 to 256.
    pub slots: u32,
    /// A container with nothing to do for so long is stopped.
    pub idle_stop: Span,
    /// A message that was taken without any sign of life for so long is stuck, unless a tool declared a longer
    /// deadline.
    pub claim_silence: Span,
    /// A container that is silent in the middle of a turn for so long is stuck, unless a tool declared a longer
    /// deadline.
    pub silence_ceiling: Span,
    /// Time between asking a container to stop and killing it.
    pub stop_grace: Span,
    /// How often a message that ended its turn abnormally is tried again before it is parked, 0 to 20.
    pub claim_retries: u32,
    /// First wait before it is tried again; doubles each time.
    pub claim_backoff: Span,
    /// First wait before a container that failed is started again; doubles each time.
    pub start_backoff: Span,
    /// The longest wait between two starts.
    pub start_backoff_max: Span,
    /// A container that ran for so long has proved healthy, and its failures are forgotten.
    pub healthy_after: Span,
    /// First wait before a delivery is tried again; doubles each time.
    pub delivery_backoff: Span,
    /// The longest wait between two tries of a delivery.
    pub delivery_backoff_max: Span,
    /// A delivery that kept failing for so long is given up, and the agent is told.
    pub delivery_give_up: Span,
    /// How long a reply waits for somebody to receive it.
    pub no_recipient_keep: Span,
    /// What becomes of a delivery that was begun and not heard of, on a channel that cannot drop repeats.
    pub in_doubt: Doubt,
}

/// What to do with a delivery in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Doubt {
    /// Send it again.
    Resend,
    /// Record that nobody knows.
    Hold,
}

/// How files are watched.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReactorConfig {
    /// Every session is looked at once in this time, whatever events say.
    pub resync: Span,
    /// At most one heartbeat of a session is recorded in this time.
    pub heartbeat_every: Span,
}

/// What the daemon leaves alone, and what an agent may take.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// While the data folder's file system has fewer free bytes, no message is accepted; 0 turns this off.
    pub disk_reserve: u64,
    /// A running agent whose `out/` takes more bytes is stopped; 0 turns this off.
    pub out_max: u64,
}

/// A duration as it is written: `"250ms"`, `"5s"`, `"10m"`, `"24h"`, `"30d"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Ms);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Text(String),
            Number(i64),
        }
        match Raw::deserialize(deserializer) {
            Ok(Raw::Text(text)) => text.parse().map_err(D::Error::custom),
            Ok(Raw::Number(n)) => {
                Err(D::Error::custom(format!("a duration needs a unit: \"{n}s\" or \"{n}ms\"")))
            }
            Err(_) => Err(D::Error::custom(
                "a duration is a text such as \"250ms\", \"5s\", \"10m\", \"24h\" or \"30d\"",
            )),
        }
    }
}

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("{text:?} is not a duration; write \"250ms\", \"5s\", \"10m\", \"24h\" or \"30d\"");
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, unit) = text.split_at(split);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let factor = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        let span = Ms(number.saturating_mul(factor));
        if span == Ms(0) || span > SPAN_MAX {
            return Err(format!("{text:?} is out of bounds: more than 0 and at most 365d"));
        }
        Ok(Self(span))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.0;
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
        match units.into_iter().find(|&(factor, _)| ms.is_multiple_of(factor)) {
            Some((factor, unit)) => write!(f, "{}{unit}", ms / factor),
            None => write!(f, "{ms}ms"),
        }
    }
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            sync: SyncMode::Group,
            segment_bytes: 64 << 20,
            bodies: BodiesKept::Full,
            keep_bytes: 1 << 30,
            keep_days: 30,
        }
    }
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            name: "agent".into(),
            folder: "agent".into(),
            provider: "mock".into(),
            model: None,
            effort: None,
            instructions: None,
            timezone: "UTC".into(),
            max_messages_per_prompt: 10,
            mcp_servers: None,
            mock: None,
            claude: None,
            codex: None,
            cassette: None,
            uid: 10_001,
            env: Vec::new(),
            env_file: None,
        }
    }
}

impl Default for PolicyConfig {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            slots: policy.slots,
            idle_stop: Span(policy.idle_stop),
            claim_silence: Span(policy.claim_silence),
            silence_ceiling: Span(policy.silence_ceiling),
            stop_grace: Span(policy.stop_grace),
            claim_retries: policy.claim_retries,
            claim_backoff: Span(policy.claim_backoff),
            start_backoff: Span(policy.start_backoff),
            start_backoff_max: Span(policy.start_backoff_max),
            healthy_after: Span(policy.healthy_after),
            delivery_backoff: Span(policy.delivery_backoff),
            delivery_backoff_max: Span(policy.delivery_backoff_max),
            delivery_give_up: Span(policy.delivery_give_up),
            no_recipient_keep: Span(policy.no_recipient_keep),
            in_doubt: match policy.in_doubt {
                InDoubt::Resend => Doubt::Resend,
                InDoubt::Hold => Doubt::Hold,
            },
        }
    }
}

impl Default for ReactorConfig {
    fn default() -> Self {
        Self { resync: Span(Ms::secs(60)), heartbeat_every: Span(Ms::secs(5)) }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self { disk_reserve: 64 << 20, out_max: 1 << 30 }
    }
}

impl LimitsConfig {
    /// What lets an agent take more than the default does, in words, each with its key.
    pub fn relaxed(&self) -> Vec<String> {
        // Every key by name, so that a new one is decided about here. The reserve is what the daemon leaves alone.
        let Self { disk_reserve: _, out_max } = self;
        let usual = Self::default().out_max;
        match *out_max {
            0 => vec!["out/ has no limit (limits.out_max)".into()],
            more if more > usual => {
                vec![format!("{} MiB in out/ instead of {} (limits.out_max)", more >> 20, usual >> 20)]
            }
            _ => Vec::new(),
        }
    }
}

impl PolicyConfig {
    /// As the machine takes it.
    pub fn policy(&self) -> Policy {
        Policy {
            slots: self.slots,
            idle_stop: self.idle_stop.0,
            claim_silence: self.claim_silence.0,
            silence_ceiling: self.silence_ceiling.0,
            stop_grace: self.stop_grace.0,
            claim_retries: self.claim_retries,
            claim_backoff: self.claim_backoff.0,
            start_backoff: self.start_backoff.0,
            start_backoff_max: self.start_backoff_max.0,
            healthy_after: self.healthy_after.0,
            delivery_backoff: self.delivery_backoff.0,
            delivery_backoff_max: self.delivery_backoff_max.0,
            delivery_give_up: self.delivery_give_up.0,
            no_recipient_keep: self.no_recipient_keep.0,
            in_doubt: match self.in_doubt {
                Doubt::Resend => InDoubt::Resend,
                Doubt::Hold => InDoubt::Hold,
            },
        }
    }
}

/// A policy with some of its keys set as in the file: `slots`, `1`; `claim_backoff`, `50ms`.
///
/// # Errors
/// When there is no such key, or the value is none for it.
pub fn changed_policy(policy: &Policy, sets: &[(String, String)]) -> Result<Policy, String> {
    let ms = |span: Ms| toml::Value::String(format!("{}ms", span.0));
    let count = |n: u32| toml::Value::Integer(n.into());
    let doubt = match policy.in_doubt {
        InDoubt::Resend => "resend",
        InDoubt::Hold => "hold",
    };
    let mut table = toml::Table::from_iter([
        ("slots".to_owned(), count(policy.slots)),
        ("idle_stop".to_owned(), ms(policy.idle_stop)),
        ("claim_silence".to_owned(), ms(policy.claim_silence)),
        ("silence_ceiling".to_owned(), ms(policy.silence_ceiling)),
        ("stop_grace".to_owned(), ms(policy.stop_grace)),
        ("claim_retries".to_owned(), count(policy.claim_retries)),
        ("claim_backoff".to_owned(), ms(policy.claim_backoff)),
        ("start_backoff".to_owned(), ms(policy.start_backoff)),
        ("start_backoff_max".to_owned(), ms(policy.start_backoff_max)),
        ("healthy_after".to_owned(), ms(policy.healthy_after)),
        ("delivery_backoff".to_owned(), ms(policy.delivery_backoff)),
        ("delivery_backoff_max".to_owned(), ms(policy.delivery_backoff_max)),
        ("delivery_give_up".to_owned(), ms(policy.delivery_give_up)),
        ("no_recipient_keep".to_owned(), ms(policy.no_recipient_keep)),
        ("in_doubt".to_owned(), doubt.into()),
    ]);
    for (key, value) in sets {
        let value = match value.parse::<i64>() {
            Ok(number) => toml::Value::Integer(number),
            Err(_) => toml::Value::String(value.clone()),
        };
        table.insert(key.clone(), value);
    }
    let config: PolicyConfig =
        table.try_into().map_err(|error: toml::de::Error| error.message().trim().to_owned())?;
    Ok(config.policy())
}

/// What flags say; it wins.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--runtime`
    pub runtime: Option<RuntimeKind>,
    /// `--log-level`
    pub level: Option<Level>,
    /// `--log-format`
    pub format: Option<Format>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something in the file is not as it should be.
    #[error("{path}:{line}:{column}: {what}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// What is wrong.
        what: String,
        /// The nearest known key, for an unknown one.
        nearest: Option<String>,
    },
    /// A value, wherever it comes from, is out of bounds.
    #[error("{}{key} is {found}, which is not allowed: {allowed}", prefix(place.as_ref()))]
    Value {
        /// The file and the line in it, from 1; none where the value comes from the environment.
        place: Option<(PathBuf, usize)>,
        /// The key.
        key: &'static str,
        /// What was found.
        found: String,
        /// What is allowed.
        allowed: &'static str,
    },
}

fn prefix(place: Option<&(PathBuf, usize)>) -> String {
    place.map(|(path, line)| format!("{}:{line}: ", path.display())).unwrap_or_default()
}

/// The line in which a file has a dotted key, from 1.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let table = toml::de::DeTable::parse(text).ok()?;
    let mut table = Some(table.into_inner());
    let mut start = None;
    for word in key.split('.') {
        let (name, value) = table.take()?.into_iter().find(|(name, _)| name.get_ref() == word)?;
        start = Some(name.span().start);
        if let toml::de::DeValue::Table(inner) = value.into_inner() {
            table = Some(inner);
        }
    }
    Some(text.get(..start?)?.matches('\n').count() + 1)
}

impl ConfigError {
    /// With the place of the value, where it stands in the file.
    fn in_file(self, file: &Path, text: &str) -> Self {
        match self {
            Self::Value { key, found, allowed, .. } => {
                let place = line_of(text, key).map(|line| (file.to_owned(), line));
                Self::Value { place, key, found, allowed }
            }
            other => other,
        }
    }

    /// What may be done about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Io { .. } => "name a file that can be read with --config, or leave the flag out".into(),
            Self::Invalid { nearest: Some(key), .. } => format!("did you mean {key:?}?"),
            Self::Invalid { .. } | Self::Value { .. } => {
                "`lamplighter init` writes a file with every key".into()
            }
        }
    }
}

/// The environment variables that are read, with the key that each sets.
pub const ENVIRONMENT: [(&str, &str); 3] = [
    ("LAMPLIGHTER_RUNTIME", "runtime.kind"),
    ("LAMPLIGHTER_LOG_LEVEL", "log.level"),
    ("LAMPLIGHTER_LOG_FORMAT", "log.format"),
];

impl Config {
    /// Reads the configuration: the named file, or [`FILE`] in the data folder if it is there; then the environment;
    /// then what flags say.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(
        named: Option<&Path>,
        data: &Path,
        env: &dyn Fn(&str) -> Option<String>,
        flags: &Overrides,
    ) -> Result<Self, ConfigError> {
        let path = named.map_or_else(|| data.join(FILE), Path::to_owned);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => String::new(),
            Err(source) => return Err(ConfigError::Io { path, source }),
        };
        let mut config = Self::parse(&text, &path)?;
        // Before anything else has its say: a file's own mistakes have a place in it.
        config.check().map_err(|error| error.in_file(&path, &text))?;
        if let Some(file) = &mut config.agent.env_file {
            *file = path.parent().unwrap_or(Path::new(".")).join(&*file);
        }
        for (name, _) in ENVIRONMENT {
            if let Some(value) = env(name) {
                config.set_from_environment(name, &value)?;
            }
        }
        config.runtime.kind = flags.runtime.unwrap_or(config.runtime.kind);
        config.log.level = flags.level.unwrap_or(config.log.level);
        config.log.format = flags.format.unwrap_or(config.log.format);
        config.check()?;
        Ok(config)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start).min(text.len());
            let before = text.get(..at).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().map_or(0, |rest| rest.chars().count()) + 1;
            let what = error.message().trim().to_owned();
            ConfigError::Invalid { path: path.to_owned(), line, column, nearest: nearest(&what), what }
        })
    }

    fn set_from_environment(&mut self, name: &'static str, value: &str) -> Result<(), ConfigError> {
        fn word<T: for<'de> Deserialize<'de>>(
            name: &'static str,
            value: &str,
            allowed: &'static str,
        ) -> Result<T, ConfigError> {
            let found = format!("{value:?}");
            serde_json::from_value(Value::from(value.to_lowercase())).map_err(|_| ConfigError::Value {
                place: None,
                key: name,
                found,
                allowed,
            })
        }
        match name {
            "LAMPLIGHTER_RUNTIME" => self.runtime.kind = word(name, value, "process or docker")?,
            "LAMPLIGHTER_LOG_LEVEL" => self.log.level = word(name, value, "error, warning, info or debug")?,
            "LAMPLIGHTER_LOG_FORMAT" => self.log.format = word(name, value, "terminal or json")?,
            _ => {}
        }
        Ok(())
    }

    fn check(&self) -> Result<(), ConfigError> {
        let fail = |key, found: String, allowed| Err(ConfigError::Value { place: None, key, found, allowed });
        let agent = &self.agent;
        if !is_safe_name(&agent.folder) || agent.folder.starts_with('.') || agent.folder.contains(':') {
            return fail(
                "agent.folder",
                format!("{:?}", agent.folder),
                "one plain folder name without colons",
            );
        }
        if jiff::tz::TimeZone::get(&agent.timezone).is_err() {
            return fail(
                "agent.timezone",
                format!("{:?}", agent.timezone),
                "an IANA name such as \"Europe/Zurich\"",
            );
        }
        if !(1..=1_000).contains(&agent.max_messages_per_prompt) {
            let found = agent.max_messages_per_prompt.to_string();
            return fail("agent.max_messages_per_prompt", found, "1 to 1000");
        }
        if !(1..=256).contains(&self.policy.slots) {
            return fail("policy.slots", self.policy.slots.to_string(), "1 to 256");
        }
        if self.policy.claim_retries > 20 {
            return fail("policy.claim_retries", self.policy.claim_retries.to_string(), "0 to 20");
        }
        if !((64 << 10)..=(4 << 30)).contains(&self.journal.segment_bytes) {
            return fail("journal.segment_bytes", self.journal.segment_bytes.to_string(), "64 KiB to 4 GiB");
        }
        if !((64 << 10)..=(1 << 50)).contains(&self.journal.keep_bytes) {
            return fail("journal.keep_bytes", self.journal.keep_bytes.to_string(), "64 KiB to 1 PiB");
        }
        if self.journal.keep_days > KEEP_DAYS_MAX {
            let found = self.journal.keep_days.to_string();
            return fail("journal.keep_days", found, "0 (as long as there is room) to 36500");
        }
        let reserve = self.limits.disk_reserve;
        if reserve > 0 && reserve < DISK_RESERVE_MIN {
            return fail("limits.disk_reserve", reserve.to_string(), "0 (off), or 8 MiB and more");
        }
        if self.limits.out_max > 0 && self.limits.out_max < OUT_MAX_MIN {
            return fail("limits.out_max", self.limits.out_max.to_string(), "0 (off), or 8 MiB and more");
        }
        if self.runtime.process.command.as_ref().is_some_and(Vec::is_empty) {
            return fail("runtime.process.command", "empty".into(), "a program and its arguments");
        }
        self.runtime.docker.check()?;
        if agent.uid == 0 || agent.uid == u32::MAX {
            return fail("agent.uid", agent.uid.to_string(), "a user's number, and not root's");
        }
        for name in &agent.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                return fail(
                    "agent.env",
                    format!("{name:?}"),
                    "names of environment variables, without values",
                );
            }
        }
        Ok(())
    }
}

/// The known key that is nearest to the unknown one which the parser complains about.
fn nearest(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field `")?;
    let (unknown, expected) = rest.split_once('`')?;
    expected
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|known| (strsim::osa_distance(unknown, known), known))
        // A word of which more than half would have to be other letters was not meant.
        .filter(|&(distance, known)| distance <= 3.max(known.len() / 3).min(unknown.len() / 2))
        .min()
        .map(|(_, known)| known.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), text).unwrap();
        Config::load(None, folder.path(), &|_| None, &Overrides::default())
    }

    #[test]
    fn a_policy_is_changed_key_by_key_and_a_wrong_key_or_value_is_named() {
        let set = |key: &str, value: &str| changed_policy(&Policy::default(), &[(key.into(), value.into())]);
        assert_eq!(changed_policy(&Policy::default(), &[]), Ok(Policy::default()));
        assert_eq!(set("slots", "1"), Ok(Policy { slots: 1, ..Policy::default() }));
        assert_eq!(set("claim_backoff", "50ms").unwrap().claim_backoff, Ms(50));
        assert_eq!(set("in_doubt", "resend").unwrap().in_doubt, InDoubt::Resend);
        assert!(set("slotz", "1").unwrap_err().contains("slotz"));
        assert!(set("claim_backoff", "50").unwrap_err().contains("needs a unit"));
        assert!(set("slots", "many").is_err());
    }

    #[test]
    fn no_file_is_the_defaults_but_a_named_one_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let load =
            |named: Option<&Path>| Config::load(named, folder.path(), &|_| None, &Overrides::default());
        assert_eq!(load(None).unwrap(), Config::default());
        assert_eq!(Config::default().policy.policy(), Policy::default());
        let error = load(Some(Path::new("/nowhere.toml"))).unwrap_err();
        assert!(error.to_string().contains("/nowhere.toml"), "{error}");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place_and_the_nearest_one() {
        let error = parse("[policy]\nslots = 4\nidle_stopp = \"5s\"\n").unwrap_err();
        assert!(error.to_string().contains(":3:1: unknown field `idle_stopp`"), "{error}");
        assert_eq!(error.hint(), "did you mean \"idle_stop\"?");
        assert!(parse("[polcy]\n").unwrap_err().hint().contains("policy"));
        for far in ["[xyz]", "[a]", "[agent]\nzz = 1"] {
            let hint = parse(far).unwrap_err().hint();
            assert!(!hint.contains("did you mean"), "{far}: {hint}");
        }
    }

    #[test]
    fn a_wrong_value_is_named_with_its_place_and_what_is_allowed() {
        let error = parse("[policy]\nidle_stop = 600\n").unwrap_err();
        assert!(error.to_string().contains(":2:13: a duration needs a unit: \"600s\""), "{error}");
        for (text, part) in [
            ("[policy]\nidle_stop = \"5 weeks\"", "not a duration"),
            ("[policy]\nidle_stop = \"0s\"", "out of bounds"),
            ("[policy]\nslots = 0", "1 to 256"),
            ("[policy]\nin_doubt = \"maybe\"", "resend"),
            ("[agent]\nfolder = \"../x\"", "agent.folder"),
            ("[limits]\ndisk_reserve = 1", "0 (off), or 8 MiB and more"),
            ("[limits]\nout_max = 1", "0 (off), or 8 MiB and more"),
            ("[journal]\nkeep_bytes = 1000", "64 KiB to 1 PiB"),
            ("[journal]\nkeep_days = 40000", "0 (as long as there is room)"),
            ("[agent]\nenv = [\"KEY=value\"]", "without values"),
            ("[runtime]\nkind = \"podman\"", "docker"),
            ("[runtime.docker]\nnetwork = \"host\"", "the name of a network"),
            ("[runtime.docker]\ncompat = \"nanoclaw\"", "the image whose runner compat speaks of"),
            ("[runtime.docker]\nnanoclaw = \"/\"", "the absolute path of a checkout"),
            ("[runtime.docker]\nmemory_mib = 4", "0 (no limit), or 32"),
            ("[runtime.docker]\nadd_capabilities = [\"ALL\"]", "not all of them"),
            ("[agent]\nuid = 0", "not root's"),
            ("log = 3", ":1:"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_value_out_of_bounds_is_named_with_its_line_and_not_where_it_comes_from_the_environment() {
        for (text, place) in [
            ("# c\n[policy]\nidle_stop = \"5s\"\nslots = 0\n", ":4: policy.slots is 0"),
            ("policy.slots = 0\n", ":1: policy.slots is 0"),
            ("[runtime]\nkind = \"docker\"\n[runtime.docker]\npids = 3\n", ":4: runtime.docker.pids is 3"),
            // What is missing has no line.
            ("[runtime.docker]\ncompat = \"nanoclaw\"\n", "runtime.docker.image is nothing"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(place), "{text}: {error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let env = |name: &str| (name == "LAMPLIGHTER_LOG_LEVEL").then(|| "loud".to_owned());
        let error = Config::load(None, folder.path(), &env, &Overrides::default()).unwrap_err().to_string();
        assert!(error.starts_with("LAMPLIGHTER_LOG_LEVEL is \"loud\""), "{error}");
    }

    #[test]
    fn an_env_file_is_seen_from_the_folder_of_the_configuration() {
        let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let named = other.path().join("my.toml");
        for (text, expected) in [("agent.env", other.path().join("agent.env")), ("/x/env", "/x/env".into())] {
            std::fs::write(&named, format!("[agent]\nenv_file = {text:?}\n")).unwrap();
            let config = Config::load(Some(&named), data.path(), &|_| None, &Overrides::default()).unwrap();
            assert_eq!(config.agent.env_file, Some(expected));
        }
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "[log]\nlevel = \"error\"\nformat = \"json\"\n").unwrap();
        let env = |name: &str| (name == "LAMPLIGHTER_LOG_LEVEL").then(|| "debug".to_owned());
        let config = Config::load(None, folder.path(), &env, &Overrides::default()).unwrap();
        assert_eq!((config.log.level, config.log.format), (Level::Debug, Format::Json));
        let flags = Overrides { level: Some(Level::Warning), ..Overrides::default() };
        assert_eq!(Config::load(None, folder.path(), &env, &flags).unwrap().log.level, Level::Warning);
        let env = |_: &str| Some("nonsense".to_owned());
        assert!(Config::load(None, folder.path(), &env, &flags).is_err());
    }

    #[test]
    fn durations_are_written_as_they_are_read() {
        for text in ["250ms", "5s", "10m", "24h", "30d"] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.to_string().parse::<Span>().unwrap(), span);
        }
        assert_eq!("24h".parse::<Span>().unwrap().to_string(), "1d");
    }
}
