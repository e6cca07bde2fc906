//! The conversation at a terminal: lines are edited and remembered, replies come in above the prompt.
//!
//! Invariant: one lock for writing to the socket, so lines of the two threads never mix.
//! Invariant: a message that was not accepted is said again, with its id, when the daemon is back.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, ExternalPrinter};

use super::connection::{Connection, LineReader, LineWriter, Seen, encode, message, new_id};
use super::shown::{HINT, asks, shown};
use super::{ANSWER_MAX, ChatArgs, ChatError, because, from_stdin};
use crate::base::printable::printable;
use crate::channels::protocol::{FromClient, ToClient};

/// First wait before the daemon is looked for again; doubles up to [`AGAIN_MAX`].
const AGAIN_FIRST: Duration = Duration::from_millis(200);
/// The longest wait: somebody sits there and looks.
const AGAIN_MAX: Duration = Duration::from_secs(5);
/// Messages kept for a daemon that is away: more than a person types before looking why nothing happens.
const UNACCEPTED_MAX: usize = 64;
/// Takes the line above the prompt away.
pub(super) const ERASE: &str = "\x1b[1A\x1b[2K";
/// What stands before a line that is typed.
const PROMPT: &str = "> ";

/// What the typing and the receiving thread share.
pub(super) struct Shared {
    writer: Mutex<LineWriter>,
    /// Messages that were said and not accepted yet, by id.
    unaccepted: Mutex<VecDeque<(String, FromClient)>>,
    /// Lines typed so far: one that was typed stands above the prompt.
    typed: AtomicU64,
    /// Whether what the client itself says is dim; NO_COLOR asks for plain text (no-color.org).
    dims: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// With nothing said yet.
    pub(super) fn new(writer: LineWriter, dims: bool) -> Self {
        Self { writer: Mutex::new(writer), unaccepted: Mutex::default(), typed: AtomicU64::new(0), dims }
    }

