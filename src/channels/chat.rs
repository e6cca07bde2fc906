//! The chat channel: a Unix socket with JSON lines, several clients and several named chats at once.
//!
//! Replies of a chat without a client are kept where they are, in the session's file: the channel answers "no
//! recipient" and says so when one comes. A reply counts as delivered when a client acknowledged its id.
//!
//! Invariant: one lock, never held while a socket is read or written.
//! Invariant: events leave under that lock, so "no recipient" never overtakes "has a recipient".

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use super::content::Form;
use super::protocol::{
    FileLine, FromClient, ID_MAX, LINE_MAX, PROTOCOL, QuestionLine, SkippedLine, ToClient, is_chat_name,
};
use super::{Arrived, Capabilities, Channel, ChannelEvent, Delivery, Fault, Settled, Sink, Start};
use crate::base::Clock;
use crate::base::ids::is_safe_name;
use crate::session::ids;

/// The channel's name in rows.
pub const CHANNEL: &str = "chat";
/// Clients at once: each costs two threads; people have a few windows open.
const CLIENTS_MAX: usize = 64;
/// Messages of one client that were read and not answered yet. Beyond it its socket is not read: nothing is dropped.
const UNANSWERED_MAX: usize = 64;
/// How often one client may change its chat, or whether it receives: a program that goes through all chats needs no
/// more, and each change is on record.
const HELLOS_MAX: u32 = 64;
/// Bytes waiting to be written to one client. One that does not read for so long is cut off; what it did not
/// acknowledge goes to the next.
const BACKLOG_MAX: usize = 4 << 20;
/// How long clients may take, when the daemon stops, to read what is written for them: whoever reads at all needs
/// moments, and what was not acknowledged is delivered again.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// How long a client may take to acknowledge a reply before it is taken for dead.
const ACK_MAX: Duration = Duration::from_secs(30);

/// The channel.
pub struct Chat {
    hub: Arc<Hub>,
    path: PathBuf,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Hub {
    sink: Sink,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Something was answered, written or is due: whoever waits looks again.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stopping: bool,
    next_client: u64,
    next_receipt: u64,
    clients: BTreeMap<u64, Client>,
    receipts: BTreeMap<u64, (u64, String)>,
    /// Deliveries waiting for an acknowledgement, by key.
    waiting: BTreeMap<String, Waiting>,
}

struct Client {
    stream: UnixStream,
    user: u32,
    chat: Option<String>,
    receives: bool,
    /// Changes by `hello` so far.
    hellos: u32,
    unanswered: usize,
    backlog: VecDeque<Vec<u8>>,
    backlog_bytes: usize,
    closing: bool,
}

struct Waiting {
    ticket: u64,
    clients: BTreeSet<u64>,
    until: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The chat's name in a platform id.
fn name_of(platform_id: &str) -> &str {
    platform_id.strip_prefix("chat:").unwrap_or(platform_id)
}

/// Starts the channel.
///
/// # Errors
/// See [`Chat::start`].
pub fn start(with: &Start<'_>) -> io::Result<Arc<dyn Channel>> {
    Ok(Arc::new(Chat::start(with.chat_socket, Arc::clone(&with.clock), Arc::clone(&with.sink))?))
}

impl Chat {
    /// Listens on `path`. A socket left by an earlier daemon is replaced; the caller holds the data folder's lock.
    ///
    /// # Errors
    /// When the socket cannot be made, or a thread cannot be started.
    pub fn start(path: &Path, clock: Arc<dyn Clock>, sink: Sink) -> io::Result<Self> {
        if path.symlink_metadata().is_ok() {
            std::fs::remove_file(path)?;
        }
        // The folder is the daemon's alone (mode 0700), so nobody gets in before the mode is set.
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let hub = Arc::new(Hub { sink, clock, state: Mutex::new(State::default()), changed: Condvar::new() });
        (hub.sink)(ChannelEvent::Up { channel: CHANNEL, chat: None });
        let (accepts, expires) = (Arc::clone(&hub), Arc::clone(&hub));
        let threads = vec![
            std::thread::Builder::new()
                .name("chat-accept".into())
                .spawn(move || accepts.accept(&listener))?,
            std::thread::Builder::new().name("chat-expire".into()).spawn(move || expires.expire())?,
        ];
        Ok(Self { hub, path: path.to_owned(), threads: Mutex::new(threads) })
    }
}

impl Channel for Chat {
    fn channel_type(&self) -> &'static str {
        CHANNEL
    }

