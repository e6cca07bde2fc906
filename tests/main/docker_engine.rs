//! What the tests of containers need of an engine, in its own words over its socket: raw, so that what an engine says is
//! seen as it is, and without a command that may be missing.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{lamplighter, until};

/// An engine.
pub struct Engine {
    socket: PathBuf,
}

/// The usual engine; none where none answers, which is said and is a failure where one is required.
pub fn engine() -> Option<Engine> {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    let socket = match host.strip_prefix("unix://") {
        None if host.is_empty() => "/var/run/docker.sock",
        None => {
            skipped(&format!("DOCKER_HOST is {host}, and the tests speak to a socket"));
            return None;
        }
        Some(socket) => socket,
    };
    let engine = Engine { socket: socket.into() };
    if engine.answers() {
        return Some(engine);
    }
    not_done(&format!("no Docker engine answers at {socket}; scripts/docker-engine makes one"));
    None
}

/// What is missing here must not be missing where engines are required.
pub fn not_done(why: &str) {
    let required = std::env::var("LAMPLIGHTER_REQUIRE_DOCKER").is_ok_and(|it| it == "1");
    assert!(!required, "LAMPLIGHTER_REQUIRE_DOCKER=1, and {why}");
    skipped(why);
}

/// What this user or this kind of engine cannot do. Said past the test's own output, which is shown only when it fails.
pub fn skipped(why: &str) {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    std::io::stderr().write_all(format!("NOT DONE: {name}: {why}\n").as_bytes()).unwrap();
}

/// The static runner, the newest there is; none where none was built.
pub fn static_runner() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("LAMPLIGHTER_STATIC_RUNNER") {
        return Some(path.into());
    }
    let target = lamplighter().parent()?.parent()?.join("x86_64-unknown-linux-gnu");
    let built = ["release", "debug"].map(|kind| target.join(kind).join("lamplighter-runner"));
    let newest = built.into_iter().max_by_key(|path| fs::metadata(path).and_then(|it| it.modified()).ok())?;
    if newest.is_file() {
        return Some(newest);
    }
    not_done("there is no static runner; scripts/runner-static build makes one");
    None
}

impl Engine {
    fn answers(&self) -> bool {
        UnixStream::connect(&self.socket).is_ok()
            && self.ask("GET", "/_ping", &[]).is_some_and(|it| it == b"OK")
    }

    pub fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// One request; none unless it succeeds.
    pub fn ask(&self, method: &str, path: &str, body: &[u8]) -> Option<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        let kind = if body.first() == Some(&b'{') { "application/json" } else { "application/x-tar" };
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: engine\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let end = answer.windows(4).position(|it| it == b"\r\n\r\n")?;
        let ok = answer.get(9..10)? == b"2";
        if !ok {
            println!("{method} {path}: {}", String::from_utf8_lossy(&answer));
        }
        ok.then(|| answer.split_off(end + 4))
    }

    pub fn json(&self, path: &str) -> Value {
        let answer = self.ask("GET", path, &[]).unwrap_or_else(|| panic!("no answer to {path}"));
        serde_json::from_slice(&answer).unwrap()
    }

    /// All containers of the installation in a data folder, as they are listed.
    pub fn containers(&self, data: &Path) -> Vec<Value> {
        let filters = format!(r#"{{"label":["lamplighter.installation={}"]}}"#, installation(data));
        let encoded: String = filters.bytes().map(|b| format!("%{b:02X}")).collect();
        let listed = self.json(&format!("/containers/json?all=1&filters={encoded}"));
        listed.as_array().cloned().unwrap_or_default()
    }

    /// The ids of those that run.
    pub fn running(&self, data: &Path) -> Vec<String> {
        let mut ids: Vec<String> = self
            .containers(data)
            .iter()
            .filter(|it| it["State"] == "running")
            .map(|it| it["Id"].as_str().unwrap().to_owned())
            .collect();
        ids.sort();
        ids
    }

    /// What of the host a container has at this place.
    pub fn mounted_at(&self, id: &str, place: &str) -> PathBuf {
        let inspected = self.json(&format!("/containers/{id}/json"));
        let mounts = inspected["Mounts"].as_array().unwrap();
        let found =
            mounts.iter().find(|it| it["Destination"] == place).unwrap_or_else(|| panic!("{mounts:?}"));
        found["Source"].as_str().unwrap().into()
    }

    /// Whether user 0 of its containers is the user whose engine it is.
    pub fn is_rootless(&self) -> bool {
        self.json("/info")["SecurityOptions"].to_string().contains("name=rootless")
    }

    /// Makes an image of files, all of them root's with these rights, and of the folders that a container's mounts
    /// need.
    pub fn import(&self, files: &[(&str, &Path, u32)], changes: &[&str]) -> Image<'_> {
        let folder = tempfile::tempdir().unwrap();
        for name in ["tmp", "home/agent", "workspace"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        fs::set_permissions(folder.path().join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        for (place, file, mode) in files {
            let place = folder.path().join(place);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::copy(file, &place).unwrap();
            fs::set_permissions(&place, fs::Permissions::from_mode(*mode)).unwrap();
        }
        let owner = ["--owner=0", "--group=0", "--numeric-owner"];
        let tar =
            Command::new("tar").args(owner).arg("-C").arg(folder.path()).args(["-c", "."]).output().unwrap();
        assert!(tar.status.success());
        // No two tests, and no two runs, have one of a name.
        let id = folder.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_lowercase();
        let name = format!("lamplighter-test:{id}");
        let mut path = format!("/images/create?fromSrc=-&repo=lamplighter-test&tag={id}");
        for change in changes {
            path += "&changes=";
            path.extend(change.bytes().map(|byte| format!("%{byte:02X}")));
        }
        self.ask("POST", &path, &tar.stdout).unwrap();
        self.named(&name)
    }

    /// An image that is there, or will be.
    pub fn named(&self, name: &str) -> Image<'_> {
        Image { engine: self, name: name.to_owned() }
    }
}

