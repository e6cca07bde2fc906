//! The log: one root logger, built once; children carry ids.

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
            let drain = slog_term::CompactFormat::new(decorator).build().fuse();
            Logger::root(behind_a_queue(LevelFilter::new(drain, level)), o!())
        }
        Format::Json => {
            let drain = Mutex::new(slog_json::Json::default(std::io::stderr())).map(slog::Fuse);
            Logger::root(behind_a_queue(LevelFilter::new(drain, level)), values)
        }
    }
}

fn behind_a_queue<D>(drain: D) -> slog::Fuse<slog_async::Async>
where
    D: Drain<Err = slog::Never> + Send + 'static,
    D::Ok: Send,
    LevelFilter<D>: Drain,
{
    slog_async::Async::new(drain.fuse())
        .chan_size(WAITING_MAX)
        .overflow_strategy(slog_async::OverflowStrategy::DropAndReport)
        .build()
        .fuse()
}
