//! The command line and the environment.
//!
//! Invariant: pure; the environment comes in as a function, and nothing is opened here.

use std::path::PathBuf;

use lamplighter::session::SessionFolder;
use lamplighter::session::layout::{AGENT, IN};

/// What `--help` prints.
pub const HELP: &str = "\
lamplighter-runner: works off the messages of one session with an agent.

Usage: lamplighter-runner [--workspace DIR]

  --workspace DIR   a session folder with inbound.db and outbound.db inside
                    (NanoClaw's flat layout; the agent's folder is DIR/agent)
  -h, --help        print this
  -V, --version     print the version

Without --workspace the environment says where things are:
  LAMPLIGHTER_WORKSPACE   the folder to write in: outbound.db, .heartbeat, outbox/
  LAMPLIGHTER_IN          the folder to read from: inbound.db, inbox/, container.json
                          (default: in/ in the workspace)
  LAMPLIGHTER_AGENT       the agent's own folder (default: agent/ in the workspace)
  LAMPLIGHTER_ATTEMPT     the number of this start; a runner whose number is no longer
                          the stored one changes nothing and ends with 75
Also read:
  LAMPLIGHTER_LOG         debug, info (default), warn or error; log lines go to stderr
  LAMPLIGHTER_MOCK_REPLY  what the provider `mock` answers
  TZ                      the time zone of times in prompts, for example Europe/Berlin

Exit codes:
   0   asked to end by SIGTERM or SIGINT; messages of an unfinished turn were given back
  64   wrong command line or environment
  74   outbound.db or the workspace cannot be used
  75   another runner has taken over this session
  78   container.json cannot be used, or it names an unknown provider
";

/// How to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The session's files.
    pub folder: SessionFolder,
    /// The folder to write in; the provider's marker files go there too.
    pub workspace: PathBuf,
    /// The agent's own folder.
    pub agent: PathBuf,
    /// The number of this start, as the host gave it.
    pub attempt: Option<String>,
    /// What the provider `mock` answers.
    pub mock_reply: Option<String>,
    /// The name of the time zone.
    pub zone: Option<String>,
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
    /// Work.
    Run(Options),
}

/// Why the command line or the environment cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// Not one of ours.
    #[error("unknown argument {0:?}; see lamplighter-runner --help")]
    Unknown(String),
    /// Nothing follows it.
    #[error("--workspace needs a folder; for example --workspace /workspace")]
    NoFolder,
    /// Neither the flag nor the variable.
    #[error("no session folder is given; set LAMPLIGHTER_WORKSPACE or use --workspace DIR")]
    NoWorkspace,
}

/// Reads arguments (without the program's name) and environment.
///
/// # Errors
/// See [`UsageError`].
pub fn parse(
    args: impl IntoIterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Command, UsageError> {
    let env = |name: &str| env(name).filter(|value| !value.is_empty());
    let mut flat = None;
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "-h" | "--help" => return Ok(Command::Help),
            "-V" | "--version" => return Ok(Command::Version),
            "--workspace" => flat = Some(args.next().ok_or(UsageError::NoFolder)?),
            _ => match arg.strip_prefix("--workspace=") {
                Some("") => return Err(UsageError::NoFolder),
                Some(folder) => flat = Some(folder.to_owned()),
                None => return Err(UsageError::Unknown(arg)),
            },
        }
    }
    let (workspace, folder, agent) = match flat {
        Some(dir) => {
            let dir = PathBuf::from(dir);
            let agent = dir.join(AGENT);
            (dir.clone(), SessionFolder::flat(dir), agent)
        }
        None => {
            let workspace = PathBuf::from(env("LAMPLIGHTER_WORKSPACE").ok_or(UsageError::NoWorkspace)?);
            let inside = env("LAMPLIGHTER_IN").map_or_else(|| workspace.join(IN), PathBuf::from);
            let agent = env("LAMPLIGHTER_AGENT").map_or_else(|| workspace.join(AGENT), PathBuf::from);
            (workspace.clone(), SessionFolder::of_dirs(workspace, inside), agent)
        }
    };
    Ok(Command::Run(Options {
        folder,
        workspace,
        agent,
        attempt: env("LAMPLIGHTER_ATTEMPT"),
        mock_reply: env("LAMPLIGHTER_MOCK_REPLY"),
        zone: env("TZ"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str], env: &[(&str, &str)]) -> Result<Command, UsageError> {
        parse(args.iter().map(|arg| (*arg).to_owned()), |name| {
            env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_flat_folder_holds_everything() {
        for args in [&["--workspace", "/w"][..], &["--workspace=/w"]] {
            let Ok(Command::Run(options)) = run(args, &[("LAMPLIGHTER_IN", "/elsewhere")]) else {
                panic!("{args:?}")
            };
            assert!(options.folder.is_flat());
            assert_eq!(options.agent, PathBuf::from("/w/agent"));
        }
    }

    #[test]
    fn the_environment_names_both_folders() {
        let env = [
            ("LAMPLIGHTER_WORKSPACE", "/s/out"),
            ("LAMPLIGHTER_IN", "/s/in"),
            ("LAMPLIGHTER_ATTEMPT", "3.4"),
        ];
        let Ok(Command::Run(options)) = run(&[], &env) else { panic!("must run") };
        assert_eq!(options.folder.inbound_db(), PathBuf::from("/s/in/inbound.db"));
        assert_eq!(options.folder.outbound_db(), PathBuf::from("/s/out/outbound.db"));
        assert_eq!(options.attempt.as_deref(), Some("3.4"));
    }

    #[test]
    fn what_is_wrong_is_named_with_the_way_out() {
        assert_eq!(run(&[], &[]), Err(UsageError::NoWorkspace));
        assert_eq!(run(&["--workspace"], &[]), Err(UsageError::NoFolder));
        assert_eq!(run(&["--loud"], &[]), Err(UsageError::Unknown("--loud".into())));
        assert_eq!(run(&["-h"], &[]), Ok(Command::Help));
    }

    #[test]
    fn the_help_fits_a_terminal() {
        assert!(HELP.lines().all(|line| line.len() <= 90));
    }
}
