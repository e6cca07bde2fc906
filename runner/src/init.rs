//! The duties of a container's first process: reap what others leave behind, pass signals on, end with the runner.
//!
//! As PID 1 the runner starts itself once more and does nothing else. That one can then wait for its own children
//! without this one taking their exit codes away.
//!
//! Invariant: ends when the runner ends, with its exit code; 128 and the signal's number when a signal ended it.

use std::io;
use std::process::{Command, ExitCode};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

/// Tells the second process that it is one.
const CHILD: &str = "LAMPLIGHTER_INIT_CHILD";

/// Whether this process has the duties: it is the first of its namespace, or was asked to act as if.
pub fn is_first() -> bool {
    std::process::id() == 1 && std::env::var_os(CHILD).is_none()
}

/// Starts the runner again below this process, and serves it until it ends.
///
/// # Errors
/// When signals cannot be received or the runner cannot be started.
pub fn serve() -> io::Result<ExitCode> {
    // Before the child: a signal that comes in between waits here.
    let mut signals = Signals::new([SIGCHLD, SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2])?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).env(CHILD, "1");
    let child = command.spawn()?;
    let child = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let child = child.ok_or_else(|| io::Error::other("the runner has no process id"))?;
    for signal in signals.forever() {
        match Signal::from_named_raw(signal) {
            Some(Signal::CHILD) => {
                if let Some(code) = reap(child) {
                    return Ok(code);
                }
            }
            Some(signal) => {
                // Gone already: its end is on its way here.
                let _ = kill_process(child, signal);
            }
            None => {}
        }
    }
    Ok(ExitCode::FAILURE)
}

/// Takes every ended process; the exit code once the runner is among them.
fn reap(child: Pid) -> Option<ExitCode> {
    let mut code = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == child {
            let number = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => code,
                (None, Some(signal)) => 128 + signal,
                (None, None) => continue,
            };
            code = Some(ExitCode::from(u8::try_from(number).unwrap_or(255)));
        }
    }
    code
}
