//! Messages of the command line or of a pipe: each is said and its turn awaited before the next.
//!
//! Replies that no message asked for come at any time, also while standard input is silent, and the daemon cuts off a
//! client that does not acknowledge them. So the socket and the input have a thread each, and one channel brings
//! what they read to the thread that prints.
//!
//! Invariant: at most one message is on its way.
//! Invariant: standard input is read only when the message before has settled, or its turn has asked a question: then
//! the next line is the answer.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Read, Write};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use super::connection::{Connection, LineReader, LineWriter, Received, Seen, message, new_id};
use super::shown::{HINT, asks, shown};
use super::{ANSWER_MAX, ChatArgs, ChatError, Output};
use crate::base::printable::{one_line, printable};
use crate::channels::protocol::{FromClient, LINE_MAX, ToClient};

/// What the printing thread waits for.
enum News {
    /// A line of the daemon, or how the connection ended.
    Heard(Result<Received, ChatError>),
    /// A line of the input; none at its end.
    Typed(Result<Option<String>, ChatError>),
}

/// Says one thing and prints replies until its turn has ended.
///
/// # Errors
/// See [`ChatError`].
pub fn once(args: &ChatArgs, socket: &Path, text: &str, out: Output<'_>) -> Result<(), ChatError> {
    Conversation::open(args, socket, out)?.0.say(text)
}

/// Says every line of the input that is not empty. The first that does not complete ends it.
///
/// # Errors
/// See [`ChatError`].
pub fn lines(
    args: &ChatArgs,
    socket: &Path,
    input: impl BufRead + Send + 'static,
    out: Output<'_>,
) -> Result<(), ChatError> {
    let (mut conversation, news) = Conversation::open(args, socket, out)?;
    let (ask, asked) = mpsc::sync_channel(1);
    conversation.input = Some(InputThread { ask, is_asked: false, has_ended: false });
    // Ends when `ask` is dropped; while it waits for input it lasts as long as the process.
    thread::Builder::new().name("chat-input".into()).spawn(move || read_input(input, &asked, &news))?;
    loop {
        match conversation.typed()? {
            Some(text) => conversation.say(&text)?,
            None => return Ok(()),
        }
    }
}

fn read_input(mut input: impl BufRead, asked: &Receiver<()>, news: &SyncSender<News>) {
    while asked.recv().is_ok() {
        let typed = next_text(&mut input);
        let last = !matches!(typed, Ok(Some(_)));
        if news.send(News::Typed(typed)).is_err() || last {
            return;
        }
    }
}

/// The next line that is not empty, without its end.
fn next_text(input: &mut impl BufRead) -> Result<Option<String>, ChatError> {
    loop {
        let mut line = Vec::new();
        // What does not fit a line of the protocol need not be read to its end.
        let read = input.take(LINE_MAX as u64 + 1).read_until(b'\n', &mut line)?;
        if read > LINE_MAX {
            let reason = format!("a line of the input has more than {LINE_MAX} bytes");
            return Err(ChatError::Refused { reason });
        }
        let text = String::from_utf8(line).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("the input is not UTF-8: {error}"))
        })?;
        if !text.trim().is_empty() {
            return Ok(Some(text.trim_end_matches(['\n', '\r']).to_owned()));
        }
        if read == 0 {
            return Ok(None);
        }
    }
}

fn read_socket(mut reader: LineReader, news: &SyncSender<News>) {
    loop {
        let heard = reader.next();
        let last = heard.is_err();
        if news.send(News::Heard(heard)).is_err() || last {
            return;
        }
    }
}

/// The thread that reads the input: it reads one line when it is asked to.
struct InputThread {
    ask: SyncSender<()>,
    is_asked: bool,
    has_ended: bool,
}

impl InputThread {
    fn ask(&mut self) {
        if !self.is_asked && !self.has_ended {
            self.is_asked = true;
            // A thread that is gone has left its last word in the channel.
            let _ = self.ask.send(());
        }
    }
}

struct Conversation<'a> {
    writer: LineWriter,
    news: Receiver<News>,
    seen: Seen,
    out: &'a mut dyn Write,
    is_terminal: bool,
    json: bool,
    limit: Option<Duration>,
    input: Option<InputThread>,
    /// Questions of the turn that no line of the input has answered.
    questions: u32,
    /// The ids of the answers given.
    answers: BTreeSet<String>,
    /// The message that is on its way is on disk.
    is_accepted: bool,
    /// Why messages are not worked on, as last heard, and whether that is hopeless.
    stuck: Option<(String, bool)>,
}

impl<'a> Conversation<'a> {
    /// Joins the chat. The sender is for a further thread with news.
    fn open(args: &ChatArgs, socket: &Path, out: Output<'a>) -> Result<(Self, SyncSender<News>), ChatError> {
        let limit = args.limit();
        let wait = limit.map_or(ANSWER_MAX, |limit| limit.min(ANSWER_MAX));
        let Connection { reader, writer, hello } = Connection::open(socket, &args.chat, wait)?;
        // One line: a slow output holds up the socket, not the memory.
        let (send, news) = mpsc::sync_channel(1);
        let heard = send.clone();
        // Ends with the connection, which ends with the writer.
        thread::Builder::new().name("chat-hear".into()).spawn(move || read_socket(reader, &heard))?;
        let mut it = Self {
            writer,
            news,
            seen: Seen::default(),
            out: out.to,
            is_terminal: out.is_terminal,
            json: args.json,
            limit,
            input: None,
            questions: 0,
            answers: BTreeSet::new(),
            is_accepted: false,
            stuck: None,
        };
        it.print_raw(&hello)?;
        Ok((it, send))
    }

