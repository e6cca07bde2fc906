//! Start-up: signals, files, the attempt, the provider, the watch; then the loop.
//!
//! Invariant: the attempt is stored, old claims and facts are gone, in one transaction before the first look. What was
//! handed to the agent stays on record.
//! Invariant: stdin is left open. The host's lock on the session hangs on it, and children inherit it.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lamplighter::base::{RecordNo, Wall};
use lamplighter::session::rows::{FACT_ATTEMPT, FACT_PUSHES, FACT_TOOLS, FACT_TURN, FACT_WAIT};
use lamplighter::session::runner_side::{InboundReader, Opening, OutboundError, OutboundWriter};
use lamplighter::session::{SessionFolder, ids};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::config::{Config, OWN_SERVER};
use crate::continuation;
use crate::desk::Desk;
use crate::facts::Working;
use crate::log::Log;
use crate::machine::Handed;
use crate::mailbox::Mailbox;
use crate::options::{Options, UsageError};
use crate::prompt::Formatter;
use crate::provider::{self, McpServer, ProviderError, Recorder, Setup};
use crate::runner::{Parts, Runner};
use crate::wake::watch::Watch;

/// Why the runner ends without having been asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The command line or the environment.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// Not there, so whatever else could be said would mislead.
    #[error("the workspace {} is not a folder", .0.display())]
    NoFolder(PathBuf),
    /// container.json.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The file of `--record`.
    #[error("cannot record to {}: {source}", .path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// outbound.db.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    /// Signals or threads.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl RunError {
    /// The process's exit code, as `--help` lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::NoFolder(_) | Self::Record { .. } => 64,
            Self::Outbound(OutboundError::Fenced { .. }) => 75,
            Self::Outbound(_) | Self::System { .. } => 74,
            Self::Provider(_) => 78,
        }
    }

    /// What may be done about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Usage(_) => "see lamplighter-runner --help",
            Self::NoFolder(_) => {
                "correct LAMPLIGHTER_WORKSPACE or --workspace, or mount the session's folder"
            }
            Self::Record { .. } => "name a file that does not exist yet, in a folder that can be written",
            Self::Provider(_) => "correct container.json; the host writes it before each start",
            Self::Outbound(error) => error.hint(),
            Self::System { .. } => "see the limits of the container or the user",
        }
    }
}

/// Runs until asked to end.
///
/// # Errors
/// See [`RunError`].
pub fn run(options: Options, log: Log) -> Result<(), RunError> {
    if !options.workspace.is_dir() {
        return Err(RunError::NoFolder(options.workspace));
    }
    let mailbox = Arc::new(Mailbox::default());
    stop_on_signals(Arc::clone(&mailbox))?;
    if options.attempt.is_some() && dies_with_parent(options.parent) {
        mailbox.stop();
    }
    let folder = &options.folder;
    let candidates = [folder.container_json(), options.agent.join("container.json")];
    let config = Config::load(&candidates, log);
    let attempt = options.attempt.clone().unwrap_or_else(own_attempt);
    let mut provider = provider::make(&config.provider, setup(&options, &config, &attempt))?;
    if let Some(path) = &options.record {
        let recorder = Recorder::new(provider, path, log);
        provider = Box::new(recorder.map_err(|source| RunError::Record { path: path.clone(), source })?);
    }
    let (outbound, handed) = take_over(folder, &attempt, &config.provider, log)?;
    let inbound = InboundReader::new(folder, opening_for(folder.in_dir())).brief();
    // The watch before the first look: what is written between the two is then announced.
    let looking = Arc::clone(&mailbox);
    let watch = Watch::start(&folder.inbound_db(), move || looking.look());
    if let Err(error) = &watch {
        log.warn("cannot watch the folder; polling alone", &[("reason", error)]);
    }
    log.info(
        "started",
        &[
            ("version", &env!("CARGO_PKG_VERSION")),
            ("attempt", &attempt),
            ("provider", &config.provider),
            ("in", &folder.in_dir().display()),
        ],
    );
    let formatter = Formatter::for_zone(options.zone.as_deref());
    Runner::new(Parts {
        folder: folder.clone(),
        agent: options.agent.clone(),
        numbered: options.attempt.is_some(),
        log,
        formatter,
        desk: Desk::new(inbound, outbound, config.provider.clone(), handed.fact(), log),
        handed,
        config,
        mailbox,
        provider,
    })
    .run()
}

/// Whether a run with this `container.json` would begin: its provider is known and takes its settings.
///
/// # Errors
/// See [`RunError`].
pub fn check(text: &mut dyn Read, agent: &Path) -> Result<(), RunError> {
    let config = Config::parse(text)
        .map_err(|reason| ProviderError::Settings { key: "the file".to_owned(), reason })?;
    let setup = Setup {
        settings: config.settings.clone(),
        workspace: agent.to_owned(),
        agent: agent.to_owned(),
        ..Setup::default()
    };
    provider::make(&config.provider, setup).map(drop)?;
    Ok(())
}