/// An image that is removed at the end.
pub struct Image<'a> {
    engine: &'a Engine,
    pub name: String,
}

impl Drop for Image<'_> {
    fn drop(&mut self) {
        // With `force`, also below a container that a test that failed left behind.
        drop(self.engine.ask("DELETE", &format!("/images/{}?force=1", self.name), &[]));
    }
}

/// A static program of a C file beside this one, in a folder of its own; none without a compiler, which is said.
pub fn compiled(source: &str) -> Option<(tempfile::TempDir, PathBuf)> {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/main").join(source);
    let flags = ["-O1", "-static", "-Wall", "-Wextra", "-o"];
    let made = Command::new("cc").args(flags).arg(&program).arg(&source).status();
    if !made.is_ok_and(|status| status.success()) {
        not_done("cc makes no static program here");
        return None;
    }
    Some((folder, program))
}

/// The installation's id, as labels have it.
pub fn installation(data: &Path) -> String {
    let identity: Value = serde_json::from_slice(&fs::read(data.join("lamplighter.json")).unwrap()).unwrap();
    identity["installation"].as_str().unwrap().to_owned()
}

/// User 0 of an engine that maps users.
pub const MAPPED: u32 = 300_000;

/// An engine of one's own, which can be stopped without disturbing anybody. It has no network to give.
pub struct OwnEngine {
    pub engine: Engine,
    maps_users: bool,
    folder: tempfile::TempDir,
    daemon: Option<Child>,
}

impl OwnEngine {
    /// None where there is no way to have one, which is said.
    pub fn start() -> Option<Self> {
        Self::with(false)
    }

    /// One that makes users of containers others outside: user n is [`MAPPED`] + n.
    pub fn mapping_users() -> Option<Self> {
        Self::with(true)
    }

    fn with(maps_users: bool) -> Option<Self> {
        let program =
            ["/usr/sbin/dockerd", "/usr/bin/dockerd"].into_iter().find(|it| Path::new(it).is_file());
        if !rustix::process::geteuid().is_root() {
            skipped("only root can start an engine of its own");
            return None;
        }
        if program.is_none() {
            not_done("an engine of one's own takes dockerd");
            return None;
        }
        // Below /var/tmp: layers do not lie on a file system in memory.
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let engine = Engine { socket: folder.path().join("docker.sock") };
        let mut own = Self { engine, maps_users, folder, daemon: None };
        own.again();
        Some(own)
    }

    /// Starts it, again.
    pub fn again(&mut self) {
        let at = |name: &str| self.folder.path().join(name);
        let log = fs::File::options().create(true).append(true).open(at("log")).unwrap();
        // In a network of its own: told to have no bridge, an engine removes the one that is there, which belongs to
        // the usual engine.
        let ranges = at("ranges");
        fs::write(&ranges, format!("daemon:{MAPPED}:65536\n")).unwrap();
        // The machine's own ranges of users stay as they are.
        let mapping = "mount --bind \"$0\" /etc/subuid && mount --bind \"$0\" /etc/subgid && exec \"$@\"";
        let plain = "exec \"$@\"";
        let child = Command::new("unshare")
            .args(["--net", "--mount", "--", "sh", "-c", if self.maps_users { mapping } else { plain }])
            .arg(&ranges)
            .arg("dockerd")
            .args(["--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"])
            .args(self.maps_users.then_some("--userns-remap=daemon"))
            .arg("--data-root")
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("pid"))
            .arg("--host")
            .arg(self.engine.host())
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(child);
        until("the engine answers", || self.engine.answers());
    }

    /// Stops it, and with it all its containers.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
            kill_process(pid, Signal::TERM).unwrap();
            child.wait().unwrap();
        }
    }
}

impl OwnEngine {
    /// Kills it without warning; its containers go on.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Kills whatever an engine that was killed left running: it bears the folder in its command line.
    fn kill_leftovers(&self) {
        let own = self.folder.path().to_string_lossy().into_owned();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if let Some(pid) = pid.filter(|_| String::from_utf8_lossy(&words).contains(&own)) {
                // It may have ended meanwhile.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        self.stop();
        self.kill_leftovers();
        // What an engine leaves mounted would keep its folder.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = self.folder.path().to_string_lossy().into_owned();
        for place in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
            if place.starts_with(&own) {
                drop(Command::new("umount").arg(place).status());
            }
        }
    }
}