    fn say(&mut self, text: &str) -> Result<(), ChatError> {
        let own = new_id()?;
        let until = self.limit.and_then(|limit| Instant::now().checked_add(limit));
        self.send(&message(&own, text))?;
        self.questions = 0;
        self.answers.clear();
        (self.is_accepted, self.stuck) = (false, None);
        loop {
            if self.questions > 0
                && let Some(input) = &mut self.input
            {
                input.ask();
            }
            match self.next(until)? {
                News::Heard(heard) => {
                    if self.take(heard?, Some(&own))? {
                        return Ok(());
                    }
                    self.give_up_if_hopeless()?;
                }
                News::Typed(typed) => {
                    if let Some(text) = self.heard_input(typed)? {
                        self.questions = self.questions.saturating_sub(1);
                        let id = new_id()?;
                        self.send(&message(&id, &text))?;
                        self.answers.insert(id);
                    }
                }
            }
        }
    }

    /// Ends the wait for a message that is safe with the daemon and has no prospect of being worked on.
    fn give_up_if_hopeless(&mut self) -> Result<(), ChatError> {
        match self.stuck.take_if(|(_, hopeless)| *hopeless && self.is_accepted) {
            Some((reason, _)) => Err(ChatError::Stuck { reason }),
            None => Ok(()),
        }
    }

    /// Takes what the input's thread has read; none at the end of the input.
    fn heard_input(&mut self, typed: Result<Option<String>, ChatError>) -> Result<Option<String>, ChatError> {
        let typed = typed?;
        if let Some(input) = &mut self.input {
            input.is_asked = false;
            input.has_ended = typed.is_none();
        }
        Ok(typed)
    }

    /// The next message of the input. Replies are printed meanwhile.
    fn typed(&mut self) -> Result<Option<String>, ChatError> {
        match &mut self.input {
            Some(input) if !input.has_ended => input.ask(),
            _ => return Ok(None),
        }
        loop {
            match self.next(None)? {
                News::Typed(typed) => return self.heard_input(typed),
                News::Heard(heard) => {
                    self.take(heard?, None)?;
                }
            }
        }
    }

    fn next(&self, until: Option<Instant>) -> Result<News, ChatError> {
        let Some(until) = until else {
            return self.news.recv().map_err(|_| ChatError::Lost);
        };
        let wait = until.saturating_duration_since(Instant::now());
        self.news.recv_timeout(wait).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                ChatError::Timeout { seconds: self.limit.map_or(0, |limit| limit.as_secs()) }
            }
            RecvTimeoutError::Disconnected => ChatError::Lost,
        })
    }

    /// Sends a line. That the daemon is gone is heard from the reading half, after its last words.
    fn send(&mut self, line: &FromClient) -> Result<(), ChatError> {
        match self.writer.send(line) {
            Err(ChatError::Lost) => Ok(()),
            other => other,
        }
    }

    /// Takes one line of the daemon. True when the turn of the message `own` has completed.
    fn take(&mut self, received: Received, own: Option<&str>) -> Result<bool, ChatError> {
        self.print_raw(&received)?;
        match received.line {
            Some(reply @ ToClient::Message { .. }) => {
                let (text, asks) = (shown(&reply).unwrap_or_default(), asks(&reply));
                let ToClient::Message { id, .. } = reply else { return Ok(false) };
                if !self.seen.has(&id) {
                    self.print_text(&text)?;
                    self.seen.note(&id);
                    self.questions += u32::from(asks);
                    if asks && self.input.is_none() && !self.json {
                        // Standard output is for what the agent says.
                        eprintln!("{HINT}: `lamplighter chat` with the same --chat");
                    }
                }
                self.send(&FromClient::Ack { id })?;
                Ok(false)
            }
            Some(ToClient::Settled { id, outcome, reason }) if own == Some(id.as_str()) => {
                if outcome == "completed" { Ok(true) } else { Err(ChatError::TurnFailed { outcome, reason }) }
            }
            Some(ToClient::Refused { id, reason })
                if own == Some(id.as_str()) || self.answers.contains(&id) =>
            {
                Err(ChatError::Refused { reason })
            }
            Some(ToClient::Accepted { id, .. }) if own == Some(id.as_str()) => {
                self.is_accepted = true;
                Ok(false)
            }
            Some(ToClient::Stuck { reason, hopeless, .. }) => {
                let is_news = self.stuck.as_ref().is_none_or(|(told, _)| *told != reason);
                if is_news && !hopeless && own.is_some() && !self.json {
                    eprintln!("lamplighter: {}", one_line(&reason));
                }
                self.stuck = Some((one_line(&reason), hopeless));
                Ok(false)
            }
            Some(ToClient::Error { reason }) => Err(ChatError::Protocol(reason)),
            _ => Ok(false),
        }
    }

    fn print_text(&mut self, text: &str) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        let text = if self.is_terminal { printable(text) } else { text.to_owned() };
        self.out.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            self.out.write_all(b"\n")?;
        }
        self.out.flush()
    }

    fn print_raw(&mut self, received: &Received) -> io::Result<()> {
        if !self.json {
            return Ok(());
        }
        self.out.write_all(&received.raw)?;
        self.out.flush()
    }
}