    fn capabilities(&self) -> Capabilities {
        let all = Capabilities { idempotent: true, edits: true, reactions: true, ..Capabilities::default() };
        Capabilities { files: true, questions: true, cards: true, ..all }
    }

    fn deliver(&self, delivery: Delivery) {
        let ticket = delivery.ticket;
        let fail = |fault, reason: String| {
            (self.hub.sink)(ChannelEvent::Failed { ticket, fault, reason, retry_after: None });
        };
        let (key, chat) = (delivery.key.clone(), delivery.chat.clone());
        let line = line_of(delivery).line();
        if line.len() > LINE_MAX {
            return fail(Fault::Permanent, format!("a chat message may have at most {LINE_MAX} bytes"));
        }
        let mut state = lock(&self.hub.state);
        let receivers = state.receivers(&chat);
        if receivers.is_empty() {
            return fail(Fault::NoRecipient, "no client of this chat is connected".into());
        }
        let until = Instant::now() + ACK_MAX;
        state.waiting.insert(key, Waiting { ticket, clients: receivers.iter().copied().collect(), until });
        for client in receivers {
            self.hub.push(&mut state, client, line.clone());
        }
        self.hub.changed.notify_all();
    }

    fn typing(&self, chat: &str, on: bool) {
        self.broadcast(chat, &ToClient::Typing { chat: name_of(chat).to_owned(), on });
    }

    fn accepted(&self, receipt: u64, duplicate: bool) {
        self.answer(receipt, |id| ToClient::Accepted { id, duplicate });
    }

    fn refused(&self, receipt: u64, reason: &str) {
        self.answer(receipt, |id| ToClient::Refused { id, reason: reason.to_owned() });
    }

    fn settled(&self, chat: &str, settled: Settled) {
        let Settled { id, outcome, reason } = settled;
        self.broadcast(chat, &ToClient::Settled { id, outcome: outcome.to_owned(), reason });
    }

    fn stuck(&self, chat: &str, reason: &str, hopeless: bool) {
        let chat_name = name_of(chat).to_owned();
        self.broadcast(chat, &ToClient::Stuck { chat: chat_name, reason: reason.to_owned(), hopeless });
    }

    fn stop(&self) {
        {
            let mut state = lock(&self.hub.state);
            state.stopping = true;
            for client in state.clients.values_mut() {
                client.closing = true;
            }
            self.hub.changed.notify_all();
        }
        // Wakes the accepting thread, which then sees that it is to stop.
        drop(UnixStream::connect(&self.path));
        for thread in lock(&self.threads).drain(..) {
            drop(thread.join());
        }
        self.hub.drain(Instant::now() + DRAIN_MAX);
        // Gone already, or replaced by another daemon's: neither is ours to report.
        drop(std::fs::remove_file(&self.path));
        (self.hub.sink)(ChannelEvent::Down { channel: CHANNEL, reason: "the daemon stops".into() });
    }
}

impl Chat {
    /// To every client of a chat: whoever says something without receiving still wants to know how it ended.
    fn broadcast(&self, chat: &str, line: &ToClient) {
        let line = line.line();
        let mut state = lock(&self.hub.state);
        let within = |client: &Client| client.chat.as_deref() == Some(name_of(chat));
        let to: Vec<u64> = state.clients.iter().filter(|(_, c)| within(c)).map(|(&id, _)| id).collect();
        for client in to {
            self.hub.push(&mut state, client, line.clone());
        }
        self.hub.changed.notify_all();
    }

