//! The `lamplighter-runner` binary: parse, run, map an error to its exit code and hint.

use std::io::Write;
use std::process::ExitCode;

use lamplighter_runner::init;
use lamplighter_runner::launch::{self, RunError};
use lamplighter_runner::log::{Level, Log};
use lamplighter_runner::options::{self, Command, HELP};
use lamplighter_runner::{mcp, precompact};

/// Prints for people. Output that nobody reads is no failure.
fn tell(text: &str) -> Result<(), RunError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(source) if source.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(RunError::System { doing: "write the output", source })
        }
        _ => Ok(()),
    }
}

fn main() -> ExitCode {
    let level = std::env::var("LAMPLIGHTER_LOG").ok();
    let log = Log::new(level.as_deref().and_then(Level::from_word).unwrap_or(Level::Info));
    let env = |name: &str| std::env::var(name).ok();
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    let is_hook = std::env::args_os().nth(1).is_some_and(|word| word == "precompact");
    let done = match options::parse(args, env) {
        Ok(Command::Help) => tell(HELP),
        Ok(Command::Version) => tell(&format!("lamplighter-runner {}\n", env!("CARGO_PKG_VERSION"))),
        Ok(Command::Check(agent)) => launch::check(&mut std::io::stdin().lock(), &agent),
        Ok(Command::Probe(path)) => std::fs::File::create_new(path)
            .map(drop)
            .map_err(|source| RunError::System { doing: "make the file of a probe", source }),
        Ok(Command::Run(_)) if init::is_first() => match init::serve() {
            Ok(code) => return code,
            Err(source) => Err(RunError::System { doing: "act as the first process", source }),
        },
        Ok(Command::Run(options)) => launch::run(options, log),
        Ok(Command::Mcp(options)) => mcp::serve(options, log),
        Ok(Command::Precompact(options)) => {
            precompact::run(&options, log);
            Ok(())
        }
        Err(error) if is_hook => {
            // A hook that fails could stop the compaction that called it.
            log.warn("cannot prepare for a compaction", &[("reason", &error)]);
            Ok(())
        }
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
