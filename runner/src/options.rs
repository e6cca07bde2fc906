//! The command line and the environment.
//!
//! Invariant: pure; the environment comes in as a function, and nothing is opened here.

use std::path::PathBuf;

use lamplighter::session::SessionFolder;
use lamplighter::session::layout::{AGENT, IN};

/// What `--help` prints.
pub const HELP: &str = "\
lamplighter-runner: works off the messages of one session with an agent.

Usage: lamplighter-runner [--workspace DIR] [--record FILE]
       lamplighter-runner mcp|precompact [--workspace DIR]
       lamplighter-runner check
       lamplighter-runner probe FILE

  mcp               offer the agent its tools (Model Context Protocol, on standard
                    input and output); the agent's program starts it
  precompact        archive the conversation and say what its summary must keep; Claude
                    Code calls it before it makes its conversation shorter
  check             read a container.json on standard input and say whether a run with it
                    would begin (exit code 0) or not (78); a host asks before it starts
  probe             make a new file and end: a host sees by it whose the files of its
                    containers are

  --workspace DIR   a session folder with inbound.db and outbound.db inside
                    (NanoClaw's flat layout; the agent's folder is DIR/agent)
  --record FILE     write what the provider is given and says to a new file, texts
                    included; the provider `cassette` plays it
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
  LAMPLIGHTER_PARENT      the process id of the host; a runner whose host has ended
                          before it began ends, too
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
    /// The process id of the host, where it is on the same machine.
    pub parent: Option<u32>,
    /// What the provider `mock` answers.
    pub mock_reply: Option<String>,
    /// The name of the time zone.
    pub zone: Option<String>,
    /// Where to write a recording of the provider.
    pub record: Option<PathBuf>,
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
    /// Offer tools.
    Mcp(Options),
    /// Prepare for a conversation to be made shorter.
    Precompact(Options),
    /// Say whether the container.json on standard input can be used; with the agent's folder.
    Check(PathBuf),
    /// Make a new file.
    Probe(PathBuf),
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
    /// Nothing follows it.
    #[error("--record needs a file that does not exist yet; for example --record turn.jsonl")]
    NoFile,
    /// Something follows it.
    #[error("check takes no arguments; container.json comes on standard input")]
    NoCheck,
    /// Nothing follows it, or too much.
    #[error("probe needs one file that does not exist yet; for example probe /workspace/mark")]
    NoProbe,
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
    let (mut flat, mut record) = (None, None);
    let mut args = args.into_iter().peekable();
    if args.next_if(|word| word == "probe").is_some() {
        return match (args.next(), args.next()) {
            (Some(path), None) if !path.is_empty() => Ok(Command::Probe(path.into())),
            _ => Err(UsageError::NoProbe),
        };
    }
    if args.next_if(|word| word == "check").is_some() {
        let agent = env("LAMPLIGHTER_AGENT").map_or_else(|| PathBuf::from("."), PathBuf::from);
        return if args.next().is_none() { Ok(Command::Check(agent)) } else { Err(UsageError::NoCheck) };
    }
    let word = args.next_if(|word| ["mcp", "precompact"].contains(&word.as_str()));
    while let Some(arg) = args.next() {
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (arg.as_str(), None),
        };
        let mut value = || value.clone().or_else(|| args.next()).filter(|value| !value.is_empty());
        match name {
            "-h" | "--help" => return Ok(Command::Help),
            "-V" | "--version" => return Ok(Command::Version),
            "--workspace" => flat = Some(value().ok_or(UsageError::NoFolder)?),
            "--record" => record = Some(value().ok_or(UsageError::NoFile)?),
            _ => return Err(UsageError::Unknown(arg)),
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
    let options = Options {
        folder,
        workspace,
        agent,
        attempt: env("LAMPLIGHTER_ATTEMPT"),
        parent: env("LAMPLIGHTER_PARENT").and_then(|pid| pid.parse().ok()),
        mock_reply: env("LAMPLIGHTER_MOCK_REPLY"),
        zone: env("TZ"),
        record: record.map(PathBuf::from),
    };
    Ok(match word.as_deref() {
        Some("mcp") => Command::Mcp(options),
        Some(_) => Command::Precompact(options),
        None => Command::Run(options),
    })
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
    fn the_tool_server_takes_the_same_folders() {
        let Ok(Command::Mcp(options)) = run(&["mcp", "--workspace=/w"], &[]) else { panic!("must serve") };
        assert!(options.folder.is_flat());
        assert_eq!(run(&["mcp", "now"], &[]), Err(UsageError::Unknown("now".into())));
    }

    #[test]
    fn what_is_wrong_is_named_with_the_way_out() {
        assert_eq!(run(&[], &[]), Err(UsageError::NoWorkspace));
        assert_eq!(run(&["--workspace"], &[]), Err(UsageError::NoFolder));
        assert_eq!(run(&["--workspace="], &[]), Err(UsageError::NoFolder));
        assert_eq!(run(&["--record"], &[]), Err(UsageError::NoFile));
        assert_eq!(run(&["--loud"], &[]), Err(UsageError::Unknown("--loud".into())));
        assert_eq!(run(&["-h"], &[]), Ok(Command::Help));
        assert_eq!(run(&["check"], &[("LAMPLIGHTER_AGENT", "/a")]), Ok(Command::Check("/a".into())));
        assert_eq!(run(&["check", "file"], &[]), Err(UsageError::NoCheck));
    }

    #[test]
    fn the_help_fits_a_terminal() {
        assert!(HELP.lines().all(|line| line.len() <= 90));
    }
}
