//! One connection to the chat socket.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::ChatError;
use crate::channels::protocol::{FromClient, LINE_MAX, PROTOCOL, ToClient};

/// A fresh message id: 16 hexadecimal digits.
///
/// # Errors
/// When the system gives no random bytes.
pub fn new_id() -> io::Result<String> {
    let mut bytes = [0u8; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}

/// A connection that has said hello.
pub struct Connection {
    reader: BufReader<UnixStream>,
    line: Vec<u8>,
    seen: BTreeSet<String>,
}

impl Connection {
    /// Connects and joins a chat, receiving its replies.
    ///
    /// # Errors
    /// When nobody listens, or the chat's name is refused.
    pub fn open(socket: &Path, chat: &str) -> Result<Self, ChatError> {
        let stream =
            UnixStream::connect(socket).map_err(|_| ChatError::NoDaemon { socket: socket.to_owned() })?;
        let mut connection = Self { reader: BufReader::new(stream), line: Vec::new(), seen: BTreeSet::new() };
        connection.send(&FromClient::Hello { protocol: PROTOCOL, chat: chat.to_owned(), receive: true })?;
        match connection.receive(None)? {
            Some((_, ToClient::Hello { .. })) => Ok(connection),
            Some((_, ToClient::Error { reason })) => Err(ChatError::Refused { reason }),
            Some((raw, _)) => Err(ChatError::Protocol(raw)),
            None => Err(ChatError::Lost),
        }
    }

    /// Another handle on the same socket, to send from a thread of its own.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn sender(&self) -> io::Result<UnixStream> {
        self.reader.get_ref().try_clone()
    }

    /// Sends one line.
    ///
    /// # Errors
    /// `Lost` when the daemon is gone.
    pub fn send(&mut self, line: &FromClient) -> Result<(), ChatError> {
        send(self.reader.get_mut(), line)
    }

    /// The next line as it came and as it reads; none when the limit is over.
    ///
    /// # Errors
    /// `Lost` when the daemon is gone.
    pub fn receive(&mut self, limit: Option<Instant>) -> Result<Option<(String, ToClient)>, ChatError> {
        loop {
            let wait = limit.map(|at| at.saturating_duration_since(Instant::now()));
            if wait == Some(Duration::ZERO) {
                return Ok(None);
            }
            self.reader.get_ref().set_read_timeout(wait)?;
            let room = (LINE_MAX + 1).saturating_sub(self.line.len()) as u64;
            match (&mut self.reader).take(room).read_until(b'\n', &mut self.line) {
                Ok(_) if self.line.ends_with(b"\n") => {}
                Ok(_) if self.line.len() > LINE_MAX => {
                    return Err(ChatError::Protocol("it is too long".into()));
                }
                Ok(_) => return Err(ChatError::Lost),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Err(ChatError::Lost),
            }
            let raw = String::from_utf8_lossy(&self.line).trim_end().to_owned();
            self.line.clear();
            // A line of a later protocol that this client does not know is passed over.
            if let Ok(line) = serde_json::from_str(&raw) {
                return Ok(Some((raw, line)));
            }
        }
    }

    /// Whether a reply's id comes for the first time.
    pub fn is_new(&mut self, id: &str) -> bool {
        self.seen.insert(id.to_owned())
    }
}

/// Sends one line.
///
/// # Errors
/// `Lost` when the daemon is gone.
pub fn send(stream: &mut UnixStream, line: &FromClient) -> Result<(), ChatError> {
    let mut bytes = serde_json::to_vec(line).map_err(io::Error::from)?;
    bytes.push(b'\n');
    stream.write_all(&bytes).map_err(|_| ChatError::Lost)
}