    fn answer(&self, receipt: u64, line: impl FnOnce(String) -> ToClient) {
        let mut state = lock(&self.hub.state);
        let Some((client, id)) = state.receipts.remove(&receipt) else { return };
        if let Some(known) = state.clients.get_mut(&client) {
            known.unanswered = known.unanswered.saturating_sub(1);
        }
        self.hub.push(&mut state, client, line(id).line());
        self.hub.changed.notify_all();
    }
}

impl State {
    fn receivers(&self, platform_id: &str) -> Vec<u64> {
        let chat = name_of(platform_id);
        let receives =
            |client: &Client| client.receives && !client.closing && client.chat.as_deref() == Some(chat);
        self.clients.iter().filter(|(_, client)| receives(client)).map(|(&id, _)| id).collect()
    }
}

impl Hub {
    /// Queues a line for a client. One that has let too much pile up is cut off.
    fn push(&self, state: &mut State, client: u64, line: Vec<u8>) {
        let Some(known) = state.clients.get_mut(&client).filter(|c| !c.closing) else { return };
        if known.backlog_bytes + line.len() > BACKLOG_MAX {
            known.closing = true;
            known.backlog.clear();
            // The writer may be stuck in this very socket.
            drop(known.stream.shutdown(Shutdown::Both));
            return;
        }
        known.backlog_bytes += line.len();
        known.backlog.push_back(line);
    }

    /// Waits until every client has what was written for it and is gone; after that time they are cut off.
    fn drain(&self, until: Instant) {
        let mut state = lock(&self.state);
        while !state.clients.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        for client in state.clients.values() {
            // Ends the reader, and a writer that is stuck in this very socket.
            drop(client.stream.shutdown(Shutdown::Both));
        }
        while !state.clients.is_empty() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        for stream in listener.incoming() {
            if lock(&self.state).stopping {
                return;
            }
            // A connection that failed at once, or one too many descriptors: the next may work.
            let Ok(stream) = stream else { continue };
            self.admit(stream);
        }
    }

    fn admit(self: &Arc<Self>, mut stream: UnixStream) {
        let own = rustix::process::geteuid().as_raw();
        let user = rustix::net::sockopt::socket_peercred(&stream).map(|cred| cred.uid.as_raw());
        let refuse = match user {
            Ok(uid) if uid == own || uid == 0 => None,
            Ok(uid) => Some(format!("user {uid} may not talk to this daemon")),
            Err(errno) => Some(format!("cannot tell who connects: {errno}")),
        };
        let mut state = lock(&self.state);
        let refuse = refuse.or_else(|| {
            (state.clients.len() >= CLIENTS_MAX)
                .then(|| format!("{CLIENTS_MAX} clients are connected already"))
        });
        let copies = stream.try_clone().and_then(|writes| Ok((writes, stream.try_clone()?)));
        let (Ok((writes, kept)), None) = (copies, &refuse) else {
            drop(state);
            let reason = refuse.unwrap_or_else(|| "out of file descriptors".into());
            // It is about to be closed anyway.
            drop(stream.set_nonblocking(true));
            drop(stream.write_all(&ToClient::Error { reason }.line()));
            return;
        };
        let id = state.next_client;
        state.next_client += 1;
        let client = Client {
            stream: kept,
            user: user.unwrap_or(own),
            chat: None,
            receives: false,
            hellos: 0,
            unanswered: 0,
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            closing: false,
        };
        state.clients.insert(id, client);
        drop(state);
        let (reader, writer) = (Arc::clone(self), Arc::clone(self));
        let threads = [
            std::thread::Builder::new()
                .name(format!("chat-read-{id}"))
                .spawn(move || reader.read(id, stream)),
            std::thread::Builder::new()
                .name(format!("chat-write-{id}"))
                .spawn(move || writer.write(id, writes)),
        ];
        if threads.iter().any(Result::is_err) {
            self.gone(id);
        }
    }

    fn write(&self, id: u64, mut stream: UnixStream) {
        let mut state = lock(&self.state);
        loop {
            let Some(client) = state.clients.get_mut(&id) else { return };
            if let Some(line) = client.backlog.pop_front() {
                client.backlog_bytes -= line.len();
                drop(state);
                let written = stream.write_all(&line);
                state = lock(&self.state);
                if written.is_err() {
                    break;
                }
            } else if client.closing {
                break;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        drop(state);
        // Ends the reader, which removes the client.
        drop(stream.shutdown(Shutdown::Both));
    }

    fn read(&self, id: u64, stream: UnixStream) {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            let room = LINE_MAX as u64 + 1;
            match (&mut reader).take(room).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) if line.len() > LINE_MAX => {
                    self.close_with(id, format!("a line may have at most {LINE_MAX} bytes"));
                    break;
                }
                Ok(_) => {}
            }
            if !self.take(id, &line) {
                break;
            }
        }
        self.gone(id);
    }

