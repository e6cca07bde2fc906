//! What a daemon would find here: configuration, folder, space, limits, events, clock, runner or engine, agent. Each
//! finding says what to do about it.
//!
//! Invariant: changes nothing but folders and a container of its own, which it removes; needs no daemon and disturbs
//! none.

mod clock;
mod engine;

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::agent;
use super::asking::{self, Verdict};
use super::config::{Config, RuntimeKind};
use super::ear::Ear;
use super::folder::DataFolder;
use super::startup;
use super::stuck::quoted;
use crate::containers::docker::probe::is_gone;
use crate::reactor::stat::Mount;

/// Fewer watches than this leave little beside what other programs take.
const FEW_WATCHES: u64 = 8_192;
/// Fewer watcher instances than this are used up by a desktop alone.
const FEW_INSTANCES: u64 = 64;
/// A file is open for each session at work, and for each of its connections.
const FEW_FILES: u64 = 1_024;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// As it should be.
    Good,
    /// It works, and could be better.
    Warning,
    /// A daemon would not start, or not do its work.
    Bad,
}

impl Grade {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Warning => "warning",
            Self::Bad => "bad",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub topic: &'static str,
    /// How it is.
    pub grade: Grade,
    /// In words.
    pub found: String,
    /// What to do; empty where there is nothing to be done.
    pub advice: String,
}

impl Finding {
    /// As it should be.
    pub fn good(topic: &'static str, found: impl Into<String>) -> Self {
        Self { topic, grade: Grade::Good, found: found.into(), advice: String::new() }
    }

    /// Could be better.
    pub fn warning(topic: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { topic, grade: Grade::Warning, found: found.into(), advice: advice.into() }
    }

    /// Stands in the way.
    pub fn bad(topic: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { topic, grade: Grade::Bad, found: found.into(), advice: advice.into() }
    }
}

/// Looks at everything, in the order in which a start would need it.
pub fn examine(data: &Path, config: &Config, env: &dyn Fn(&str) -> Option<String>) -> Vec<Finding> {
    let near = existing(data);
    let mut removed = remove_left(&near);
    // Where one was that looked before the data folder was made.
    removed.extend(near.parent().map(remove_left).unwrap_or_default());
    let removed: Vec<String> = removed.iter().map(|path| path.display().to_string()).collect();
    let mut findings = vec![folder(data), space(&near, config), mount(&near)];
    findings.extend(left(&removed));
    findings.push(events(&near));
    findings.extend(limits());
    findings.push(clock::examine());
    match config.runtime.kind {
        RuntimeKind::Process => findings.push(runner(config, env)),
        RuntimeKind::Docker => findings.extend(engine::examine(data, &near, config, env)),
    }
    findings.push(provider(data, config));
    findings.extend(agent_of(config, env));
    findings
}

/// Whether the runner takes what is configured for it, in its own words.
fn provider(data: &Path, config: &Config) -> Finding {
    let (topic, name) = ("provider", config.agent.provider.clone());
    let folder = data.join("groups").join(&config.agent.folder);
    match startup::runner_to_ask(config).map(|runner| asking::check(&runner, &config.agent, &folder)) {
        Some(Verdict::Refused(reason)) => {
            let error = startup::StartError::Agent { reason };
            Finding::bad(topic, error.to_string(), error.hint())
        }
        Some(Verdict::Unknown(why)) => {
            let advice = "see that daemon and runner are of the same build";
            Finding::warning(
                topic,
                format!("{name}; the runner does not say whether it takes it: {why}"),
                advice,
            )
        }
        // A runner that is not ours has its own providers.
        Some(Verdict::Taken) | None => Finding::good(topic, name),
    }
}

/// The folder, or the nearest one above it that there is.
fn existing(data: &Path) -> PathBuf {
    let absolute = std::path::absolute(data).unwrap_or_else(|_| data.to_owned());
    absolute.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// What every folder that an examination makes begins with; its process id follows.
const OWN_FOLDER: &str = ".lamplighter-doctor-";

/// A folder to try things in, beside or in the data folder.
fn own_folder(near: &Path) -> PathBuf {
    near.join(format!("{OWN_FOLDER}{}", std::process::id()))
}

/// As which installation things are tried on an engine for this data folder, which need not be there: the same
/// one each time, so that what was left is found.
pub fn installation(data: &Path) -> String {
    let near = existing(data);
    let absolute = std::path::absolute(data).unwrap_or_else(|_| data.to_owned());
    let rest = absolute.strip_prefix(&near).unwrap_or(Path::new(""));
    // By its parts, for a join with nothing ends in a slash.
    let place: PathBuf = near.canonicalize().unwrap_or(near).join(rest).components().collect();
    format!("doctor-{:016x}", xxhash_rust::xxh3::xxh3_64(place.as_os_str().as_encoded_bytes()))
}

/// Removes the folders that examinations made here whose process is gone, and says which.
pub fn remove_left(near: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(near) else { return Vec::new() };
    let is_left = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()?.strip_prefix(OWN_FOLDER)?.parse().ok());
        name.is_some_and(is_gone) && path.symlink_metadata().is_ok_and(|found| found.is_dir())
    };
    let mut left: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| is_left(path)).collect();
    left.retain(|path| fs::remove_dir_all(path).is_ok());
    left.sort();
    left
}

