//! The commands and their flags.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::host::config::{AtStop, Format, Level, RuntimeKind, Span};
use crate::host::stuck::default_data;

/// The build's name: the version, and which build of it (`build.rs`).
pub fn build() -> &'static str {
    env!("LAMPLIGHTER_BUILD_NAME")
}

/// Hosts AI agents: wakes one when a message is due, carries messages both ways, and records every decision.
#[derive(Parser, Debug)]
#[command(name = "lamplighter", version = build(), propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Examples:\n  lamplighter demo\n  lamplighter run --data ./data --runtime process\n  \
                        lamplighter chat --data ./data \"hello\"\n  lamplighter replay ./data/journal\n\n\
                  Environment:\n  LAMPLIGHTER_DATA  the data folder, where --data does not name it\n  \
                        LAMPLIGHTER_RUNNER  the runner, in place of the one beside this program (run, doctor)\n  \
                        LAMPLIGHTER_RUNTIME, LAMPLIGHTER_LOG_LEVEL, LAMPLIGHTER_LOG_FORMAT  as the flags of run\n  \
                        NO_COLOR  no colours and no dim lines"
)]
pub struct Cli {
    /// The data folder [default: ~/.local/share/lamplighter].
    #[arg(long, global = true, value_name = "DIR", env = "LAMPLIGHTER_DATA", hide_env_values = true)]
    pub data: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The data folder: the flag, the environment, or the user's own place.
    pub fn data(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(default_data)
    }
}

/// What can be done.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Runs the daemon until it is asked to stop (SIGTERM, SIGINT, or SIGHUP when its terminal is closed).
    Run(RunArgs),
    /// Shows the whole way of a message on a data folder of its own, then replays the journal.
    Demo(DemoArgs),
    /// Talks to the agent through a running daemon.
    Chat(crate::cli::chat::ChatArgs),
    /// Asks the running daemon to stop, and waits until it has.
    Stop(StopArgs),
    /// Shows sessions, containers, queues and what is stuck, with the command that frees it.
    Status(JsonFlag),
    /// Writes a configuration file with every key, its default and why.
    Init,
    /// Says what a daemon would find here, and what to do about it. Exit code 1 when something stands in its way.
    Doctor(JsonFlag),
    /// Makes, lists and removes the images that daemons make of their runners.
    #[command(subcommand)]
    Image(crate::cli::image::ImageCommand),
    /// Runs the daemon as a service of systemd.
    Service(crate::cli::service::ServiceArgs),
    /// Lists and steers sessions.
    #[command(subcommand)]
    Session(SessionCommand),
    /// Looks at and steers single messages.
    #[command(subcommand)]
    Message(MessageCommand),
    /// Looks at the journal.
    #[command(subcommand)]
    Journal(JournalCommand),
    /// Folds a journal through the machine and compares every decision. Exit code 1 on a divergence.
    Replay(ReplayArgs),
    /// Tells what happened to a message, by which rule, and what it waits for.
    ///
    /// Reads the journal; needs no daemon.
    Why(WhyArgs),
    /// Shows the state that the machine was in at a record.
    State(StateArgs),
    /// Compares what this build decides with what is on record, before it is trusted with the data folder.
    ///
    /// Reads the installation's own journal and changes nothing. Exit code 1 when something would be decided
    /// differently.
    UpgradeCheck(UpgradeArgs),
    /// Cuts fixtures out of a journal, and writes them anew after an intended change.
    #[command(subcommand)]
    Fixture(FixtureCommand),
    /// Steps through a journal on the whole screen, forwards and backwards; `?` there shows the keys.
    ///
    /// Needs no daemon and changes nothing. A journal that a daemon writes is shown as it was when it was opened.
    Step(StepArgs),
    /// Replays the rest of a journal under a change, and shows both timelines from the first difference on.
    Fork(ForkArgs),
    /// Writes a journal in a form for other tools, or as a page that shows its timeline.
    Export(ExportArgs),
    /// Prints a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Writes the manual pages, one for each command.
    #[command(hide = true)]
    Man {
        /// The folder to write them into; it is made when it is missing.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Becomes a program that ends with the daemon.
    #[command(hide = true)]
    ExecChild {
        /// The process id of the daemon.
        parent: u32,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

/// `run`
#[derive(Args, Debug)]
#[command(after_help = "Environment:\n  \
                  LAMPLIGHTER_RUNNER  the runner, in place of lamplighter-runner beside this program\n  \
                  LAMPLIGHTER_MOCK_REPLY  what the provider `mock` answers, with the runtime `process`\n  \
                  LAMPLIGHTER_RUNTIME, LAMPLIGHTER_LOG_LEVEL, LAMPLIGHTER_LOG_FORMAT  as --runtime, --log-level and \
                  --log-format, which win")]
pub struct RunArgs {
    /// The configuration file; without it, lamplighter.toml in the data folder if it is there.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where agents run. Never chosen by what happens to be there.
    #[arg(long, value_enum)]
    pub runtime: Option<RuntimeArg>,
    /// The least important messages that are logged.
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub log_level: Option<LevelArg>,
    /// For people, or one JSON object a line.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub log_format: Option<FormatArg>,
}

/// `stop`
#[derive(Args, Debug)]
pub struct StopArgs {
    /// What becomes of containers; else what runtime.at_stop says. Child processes are always stopped.
    #[arg(long, value_enum, value_name = "WHAT")]
    pub containers: Option<AtStopArg>,
}

/// What becomes of containers.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AtStopArg {
    /// They go on, and the next daemon takes them over.
    Leave,
    /// They are stopped within policy.stop_grace.
    Stop,
}

impl From<AtStopArg> for AtStop {
    fn from(arg: AtStopArg) -> Self {
        match arg {
            AtStopArg::Leave => Self::Leave,
            AtStopArg::Stop => Self::Stop,
        }
    }
}

/// `demo`
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Keeps the data folder of the demo and says where it is.
    #[arg(long)]
    pub keep: bool,
}