    fn close_with(&self, id: u64, reason: String) {
        let mut state = lock(&self.state);
        self.push(&mut state, id, ToClient::Error { reason }.line());
        if let Some(client) = state.clients.get_mut(&id) {
            client.closing = true;
        }
        self.changed.notify_all();
        // Lets the writer send the reason before the client is removed with its backlog.
        while state.clients.get(&id).is_some_and(|client| !client.backlog.is_empty()) {
            state = self
                .changed
                .wait_timeout(state, Duration::from_secs(1))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if state.clients.get(&id).is_some_and(|client| !client.backlog.is_empty()) {
                return;
            }
        }
    }

    /// Takes one line. False ends the client.
    fn take(&self, id: u64, line: &[u8]) -> bool {
        if line.iter().all(u8::is_ascii_whitespace) {
            return true;
        }
        let parsed: Result<FromClient, _> = serde_json::from_slice(line);
        let mut state = lock(&self.state);
        let reply = match parsed {
            Err(error) => Some(ToClient::Error { reason: format!("not a line of this protocol: {error}") }),
            Ok(FromClient::Ping) => Some(ToClient::Pong),
            Ok(FromClient::Hello { protocol, chat, receive }) => {
                match self.hello(&mut state, id, protocol, chat, receive) {
                    Ok(reply) => reply,
                    Err(reason) => {
                        drop(state);
                        self.close_with(id, reason);
                        return false;
                    }
                }
            }
            Ok(FromClient::Ack { id: key }) => {
                // Only who was given a reply can have it.
                let was_given = state.waiting.get(&key).is_some_and(|waiting| waiting.clients.contains(&id));
                if was_given && let Some(waiting) = state.waiting.remove(&key) {
                    (self.sink)(ChannelEvent::Delivered { ticket: waiting.ticket, platform_id: Some(key) });
                }
                None
            }
            Ok(FromClient::Message { id: message, text, sender }) => {
                let (back, reply) = self.message(state, id, message, text, sender);
                state = back;
                reply
            }
        };
        if let Some(reply) = reply {
            self.push(&mut state, id, reply.line());
        }
        self.changed.notify_all();
        state.clients.get(&id).is_some_and(|client| !client.closing)
    }

    /// Answers a hello. An error ends the client.
    fn hello(
        &self,
        state: &mut State,
        id: u64,
        protocol: u32,
        chat: String,
        receive: bool,
    ) -> Result<Option<ToClient>, String> {
        if protocol != PROTOCOL {
            let reason = format!("this daemon speaks protocol {PROTOCOL}, not {protocol}");
            return Ok(Some(ToClient::Error { reason }));
        }
        if !is_chat_name(&chat) {
            let reason = "a chat's name has 1 to 64 letters, digits, dots, dashes or underscores";
            return Ok(Some(ToClient::Error { reason: reason.into() }));
        }
        let mut is_news = false;
        if let Some(client) = state.clients.get_mut(&id) {
            is_news = client.chat.as_ref() != Some(&chat) || client.receives != receive;
            client.hellos += u32::from(is_news);
            if client.hellos > HELLOS_MAX {
                return Err(format!("a client may change its chat {HELLOS_MAX} times; connect again"));
            }
            client.chat = Some(chat.clone());
            client.receives = receive;
            // In the client's queue before any reply that the event below sets going.
            self.push(state, id, ToClient::Hello { protocol: PROTOCOL }.line());
        }
        // A repeat tells nobody anything, and what the event below leads to is on record.
        if receive && is_news {
            let chat = Some(format!("{CHANNEL}:{chat}"));
            (self.sink)(ChannelEvent::Up { channel: CHANNEL, chat });
        }
        Ok(None)
    }

