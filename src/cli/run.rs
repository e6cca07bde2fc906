//! `lamplighter run`

use std::path::Path;
use std::sync::Arc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use slog::warn;

use super::args::{RunArgs, build};
use super::error::{CommandError, code};
use super::readiness::{self, State};
use crate::host::clock::OsClock;
use crate::host::config::{Config, Overrides};
use crate::host::daemon::stop_within;
use crate::host::event::Event;
use crate::host::folder::DataFolder;
use crate::host::{log, perform, startup};

/// What asks the daemon to stop; a terminal that is closed does, unless `nohup` says otherwise.
fn signals() -> Vec<i32> {
    let ignored = std::fs::read_to_string("/proc/self/status").ok().and_then(|status| {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    });
    let is_ignored = ignored.is_some_and(|mask| mask & (1 << (SIGHUP - 1)) != 0);
    let mut signals = vec![SIGTERM, SIGINT];
    signals.extend((!is_ignored).then_some(SIGHUP));
    signals
}

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
    if let Some(mode) = folder.open_to_others()? {
        warn!(log, "others can enter the data folder, where messages are; other things than a daemon's lie in it";
            "path" => %folder.root().display(), "mode" => format!("{mode:o}"), "advice" => "chmod 700");
    }
    // Before anybody can see that it runs: one who asks it to stop then is heard.
    let mut signals = signal_hook::iterator::Signals::new(signals())
        .map_err(|error| CommandError::new(code::IO, format!("cannot wait for signals: {error}"), ""))?;
    let stopping = State::Stopping { within: stop_within(&config) };
    let started = startup::start(folder, config, &log, Arc::new(OsClock), build().to_owned())?;
    let (events, handle) = (started.events.clone(), signals.handle());
    readiness::tell(State::Ready, &log);
    let waiter = std::thread::spawn(move || {
        // A second signal changes nothing: the time to stop is bounded already.
        for _ in signals.forever() {
            readiness::tell(stopping, &log);
            perform::send(&events, Event::Stop(None));
        }
    });
    let ended = started.daemon.run();
    drop(started.control);
    handle.close();
    drop(waiter.join());
    drop(started.lock);
    Ok(ended?)
}
