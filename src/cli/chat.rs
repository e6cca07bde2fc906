//! `lamplighter chat`: the client of the chat socket.
//!
//! Invariant: a reply is acknowledged only after it was printed, and printed once however often it comes.

mod connection;
mod interactive;
#[cfg(test)]
mod tests;

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use crate::channels::protocol::{FromClient, ToClient};
use connection::Connection;
pub use connection::new_id;

/// `chat`
#[derive(Args, Debug)]
pub struct ChatArgs {
    /// The chat to talk in. Each has an agent session of its own.
    #[arg(long, default_value = "main", value_name = "NAME")]
    pub chat: String,
    /// Gives up when a turn has not ended after so many seconds; exit code 1.
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Prints the lines of the protocol instead of texts.
    #[arg(long)]
    pub json: bool,
    /// What to say. Without it: what standard input says, a line a message, or a conversation at a terminal.
    pub text: Vec<String>,
}

/// Why a conversation ended without success.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// Nobody listens.
    #[error("no daemon listens on {socket}")]
    NoDaemon {
        /// The socket.
        socket: PathBuf,
    },
    /// The daemon did not take the message.
    #[error("the message was not taken: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The agent did not finish the turn.
    #[error("the turn ended as {outcome}{}", reason.as_ref().map_or(String::new(), |why| format!(": {why}")))]
    TurnFailed {
        /// How.
        outcome: String,
        /// Why.
        reason: Option<String>,
    },
    /// The turn took too long.
    #[error("the turn has not ended after {seconds} s; the message is kept and will be worked on")]
    Timeout {
        /// The limit.
        seconds: u64,
    },
    /// The daemon went away.
    #[error("the daemon went away before the turn ended; the message is kept if it was accepted")]
    Lost,
    /// The daemon said something that this client does not understand.
    #[error("the daemon's line cannot be used: {0}")]
    Protocol(String),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ChatError {
    /// What may be done about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoDaemon { .. } | Self::Lost => {
                "start it with `lamplighter run --data DIR`, with the same --data"
            }
            Self::Refused { .. } | Self::TurnFailed { .. } | Self::Timeout { .. } => {
                "`lamplighter status` shows what it waits for"
            }
            Self::Protocol(_) => "see that client and daemon are of the same build",
            Self::Io(_) => "",
        }
    }
}

/// Talks. `history` is the file of the lines typed before.
///
/// # Errors
/// See [`ChatError`].
pub fn run(args: &ChatArgs, socket: &Path, history: &Path) -> Result<(), ChatError> {
    let done = if !args.text.is_empty() {
        let mut connection = Connection::open(socket, &args.chat)?;
        say(&mut connection, args, &args.text.join(" "), &mut io::stdout().lock())
    } else if io::stdin().is_terminal() && io::stdout().is_terminal() {
        interactive::run(args, socket, history)
    } else {
        let mut connection = Connection::open(socket, &args.chat)?;
        each_line(&mut connection, args, &mut io::stdin().lock(), &mut io::stdout().lock())
    };
    match done {
        // Nobody reads any more: that is how pipes end.
        Err(ChatError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Every line of the input is a message; the next waits for the turn of the one before.
fn each_line(
    connection: &mut Connection,
    args: &ChatArgs,
    input: &mut dyn BufRead,
    out: &mut dyn Write,
) -> Result<(), ChatError> {
    for line in input.lines() {
        let line = line?;
        if !line.trim().is_empty() {
            say(connection, args, &line, out)?;
        }
    }
    Ok(())
}

/// Says one thing and prints replies until its turn has ended.
fn say(
    connection: &mut Connection,
    args: &ChatArgs,
    text: &str,
    out: &mut dyn Write,
) -> Result<(), ChatError> {
    let id = new_id()?;
    connection.send(&FromClient::Message { id: Some(id.clone()), text: text.to_owned(), sender: None })?;
    let limit = args.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    loop {
        let Some((raw, line)) = connection.receive(limit)? else {
            return Err(ChatError::Timeout { seconds: args.timeout.unwrap_or(0) });
        };
        if args.json {
            writeln!(out, "{raw}")?;
            out.flush()?;
        }
        match line {
            ToClient::Message { id, text, .. } => {
                if connection.is_new(&id) && !args.json {
                    writeln!(out, "{text}")?;
                    out.flush()?;
                }
                connection.send(&FromClient::Ack { id })?;
            }
            ToClient::Settled { id: of, outcome, reason } if of == id => {
                return if outcome == "completed" {
                    Ok(())
                } else {
                    Err(ChatError::TurnFailed { outcome, reason })
                };
            }
            ToClient::Refused { id: of, reason } if of == id => return Err(ChatError::Refused { reason }),
            ToClient::Error { reason } => return Err(ChatError::Protocol(reason)),
            _ => {}
        }
    }
}
