//! Runs a foreign program so that it ends with the daemon: asks the kernel for a signal at the parent's death, then
//! becomes the program. Our own runner does this itself.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Becomes `command`. `parent` is the process id that must still be the parent once the signal is asked for: if the
/// daemon died in between, nothing would ever end the program.
///
/// # Errors
/// Returns only when it could not become the program.
pub fn exec_child(parent: u32, command: &[OsString]) -> io::Error {
    let Some((program, args)) = command.split_first() else {
        return io::Error::new(io::ErrorKind::InvalidInput, "no program was named");
    };
    let signal = rustix::process::Signal::KILL;
    if let Err(errno) = rustix::process::set_parent_process_death_signal(Some(signal)) {
        return errno.into();
    }
    let now = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
    if now != parent {
        return io::Error::other("the daemon ended before the program began");
    }
    Command::new(program).args(args).exec()
}
