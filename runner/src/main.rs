//! The `lamplighter-runner` binary: parse, run, map an error to its exit code and hint.

use std::process::ExitCode;

use lamplighter_runner::launch::{self, RunError};
use lamplighter_runner::log::{Level, Log};
use lamplighter_runner::options::{self, Command, HELP};

fn main() -> ExitCode {
    let level = std::env::var("LAMPLIGHTER_LOG").ok();
    let log = Log::new(level.as_deref().and_then(Level::from_word).unwrap_or(Level::Info));
    let env = |name: &str| std::env::var(name).ok();
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    let done = match options::parse(args, env) {
        Ok(Command::Help) => {
            print!("{HELP}");
            Ok(())
        }
        Ok(Command::Version) => {
            println!("lamplighter-runner {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Ok(Command::Run(options)) => launch::run(options, log),
        Err(error) => Err(RunError::Usage(error)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.error("ended", &[("reason", &error), ("hint", &error.hint()), ("code", &error.exit_code())]);
            ExitCode::from(error.exit_code())
        }
    }
}