/// What the provider is made from. Its tools run as processes of their own, with what they need in their environment.
fn setup(options: &Options, config: &Config, attempt: &str) -> Setup {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let mut env = BTreeMap::from([
        ("LAMPLIGHTER_WORKSPACE".to_owned(), path(&options.workspace)),
        ("LAMPLIGHTER_IN".to_owned(), path(options.folder.in_dir())),
        ("LAMPLIGHTER_AGENT".to_owned(), path(&options.agent)),
        ("LAMPLIGHTER_ATTEMPT".to_owned(), attempt.to_owned()),
    ]);
    env.extend(options.zone.clone().map(|zone| ("TZ".to_owned(), zone)));
    let own = std::env::current_exe().ok().map(|exe| McpServer {
        name: OWN_SERVER.to_owned(),
        command: path(&exe),
        args: vec!["mcp".to_owned()],
        env,
    });
    Setup {
        settings: config.settings.clone(),
        workspace: options.workspace.clone(),
        agent: options.agent.clone(),
        mock_reply: options.mock_reply.clone(),
        model: config.model.clone(),
        effort: config.effort.clone(),
        mcp_servers: own.into_iter().chain(config.mcp_servers.iter().cloned()).collect(),
    }
}

/// Turns SIGTERM and SIGINT into a message for the loop. The handler itself only writes a byte.
fn stop_on_signals(mailbox: Arc<Mailbox>) -> Result<(), RunError> {
    let system = |doing| move |source| RunError::System { doing, source };
    let (mut read, write) = UnixStream::pair().map_err(system("make a pipe for signals"))?;
    for signal in [SIGTERM, SIGINT] {
        let write = write.try_clone().map_err(system("make a pipe for signals"))?;
        signal_hook::low_level::pipe::register(signal, write).map_err(system("handle signals"))?;
    }
    let listen = move || {
        let mut byte = [0];
        while read.read_exact(&mut byte).is_ok() {
            mailbox.stop();
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(listen)
        .map(|_| ())
        .map_err(system("start the thread for signals"))
}

/// Has the kernel send SIGTERM when the host's process ends, so that its messages are given back. Returns
/// whether that process, `host` where it has said its number, went before it could be arranged.
#[cfg(target_os = "linux")]
fn dies_with_parent(host: Option<u32>) -> bool {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    let before = getppid();
    // Where the kernel refuses, the lock on stdin still keeps a second runner out.
    let _ = set_parent_process_death_signal(Some(Signal::TERM));
    let parent = getppid();
    let number = parent.map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
    // A script between the two is the parent while the host lives.
    parent != before || host.is_some_and(|host| host != number && !runs(host))
}

/// Whether a process of that number runs; one that has ended and is only not waited for yet does not.
#[cfg(target_os = "linux")]
fn runs(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name before it may hold anything, closing brackets too.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

#[cfg(not(target_os = "linux"))]
fn dies_with_parent(_: Option<u32>) -> bool {
    false
}

/// The attempt of a runner whose host gives none: unlike any other, so that the latest start fences the
/// earlier.
fn own_attempt() -> String {
    ids::message(epoch_ms(wall_now()), crate::dispatch::random())
}

/// The wall clock. The runner's rows and prompts want the calendar's time; only waits use the monotonic
/// clock.
pub(crate) fn wall_now() -> Wall {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Wall(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// Milliseconds since the epoch, as ids have them.
pub(crate) fn epoch_ms(at: Wall) -> u64 {
    u64::try_from(at.0 / 1_000).unwrap_or(0)
}

/// Opens outbound.db, stores this attempt and forgets what earlier ones left open, unless a later one is stored.
/// Returns what they have handed to their agent.
fn take_over(
    folder: &SessionFolder,
    attempt: &str,
    provider: &str,
    log: Log,
) -> Result<(OutboundWriter, Handed), OutboundError> {
    let mut first = OutboundWriter::open(folder, None)?;
    let (stale, handed) = first.transaction(wall_now(), |tx| {
        let found = tx.state(FACT_ATTEMPT)?;
        if found.as_deref().is_some_and(|found| is_later(found, attempt)) {
            let (path, expected) = (folder.outbound_db(), attempt.to_owned());
            return Err(OutboundError::Fenced { path, expected, found });
        }
        let handed = match tx.state(FACT_PUSHES)? {
            Some(fact) => Handed::read(&fact),
            None => {
                // An earlier version noted no pushes, only all that was pushed.
                let turn = tx.state(FACT_TURN)?.map(|fact| Working::read(&fact)).unwrap_or_default();
                let handed = Handed::as_one(&turn.pushed);
                if let Some(fact) = handed.fact() {
                    tx.put_state(FACT_PUSHES, &fact)?;
                }
                handed
            }
        };
        tx.put_state(FACT_ATTEMPT, attempt)?;
        for fact in [FACT_TURN, FACT_TOOLS, FACT_WAIT] {
            tx.delete_state(fact)?;
        }
        tx.clear_tool()?;
        continuation::adopt_legacy(provider, tx)?;
        Ok((tx.clear_stale_claims()?, handed))
    })?;
    if stale > 0 {
        log.info("dropped claims of an earlier run", &[("claims", &stale)]);
    }
    // From here on every transaction is fenced; so is all that happened since the first.
    Ok((OutboundWriter::open(folder, Some(attempt.to_owned()))?.brief()?, handed))
}

/// Whether `found` is a later start than `attempt`. Only numbers as our host gives them can be compared.
fn is_later(found: &str, attempt: &str) -> bool {
    match (found.parse::<RecordNo>(), attempt.parse::<RecordNo>()) {
        (Ok(found), Ok(attempt)) => found > attempt,
        _ => false,
    }
}

/// A connection is kept where the kernel keeps the caches of both sides coherent: on local file systems. On
/// shares and across virtual machines a kept reader can see old pages for ever (contract 3).
#[cfg(target_os = "linux")]
pub(crate) fn opening_for(folder: &Path) -> Opening {
    /// ext4, btrfs, xfs, tmpfs, overlay, zfs, f2fs.
    const LOCAL: [u32; 7] =
        [0xEF53, 0x9123_683E, 0x5846_5342, 0x0102_1994, 0x794C_7630, 0x2FC1_2FC1, 0xF2F5_2010];
    // The type's width and sign differ between platforms; the magic numbers have 32 bits on all.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let is_local = |found: rustix::fs::StatFs| LOCAL.contains(&(found.f_type as u32));
    if rustix::fs::statfs(folder).is_ok_and(is_local) { Opening::Kept } else { Opening::Fresh }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn opening_for(_: &Path) -> Opening {
    Opening::Fresh
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Level;

    #[test]
    fn what_is_configured_is_checked_without_a_session() {
        let said =
            |text: &str| check(&mut text.as_bytes(), Path::new("/nowhere")).map_err(|it| it.to_string());
        assert_eq!(
            said(r#"{"provider": "mock", "mock": {"rules": [{"pattern": "a", "reply": "b"}]}}"#),
            Ok(())
        );
        for (text, part) in [
            (r#"{"provider": "nosuch"}"#, "\"nosuch\""),
            (r#"{"provider": "mock", "mock": {"rules": [{"pattern": "(", "reply": "b"}]}}"#, "mock.rules"),
            ("{", "the file"),
        ] {
            assert!(said(text).is_err_and(|error| error.contains(part)), "{text}: {:?}", said(text));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_host_that_is_gone_is_told_from_one_behind_a_script() -> Result<(), Box<dyn std::error::Error>> {
        assert!(runs(std::process::id()));
        let mut child = std::process::Command::new("true").spawn()?;
        let pid = child.id();
        rustix::process::waitid(
            rustix::process::WaitId::Pid(rustix::process::Pid::from_child(&child)),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
        )?;
        assert!(!runs(pid), "it has ended and was not waited for");
        child.wait()?;
        assert!(!runs(pid));
        Ok(())
    }

    #[test]
    fn only_a_later_number_of_our_host_stops_a_start() {
        assert!(is_later("3.12", "3.4"));
        assert!(is_later("4.0", "3.900"));
        assert!(!is_later("3.4", "3.4"));
        assert!(!is_later("msg-1-abc", "3.4"));
    }

    #[test]
    fn taking_over_forgets_claims_and_facts_of_the_run_before() -> Result<(), Box<dyn std::error::Error>> {
        let root = tempfile::tempdir()?;
        let folder = SessionFolder::flat(root.path());
        let log = Log::new(Level::Error);
        let (mut old, _) = take_over(&folder, "3.1", "mock", log)?;
        let working = Working { claimed: vec!["a".into()], pushed: vec!["a".into()], started: Vec::new() };
        old.transaction(wall_now(), |tx| {
            tx.claim(&["a"])?;
            tx.put_state(FACT_TURN, &working.fact(wall_now()))
        })?;
        let (new, handed) = take_over(&folder, "3.2", "mock", log)?;
        assert_eq!(handed, Handed::as_one(&["a".to_owned()]), "an earlier version's fact is understood");
        assert_eq!(new.state(FACT_PUSHES)?, handed.fact());
        assert!(!new.is_acked("a")?);
        assert_eq!(new.state(FACT_TURN)?, None);
        assert_eq!(new.state(FACT_ATTEMPT)?.as_deref(), Some("3.2"));
        assert!(matches!(take_over(&folder, "3.1", "mock", log), Err(OutboundError::Fenced { .. })));
        assert_eq!(take_over(&folder, "3.3", "mock", log)?.1, handed, "it stays on record");
        let late = old.transaction(wall_now(), |tx| tx.put_state("k", "v"));
        assert!(matches!(late, Err(OutboundError::Fenced { .. })));
        Ok(())
    }
}
