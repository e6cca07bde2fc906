//! Channels: the ports to chat platforms.
//!
//! A channel hands arrivals to the host and acknowledges one to its platform only when the host says that its row is
//! on disk. It takes deliveries without blocking and reports later what became of each.
//!
//! Invariant: an arrival is never acknowledged before `accepted`, and never dropped without an answer.
//! Invariant: every delivery ends in exactly one event with its ticket.

pub mod chat;
pub mod content;
pub mod protocol;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use content::Content;

use crate::base::{Clock, Ms, Wall};

/// What a channel can do. The host refuses what it cannot, at once and with a reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Repeats of an idempotency key are dropped, so a delivery may be sent again.
    pub idempotent: bool,
    /// Messages belong to threads.
    pub threads: bool,
    /// Messages can be edited.
    pub edits: bool,
    /// Messages can be reacted to.
    pub reactions: bool,
    /// Files can be sent.
    pub files: bool,
    /// Questions can be asked, and answers come back.
    pub questions: bool,
    /// Cards can be shown.
    pub cards: bool,
}

impl Capabilities {
    /// What agents are told of it, by name (contract 18).
    pub fn names(self) -> Vec<&'static str> {
        let all = [
            ("threads", self.threads),
            ("edits", self.edits),
            ("reactions", self.reactions),
            ("files", self.files),
            ("questions", self.questions),
            ("cards", self.cards),
        ];
        all.into_iter().filter(|(_, can)| *can).map(|(name, _)| name).collect()
    }
}

/// A file that goes with a message. It stays where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentFile {
    /// Its name, as the agent gave it.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// A file that should have gone with a message and could not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedFile {
    /// Its name, as the agent gave it.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// A message to hand to its recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Names the delivery towards the host.
    pub ticket: u64,
    /// The same for every try of one delivery.
    pub key: String,
    /// The chat's platform id.
    pub chat: String,
    /// The thread in it.
    pub thread: Option<String>,
    /// What is said.
    pub content: Content,
    /// The files that go with it.
    pub files: Vec<SentFile>,
    /// The files that should have gone with it.
    pub skipped: Vec<SkippedFile>,
    /// The platform's id of the message that it answers.
    pub in_reply_to: Option<String>,
}

/// How the turn of a message ended, for whoever waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The platform's id of the message.
    pub id: String,
    /// `completed`, `failed`, `parked` or `dropped`.
    pub outcome: &'static str,
    /// Why, where there is something to say.
    pub reason: Option<String>,
}

/// A message from a platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// The channel type.
    pub channel: &'static str,
    /// Names the arrival towards its channel.
    pub receipt: u64,
    /// The chat's platform id.
    pub chat: String,
    /// The thread in it.
    pub thread: Option<String>,
    /// The platform's message id.
    pub message_id: String,
    /// JSON text (contract 11).
    pub content: String,
    /// When it was sent, where the platform says so; otherwise its receipt counts.
    pub sent: Option<Wall>,
}

/// What may be done about a delivery that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Try again later.
    Transient,
    /// Never try again.
    Permanent,
    /// Nobody is there to receive it.
    NoRecipient,
    /// It was begun, and nobody knows.
    InDoubt,
}

/// News of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelEvent {
    /// It takes deliveries, or one of its chats has a recipient now.
    Up {
        /// The channel type.
        channel: &'static str,
        /// The chat; none for the channel as a whole.
        chat: Option<String>,
    },
    /// It does not take deliveries any more.
    Down {
        /// The channel type.
        channel: &'static str,
        /// Why.
        reason: String,
    },
    /// A message came.
    Arrived(Arrived),
    /// A delivery was accepted by its recipient.
    Delivered {
        /// Which.
        ticket: u64,
        /// The platform's id of it.
        platform_id: Option<String>,
    },
    /// A delivery did not succeed.
    Failed {
        /// Which.
        ticket: u64,
        /// What may be done about it.
        fault: Fault,
        /// Why.
        reason: String,
        /// Wait at least so long.
        retry_after: Option<Ms>,
    },
}

/// Where news go. Called from the channel's threads; it must not block.
pub type Sink = Arc<dyn Fn(ChannelEvent) + Send + Sync>;

/// What channels are started with.
pub struct Start<'a> {
    /// The socket of the chat channel.
    pub chat_socket: &'a Path,
    /// When messages came.
    pub clock: Arc<dyn Clock>,
    /// Where news of all channels go.
    pub sink: Sink,
}

/// Starts every channel there is: another one is a file of its own and a line here.
///
/// # Errors
/// What could not be done, and what the system said; the channels started before it are stopped again.
pub fn start_all(with: &Start<'_>) -> Result<Vec<Arc<dyn Channel>>, (&'static str, std::io::Error)> {
    type Make = fn(&Start<'_>) -> std::io::Result<Arc<dyn Channel>>;
    let all: [(&'static str, Make); 1] = [("listen on the chat socket", chat::start)];
    let mut started: Vec<Arc<dyn Channel>> = Vec::with_capacity(all.len());
    for (doing, make) in all {
        match make(with) {
            Ok(channel) => started.push(channel),
            Err(error) => {
                started.iter().for_each(|channel| channel.stop());
                return Err((doing, error));
            }
        }
    }
    Ok(started)
}

/// A channel. No call blocks.
pub trait Channel: Send + Sync {
    /// Its name in rows.
    fn channel_type(&self) -> &'static str;
    /// What it can do.
    fn capabilities(&self) -> Capabilities;
    /// Takes a delivery; what became of it is reported.
    fn deliver(&self, delivery: Delivery);
    /// Shows or hides that the agent works.
    fn typing(&self, chat: &str, on: bool);
    /// The arrival's row is on disk.
    fn accepted(&self, receipt: u64, duplicate: bool);
    /// The arrival was not taken.
    fn refused(&self, receipt: u64, reason: &str);
    /// The turn of a message ended; all replies to it were handed out before.
    fn settled(&self, chat: &str, settled: Settled);
    /// The messages of a chat are not worked on now, for a reason; when it is `hopeless` no try that is planned is
    /// likely to help. They are kept. Whoever waits is told; what comes of the messages is told by `settled`.
    fn stuck(&self, chat: &str, reason: &str, hopeless: bool);
    /// Stops taking messages and deliveries, and ends its threads.
    fn stop(&self);
}
