//! The control socket: one JSON line asks, one answers. For the commands of the same user on the same machine.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::AtStop;
use super::folder::DataFolder;
use super::stuck::quoted;

/// The protocol's version.
pub const PROTOCOL: u32 = 1;
/// Longest line either way: a status of ten thousand sessions fits.
const LINE_MAX: u64 = 16 << 20;
/// Requests at once; each has a thread for as long as it takes.
const CLIENTS_MAX: usize = 32;
/// A client that is silent for so long is cut off.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long a daemon may take to answer: longer than the slowest of its answers, the reset of a session on a slow disk.
pub const ANSWER_MAX: Duration = Duration::from_secs(30);

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Everything in short.
    Status,
    /// One session in full.
    SessionShow {
        /// Its name, `group/session`, or the last part of it.
        session: String,
    },
    /// Stop a session and hold it.
    SessionStop {
        /// See above.
        session: String,
    },
    /// Lift hold, back-off and quarantine.
    SessionStart {
        /// See above.
        session: String,
    },
    /// Begin with a fresh outbound.db.
    SessionReset {
        /// See above.
        session: String,
    },
    /// Try an inbound message again.
    MessageRetry {
        /// Its id.
        message: String,
    },
    /// Give a message up.
    MessageDrop {
        /// Its id.
        message: String,
    },
    /// Deliver an outbound message again.
    MessageResend {
        /// Its id.
        message: String,
    },
    /// Stop the daemon.
    Shutdown {
        /// What becomes of containers; none for what the configuration says.
        #[serde(default)]
        containers: Option<AtStop>,
    },
}

#[derive(Serialize, Deserialize)]
struct Line {
    protocol: u32,
    #[serde(flatten)]
    request: Request,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Ok(Value),
    Error(String),
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("no daemon is running on {data}")]
    NoDaemon {
        /// The data folder.
        data: PathBuf,
    },
    /// Something listens and cannot be reached.
    #[error("cannot ask the daemon at {socket}: {source}")]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It took the question, or not even that, and said nothing.
    #[error("{} does not answer at {socket} within {} s", named(*pid), ANSWER_MAX.as_secs())]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// Its process id, where it is known.
        pid: Option<u32>,
    },
    /// The daemon said no.
    #[error("{0}")]
    Refused(String),
    /// The daemon did not answer, or not in this protocol.
    #[error("the daemon's answer cannot be used: {0}")]
    Broken(String),
}

fn named(pid: Option<u32>) -> String {
    pid.map_or_else(|| "the daemon".into(), |pid| format!("the daemon (process {pid})"))
}

impl ControlError {
    /// What may be done about it.
    pub fn hint(&self) -> String {
        match self {
            Self::NoDaemon { data } => {
                format!("start it with `lamplighter run --data {}`", quoted(&data.to_string_lossy()))
            }
            Self::Unreachable { .. } => "see that the data folder is yours".into(),
            Self::Silent { .. } => "see whether it is stopped (kill -CONT) or waits for its disk".into(),
            Self::Refused(_) => "`lamplighter status` shows what there is".into(),
            Self::Broken(_) => "see that command and daemon are of the same build".into(),
        }
    }
}

/// Answers requests. Blocks for as long as the answer takes.
pub type Handler = Arc<dyn Fn(Request) -> Result<Value, String> + Send + Sync>;

/// The listening side.
pub struct ControlServer {
    path: PathBuf,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Listens on `path`; the caller holds the data folder's lock.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn start(path: &Path, handler: Handler) -> io::Result<Self> {
        if path.symlink_metadata().is_ok() {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || accept(&listener, &stop, &handler))?;
        Ok(Self { path: path.to_owned(), stopping, thread: Some(thread) })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        drop(UnixStream::connect(&self.path));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        // Gone, or another daemon's: neither matters now.
        drop(std::fs::remove_file(&self.path));
    }
}

