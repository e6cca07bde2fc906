//! What an agent can and cannot do in its container, by trying: `probe.c` runs in its place. Each limit that the
//! configuration can lift is lifted too, and then the same trial must succeed: so it is the limit that stood in the way.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::docker::{STOPS, sessions};
use crate::docker_engine::{Engine, Image, compiled, engine, skipped, static_runner};
use crate::support::{Daemon, until};

/// An engine for trials; none where agents would be root inside, which is then the daemon's user.
fn engine_for_trials() -> Option<Engine> {
    let engine = engine()?;
    if engine.is_rootless() {
        skipped("agents of a rootless engine are its user, who is called root inside");
        return None;
    }
    Some(engine)
}

/// The probe as an image of the engine; none without a compiler.
fn probe(engine: &Engine) -> Option<Image<'_>> {
    let (_folder, program) = compiled("probe.c")?;
    let files = [("program", program.as_path(), 0o755), ("gain", program.as_path(), 0o4755)];
    Some(engine.import(&files, &["ENTRYPOINT [\"/program\"]"]))
}

/// A daemon whose agents are the probe.
struct Probing {
    daemon: Daemon,
}

impl Probing {
    /// Starts one for a trial, with more of `[runtime.docker]` and what comes after it.
    fn start(image: &Image<'_>, trial: &str, docker: &str) -> Option<Self> {
        Self::with_env(image, &format!("PROBE={trial}\n"), docker)
    }

    fn with_env(image: &Image<'_>, env: &str, docker: &str) -> Option<Self> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), env).unwrap();
        let config = format!(
            "[agent]\nenv_file = {:?}\n{STOPS}[runtime.docker]\nimage = {:?}\n{docker}\n[policy]\nstart_backoff = \"30s\"\n\
             stop_grace = \"1s\"\n",
            file.path(),
            image.name
        );
        Some(Self { daemon: Daemon::start_on("docker", static_runner()?, &config) })
    }

    /// Wakes the session of a chat, which is a new one, and gives its folder.
    fn wake(&self, chat: &str, text: &str) -> PathBuf {
        let before =
            if self.daemon.data().join("sessions/agent").exists() { sessions(&self.daemon) } else { vec![] };
        let mut client = self.daemon.client(chat);
        client.say("m1", text).unwrap();
        client.upto("accepted", "m1");
        sessions(&self.daemon).into_iter().find(|it| !before.contains(it)).unwrap()
    }

    /// Waits until a session's trials are over.
    fn report(&self, session: &Path) -> Report {
        let path = session.join("out/report");
        let read = || fs::read_to_string(&path).unwrap_or_default();
        until("the trials are over", || {
            read().contains("done YES\n") || self.daemon.log().contains("container ended with")
        });
        let report = Report::of(&read());
        assert!(report.done("done"), "{report:?}\n{}", self.daemon.log());
        report
    }
}

/// The only container, running or about to be said to: its program may be faster than the engine.
fn only_container(engine: &Engine, daemon: &Daemon) -> String {
    let all = engine.containers(daemon.data());
    assert_eq!(all.len(), 1, "{}", daemon.log());
    all[0]["Id"].as_str().unwrap().to_owned()
}

/// What came of trials.
#[derive(Debug)]
struct Report {
    trials: BTreeMap<String, String>,
    mounts: Vec<Mount>,
}

/// Where it lies, whether it can be written, its kind, and what of it is mounted.
#[derive(Debug)]
struct Mount {
    place: String,
    rights: String,
    kind: String,
    source: String,
}

impl Report {
    fn of(text: &str) -> Self {
        let (mut trials, mut mounts) = (BTreeMap::new(), Vec::new());
        for line in text.lines() {
            let (name, rest) = line.split_once(' ').unwrap();
            if name != "mounted" {
                trials.insert(name.to_owned(), rest.to_owned());
                continue;
            }
            let words: Vec<&str> = rest.split(' ').collect();
            let [place, rights, kind, source] = words[..] else { panic!("{line}") };
            let [place, rights, kind, source] = [place, rights, kind, source].map(str::to_owned);
            mounts.push(Mount { place, rights, kind, source });
        }
        Self { trials, mounts }
    }

    /// Whether it was tried, and could be done.
    fn done(&self, trial: &str) -> bool {
        let came = self.trials.get(trial).unwrap_or_else(|| panic!("{trial} was not tried: {self:?}"));
        came == "YES"
    }

    /// All of these were tried, and what could be done is exactly the rest.
    fn assert_refused(&self, trials: &[&str]) {
        let done: Vec<&&str> = trials.iter().filter(|trial| self.done(trial)).collect();
        assert!(done.is_empty(), "an agent could: {done:?}\n{self:?}");
    }

    fn assert_done(&self, trials: &[&str]) {
        let refused: Vec<&&str> = trials.iter().filter(|trial| !self.done(trial)).collect();
        assert!(refused.is_empty(), "could not be done: {refused:?}\n{self:?}");
    }