/// What an examination that was killed had left, and is removed.
fn left(removed: &[String]) -> Option<Finding> {
    let text = || format!("left by a doctor that was killed, and removed: {}", removed.join(", "));
    (!removed.is_empty()).then(|| Finding::good("leftovers", text()))
}

fn folder(data: &Path) -> Finding {
    let topic = "data folder";
    let shown = data.display();
    let found = match fs::metadata(data) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Finding::good(topic, format!("{shown} is not there yet; the first start makes it"));
        }
        Err(error) => {
            return Finding::bad(topic, format!("{shown}: {error}"), "name a folder of your own with --data");
        }
    };
    let user = rustix::process::geteuid().as_raw();
    if found.uid() != user {
        let text = format!("{shown} belongs to user {}, and this is user {user}", found.uid());
        return Finding::bad(topic, text, "run as its owner, or name another folder with --data");
    }
    let mode = found.permissions().mode() & 0o777;
    let is_open = mode & 0o077 != 0;
    match DataFolder::open(data) {
        // What stands in the way comes before what could be better.
        Err(error) if !error.is_never_run() => Finding::bad(topic, error.to_string(), error.hint()),
        _ if is_open => {
            let advice = format!("chmod 700 {}", quoted(&data.to_string_lossy()));
            Finding::warning(topic, format!("{shown} can be read by others (mode {mode:o})"), advice)
        }
        Ok(folder) => {
            let sessions = folder.session_names().map(|names| names.len()).unwrap_or(0);
            Finding::good(
                topic,
                format!("{shown}, {sessions} sessions, installation {:016x}", folder.installation()),
            )
        }
        Err(_) => Finding::good(topic, format!("{shown} is empty; the first start fills it")),
    }
}

fn space(near: &Path, config: &Config) -> Finding {
    let topic = "disk space";
    let stat = match rustix::fs::statvfs(near) {
        Ok(stat) => stat,
        Err(error) => {
            return Finding::warning(topic, format!("{} does not tell: {error}", near.display()), "");
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let (mib, reserve) = (free >> 20, config.limits.disk_reserve);
    let inodes = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
    if free < reserve {
        let text =
            format!("{mib} MiB are free, below the reserve of {} MiB: nothing is accepted", reserve >> 20);
        return Finding::bad(topic, text, "free space, or lower limits.disk_reserve");
    }
    if inodes < 10_000 {
        let text = format!("{mib} MiB are free, but only {inodes} inodes");
        return Finding::warning(topic, text, "remove small files, or use another file system");
    }
    if free < config.journal.keep_bytes {
        let text = format!("{mib} MiB are free, less than the journal may grow to");
        return Finding::warning(topic, text, "free space, or lower journal.keep_bytes");
    }
    Finding::good(topic, format!("{mib} MiB are free"))
}

fn mount(near: &Path) -> Finding {
    match Mount::of(near) {
        Mount::Local => Finding::good(
            "file system",
            format!(
                "local; should no event tell of changes all the same, running sessions are looked at every {:?}",
                Mount::NoEvents.late()
            ),
        ),
        mount => Finding::warning(
            "file system",
            format!("{mount}: others may write here without an event"),
            format!(
                "it works, by looking at each running session every {:?}; a local disk is faster",
                mount.late()
            ),
        ),
    }
}

/// Measures whether a change in a watched folder is announced, and how fast.
fn events(near: &Path) -> Finding {
    let topic = "file events";
    let advice = "sessions are then looked at every reactor.resync; use a local disk for events";
    let probe = own_folder(near);
    if let Err(error) = fs::create_dir(&probe) {
        return Finding::warning(topic, format!("not measured: {}: {error}", probe.display()), "");
    }
    let measured = announced(&probe);
    // It is empty but for our own file; what is left over says so by its name.
    drop(fs::remove_dir_all(&probe));
    match measured {
        Ok(Some(after)) => Finding::good(topic, format!("announced after {} µs", after.as_micros())),
        Ok(None) => Finding::warning(topic, "a change in a watched folder was not announced", advice),
        Err(error) => Finding::bad(topic, error.to_string(), error_advice(&error)),
    }
}

fn error_advice(error: &crate::reactor::watch::WatchError) -> &'static str {
    use crate::reactor::watch::WatchError;
    match error {
        WatchError::NoWatchesLeft => "sysctl fs.inotify.max_user_watches=524288",
        WatchError::NoInstancesLeft(_) => "sysctl fs.inotify.max_user_instances=1024",
        _ => "see what the system says about it",
    }
}

fn announced(probe: &Path) -> Result<Option<Duration>, crate::reactor::watch::WatchError> {
    let ear = Ear::at(probe)?;
    let begun = Instant::now();
    if fs::write(probe.join("file"), "x").is_err() {
        return Ok(None);
    }
    Ok(ear.hear().map(|at| at.saturating_duration_since(begun)))
}

fn limits() -> Vec<Finding> {
    let inotify = |name: &str| -> Option<u64> {
        fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).ok()?.trim().parse().ok()
    };
    let mut findings = Vec::new();
    let checks = [
        ("file watches", "max_user_watches", FEW_WATCHES, "524288"),
        ("watcher instances", "max_user_instances", FEW_INSTANCES, "1024"),
    ];
    for (topic, name, few, better) in checks {
        findings.extend(inotify(name).map(|value| match value < few {
            true => Finding::warning(
                topic,
                format!("{value} at most, for all programs of this user"),
                format!("sysctl fs.inotify.{name}={better}"),
            ),
            false => Finding::good(topic, format!("{value} at most")),
        }));
    }
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    findings.push(match files < FEW_FILES {
        true => Finding::warning(
            "open files",
            format!("{files} at most"),
            "ulimit -n 65536, or LimitNOFILE in the unit",
        ),
        false => Finding::good("open files", format!("{files} at most")),
    });
    findings
}