/// Where agents run.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum RuntimeArg {
    /// Child processes of the daemon.
    Process,
    /// Containers of a Docker engine.
    Docker,
}

impl From<RuntimeArg> for RuntimeKind {
    fn from(arg: RuntimeArg) -> Self {
        match arg {
            RuntimeArg::Process => Self::Process,
            RuntimeArg::Docker => Self::Docker,
        }
    }
}

/// How important a message must be.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LevelArg {
    /// Only what needs somebody.
    Error,
    /// And what may need somebody.
    Warning,
    /// And what happens.
    Info,
    /// And how.
    Debug,
}

impl From<LevelArg> for Level {
    fn from(arg: LevelArg) -> Self {
        match arg {
            LevelArg::Error => Self::Error,
            LevelArg::Warning => Self::Warning,
            LevelArg::Info => Self::Info,
            LevelArg::Debug => Self::Debug,
        }
    }
}

/// The form of the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum FormatArg {
    /// For people.
    Terminal,
    /// One JSON object a line.
    Json,
}

impl From<FormatArg> for Format {
    fn from(arg: FormatArg) -> Self {
        match arg {
            FormatArg::Terminal => Self::Terminal,
            FormatArg::Json => Self::Json,
        }
    }
}

/// `--json`
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct JsonFlag {
    /// Prints JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// `session`
#[derive(Subcommand, Debug)]
pub enum SessionCommand {
    /// Lists all sessions.
    Ls(JsonFlag),
    /// Shows one session with its open messages.
    Show {
        /// group/session, the session's name, or its number as status shows it.
        session: String,
        /// See above.
        #[command(flatten)]
        json: JsonFlag,
    },
    /// Stops a session's container and holds it stopped; messages are still accepted.
    Stop {
        /// group/session, the session's name, or its number.
        session: String,
    },
    /// Lifts a session's hold, back-off and quarantine.
    Start {
        /// group/session, the session's name, or its number.
        session: String,
    },
    /// Moves a stopped session's outbound.db aside and begins with a fresh one.
    Reset {
        /// group/session, the session's name, or its number.
        session: String,
    },
}

/// `message`
#[derive(Subcommand, Debug)]
pub enum MessageCommand {
    /// Shows the way of a message from its arrival on, with the time between steps.
    ///
    /// Reads the journal; needs no daemon.
    Show(WhyArgs),
    /// Tries an inbound message again, from no tries.
    Retry {
        /// Its id.
        message: String,
    },
    /// Gives an open message up, in either direction.
    Drop {
        /// Its id, or its number (m5) as status and `session show` have it.
        message: String,
    },
    /// Delivers an outbound message again, whatever became of the last delivery.
    Resend {
        /// Its id, or while it is open its number (m5) as status and `session show` have it.
        message: String,
    },
}

/// `why`
#[derive(Args, Debug)]
pub struct WhyArgs {
    /// Its id, as the chat client or status shows it, or a piece of its text or of a reply's; with --session, its
    /// number there.
    pub message: String,
    /// The session in which MESSAGE is a number: its name, group/name, or number.
    #[arg(long, value_name = "SESSION")]
    pub session: Option<String>,
    /// A journal folder or a segment (*.ltj) to read instead of the data folder's own.
    #[arg(long, value_name = "PATH")]
    pub journal: Option<PathBuf>,
}

/// `state`
#[derive(Args, Debug)]
pub struct StateArgs {
    /// A segment (*.ltj) or a journal folder.
    pub path: PathBuf,
    /// The record (boot.n) before which the state is shown; without it, the state at the end.
    #[arg(long, value_name = "RECORD")]
    pub at: Option<String>,
    /// Shows only this session and what belongs to it: its name, group/name, or its number.
    #[arg(long, value_name = "SESSION")]
    pub session: Option<String>,
}

/// `fork`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  lamplighter fork ./data/journal --at 1.40 --set policy.slots=1\n  \
                  lamplighter fork ./data/journal --at 1.40 --drop 1.42\n  \
                  lamplighter fork ./data/journal --at 1.40 --edit 1.42 exit.Code=0")]
pub struct ForkArgs {
    /// A segment (*.ltj) or a journal folder.
    pub path: PathBuf,
    /// The record (boot.n) before which the fork begins.
    #[arg(long, value_name = "RECORD")]
    pub at: String,
    /// Sets a key of the policy from there on, as in the configuration.
    #[arg(long, value_name = "policy.KEY=VALUE")]
    pub set: Vec<String>,
    /// The input of this record does not happen.
    #[arg(long, value_name = "RECORD")]
    pub drop: Vec<String>,
    /// Sets a field of this record's input; `export --format jsonl` shows the names of fields.
    #[arg(long, num_args = 2, value_names = ["RECORD", "FIELD=VALUE"])]
    pub edit: Vec<String>,
    /// Rows that are shown.
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub rows: usize,
}

/// `upgrade-check`
#[derive(Args, Debug)]
pub struct UpgradeArgs {
    /// How far back: 7d, 36h, 90m; without it, everything that is there.
    #[arg(long, value_name = "TIME")]
    pub since: Option<Span>,
    /// A journal folder or a segment (*.ltj) to read instead of the data folder's own.
    #[arg(long, value_name = "PATH")]
    pub journal: Option<PathBuf>,
    /// Differences that are shown one by one.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub show: usize,
    /// Prints JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

/// `fixture`
#[derive(Subcommand, Debug)]
pub enum FixtureCommand {
    /// Cuts a fixture out of a journal, into a new folder.
    ///
    /// The folder gets segments that replay to the same decisions. Without --redact it also gets the databases of the
    /// session, or of all, when they are read from the data folder's own journal.
    Record(RecordArgs),
    /// Writes fixtures anew with what this build decides, after showing what is different.
    Accept(AcceptArgs),
}

/// `fixture record`
#[derive(Args, Debug)]
pub struct RecordArgs {
    /// A folder that is not there yet, or is empty.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Keeps names and texts of this session alone: its name, group/name, or its number. Records of others stay, with
    /// their names replaced, because sessions share slots and channels.
    #[arg(long, value_name = "SESSION", conflicts_with = "all", required_unless_present = "all")]
    pub session: Option<String>,
    /// Keeps all sessions.
    #[arg(long)]
    pub all: bool,
    /// The first record (boot.n); the journal's first without it.
    #[arg(long, value_name = "RECORD")]
    pub from: Option<String>,
    /// The last record (boot.n); the journal's last without it.
    #[arg(long, value_name = "RECORD")]
    pub to: Option<String>,
    /// Replaces every name, id and text, the same always by the same, and moves times by whole days: it can be given to
    /// a stranger, who replays it to the same decisions.
    #[arg(long)]
    pub redact: bool,
    /// Leaves out the texts of messages.
    #[arg(long)]
    pub no_bodies: bool,
    /// A journal folder or a segment (*.ltj) to read instead of the data folder's own.
    #[arg(long, value_name = "PATH")]
    pub journal: Option<PathBuf>,
}

/// `fixture accept`
#[derive(Args, Debug)]
pub struct AcceptArgs {
    /// Fixtures: segments (*.ltj) and folders of them.
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Does not ask.
    #[arg(long)]
    pub yes: bool,
}

/// `step`
#[derive(Args, Debug)]
pub struct StepArgs {
    /// A segment (*.ltj) or a journal folder.
    pub path: PathBuf,
    /// The record (boot.n) to begin at; without it, the first.
    #[arg(long, value_name = "RECORD")]
    pub at: Option<String>,
}

/// `journal`
#[derive(Subcommand, Debug)]
pub enum JournalCommand {
    /// Lists the segments.
    Ls(JsonFlag),
    /// Shows one record.
    Show {
        /// Its number, boot.n.
        record: String,
    },
    /// Shows the last records.
    Tail {
        /// How many.
        #[arg(short = 'n', default_value_t = 20)]
        lines: usize,
    },
    /// Looks at every frame and says what is whole. Exit code 1 when something is damaged.
    Check,
    /// Puts a new segment with what is whole in the place of a damaged one, which is kept in cut/. Needs a stopped
    /// daemon.
    Repair,
}

/// `replay`
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// Segments (*.ltj) and journal folders; each is replayed by itself.
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// How far back: 7d, 36h, 90m; from the newest segment that begins before it.
    #[arg(long, value_name = "TIME")]
    pub since: Option<Span>,
    /// Prints JSON instead of text, one line for each path.
    #[arg(long)]
    pub json: bool,
}

/// `export`
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// A segment (*.ltj) or a journal folder.
    pub path: PathBuf,
    /// The form.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: ExportFormat,
    /// Writes there instead of to the standard output. The file is replaced as a whole.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Only what is about this session: its name, group/name, or its number.
    #[arg(long, value_name = "SESSION")]
    pub session: Option<String>,
}

/// The form of an export.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ExportFormat {
    /// One JSON object for each record, one a line.
    Jsonl,
    /// Trace events for Perfetto (ui.perfetto.dev) and other viewers of Chrome's traces.
    Perfetto,
    /// One page with a timeline; it needs a browser and no network.
    Html,
}
