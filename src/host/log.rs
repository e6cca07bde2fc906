//! The log: one root logger, built once; children carry ids.
//!
//! Invariant: a log that cannot be written, on a full disk for example, stops nobody.

use std::sync::Mutex;

use slog::{Drain, Level as SlogLevel, LevelFilter, Logger, o};

use super::config::{Format, Level, LogConfig};

/// Messages that wait to be written. Beyond it messages are dropped and counted in the log itself: a terminal that
/// does not read must not stop the daemon.
const WAITING_MAX: usize = 4_096;

/// The root logger. Writes to standard error; it is flushed when the last child is dropped.
pub fn root(config: &LogConfig) -> Logger {
    let level = match config.level {
        Level::Error => SlogLevel::Error,
        Level::Warning => SlogLevel::Warning,
        Level::Info => SlogLevel::Info,
        Level::Debug => SlogLevel::Debug,
    };
    let values = o!("version" => env!("CARGO_PKG_VERSION"));
    match config.format {
        Format::Terminal => {
            let decorator = slog_term::TermDecorator::new().stderr().build();
            let drain = slog_term::CompactFormat::new(decorator).build();
            Logger::root(behind_a_queue(drain, level), o!())
        }
        Format::Json => {
            let drain = Mutex::new(slog_json::Json::default(std::io::stderr()));
            Logger::root(behind_a_queue(drain, level), values)
        }
    }
}

fn behind_a_queue<D>(drain: D, level: SlogLevel) -> impl Drain<Ok = (), Err = slog::Never>
where
    D: Drain + Send + 'static,
{
    // Fused drains panic where a write fails, and the one behind the queue would do so in whoever logs next.
    let queue = slog_async::Async::new(drain.ignore_res())
        .chan_size(WAITING_MAX)
        .overflow_strategy(slog_async::OverflowStrategy::DropAndReport)
        .build();
    // Before the queue: what is not wanted must not take the place of what is.
    LevelFilter::new(queue, level).ignore_res()
}
