//! What a package and a service manager see of the program: units, readiness, manual pages, the Debian package's files.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use lamplighter::journal::segment::{Header, SegmentReader};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Daemon, LIMIT, lamplighter, runner, segments, text};

/// A user with a systemd that only writes down what it was asked for.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        let bin = home.path("bin");
        fs::create_dir(&bin).unwrap();
        let script = format!("#!/bin/sh\necho \"$*\" >>'{}'\n", home.path("asked").display());
        fs::write(bin.join("systemctl"), script).unwrap();
        fs::set_permissions(bin.join("systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn unit(&self) -> PathBuf {
        self.path("config/systemd/user/lamplighter.service")
    }

    fn service(&self, args: &[&str]) -> Output {
        Command::new(lamplighter())
            .args(["service", "--user"])
            .args(args)
            .arg("--data")
            .arg(self.path("my data"))
            .env("PATH", self.path("bin"))
            .env("XDG_CONFIG_HOME", self.path("config"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// What systemd was asked for since the last time.
    fn asked(&self) -> Vec<String> {
        let file = self.path("asked");
        let lines = fs::read_to_string(&file).unwrap_or_default().lines().map(str::to_owned).collect();
        drop(fs::remove_file(file));
        lines
    }
}

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn a_service_is_installed_again_and_removed_twice() {
    let home = Home::new();
    for _ in 0..2 {
        assert!(ok(&home.service(&["install"])).contains("started it"));
        let unit = "lamplighter.service";
        let asked = [
            "--user daemon-reload".to_owned(),
            format!("--user enable {unit}"),
            format!("--user restart {unit}"),
        ];
        assert_eq!(home.asked(), asked);
        let written = fs::read_to_string(home.unit()).unwrap();
        assert!(written.contains("/my data\"\n"), "{written}");
        assert!(written.ends_with(&ok(&home.service(&["print"]))), "print shows what install writes");
        assert_eq!(fs::metadata(home.unit()).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::metadata(home.path("my data")).unwrap().permissions().mode() & 0o777, 0o700);
    }
    assert!(ok(&home.service(&["remove"])).contains("stays as it is"));
    assert_eq!(home.asked(), ["--user disable --now lamplighter.service", "--user daemon-reload"]);
    assert!(!home.unit().exists() && home.path("my data").is_dir());
    assert!(ok(&home.service(&["remove"])).contains("nothing was done"));
    assert!(home.asked().is_empty());
}

#[test]
fn a_unit_of_somebody_else_is_neither_replaced_nor_removed() {
    let home = Home::new();
    fs::create_dir_all(home.unit().parent().unwrap()).unwrap();
    fs::write(home.unit(), "[Unit]\n").unwrap();
    for command in ["install", "remove"] {
        let output = home.service(&[command]);
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert!(text(&output.stderr).contains("was left as it is"), "{command}");
    }
    assert_eq!(fs::read_to_string(home.unit()).unwrap(), "[Unit]\n");
    assert!(home.asked().is_empty());
}

#[test]
fn a_wrong_configuration_is_refused_before_anything_is_written() {
    let home = Home::new();
    fs::create_dir(home.path("my data")).unwrap();
    fs::write(home.path("my data/lamplighter.toml"), "[runtime]\nkind = \"vm\"\n").unwrap();
    assert_eq!(home.service(&["install"]).status.code(), Some(2));
    assert!(!home.unit().exists() && home.asked().is_empty());
    let flags = home.service(&["install", "--run-as", "nobody"]);
    assert_eq!(flags.status.code(), Some(2), "a user's service runs as that user");
}

#[test]
fn a_user_who_is_not_root_changes_nothing_of_the_system() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT DONE: only root can become another user");
        return;
    }
    let home = Home::new();
    fs::set_permissions(home.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Where everybody may come.
    let program = home.path("lamplighter");
    fs::copy(lamplighter(), &program).unwrap();
    let as_nobody = |command: &str| {
        Command::new(&program)
            .args(["service", "--system", command])
            .env("PATH", home.path("bin"))
            .uid(65_534)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let refused = as_nobody("install");
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("sudo"), "{}", text(&refused.stderr));
    let printed = ok(&as_nobody("print"));
    assert!(printed.contains("ReadWritePaths=/var/lib/lamplighter\n"), "{printed}");
    assert!(home.asked().is_empty());
}

#[test]
fn the_manager_hears_when_the_daemon_is_ready_and_when_it_stops() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(LIMIT)).unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("lamplighter.toml"), "[policy]\nstop_grace = \"70s\"\n").unwrap();
    let mut daemon = Command::new(lamplighter())
        .args(["run", "--data"])
        .arg(&data)
        .env("NOTIFY_SOCKET", &socket)
        .env("LAMPLIGHTER_RUNNER", runner())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut buffer = [0; 256];
    let mut heard = || {
        let length = manager.recv(&mut buffer).unwrap();
        text(&buffer[..length])
    };
    assert_eq!(heard(), "READY=1\n");
    assert!(data.join("run/chat.sock").exists(), "ready means that it takes messages");
    kill_process(Pid::from_raw(i32::try_from(daemon.id()).unwrap()).unwrap(), Signal::TERM).unwrap();
    assert_eq!(heard(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=170000000\n");
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn manual_pages_are_written_and_rendered_without_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("man/man1");
    let mut write = Command::new(lamplighter());
    write.args(["man", "--out"]).arg(&out).env("SOURCE_DATE_EPOCH", "86400");
    assert!(ok(&write.output().unwrap()).contains("pages into"));
    let page = fs::read_to_string(out.join("lamplighter-run.1")).unwrap();
    assert!(page.contains("1970-01-02"), "{page}");
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/lamplighter-runner.1");
    symlink(own, out.join("lamplighter-runner.1")).unwrap();
    let mut seen = 0;
    for entry in fs::read_dir(&out).unwrap() {
        let page = entry.unwrap().path();
        let mut render = Command::new("man");
        let rendered = render.args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8"]).arg(&page).output();
        let Ok(rendered) = rendered else {
            eprintln!("SKIPPED: man is not installed");
            return;
        };
        let said = text(&rendered.stderr);
        assert!(rendered.status.success() && said.is_empty(), "{}: {said}", page.display());
        assert!(rendered.stdout.len() > 200, "{}: {}", page.display(), text(&rendered.stdout));
        seen += 1;
    }
    assert!(seen > 30, "looked at only {seen}");
}

#[test]
fn the_debian_changelog_begins_with_this_version() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let changelog = fs::read_to_string(root.join("packaging/debian/changelog")).unwrap();
    let first = format!("lamplighter ({}-1) ", env!("CARGO_PKG_VERSION"));
    assert!(changelog.starts_with(&first), "{changelog}");
}