    /// Where what is no file system of the kernel's own is mounted, and how.
    fn places(&self) -> Vec<String> {
        let kernel = ["/proc", "/sys", "/dev"];
        let own = |it: &&Mount| !kernel.iter().any(|top| Path::new(&it.place).starts_with(top));
        let mut found: Vec<String> =
            self.mounts.iter().filter(own).map(|it| format!("{} {}", it.place, it.rights)).collect();
        found.sort();
        found
    }

    fn source(&self, place: &str) -> &str {
        &self.mounts.iter().find(|it| it.place == place).unwrap().source
    }
}

/// All that is mounted besides what the kernel says of itself; nothing else of the host is seen.
const PLACES: [&str; 12] = [
    "/ ro",
    "/etc/hostname ro",
    "/etc/hosts ro",
    "/etc/resolv.conf ro",
    "/home/agent rw",
    "/home/agent/.claude rw",
    "/home/agent/.codex rw",
    "/sbin/docker-init ro",
    "/tmp rw",
    "/workspace rw",
    "/workspace/agent rw",
    "/workspace/in ro",
];

/// Kinds of what is mounted below `/proc`, `/sys` and `/dev`.
const KERNEL: [&str; 8] = ["cgroup", "cgroup2", "devpts", "devtmpfs", "mqueue", "proc", "sysfs", "tmpfs"];

/// What is the host's and the image's.
const FILES: [&str; 7] =
    ["write-in", "write-inbound-db", "remove-in", "move-in", "remount-in", "write-root", "write-program"];
/// The same by the program that would be root.
const GAIN_FILES: [&str; 5] =
    ["gain-write-in", "gain-write-inbound-db", "gain-remove-in", "gain-move-in", "gain-remount-in"];
/// What an agent needs.
const NEEDS: [&str; 5] = ["write-workspace", "write-tmp", "write-home", "write-agent", "write-state"];

#[test]
fn inside_an_agent_writes_its_own_files_and_neither_the_hosts_nor_the_images() {
    let Some(engine) = engine_for_trials() else { return };
    let Some(image) = probe(&engine) else { return };
    let Some(mut it) = Probing::start(&image, "files", "") else { return };
    let report = it.report(&it.wake("main", "go"));
    report.assert_done(&NEEDS);
    report.assert_refused(&FILES);
    report.assert_refused(&GAIN_FILES);
    assert_eq!(report.places(), PLACES);
    let state = engine.mounted_at(&only_container(&engine, &it.daemon), "/home/agent/.claude");
    it.daemon.stop();
    assert!(state.join("mine").is_file(), "what a provider keeps must outlive its container");

    // The program that becomes root may write the image where that is allowed, and `in/`, which is root's, all the same
    // not: it is mounted so.
    let relaxed = "no_new_privileges = false\nread_only_root = false\n";
    let Some(mut it) = Probing::start(&image, "files", relaxed) else { return };
    let report = it.report(&it.wake("main", "go"));
    report.assert_done(&["gain-write-root", "gain-write-program"]);
    report.assert_refused(&FILES);
    report.assert_refused(&GAIN_FILES);
    if rustix::process::geteuid().is_root() {
        for trial in ["gain-write-in", "gain-write-inbound-db", "gain-remove-in"] {
            assert_eq!(report.trials[trial], "no (Read-only file system)", "{trial}");
        }
    }
    it.daemon.stop();
}

#[test]
fn inside_an_agent_gains_no_rights() {
    let Some(engine) = engine_for_trials() else { return };
    let Some(image) = probe(&engine) else { return };
    let rights =
        ["root", "capabilities", "chown", "mknod", "raw-socket", "mount", "user-namespace", "host-name"];
    let by_gain = rights.map(|right| format!("gain-{right}"));
    let by_gain = by_gain.each_ref().map(String::as_str);
    let Some(mut it) = Probing::start(&image, "rights", "") else { return };
    let report = it.report(&it.wake("main", "go"));
    report.assert_done(&["gain-ran"]);
    report.assert_refused(&rights);
    report.assert_refused(&by_gain);
    it.daemon.stop();

    // With both limits lifted the program of root's does what it is there for. What an engine guards in other ways as
    // well, such as mounts, is not part of this.
    let relaxed = "no_new_privileges = false\nadd_capabilities = [\"CHOWN\", \"MKNOD\", \"NET_RAW\"]\n";
    let Some(mut it) = Probing::start(&image, "rights", relaxed) else { return };
    let report = it.report(&it.wake("main", "go"));
    report.assert_done(&["gain-root", "gain-capabilities", "gain-chown", "gain-mknod", "gain-raw-socket"]);
    it.daemon.stop();
}

#[test]
fn inside_an_agent_has_no_more_processes_than_it_may() {
    let Some(engine) = engine_for_trials() else { return };
    let Some(image) = probe(&engine) else { return };
    for (pids, more) in [(64, false), (0, true)] {
        let Some(mut it) = Probing::start(&image, "processes", &format!("pids = {pids}\n")) else { return };
        let report = it.report(&it.wake("main", "go"));
        assert_eq!(report.done("more-than-64"), more, "with pids = {pids}: {report:?}");
        it.daemon.stop();
    }
}