    /// What the client itself says between the replies.
    fn aside(&self, text: &str) -> String {
        if self.dims { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Says something. When the daemon is away it is said as soon as it is back.
    ///
    /// # Errors
    /// `Refused` when the text is too long or too much waits already.
    pub(super) fn say(&self, text: &str) -> Result<(), ChatError> {
        self.typed.fetch_add(1, Ordering::SeqCst);
        let id = new_id()?;
        let line = message(&id, text);
        encode(&line)?;
        {
            let mut unaccepted = lock(&self.unaccepted);
            if unaccepted.len() >= UNACCEPTED_MAX {
                let reason = format!("{UNACCEPTED_MAX} messages wait for the daemon already");
                return Err(ChatError::Refused { reason });
            }
            unaccepted.push_back((id, line.clone()));
        }
        // Lost: the receiving thread notices, and says it again on the next connection.
        drop(lock(&self.writer).send(&line));
        Ok(())
    }

    /// Goes on with another connection: what was not accepted is said again.
    pub(super) fn renew(&self, writer: LineWriter) -> Result<(), ChatError> {
        let mut current = lock(&self.writer);
        *current = writer;
        // Copied after the exchange: what is said from now on goes to the new connection by itself.
        let again: Vec<FromClient> = lock(&self.unaccepted).iter().map(|(_, line)| line.clone()).collect();
        again.iter().try_for_each(|line| current.send(line))
    }

    fn forget(&self, id: &str) {
        lock(&self.unaccepted).retain(|(own, _)| own != id);
    }
}

/// Runs until the end of input. A terminal that cannot edit lines is read like a pipe.
///
/// # Errors
/// When the terminal or the first connection fails.
pub fn run(args: &ChatArgs, socket: &Path, history: &Path) -> Result<(), ChatError> {
    let mut editor = DefaultEditor::new().map_err(of_terminal)?;
    let Ok(mut printer) = editor.create_external_printer() else {
        return from_stdin(args, socket);
    };
    // No history yet, or one that cannot be read: the conversation goes on without.
    drop(editor.load_history(history));
    let Connection { mut reader, writer, .. } = Connection::open(socket, &args.chat, ANSWER_MAX)?;
    let dims = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let shared = Arc::new(Shared::new(writer, dims));
    let (own, socket, chat) = (Arc::clone(&shared), socket.to_owned(), args.chat.clone());
    let receive = move || {
        let mut print = |text: String| printer.print(text + "\n").map_err(of_terminal);
        let mut seen = Seen::default();
        // A terminal that is gone ends the editor too.
        while let Ok(()) = follow(&mut reader, &own, &mut seen, &mut print) {
            let Ok(()) = print("[the daemon went away; waiting for it]".into()) else { return };
            let Ok(again) = come_back(&socket, &chat, &own, &mut print) else { return };
            reader = again;
        }
    };
    // Ends with the process: it waits for the daemon.
    std::thread::Builder::new().name("chat-receive".into()).spawn(receive)?;
    let done = converse(&mut editor, &shared);
    if let Err(error) = editor.save_history(history) {
        eprintln!("the lines typed are not remembered in {}: {error}", history.display());
    }
    done
}

/// Says what is typed.
fn converse(editor: &mut DefaultEditor, shared: &Shared) -> Result<(), ChatError> {
    loop {
        match editor.readline(PROMPT) {
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => {
                // A line that is not remembered is said all the same.
                drop(editor.add_history_entry(&line));
                match shared.say(&line) {
                    Err(ChatError::Refused { reason }) => {
                        writeln!(io::stdout(), "[not sent: {}]", printable(&reason))?
                    }
                    other => other?,
                }
            }
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(()),
            Err(error) => return Err(of_terminal(error)),
        }
    }
}

fn of_terminal(error: ReadlineError) -> ChatError {
    match error {
        ReadlineError::Io(error) => ChatError::Io(error),
        other => ChatError::Io(io::Error::other(other)),
    }
}

/// Prints what comes until the connection is lost.
///
/// # Errors
/// When printing failed.
pub(super) fn follow(
    reader: &mut LineReader,
    shared: &Shared,
    seen: &mut Seen,
    print: &mut dyn FnMut(String) -> Result<(), ChatError>,
) -> Result<(), ChatError> {
    let mut works = false;
    // That somebody works is shown until something else is: by then it stands in the way. Where nothing may be drawn,
    // or a line was typed below it, it stays.
    let mut above: Option<u64> = None;
    let typed = || shared.typed.load(Ordering::SeqCst);
    let mut print = |text: String, is_works: bool| {
        let erases = above.take().is_some_and(|then| then == typed() && shared.dims);
        above = is_works.then(typed);
        print(if erases { format!("{ERASE}{text}") } else { text })
    };
    loop {
        let line = match reader.next() {
            Ok(received) => received.line,
            Err(ChatError::Lost) => return Ok(()),
            Err(error) => return print(format!("[{error}]"), false),
        };
        match line {
            Some(reply @ ToClient::Message { .. }) => {
                let text = shown(&reply).unwrap_or_default();
                let asks = asks(&reply);
                let ToClient::Message { id, .. } = reply else { continue };
                if !seen.has(&id) {
                    print(printable(&text), false)?;
                    if asks {
                        print(shared.aside(HINT), false)?;
                    }
                    seen.note(&id);
                }
                // Lost: the next read says so, and the reply comes again.
                drop(lock(&shared.writer).send(&FromClient::Ack { id }));
            }
            Some(ToClient::Accepted { id, .. }) => shared.forget(&id),
            Some(ToClient::Refused { id, reason }) => {
                shared.forget(&id);
                print(format!("[not taken: {}]", printable(&reason)), false)?;
            }
            Some(ToClient::Typing { chat, on }) => {
                if on && !works {
                    print(shared.aside(&format!("{} is working", printable(&chat))), true)?;
                }
                works = on;
            }
            Some(ToClient::Stuck { reason, .. }) => print(format!("[{}]", printable(&reason)), false)?,
            Some(ToClient::Settled { outcome, reason, .. }) if outcome != "completed" => {
                let text = format!("[the turn ended as {outcome}{}]", because(reason.as_deref()));
                print(printable(&text), false)?;
            }
            Some(ToClient::Error { reason }) => print(format!("[{}]", printable(&reason)), false)?,
            _ => {}
        }
    }
}

/// Waits for the daemon. There is no event for a socket that comes to life, so it is tried with growing waits.
///
/// # Errors
/// When printing failed.
fn come_back(
    socket: &Path,
    chat: &str,
    shared: &Shared,
    print: &mut dyn FnMut(String) -> Result<(), ChatError>,
) -> Result<LineReader, ChatError> {
    let mut wait = AGAIN_FIRST;
    let mut told = String::new();
    loop {
        // Also before the first try: a daemon that cuts this client off at once is not pestered.
        std::thread::sleep(wait);
        wait = (wait * 2).min(AGAIN_MAX);
        let back = Connection::open(socket, chat, ANSWER_MAX)
            .and_then(|Connection { reader, writer, .. }| shared.renew(writer).map(|()| reader));
        match back {
            Ok(reader) => {
                print("[the daemon is back]".into())?;
                return Ok(reader);
            }
            Err(ChatError::NoDaemon { .. } | ChatError::Lost) => {}
            // Such as too many clients: said once, and tried again.
            Err(error) => {
                let reason = printable(&error.to_string());
                if reason != told {
                    print(format!("[{reason}]"))?;
                    told = reason;
                }
            }
        }
    }
}