/// What a build that writes later forms would have written there.
fn rewrite_header(segment: &Path, change: impl FnOnce(&mut Header)) {
    let mut header = SegmentReader::open(segment).unwrap().header().clone();
    change(&mut header);
    let mut bytes = fs::read(segment).unwrap();
    let new = header.encode();
    bytes[..new.len()].copy_from_slice(&new);
    fs::write(segment, bytes).unwrap();
}

/// docs/UPGRADE.md says what stands here.
#[test]
fn data_of_a_newer_build_is_refused_with_its_name_and_left_as_it_is() {
    let mut daemon = Daemon::start("");
    let mut client = daemon.client("a");
    client.say("m1", "hello").unwrap();
    drop(client.upto("message", ""));
    daemon.stop();
    let newest = segments(&daemon.data().join("journal")).pop().unwrap();
    let identity = daemon.data().join("lamplighter.json");
    let (journal, named) = (fs::read(&newest).unwrap(), fs::read_to_string(&identity).unwrap());
    let refused = |said: &str, hint: &str| {
        let output = daemon.run(&["run"]);
        let heard = text(&output.stderr);
        assert_eq!(output.status.code(), Some(74), "{heard}");
        assert!(heard.contains(said) && heard.contains(hint), "{heard}");
    };
    rewrite_header(&newest, |header| header.format += 1);
    let newer = fs::read(&newest).unwrap();
    refused("has format 2; this build reads up to 1", "build that wrote it, or a newer one");
    assert!(fs::read(&newest).unwrap() == newer, "a journal that is refused is left as it is");
    fs::write(&newest, &journal).unwrap();

    rewrite_header(&newest, |header| header.record_schema += 1);
    let newer = fs::read(&newest).unwrap();
    refused("the newest snapshot in", "start the build that wrote it, or move the journal folder aside");
    assert!(fs::read(&newest).unwrap() == newer, "a journal that is refused is left as it is");
    fs::write(&newest, &journal).unwrap();

    fs::write(&identity, named.replace("\"format\":1", "\"format\":2")).unwrap();
    refused("has format 2; this build reads up to 1", "use the build that made it, or a newer one");
    fs::write(&identity, &named).unwrap();

    // Without its journal it goes on from the session folders.
    fs::rename(daemon.data().join("journal"), daemon.data().join("journal.newer")).unwrap();
    daemon.again();
    let mut client = daemon.client("a");
    client.say("m2", "hello again").unwrap();
    drop(client.upto("message", ""));
    daemon.stop();
}