    fn message<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        id: u64,
        message: Option<String>,
        text: String,
        sender: Option<String>,
    ) -> (MutexGuard<'a, State>, Option<ToClient>) {
        // Back-pressure: what is not answered yet is bounded, and the socket is simply not read meanwhile.
        while state.clients.get(&id).is_some_and(|c| c.unanswered >= UNANSWERED_MAX && !c.closing) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let receipt = state.next_receipt;
        let wall = self.clock.wall();
        let Some(client) = state.clients.get_mut(&id).filter(|client| !client.closing) else {
            return (state, None);
        };
        let Some(chat) = client.chat.clone() else {
            let reason = "say hello first, with the chat's name".to_owned();
            return (state, Some(ToClient::Error { reason }));
        };
        let ms = u64::try_from(wall.0 / 1_000).unwrap_or(0);
        let message = message.unwrap_or_else(|| ids::cli(ms, receipt));
        if !is_safe_name(&message) || message.len() > ID_MAX || message.contains(':') {
            let reason =
                format!("an id has 1 to {ID_MAX} bytes without separators, colons or control characters");
            return (state, Some(ToClient::Refused { id: message, reason }));
        }
        client.unanswered += 1;
        let user = client.user;
        state.next_receipt += 1;
        state.receipts.insert(receipt, (id, message.clone()));
        let content = content_of(&text, sender.as_deref(), user);
        (self.sink)(ChannelEvent::Arrived(Arrived {
            channel: CHANNEL,
            receipt,
            chat: format!("{CHANNEL}:{chat}"),
            thread: None,
            message_id: message,
            content,
            sent: None,
        }));
        (state, None)
    }

    /// A client is gone: what only it could acknowledge waits for another one.
    fn gone(&self, id: u64) {
        let mut state = lock(&self.state);
        if let Some(client) = state.clients.remove(&id) {
            drop(client.stream.shutdown(Shutdown::Both));
        }
        state.receipts.retain(|_, (client, _)| *client != id);
        let mut orphans = Vec::new();
        state.waiting.retain(|_, waiting| {
            waiting.clients.remove(&id);
            if waiting.clients.is_empty() {
                orphans.push(waiting.ticket);
            }
            !waiting.clients.is_empty()
        });
        for ticket in orphans {
            let reason = "the client left before it acknowledged".into();
            (self.sink)(ChannelEvent::Failed {
                ticket,
                fault: Fault::NoRecipient,
                reason,
                retry_after: None,
            });
        }
        self.changed.notify_all();
    }

    /// Cuts off clients that do not acknowledge in time.
    fn expire(&self) {
        let mut state = lock(&self.state);
        while !state.stopping {
            let now = Instant::now();
            let late: BTreeSet<u64> = state
                .waiting
                .values()
                .filter(|waiting| waiting.until <= now)
                .flat_map(|waiting| waiting.clients.iter().copied())
                .collect();
            for id in late {
                if let Some(client) = state.clients.get_mut(&id) {
                    client.closing = true;
                    drop(client.stream.shutdown(Shutdown::Both));
                    // Its reader may wait for answers, and its writer for something to write.
                    self.changed.notify_all();
                }
            }
            let next = state.waiting.values().map(|w| w.until).filter(|&until| until > now).min();
            state = match next {
                Some(until) => {
                    let wait = until.saturating_duration_since(now);
                    self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// The content of a row for what a client said (contract 11).
fn content_of(text: &str, sender: Option<&str>, user: u32) -> String {
    let id = format!("{CHANNEL}:{user}");
    json!({"text": text, "sender": sender.unwrap_or("user"), "senderId": id}).to_string()
}

/// The line for a delivery. An edit or reaction is recognised by its field; its text names the message all the same.
fn line_of(delivery: Delivery) -> ToClient {
    let Delivery { key, chat, content, files, skipped, in_reply_to, .. } = delivery;
    let (mut question, mut edits, mut reacts_to) = (None, None, None);
    let mut text = content.text;
    match content.form {
        Form::Text | Form::Card => {}
        Form::Question(it) => {
            question = Some(Box::new(QuestionLine {
                id: it.id,
                title: it.title,
                question: it.question,
                options: it.options.into_iter().map(|choice| choice.label).collect(),
                timeout_ms: it.timeout.0,
            }));
        }
        Form::Edit { message } => {
            text = format!("{message} now reads: {text}");
            edits = Some(message);
        }
        Form::Reaction { message, emoji } => {
            text = format!("{emoji} on {message}");
            reacts_to = Some(message);
        }
    }
    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    let files = files.into_iter().map(|it| FileLine { name: it.name, path: path(it.path), bytes: it.bytes });
    let skipped = skipped.into_iter().map(|it| SkippedLine { name: it.name, reason: it.reason });
    ToClient::Message {
        id: key,
        chat: name_of(&chat).to_owned(),
        text,
        in_reply_to,
        question,
        edits,
        reacts_to,
        files: files.collect(),
        skipped: skipped.collect(),
    }
}

#[cfg(test)]
mod tests;