fn runner(config: &Config, env: &dyn Fn(&str) -> Option<String>) -> Finding {
    let topic = "runner";
    let launch = match startup::process_launch(config) {
        Ok(launch) => launch,
        Err(error) => return Finding::bad(topic, error.to_string(), error.hint()),
    };
    let shown = launch.command.first().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(command) = &config.runtime.process.command else { return Finding::good(topic, shown) };
    // What is wrong with the agent's environment is a finding of its own.
    let set = agent::environment(&config.agent, env).unwrap_or_default();
    match startup::find_command(command, &set) {
        Ok(Some(path)) => Finding::good(topic, path.display().to_string()),
        Ok(None) => Finding::good(topic, format!("{shown}, as it is seen from the folder of each session")),
        Err(missing) => {
            let error = startup::StartError::NoProgram(missing);
            Finding::bad(topic, error.to_string(), error.hint())
        }
    }
}

/// Names of variables, never values.
fn agent_of(config: &Config, env: &dyn Fn(&str) -> Option<String>) -> Vec<Finding> {
    let agent = &config.agent;
    let mut findings = Vec::new();
    let set = match agent::environment(agent, env) {
        Ok(set) => set,
        Err(error) => {
            findings.push(Finding::bad(
                "credentials",
                error.to_string(),
                "correct the file, or agent.env_file",
            ));
            return findings;
        }
    };
    let has = |name: &str| set.iter().any(|(known, _)| known == name);
    let missing: Vec<&str> = agent.env.iter().map(String::as_str).filter(|name| !has(name)).collect();
    let wanted: &[&str] = match agent.provider.to_lowercase().as_str() {
        "claude" => &["ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_AUTH_TOKEN"],
        "codex" => &["OPENAI_API_KEY", "CODEX_API_KEY"],
        _ => &[],
    };
    findings.push(if !missing.is_empty() {
        let text = format!("named in agent.env and not set: {}", missing.join(", "));
        Finding::warning(
            "credentials",
            text,
            "set them in the daemon's environment, or put them into agent.env_file",
        )
    } else if !wanted.is_empty() && !wanted.iter().any(|name| has(name)) {
        let text = format!("{} gets none of {}", agent.provider, wanted.join(", "));
        Finding::warning("credentials", text, "name one in agent.env, or put it into agent.env_file")
    } else {
        let names: Vec<&str> = set.iter().map(|(name, _)| name.as_str()).collect();
        let names = if names.is_empty() { "none needed".to_owned() } else { names.join(", ") };
        Finding::good("credentials", names)
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(findings: &[Finding], topic: &str) -> (Grade, String) {
        let found = findings.iter().find(|finding| finding.topic == topic).unwrap();
        assert_eq!(found.grade == Grade::Good, found.advice.is_empty(), "{found:?}");
        (found.grade, found.found.clone())
    }

    #[test]
    fn a_folder_of_ours_is_good_and_one_that_others_read_is_not() {
        let root = tempfile::tempdir().unwrap();
        let config = Config::default();
        let look = |path: &Path| examine(path, &config, &|_| None);
        let data = root.path().join("not/yet");
        let findings = look(&data);
        let (grade, found) = of(&findings, "data folder");
        assert!(grade == Grade::Good && found.contains("is not there yet"), "{found}");
        assert!(of(&findings, "file events").1.starts_with("announced after"), "{findings:?}");
        assert!(fs::read_dir(root.path()).unwrap().next().is_none(), "something is left over");
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (grade, found) = of(&look(root.path()), "data folder");
        assert!(grade == Grade::Warning && found.contains("mode 755"), "{found}");
    }

    #[test]
    fn what_a_killed_one_left_is_named_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let of = |process: u32| root.path().join(format!("{OWN_FOLDER}{process}"));
        fs::create_dir_all(of(other.id()).join("inner")).unwrap();
        fs::create_dir(root.path().join(format!("{OWN_FOLDER}mine"))).unwrap();
        assert_eq!(remove_left(root.path()), [""; 0].map(PathBuf::from));
        other.kill().unwrap();
        other.wait().unwrap();
        let findings = examine(&root.path().join("data"), &Config::default(), &|_| None);
        let (_, found) = self::of(&findings, "leftovers");
        assert!(found.contains(&of(other.id()).display().to_string()), "{found}");
        assert!(!of(other.id()).exists());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "somebody else's was removed");
    }

    #[test]
    fn one_data_folder_is_one_installation_also_before_it_is_there() {
        let root = tempfile::tempdir().unwrap();
        let (data, link) = (root.path().join("a/data"), root.path().join("link"));
        let before = installation(&data);
        fs::create_dir_all(&data).unwrap();
        std::os::unix::fs::symlink(root.path().join("a"), &link).unwrap();
        assert_eq!(installation(&data), before);
        assert_eq!(installation(&link.join("data")), before);
        assert_ne!(installation(root.path()), before);
    }

    #[test]
    fn a_folder_of_another_format_is_bad_also_where_others_read_it_and_so_is_a_path_too_long() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("lamplighter.json"), r#"{"format":9,"installation":"1"}"#).unwrap();
        for mode in [0o700, 0o755] {
            fs::set_permissions(root.path(), fs::Permissions::from_mode(mode)).unwrap();
            let finding = folder(root.path());
            assert!(finding.grade == Grade::Bad && finding.found.contains("format 9"), "{finding:?}");
        }
        let long = root.path().join("x".repeat(100));
        fs::create_dir(&long).unwrap();
        let finding = folder(&long);
        assert!(finding.grade == Grade::Bad && finding.found.contains("sockets"), "{finding:?}");
    }

    #[test]
    fn a_command_that_is_not_there_is_bad() {
        let mut config = Config::default();
        for (name, grade) in
            [("no-such-program", Grade::Bad), ("sh", Grade::Good), ("./seen-later", Grade::Good)]
        {
            config.runtime.process.command = Some(vec![name.into()]);
            let finding = runner(&config, &|_| None);
            assert_eq!(finding.grade, grade, "{finding:?}");
            assert!(finding.found.contains(name), "{finding:?}");
        }
    }

    #[test]
    fn credentials_are_named_and_never_shown() {
        let mut config = Config::default();
        config.agent.provider = "claude".into();
        let env = |name: &str| (name == "ANTHROPIC_API_KEY").then(|| "sk-secret".to_owned());
        let (grade, found) = of(&agent_of(&config, &env), "credentials");
        assert!(grade == Grade::Warning && found.contains("gets none of ANTHROPIC_API_KEY"), "{found}");
        config.agent.env = vec!["ANTHROPIC_API_KEY".into()];
        assert_eq!(of(&agent_of(&config, &env), "credentials"), (Grade::Good, "ANTHROPIC_API_KEY".into()));
        let (grade, found) = of(&agent_of(&config, &|_| None), "credentials");
        assert_eq!(
            (grade, found.as_str()),
            (Grade::Warning, "named in agent.env and not set: ANTHROPIC_API_KEY")
        );
    }

    #[test]
    fn too_little_space_is_bad_as_it_is_for_the_daemon() {
        let root = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.limits.disk_reserve = u64::MAX;
        assert_eq!(space(root.path(), &config).grade, Grade::Bad);
        config.limits.disk_reserve = 0;
        config.journal.keep_bytes = 0;
        assert_eq!(space(root.path(), &config).grade, Grade::Good);
    }
}
