//! One connection to the chat socket, in two halves: one that hears and one that speaks.
//!
//! Invariant: no line is longer than `LINE_MAX`, either way.
//! Invariant: a failure to write ends both halves, so that whoever hears learns of it.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::ChatError;
use crate::channels::protocol::{FromClient, LINE_MAX, PROTOCOL, ToClient};

/// Ids of replies that are remembered. Only what was not acknowledged comes again, and soon.
const SEEN_MAX: usize = 4_096;

/// A fresh message id: 16 hexadecimal digits.
///
/// # Errors
/// When the system gives no random bytes.
pub fn new_id() -> io::Result<String> {
    let mut bytes = [0u8; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

/// A message of this client.
pub fn message(id: &str, text: &str) -> FromClient {
    FromClient::Message { id: Some(id.to_owned()), text: text.to_owned(), sender: None }
}

/// A line of the daemon.
#[derive(Debug)]
pub struct Received {
    /// As it came, with its end.
    pub raw: Vec<u8>,
    /// What it says; none for a kind of line that this client does not know, of a later daemon.
    pub line: Option<ToClient>,
}

/// A connection that has said hello.
pub struct Connection {
    /// Hears.
    pub reader: LineReader,
    /// Speaks.
    pub writer: LineWriter,
    /// The daemon's answer to `hello`.
    pub hello: Received,
}

impl Connection {
    /// Connects and joins a chat, receiving its replies. `wait` (not zero) bounds the answer to `hello`, and later
    /// how long the daemon may leave a line unread.
    ///
    /// # Errors
    /// `NoDaemon` when nobody listens, `Refused` when the daemon does not take the client or the chat's name,
    /// `Timeout` and `Lost` when there is no answer.
    pub fn open(socket: &Path, chat: &str, wait: Duration) -> Result<Self, ChatError> {
        let stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ChatError::NoDaemon { socket: socket.to_owned() }
            }
            kind => io::Error::new(kind, format!("cannot connect to {}: {error}", socket.display())).into(),
        })?;
        stream.set_read_timeout(Some(wait))?;
        stream.set_write_timeout(Some(wait))?;
        let mut writer = LineWriter { stream: stream.try_clone()? };
        let mut reader = LineReader { stream: BufReader::new(stream) };
        let said =
            writer.send(&FromClient::Hello { protocol: PROTOCOL, chat: chat.to_owned(), receive: true });
        let hello = reader.receive(wait)?;
        match &hello.line {
            Some(ToClient::Hello { .. }) => said?,
            // A daemon that takes no more clients says so without reading `hello`.
            Some(ToClient::Error { reason }) => return Err(ChatError::Refused { reason: reason.clone() }),
            _ => return Err(ChatError::Protocol("hello was not answered with hello".into())),
        }
        reader.stream.get_ref().set_read_timeout(None)?;
        Ok(Self { reader, writer, hello })
    }
}

/// The half that hears.
pub struct LineReader {
    stream: BufReader<UnixStream>,
}

impl LineReader {
    /// The next line, however long it takes.
    ///
    /// # Errors
    /// `Lost` when the daemon is gone, `Protocol` when the line is too long or no JSON.
    pub fn next(&mut self) -> Result<Received, ChatError> {
        self.receive(Duration::ZERO)
    }

    /// The next line; `wait` is the socket's limit, for the text of the error.
    fn receive(&mut self, wait: Duration) -> Result<Received, ChatError> {
        let mut raw = Vec::new();
        let room = LINE_MAX as u64 + 1;
        // Goes on by itself after an interruption by a signal.
        match (&mut self.stream).take(room).read_until(b'\n', &mut raw) {
            Ok(_) if raw.len() > LINE_MAX => {
                Err(ChatError::Protocol(format!("the daemon's line has more than {LINE_MAX} bytes")))
            }
            Ok(_) if raw.ends_with(b"\n") => Ok(Received { line: parse(&raw)?, raw }),
            Ok(_) => Err(ChatError::Lost),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(ChatError::Timeout { seconds: wait.as_secs() })
            }
            Err(_) => Err(ChatError::Lost),
        }
    }
}

/// What a line says; none when it is of a later protocol.
fn parse(raw: &[u8]) -> Result<Option<ToClient>, ChatError> {
    if let Ok(line) = serde_json::from_slice(raw) {
        return Ok(Some(line));
    }
    match serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(raw) {
        Ok(_) => Ok(None),
        Err(error) => Err(ChatError::Protocol(format!("the daemon's line is no JSON object: {error}"))),
    }
}

/// The half that speaks. When it is dropped the connection ends, and with it the reading half.
pub struct LineWriter {
    stream: UnixStream,
}

impl LineWriter {
    /// Sends one line.
    ///
    /// # Errors
    /// `Refused` when it is too long, `Lost` when the daemon is gone or does not read.
    pub fn send(&mut self, line: &FromClient) -> Result<(), ChatError> {
        let bytes = encode(line)?;
        self.stream.write_all(&bytes).map_err(|_| {
            // Part of the line may be written: nothing else can follow. What has come can still be read.
            drop(self.stream.shutdown(Shutdown::Both));
            ChatError::Lost
        })
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        // It may be closed already.
        drop(self.stream.shutdown(Shutdown::Both));
    }
}

/// A line with its end.
///
/// # Errors
/// `Refused` when it is longer than the daemon takes.
pub fn encode(line: &FromClient) -> Result<Vec<u8>, ChatError> {
    let mut bytes = serde_json::to_vec(line).map_err(io::Error::from)?;
    bytes.push(b'\n');
    if bytes.len() > LINE_MAX {
        let reason = format!("the message takes {} bytes, and at most {LINE_MAX} can be sent", bytes.len());
        return Err(ChatError::Refused { reason });
    }
    Ok(bytes)
}

/// The ids of the latest replies.
#[derive(Default)]
pub struct Seen {
    ids: BTreeSet<String>,
    order: VecDeque<String>,
}

impl Seen {
    /// Whether the id was noted before.
    pub fn has(&self, id: &str) -> bool {
        self.ids.contains(id)
    }

    /// Notes an id; the oldest is forgotten when there are too many.
    pub fn note(&mut self, id: &str) {
        if !self.ids.insert(id.to_owned()) {
            return;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > SEEN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}
