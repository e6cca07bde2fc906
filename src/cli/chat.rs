//! `lamplighter chat`: the client of the chat socket.
//!
//! Invariant: a reply is acknowledged only after it was printed, and printed once however often it comes.
//! Invariant: a message keeps its id when it is sent again, so the daemon takes it once.

mod connection;
mod interactive;
mod oneshot;
mod shown;
#[cfg(test)]
mod tests;

use std::io::{self, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

pub use connection::new_id;

/// How long the daemon may take to answer `hello` or to read a line: it does both at once unless it hangs.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// What `chat` is told on the command line.
#[derive(Args, Debug)]
pub struct ChatArgs {
    /// The chat to talk in: 1 to 64 letters, digits, dots, dashes or underscores.
    ///
    /// Each chat has an agent session of its own. Several clients may be in one chat.
    #[arg(long, default_value = "main", value_name = "NAME")]
    pub chat: String,
    /// Gives up when the turn of a message has not ended after so many seconds; exit code 1. 0 waits for ever.
    ///
    /// A message that was accepted is kept and worked on all the same. The default is the time for which the daemon
    /// lets an agent be silent in a turn. Where the agent does not start, the reason is said at once and the client
    /// gives up after three tries. A conversation at a terminal has no limit.
    #[arg(long, value_name = "SECONDS", default_value_t = 1_800)]
    pub timeout: u64,
    /// Prints the protocol's lines as received, one JSON object a line, instead of the texts of replies.
    ///
    /// At a terminal without TEXT it reads plain lines, as from a pipe.
    #[arg(long)]
    pub json: bool,
    /// What to say; several words are joined with spaces. Put `--` before a text that begins with a dash.
    ///
    /// Without it every line of standard input that is not empty is a message, and the next waits until the turn of
    /// the one before has completed; when that turn asks a question, the next line is the answer. At a terminal it
    /// is a conversation, which Ctrl-D or Ctrl-C ends.
    #[arg(value_name = "TEXT")]
    pub text: Vec<String>,
}

impl ChatArgs {
    /// The limit of a turn; none for as long as it takes.
    fn limit(&self) -> Option<Duration> {
        (self.timeout > 0).then(|| Duration::from_secs(self.timeout))
    }
}

/// Why a conversation ended without success.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// Nobody listens.
    #[error("no daemon listens on {}", socket.display())]
    NoDaemon {
        /// The socket.
        socket: PathBuf,
    },
    /// TEXT is empty.
    #[error("an empty message says nothing to the agent")]
    NothingSaid,
    /// The daemon did not take the message, or not the client.
    #[error("the daemon refuses: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The agent did not finish the turn.
    #[error("the turn ended as {outcome}{}", because(reason.as_deref()))]
    TurnFailed {
        /// How: `failed`, `parked` or `dropped`.
        outcome: String,
        /// Why, where the daemon said so.
        reason: Option<String>,
    },
    /// The message is kept, and nothing that is planned is likely to bring it on.
    #[error("the message is kept, but not worked on: {reason}")]
    Stuck {
        /// Why.
        reason: String,
    },
    /// The turn, or the daemon's answer to `hello`, took too long.
    #[error("the daemon has not come to an end after {seconds} s")]
    Timeout {
        /// The limit.
        seconds: u64,
    },
    /// The daemon went away.
    #[error("the daemon closed the connection before the turn ended")]
    Lost,
    /// Daemon and client do not understand each other.
    #[error("daemon and client do not understand each other: {0}")]
    Protocol(String),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ChatError {
    /// What may be done about it; empty when the text says it all.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoDaemon { .. } => "start it with `lamplighter run --data DIR`, with the same --data",
            Self::Lost => {
                "a message that was accepted is kept; start the daemon with `lamplighter run --data DIR`"
            }
            Self::Timeout { .. } => {
                "a message that was accepted is kept and worked on; `lamplighter status` shows what it waits for"
            }
            Self::TurnFailed { .. } | Self::Stuck { .. } => {
                "`lamplighter status` shows what is stuck and the command that frees it"
            }
            Self::Protocol(_) => "see that client and daemon are of the same build",
            Self::NothingSaid => "give a text, or none for a conversation",
            Self::Refused { .. } | Self::Io(_) => "",
        }
    }
}

/// Where replies are printed.
pub(crate) struct Output<'a> {
    to: &'a mut dyn Write,
    /// Somebody reads it on a terminal, which no reply may steer. Programs get replies as they are.
    is_terminal: bool,
}

impl<'a> Output<'a> {
    /// Standard output.
    fn standard(to: &'a mut io::StdoutLock<'_>) -> Self {
        let is_terminal = to.is_terminal();
        Self { to, is_terminal }
    }
}

/// The end of a sentence that may have a reason.
fn because(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |why| format!(": {why}"))
}

/// Talks: says TEXT, or the lines of standard input, or holds a conversation at a terminal. `history` is the file of
/// the lines typed before. Output that nobody reads any more is success: that is how pipes end.
///
/// # Errors
/// See [`ChatError`].
pub fn run(args: &ChatArgs, socket: &Path, history: &Path) -> Result<(), ChatError> {
    let at_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let done = if !args.text.is_empty() {
        let text = args.text.join(" ");
        if text.trim().is_empty() {
            return Err(ChatError::NothingSaid);
        }
        oneshot::once(args, socket, &text, Output::standard(&mut io::stdout().lock()))
    } else if at_terminal && !args.json {
        interactive::run(args, socket, history)
    } else {
        from_stdin(args, socket)
    };
    unless_nobody_reads(done)
}

/// Every line of standard input is a message.
fn from_stdin(args: &ChatArgs, socket: &Path) -> Result<(), ChatError> {
    oneshot::lines(args, socket, BufReader::new(io::stdin()), Output::standard(&mut io::stdout().lock()))
}

/// A broken pipe is always standard output: on the socket it is [`ChatError::Lost`].
fn unless_nobody_reads(done: Result<(), ChatError>) -> Result<(), ChatError> {
    match done {
        Err(ChatError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