#[test]
fn inside_an_agent_sees_nothing_of_another_session() {
    let Some(engine) = engine_for_trials() else { return };
    let Some(image) = probe(&engine) else { return };
    // Of this run alone.
    let id = image.name.rsplit(':').next().unwrap();
    let (theirs, own) = (format!("theirs-{id}"), format!("own-{id}"));
    let env = format!("PROBE=sessions\nTHEIRS={theirs}\nOWN={own}\n");
    let Some(mut it) = Probing::with_env(&image, &env, "") else { return };
    let other = it.wake("other", &theirs);
    it.report(&other);
    let state = engine.mounted_at(&only_container(&engine, &it.daemon), "/home/agent/.claude");
    // The agent's folder is shared by design; what its provider keeps is each session's own.
    assert!(state.iter().any(|part| Some(part) == other.file_name()), "{}", state.display());
    let marked =
        [other.join("out"), other.join("out/outbox"), other.join("in"), other.join("in/inbox"), state];
    for folder in marked {
        fs::write(folder.join(&theirs), &theirs).unwrap();
    }
    let session = it.wake("main", "go");
    let report = it.report(&session);
    until("both run", || engine.running(it.daemon.data()).len() == 2);
    report.assert_done(&["searched-all", "own-name", "own-text"]);
    report.assert_refused(&[
        "their-name",
        "their-text",
        "the-engine",
        "other-processes",
        "first-process-may-more",
    ]);
    // And nothing but what was searched is mounted.
    assert_eq!(report.places(), PLACES);
    let kernel = report
        .mounts
        .iter()
        .filter(|it| ["/proc", "/sys", "/dev"].iter().any(|top| it.place.starts_with(top)));
    let unknown: Vec<&Mount> = kernel.filter(|it| !KERNEL.contains(&it.kind.as_str())).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let folder = session.file_name().unwrap().to_str().unwrap();
    for (place, part) in [("/workspace", "out"), ("/workspace/in", "in")] {
        let source = report.source(place);
        assert!(source.ends_with(&format!("/sessions/agent/{folder}/{part}")), "{place} is {source}");
    }
    assert!(report.source("/workspace/agent").ends_with("/groups/agent"), "{report:?}");
    it.daemon.stop();
}

#[test]
fn an_agent_that_takes_too_much_memory_is_killed_and_that_is_said() {
    let Some(engine) = engine_for_trials() else { return };
    let Some(image) = probe(&engine) else { return };
    let Some(mut it) = Probing::start(&image, "memory", "memory_mib = 48\n") else { return };
    let session = it.wake("main", "go");
    until("it is told", || it.daemon.log().contains("out of memory: killed by the kernel at 48 MiB"));
    assert!(!fs::read_to_string(session.join("out/report")).unwrap().contains("YES"));
    until("its end is told", || it.daemon.log().contains("container ended with out of memory"));
    let why = it.daemon.ok(&["why", "m1"]);
    assert!(why.contains("gone (out of memory)"), "{why}");
    it.daemon.stop();
    it.daemon.replays();

    let Some(mut it) = Probing::start(&image, "memory", "memory_mib = 0\n") else { return };
    it.report(&it.wake("main", "go")).assert_done(&["256-MiB"]);
    it.daemon.stop();
}

#[test]
fn an_agent_that_heeds_no_stop_is_killed_when_the_grace_is_over_and_that_is_said() {
    let Some(engine) = engine_for_trials() else { return };
    let Some(image) = probe(&engine) else { return };
    let Some(mut it) = Probing::start(&image, "deaf", "") else { return };
    let session = it.wake("main", "go");
    it.report(&session);
    it.daemon.ok(&["session", "stop", "s1"]);
    until("it is gone", || engine.containers(it.daemon.data()).is_empty());
    let why = it.daemon.ok(&["why", "m1"]);
    assert!(why.contains(" gone (signal 9)"), "{why}");
    // It was asked first.
    assert!(Report::of(&fs::read_to_string(session.join("out/report")).unwrap()).done("told"));
    it.daemon.stop();
    it.daemon.replays();
}

#[test]
fn an_agent_that_fills_its_folder_is_stopped_and_starts_again_when_there_is_room() {
    let Some(engine) = engine_for_trials() else { return };
    let Some(image) = probe(&engine) else { return };
    let Some(mut it) = Probing::start(&image, "fill", "[limits]\nout_max = 16777216\n") else { return };
    let out = it.wake("main", "go").join("out");
    let daemon = &it.daemon;
    // It may be stopped before it has written all.
    let begun = |times| fs::read_to_string(out.join("report")).unwrap().matches("begun YES").count() == times;
    until("it is stopped", || daemon.log().contains("its folder takes more room than it may"));
    assert!(begun(1));
    until("a start is refused", || daemon.log().contains("takes more than 16 MiB; remove what nobody"));
    until("it waits", || daemon.status()["sessions"][0]["state"] == "backing-off");
    fs::remove_file(out.join("big")).unwrap();
    daemon.ok(&["session", "start", "s1"]);
    until("it runs again", || begun(2));
    it.daemon.stop();
    it.daemon.replays();
}
