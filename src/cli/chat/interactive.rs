//! The conversation at a terminal: lines are edited and remembered, replies come in above the prompt.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, ExternalPrinter};

use super::connection::{Connection, new_id, send};
use super::{ChatArgs, ChatError};
use crate::channels::protocol::{FromClient, ToClient};

/// First wait before the daemon is looked for again; doubles up to [`AGAIN_MAX`].
const AGAIN_FIRST: Duration = Duration::from_millis(200);
/// The longest wait.
const AGAIN_MAX: Duration = Duration::from_secs(5);
/// What stands before a line that is typed.
const PROMPT: &str = "> ";

/// Messages that were said and not accepted yet: said again when the daemon comes back.
#[derive(Default)]
struct Unaccepted(Mutex<Vec<FromClient>>);

impl Unaccepted {
    fn with<T>(&self, then: impl FnOnce(&mut Vec<FromClient>) -> T) -> T {
        then(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs until the end of input.
///
/// # Errors
/// When the terminal or the first connection fails.
pub fn run(args: &ChatArgs, socket: &Path, history: &Path) -> Result<(), ChatError> {
    let mut editor = DefaultEditor::new().map_err(|error| ChatError::Protocol(error.to_string()))?;
    // No history yet, or one that cannot be read: the conversation goes on without.
    drop(editor.load_history(history));
    let connection = Connection::open(socket, &args.chat)?;
    let writer = Arc::new(Mutex::new(connection.sender()?));
    let unaccepted = Arc::new(Unaccepted::default());
    let mut printer =
        editor.create_external_printer().map_err(|error| ChatError::Protocol(error.to_string()))?;
    let receiver = {
        let (writer, unaccepted) = (Arc::clone(&writer), Arc::clone(&unaccepted));
        let (socket, chat) = (socket.to_owned(), args.chat.clone());
        move || {
            // A terminal that is gone ends the editor too.
            let mut print = |text: String| drop(printer.print(text + "\n"));
            let mut connection = connection;
            loop {
                follow(&mut connection, &unaccepted, &mut print);
                print("[the daemon went away; waiting for it]".into());
                connection = come_back(&socket, &chat);
                if let Ok(stream) = connection.sender() {
                    *writer.lock().unwrap_or_else(PoisonError::into_inner) = stream;
                }
                let again = unaccepted.with(|list| list.clone());
                if again.iter().all(|line| connection.send(line).is_ok()) {
                    print("[the daemon is back]".into());
                }
            }
        }
    };
    // Ends with the process: it waits for the daemon.
    std::thread::Builder::new().name("chat-receive".into()).spawn(receiver)?;
    loop {
        match editor.readline(PROMPT) {
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => {
                drop(editor.add_history_entry(&line));
                let line = FromClient::Message { id: Some(new_id()?), text: line, sender: None };
                unaccepted.with(|list| list.push(line.clone()));
                // When the daemon is away, the receiver sends it again as soon as it is back.
                drop(send(&mut writer.lock().unwrap_or_else(PoisonError::into_inner), &line));
            }
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => break,
            Err(error) => return Err(ChatError::Protocol(error.to_string())),
        }
    }
    drop(editor.save_history(history));
    Ok(())
}

/// Prints what comes until the connection is lost.
fn follow(connection: &mut Connection, unaccepted: &Unaccepted, print: &mut dyn FnMut(String)) {
    while let Ok(Some((_, line))) = connection.receive(None) {
        match line {
            ToClient::Message { id, text, .. } => {
                if connection.is_new(&id) {
                    print(text);
                }
                if connection.send(&FromClient::Ack { id }).is_err() {
                    return;
                }
            }
            ToClient::Accepted { id, .. } => forget(unaccepted, &id),
            ToClient::Refused { id, reason } => {
                forget(unaccepted, &id);
                print(format!("[not taken: {reason}]"));
            }
            ToClient::Typing { on: true, .. } => print("[working]".into()),
            ToClient::Settled { outcome, reason, .. } if outcome != "completed" => {
                print(format!("[{outcome}{}]", reason.map_or(String::new(), |why| format!(": {why}"))));
            }
            ToClient::Error { reason } => print(format!("[{reason}]")),
            _ => {}
        }
    }
}

fn forget(unaccepted: &Unaccepted, id: &str) {
    unaccepted.with(|list| {
        list.retain(|line| !matches!(line, FromClient::Message { id: Some(own), .. } if own == id));
    });
}

/// Waits for the daemon. There is no event for a socket that comes to life, so it is tried with growing waits.
fn come_back(socket: &Path, chat: &str) -> Connection {
    let mut wait = AGAIN_FIRST;
    loop {
        if let Ok(connection) = Connection::open(socket, chat) {
            return connection;
        }
        std::thread::sleep(wait);
        wait = (wait * 2).min(AGAIN_MAX);
    }
}