fn accept(listener: &UnixListener, stopping: &AtomicBool, handler: &Handler) {
    let clients = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        if stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        if clients.fetch_add(1, Ordering::SeqCst) >= CLIENTS_MAX {
            clients.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (handler, counted) = (Arc::clone(handler), Arc::clone(&clients));
        let served = std::thread::Builder::new().name("control-client".into()).spawn(move || {
            // A client that goes away in the middle has nobody to tell.
            drop(serve(stream, &handler));
            counted.fetch_sub(1, Ordering::SeqCst);
        });
        if served.is_err() {
            clients.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn serve(mut stream: UnixStream, handler: &Handler) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    let peer = rustix::net::sockopt::socket_peercred(&stream)?.uid.as_raw();
    let answer = if peer != rustix::process::geteuid().as_raw() && peer != 0 {
        Answer::Error(format!("user {peer} may not talk to this daemon"))
    } else {
        let mut line = String::new();
        BufReader::new(&stream).take(LINE_MAX).read_line(&mut line)?;
        match serde_json::from_str::<Line>(&line) {
            Ok(line) if line.protocol == PROTOCOL => {
                handler(line.request).map_or_else(Answer::Error, Answer::Ok)
            }
            Ok(line) => {
                Answer::Error(format!("this daemon speaks protocol {PROTOCOL}, not {}", line.protocol))
            }
            Err(error) => Answer::Error(format!("not a request of this protocol: {error}")),
        }
    };
    let mut text = serde_json::to_vec(&answer).map_err(io::Error::other)?;
    text.push(b'\n');
    stream.write_all(&text)
}

/// Asks the daemon of a data folder.
///
/// # Errors
/// See [`ControlError`].
pub fn call(data: &DataFolder, request: Request) -> Result<Value, ControlError> {
    call_within(data, request, ANSWER_MAX)
}

fn call_within(data: &DataFolder, request: Request, limit: Duration) -> Result<Value, ControlError> {
    let socket = data.control_socket();
    let mut stream = connect(&socket, limit).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ControlError::NoDaemon { data: data.root().to_owned() }
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            ControlError::Silent { socket: socket.clone(), pid: data.holder() }
        }
        _ => ControlError::Unreachable { socket: socket.clone(), source },
    })?;
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            ControlError::Silent { socket: socket.clone(), pid: data.holder() }
        }
        _ => ControlError::Broken(error.to_string()),
    };
    let broken = |error: &dyn std::fmt::Display| ControlError::Broken(error.to_string());
    let mut text = serde_json::to_vec(&Line { protocol: PROTOCOL, request }).map_err(|e| broken(&e))?;
    text.push(b'\n');
    stream.write_all(&text).map_err(failed)?;
    let mut line = String::new();
    BufReader::new(stream).take(LINE_MAX).read_line(&mut line).map_err(failed)?;
    if line.is_empty() {
        return Err(ControlError::Broken("it closed the connection".into()));
    }
    match serde_json::from_str(&line).map_err(|e| broken(&e))? {
        Answer::Ok(value) => Ok(value),
        Answer::Error(reason) => Err(ControlError::Refused(reason)),
    }
}

/// Connects with a limit for everything: a daemon that does not accept lets a plain connect wait for ever.
fn connect(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let kind = SocketType::STREAM;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    for timeout in [Timeout::Send, Timeout::Recv] {
        set_socket_timeout(&socket, timeout, Some(limit))?;
    }
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::clock::OsClock;

    #[test]
    fn a_daemon_that_does_not_answer_is_given_up_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataFolder::prepare(folder.path(), &OsClock).unwrap();
        let _lock = data.lock().unwrap();
        let listener = UnixListener::bind(data.control_socket()).unwrap();
        let ask = || call_within(&data, Request::Status, Duration::from_millis(20)).unwrap_err();
        let error = ask().to_string();
        let own = format!("(process {})", std::process::id());
        assert!(error.contains(&own) && error.contains("run/control.sock"), "{error}");
        // Nobody accepts: at some number of them a connect waits, too.
        let waiting: Vec<_> = (0..5_000)
            .map_while(|_| connect(&data.control_socket(), Duration::from_millis(1)).ok())
            .collect();
        assert!(waiting.len() < 5_000);
        assert!(matches!(ask(), ControlError::Silent { .. }));
        drop((waiting, listener));
        assert!(matches!(ask(), ControlError::NoDaemon { .. }));
        std::fs::remove_file(data.control_socket()).unwrap();
        std::fs::create_dir(data.control_socket()).unwrap();
        std::fs::remove_dir(data.control_socket()).unwrap();
        std::os::unix::fs::symlink(data.control_socket(), data.control_socket()).unwrap();
        assert!(matches!(ask(), ControlError::Unreachable { .. }), "a link to itself");
    }

    #[test]
    fn a_request_is_answered_and_a_missing_daemon_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataFolder::prepare(folder.path(), &OsClock).unwrap();
        let path = data.control_socket();
        let ask = || call(&data, Request::MessageDrop { message: "m".into() });
        assert!(matches!(ask(), Err(ControlError::NoDaemon { .. })));
        let handler: Handler = Arc::new(|request| match request {
            Request::MessageDrop { message } => Err(format!("no message {message}")),
            _ => Ok(Value::Null),
        });
        let server = ControlServer::start(&path, handler).unwrap();
        assert!(matches!(ask(), Err(ControlError::Refused(reason)) if reason == "no message m"));
        assert_eq!(call(&data, Request::Status).unwrap(), Value::Null);
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"{}\n").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        assert!(line.contains("not a request"), "{line}");
        drop(server);
        assert!(matches!(ask(), Err(ControlError::NoDaemon { .. })));
    }
}
