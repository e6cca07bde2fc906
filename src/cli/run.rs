//! `lamplighter run`

use std::path::Path;
use std::sync::Arc;

use signal_hook::consts::{SIGINT, SIGTERM};

use super::args::{RunArgs, build};
use super::error::{CommandError, code};
use crate::host::clock::OsClock;
use crate::host::config::{Config, Overrides};
use crate::host::event::Event;
use crate::host::folder::DataFolder;
use crate::host::{log, perform, startup};

/// Runs the daemon until it is asked to stop.
///
/// # Errors
/// When it does not start, or ends for a reason of its own.
pub fn run(data: &Path, args: &RunArgs) -> Result<(), CommandError> {
    let flags = Overrides {
        runtime: args.runtime.map(Into::into),
        level: args.log_level.map(Into::into),
        format: args.log_format.map(Into::into),
    };
    let env = |name: &str| std::env::var(name).ok();
    let config = Config::load(args.config.as_deref(), data, &env, &flags)?;
    let folder = DataFolder::prepare(data, &OsClock)?;
    let log = log::root(&config.log);
    // Before anybody can see that it runs: one who asks it to stop then is heard.
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])
        .map_err(|error| CommandError::new(code::IO, format!("cannot wait for signals: {error}"), ""))?;
    let started = startup::start(folder, config, &log, Arc::new(OsClock), build().to_owned())?;
    let (events, handle) = (started.events.clone(), signals.handle());
    let waiter = std::thread::spawn(move || {
        // A second signal changes nothing: the time to stop is bounded already.
        for _ in signals.forever() {
            perform::send(&events, Event::Stop);
        }
    });
    let ended = started.daemon.run();
    drop(started.control);
    handle.close();
    drop(waiter.join());
    drop(started.lock);
    Ok(ended?)
}
