//! Tells the service manager how far the daemon is, as sd_notify(3) has it: one datagram to the socket that
//! `NOTIFY_SOCKET` names.
//!
//! Invariant: without that variable nothing is done, and a manager that does not listen ends nothing.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use slog::{Logger, warn};

use crate::base::Ms;

/// What the manager is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Messages are taken from now on.
    Ready,
    /// It was asked to stop and will have ended after so long.
    Stopping {
        /// After that time something is wrong.
        within: Ms,
    },
}

impl State {
    fn text(self) -> String {
        match self {
            Self::Ready => "READY=1\n".to_owned(),
            // A grace that was raised in the configuration holds without a change of the unit.
            Self::Stopping { within } => {
                format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}\n", within.0.saturating_mul(1_000))
            }
        }
    }
}

/// Tells this process's manager, if it has one that asked to be told. What goes wrong is logged.
pub fn tell(state: State, log: &Logger) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else { return };
    if let Err(error) = send(&socket, state) {
        warn!(log, "cannot tell the service manager"; "socket" => %socket.display(), "why" => %error);
    }
}

fn send(socket: &OsStr, state: State) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.text().as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_hears_of_it_at_a_path_and_at_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let abstracted = format!("@lamplighter-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstracted[1..]).unwrap();
        let managers = [
            (UnixDatagram::bind(&path).unwrap(), path.as_os_str()),
            (UnixDatagram::bind_addr(&address).unwrap(), OsStr::new(&abstracted)),
        ];
        for (manager, socket) in managers {
            let mut buffer = [0; 256];
            let mut heard = |state| {
                send(socket, state).unwrap();
                let length = manager.recv(&mut buffer).unwrap();
                String::from_utf8_lossy(&buffer[..length]).into_owned()
            };
            assert_eq!(heard(State::Ready), "READY=1\n");
            let stopping = heard(State::Stopping { within: Ms::secs(2) });
            assert_eq!(stopping, "STOPPING=1\nEXTEND_TIMEOUT_USEC=2000000\n");
        }
        assert!(send(folder.path().join("nobody").as_os_str(), State::Ready).is_err());
    }
}
