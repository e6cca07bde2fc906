//! Containers of a real engine, through the daemon. Without an engine each test says that it did nothing; with
//! LAMPLIGHTER_REQUIRE_DOCKER=1 it fails instead.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::docker_engine::{Engine, MAPPED, OwnEngine, engine, installation, skipped, static_runner};
use crate::support::{Daemon, until};

/// Turns that last until [`let_go`], so that what interrupts them need not be fast.
const HELD: &str = "{ pattern = \"slow\", until = \"go\" }";

/// A stop of the daemon stops its containers.
pub const STOPS: &str = "[runtime]\nat_stop = \"stop\"\n";

fn mock(rules: &str, rest: &str) -> String {
    format!(
        "[agent]\nmock = {{ rules = [{rules}] }}\n{rest}\n[policy]\nclaim_backoff = \"50ms\"\nstart_backoff = \"50ms\"\n"
    )
}

/// A daemon on the usual engine, and that engine.
fn start(config: &str) -> Option<(Engine, Daemon)> {
    let engine = engine()?;
    let daemon = Daemon::start_on("docker", static_runner()?, config);
    Some((engine, daemon))
}

/// The folders of the daemon's sessions.
pub fn sessions(daemon: &Daemon) -> Vec<PathBuf> {
    fs::read_dir(daemon.data().join("sessions/agent")).unwrap().map(|it| it.unwrap().path()).collect()
}

/// Lets the held turns of all sessions end, and those that begin later.
fn let_go(daemon: &Daemon) {
    for session in sessions(daemon) {
        fs::write(session.join("out/go"), "").unwrap();
    }
}

/// Waits until a turn is under way, the n-th of the whole log.
fn in_turn(daemon: &Daemon, n: usize) {
    until("a turn is under way", || daemon.log().matches("turn started").count() >= n);
}

#[test]
fn messages_are_answered_from_containers_that_are_confined_as_reviewed() {
    let Some((engine, mut daemon)) = start(STOPS) else { return };
    assert_eq!(daemon.ok(&["chat", "--timeout", "60", "hello", "there"]), "echo: hello there\n");
    assert_eq!(daemon.ok(&["chat", "--chat", "office", "--timeout", "60", "hi"]), "echo: hi\n");
    let running = engine.running(daemon.data());
    assert_eq!(running.len(), 2, "{}", daemon.log());
    compare_inspected(&engine.json(&format!("/containers/{}/json", running[0])), daemon.data());
    let names: Vec<Value> =
        engine.containers(daemon.data()).iter().map(|it| it["Names"][0].clone()).collect();
    let prefix = format!("/lamplighter-{}-agent-sess-", &installation(daemon.data())[..8]);
    assert!(names.iter().all(|name| name.as_str().unwrap().starts_with(&prefix)), "{names:?}");
    let status = daemon.status();
    assert_eq!(status["slots"]["used"], 2, "{status}");
    daemon.stop();
    assert_eq!(engine.containers(daemon.data()), [Value::Null; 0], "a clean end leaves nothing");
    daemon.replays();
}

/// What an engine was told, with all that differs from run to run replaced: a relaxed default is seen in review.
fn compare_inspected(found: &Value, data: &Path) {
    let session = found["Config"]["Labels"]["lamplighter.session"].as_str().unwrap();
    let attempt = found["Config"]["Labels"]["lamplighter.attempt"].as_str().unwrap();
    let image = found["Config"]["Image"].as_str().unwrap();
    let label = |name: &str| found["Config"]["Labels"][name].as_str().unwrap();
    let folder = data.canonicalize().unwrap();
    let replaced = [
        (label("lamplighter.build"), "BUILD"),
        (label("lamplighter.image"), "NAME"),
        (image, "IMAGE"),
        (session, "SESSION"),
        (attempt, "ATTEMPT"),
        (folder.to_str().unwrap(), "DATA"),
        (&installation(data), "INSTALLATION"),
    ];
    let host: serde_json::Map<String, Value> = found["HostConfig"]
        .as_object()
        .unwrap()
        .iter()
        // What an engine leaves out, another writes as nothing.
        .filter(|(_, value)| match value {
            Value::Null => false,
            Value::Array(them) => !them.is_empty(),
            Value::Object(them) => !them.is_empty(),
            Value::String(it) => !it.is_empty(),
            Value::Bool(it) => *it,
            Value::Number(it) => it.as_i64() != Some(0),
        })
        // Each engine has its own: cgroups of version 2 have private namespaces, and the lists of files grow.
        .filter(|(key, _)| {
            !["CgroupnsMode", "MaskedPaths", "ReadonlyPaths", "ConsoleSize", "ShmSize"]
                .contains(&key.as_str())
        })
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let config = &found["Config"];
    let told = json!({
        "Config": {
            "Entrypoint": config["Entrypoint"], "Env": config["Env"], "Image": config["Image"],
            "Labels": config["Labels"], "OpenStdin": config["OpenStdin"], "StopSignal": config["StopSignal"],
            "Tty": config["Tty"], "User": config["User"], "WorkingDir": config["WorkingDir"],
        },
        "HostConfig": host,
    });
    let mut shown = serde_json::to_string_pretty(&told).unwrap() + "\n";
    for (real, name) in replaced {
        shown = shown.replace(real, name);
    }
    let uid = found["Config"]["User"].as_str().unwrap();
    if uid != "10001:10001" {
        return skipped("the snapshot of docker inspect is of a daemon that is root");
    }
    let version = format!("version\": \"{}\"", env!("CARGO_PKG_VERSION"));
    shown = shown.replace(&version, "version\": \"VERSION\"");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/docker/inspect.json");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &shown).unwrap();
    }
    let reviewed = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(shown, reviewed, "UPDATE=1 rewrites {}; review what is relaxed", path.display());
}

#[test]
fn a_daemon_that_was_killed_takes_over_the_containers_that_run() {
    let Some((engine, mut daemon)) = start(&mock(HELD, STOPS)) else { return };
    assert_eq!(daemon.ok(&["chat", "--chat", "idle", "--timeout", "60", "hi"]), "echo: hi\n");
    let mut client = daemon.client("main");
    client.say("m1", "slow").unwrap();
    in_turn(&daemon, 2);
    let before = engine.running(daemon.data());
    assert_eq!(before.len(), 2, "{}", daemon.log());
    daemon.kill();
    drop(client);
    daemon.again();
    assert_eq!(engine.running(daemon.data()), before, "{}", daemon.log());
    let mut client = daemon.client("main");
    let_go(&daemon);
    assert_eq!(client.settle(&["m1"]), ["echo: slow"], "{}", daemon.log());
    assert_eq!(daemon.log().matches("turn started").count(), 2, "no turn was made again:\n{}", daemon.log());
    // Both go on in the same containers, and nothing came twice.
    client.say("m2", "more").unwrap();
    let (_, replies) = client.upto("settled", "m2");
    assert_eq!(replies.values().collect::<Vec<_>>(), ["echo: more"], "{}", daemon.log());
    assert_eq!(daemon.ok(&["chat", "--chat", "idle", "--timeout", "60", "again"]), "echo: again\n");
    assert_eq!(engine.running(daemon.data()), before, "{}", daemon.log());
    daemon.stop();
    assert_eq!(engine.containers(daemon.data()).len(), 0);
    daemon.replays();
}

#[test]
fn a_daemon_that_is_stopped_leaves_its_containers_to_the_next_one() {
    let Some((engine, mut daemon)) = start(&mock(HELD, "")) else { return };
    assert_eq!(daemon.ok(&["chat", "--chat", "idle", "--timeout", "60", "hi"]), "echo: hi\n");
    let mut client = daemon.client("main");
    client.say("m1", "slow").unwrap();
    in_turn(&daemon, 2);
    let before = engine.running(daemon.data());
    drop(client);
    daemon.stop();
    assert_eq!(engine.running(daemon.data()), before, "{}", daemon.log());
    // The turn comes to its end while nobody listens.
    let_go(&daemon);
    for session in sessions(&daemon) {
        until("the reply is written", || {
            let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
            rusqlite::Connection::open_with_flags(session.join("out/outbound.db"), flags)
                .and_then(|it| it.query_row("SELECT count(*) FROM messages_out", [], |row| row.get(0)))
                .is_ok_and(|rows: i64| rows == 1)
        });
    }
    daemon.again();
    let mut client = daemon.client("main");
    assert_eq!(client.upto("message", "").0["text"], "echo: slow", "{}", daemon.log());
    client.say("m2", "more").unwrap();
    let (_, replies) = client.upto("settled", "m2");
    assert_eq!(replies.values().collect::<Vec<_>>(), ["echo: more"], "{}", daemon.log());
    assert_eq!(daemon.ok(&["chat", "--chat", "idle", "--timeout", "60", "again"]), "echo: again\n");
    assert_eq!(engine.running(daemon.data()), before, "{}", daemon.log());
    until("it is told", || daemon.log().matches("is taken over").count() == 2);
    assert_eq!(daemon.ok(&["stop", "--containers", "stop"]), "");
    assert_eq!(engine.containers(daemon.data()).len(), 0);
    daemon.replays();
}

#[test]
fn orphans_and_containers_of_another_build_are_ended_at_the_start_and_other_installations_left_alone() {
    let Some((engine, mut daemon)) = start(STOPS) else { return };
    let Some((_, mut other)) = start(STOPS) else { return };
    assert_eq!(daemon.ok(&["chat", "--timeout", "60", "hi"]), "echo: hi\n");
    assert_eq!(other.ok(&["chat", "--timeout", "60", "hi"]), "echo: hi\n");
    let (own, theirs) = (engine.running(daemon.data()), engine.running(other.data()));
    daemon.kill();
    let inspected = engine.json(&format!("/containers/{}/json", own[0]));
    // The same container again, with other labels: a life that nobody remembers, and one of another build.
    for (label, value) in [("lamplighter.attempt", "1.999"), ("lamplighter.build", "another")] {
        let mut body = inspected["Config"].clone();
        body["HostConfig"] = inspected["HostConfig"].clone();
        body["Labels"][label] = value.into();
        body["Env"] = json!([]);
        body["Cmd"] = json!(["--workspace", "/tmp"]);
        let made = engine.ask("POST", "/containers/create", body.to_string().as_bytes()).unwrap();
        let made: Value = serde_json::from_slice(&made).unwrap();
        engine.ask("POST", &format!("/containers/{}/start", made["Id"].as_str().unwrap()), &[]).unwrap();
    }
    daemon.again();
    until("only its own is left", || {
        let left: Vec<Value> = engine.containers(daemon.data());
        left.len() == 1 && left[0]["Id"] == own[0].as_str()
    });
    assert_eq!(daemon.ok(&["chat", "--timeout", "60", "again"]), "echo: again\n");
    daemon.stop();
    assert_eq!(engine.running(other.data()), theirs, "another installation's container was touched");
    assert_eq!(other.ok(&["chat", "--timeout", "60", "still"]), "echo: still\n");
    other.stop();
}

#[test]
fn a_container_that_is_killed_is_replaced_and_its_message_tried_again() {
    let Some((engine, mut daemon)) = start(&mock(HELD, STOPS)) else { return };
    let mut client = daemon.client("main");
    client.say("m1", "slow").unwrap();
    in_turn(&daemon, 1);
    let id = engine.running(daemon.data()).remove(0);
    engine.ask("POST", &format!("/containers/{id}/kill?signal=KILL"), &[]).unwrap();
    in_turn(&daemon, 2);
    let_go(&daemon);
    assert_eq!(client.settle(&["m1"]), ["echo: slow"], "{}", daemon.log());
    assert_ne!(engine.running(daemon.data()), [id]);
    assert!(daemon.log().contains("signal 9"), "{}", daemon.log());
    daemon.stop();
    daemon.replays();
}

#[test]
fn a_stop_in_mid_turn_gives_the_message_back_and_the_turn_is_made_again() {
    let Some((engine, mut daemon)) = start(&mock(HELD, STOPS)) else { return };
    let mut client = daemon.client("main");
    client.say("m1", "slow").unwrap();
    in_turn(&daemon, 1);
    drop(client);
    // Nothing lets this turn end.
    daemon.stop();
    assert_eq!(engine.containers(daemon.data()).len(), 0);
    daemon.again();
    let mut client = daemon.client("main");
    in_turn(&daemon, 2);
    // Its runner gave the message back and left by itself: nobody had to kill it when the grace was over.
    let why = daemon.ok(&["why", "m1"]);
    assert_eq!((why.matches(" gone (code 0)").count(), why.matches(" gone (").count()), (1, 1), "{why}");
    let_go(&daemon);
    assert_eq!(client.settle(&["m1"]), ["echo: slow"], "{}", daemon.log());
    assert_eq!(daemon.log().matches("turn started").count(), 2, "{}", daemon.log());
    client.say("m2", "more").unwrap();
    assert_eq!(client.settle(&["m2"]), ["echo: more"], "{}", daemon.log());
    daemon.stop();
    daemon.replays();
}

#[test]
fn two_sessions_work_at_once() {
    let Some((engine, mut daemon)) = start(&mock(HELD, STOPS)) else { return };
    let mut clients = ["a", "b"].map(|chat| daemon.client(chat));
    for (client, id) in clients.iter_mut().zip(["m1", "m2"]) {
        client.say(id, &format!("slow {id}")).unwrap();
    }
    // Neither can have ended, for nothing has let them.
    in_turn(&daemon, 2);
    assert_eq!(engine.running(daemon.data()).len(), 2, "{}", daemon.log());
    assert_eq!(daemon.status()["slots"]["used"], 2);
    let_go(&daemon);
    for (client, id) in clients.iter_mut().zip(["m1", "m2"]) {
        assert_eq!(client.settle(&[id]), [format!("echo: slow {id}")], "{}", daemon.log());
    }
    daemon.stop();
    daemon.replays();
}

#[test]
fn an_engine_that_stops_in_mid_turn_and_comes_back_loses_no_message() {
    let (Some(mut own), Some(runner)) = (OwnEngine::start(), static_runner()) else { return };
    let docker = format!("{STOPS}[runtime.docker]\nhost = \"{}\"\nnetwork = \"none\"\n", own.engine.host());
    let mut daemon = Daemon::start_on("docker", runner, &mock(HELD, &docker));
    let mut client = daemon.client("main");
    client.say("m1", "slow").unwrap();
    in_turn(&daemon, 1);
    own.stop();
    until("it is told", || daemon.log().contains("the runtime is away"));
    let status = daemon.ok(&["status"]);
    assert!(status.contains("away ") && status.contains("no engine answers at unix://"), "{status}");
    client.say("m2", "meanwhile").unwrap();
    client.upto("accepted", "m2");
    own.again();
    until("it is told", || daemon.log().contains("the runtime is back"));
    in_turn(&daemon, 2);
    let_go(&daemon);
    assert_eq!(client.settle(&["m1", "m2"]), ["echo: meanwhile", "echo: slow"], "{}", daemon.log());
    client.say("m3", "more").unwrap();
    assert_eq!(client.settle(&["m3"]), ["echo: more"], "{}", daemon.log());
    let told = daemon.log().matches("the runtime is away").count();
    assert_eq!(told, 1, "a state, and no loop of errors:\n{}", daemon.log());
    assert!(!daemon.ok(&["status"]).contains("away "));
    daemon.stop();
    assert_eq!(own.engine.containers(daemon.data()).len(), 0);
    daemon.replays();
    // Nobody uses the image now, and this command is not told of the runner that it was made of.
    let refused = daemon.run(&["image", "build"]);
    assert!(
        !refused.status.success() && crate::support::text(&refused.stderr).contains("dynamically linked")
    );
    let listed = daemon.ok(&["image", "ls"]);
    assert!(listed.contains("lamplighter-runner:") && !listed.contains("current"), "{listed}");
    assert!(daemon.ok(&["image", "prune"]).starts_with("removed lamplighter-runner:"));
    assert!(!daemon.ok(&["image", "ls"]).contains("lamplighter-runner:"));
    let build = || {
        let mut command = Command::new(crate::support::lamplighter());
        command.args(["image", "build", "--data"]).arg(daemon.data());
        command.env("LAMPLIGHTER_RUNNER", static_runner().unwrap());
        crate::support::text(&command.output().unwrap().stdout)
    };
    assert!(build().starts_with("made lamplighter-runner:"));
    assert!(build().starts_with("there is already lamplighter-runner:"));
}

/// The only session's outbound.db.
fn outbound(daemon: &Daemon) -> PathBuf {
    sessions(daemon)[0].join("out/outbound.db")
}

/// A reply is committed, and its writer dies in its next transaction.
fn commit_and_die(database: &Path) {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/main/commits_and_dies.py");
    let status = Command::new("python3").arg(program).arg(database).status().unwrap();
    assert!(!status.success(), "it should have been killed");
    let journal = database.with_file_name("outbound.db-journal");
    assert!(fs::metadata(journal).is_ok_and(|it| it.len() > 0), "there is no hot journal");
}

#[test]
fn what_was_committed_before_a_kill_is_delivered_although_the_journal_is_hot_and_the_image_gone() {
    let (Some(mut own), Some(runner)) = (OwnEngine::start(), static_runner()) else { return };
    let docker = format!("{STOPS}[runtime.docker]\nhost = \"{}\"\nnetwork = \"none\"\n", own.engine.host());
    let mut daemon = Daemon::start_on("docker", runner, &docker);
    let mut client = daemon.client("main");
    client.say("m1", "hi").unwrap();
    client.upto("settled", "m1");
    let id = own.engine.running(daemon.data()).remove(0);
    // The daemon sees nothing until all of it has happened.
    kill_process(daemon.pid(), Signal::STOP).unwrap();
    own.engine.ask("POST", &format!("/containers/{id}/kill?signal=KILL"), &[]).unwrap();
    commit_and_die(&outbound(&daemon));
    let image = own.engine.json("/images/json")[0]["Id"].as_str().unwrap().to_owned();
    own.engine.ask("DELETE", &format!("/images/{image}?force=1"), &[]).unwrap();
    kill_process(daemon.pid(), Signal::CONT).unwrap();
    assert_eq!(client.upto("message", "").0["text"], "written last", "{}", daemon.log());
    // The log is written beside the loop.
    until("it is told", || daemon.log().contains("hot journal"));
    // The next runner rolls back and goes on, from an image that is made again.
    client.say("m2", "more").unwrap();
    let (_, replies) = client.upto("settled", "m2");
    assert_eq!(replies.values().collect::<Vec<_>>(), ["echo: more"], "{}", daemon.log());
    daemon.stop();
    own.stop();
    daemon.replays();
}

#[test]
fn what_was_committed_is_delivered_while_the_engine_is_away() {
    let (Some(mut own), Some(runner)) = (OwnEngine::start(), static_runner()) else { return };
    let docker = format!("[runtime.docker]\nhost = \"{}\"\nnetwork = \"none\"\n", own.engine.host());
    let mut daemon = Daemon::start_on("docker", runner, &docker);
    let mut client = daemon.client("main");
    client.say("m1", "hi").unwrap();
    client.upto("settled", "m1");
    let id = own.engine.running(daemon.data()).remove(0);
    let pid = own.engine.json(&format!("/containers/{id}/json"))["State"]["Pid"].as_i64().unwrap();
    own.kill();
    until("it is told", || daemon.log().contains("the runtime is away"));
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
    until("its processes are gone", || !Path::new(&format!("/proc/{pid}/root/lamplighter-runner")).exists());
    // So that the reply is not read between its commit and the next transaction.
    kill_process(daemon.pid(), Signal::STOP).unwrap();
    commit_and_die(&outbound(&daemon));
    kill_process(daemon.pid(), Signal::CONT).unwrap();
    assert_eq!(client.upto("message", "").0["text"], "written last", "{}", daemon.log());
    // The log is written beside the loop.
    until("it is told", || daemon.log().contains("hot journal"));
    assert!(!daemon.log().contains("the runtime is back"), "{}", daemon.log());
    daemon.stop();
    daemon.replays();
}

#[test]
fn a_daemon_starts_while_the_engine_is_away_delivers_what_was_written_and_goes_on_when_it_comes() {
    let (Some(mut own), Some(runner)) = (OwnEngine::start(), static_runner()) else { return };
    let docker = format!("[runtime.docker]\nhost = \"{}\"\nnetwork = \"none\"\n", own.engine.host());
    let mut daemon = Daemon::start_on("docker", runner, &mock(HELD, &docker));
    let mut client = daemon.client("main");
    client.say("m0", "hi").unwrap();
    client.upto("settled", "m0");
    client.say("m1", "slow").unwrap();
    until("it is in a turn", || daemon.log().contains("messages were handed on"));
    daemon.kill();
    own.stop();
    commit_and_die(&outbound(&daemon));
    daemon.again();
    until("it is told", || daemon.log().contains("the runtime is away"));
    let mut client = daemon.client("main");
    assert_eq!(client.upto("message", "").0["text"], "written last", "{}", daemon.log());
    let status = daemon.ok(&["status"]);
    assert!(status.contains("what an earlier daemon left running is not known yet"), "{status}");
    client.say("m2", "meanwhile").unwrap();
    client.upto("accepted", "m2");
    assert!(!daemon.log().contains("the runtime is back"), "{}", daemon.log());
    own.again();
    let_go(&daemon);
    assert_eq!(client.settle(&["m1", "m2"]), ["echo: meanwhile", "echo: slow"], "{}", daemon.log());
    until("it is told", || daemon.log().contains("the runtime is back"));
    assert!(!daemon.ok(&["status"]).contains("away "));
    assert_eq!(daemon.ok(&["stop", "--containers", "stop"]), "");
    daemon.replays();
}

#[test]
fn where_an_engine_maps_users_the_agent_is_who_it_is_found_to_be() {
    let (Some(mut own), Some(runner)) = (OwnEngine::mapping_users(), static_runner()) else {
        return;
    };
    let docker = format!("{STOPS}[runtime.docker]\nhost = \"{}\"\nnetwork = \"none\"\n", own.engine.host());
    let mut daemon = Daemon::start_on("docker", runner, &docker);
    assert_eq!(daemon.ok(&["chat", "--timeout", "60", "hi"]), "echo: hi\n");
    let session = sessions(&daemon).remove(0);
    let owner = |name: &str| fs::metadata(session.join(name)).unwrap().uid();
    assert_eq!(owner("out/outbound.db"), MAPPED + 10_001);
    assert_eq!(owner("in/inbound.db"), 0);
    daemon.stop();
    own.stop();
}

#[test]
fn doctor_names_the_engine_the_image_and_what_is_relaxed() {
    let (Some(engine), Some(runner)) = (engine(), static_runner()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let look = |config: &str| {
        let config = format!("[runtime]\nkind = \"docker\"\n[runtime.docker]\nrunner = {runner:?}\n{config}");
        fs::write(folder.path().join("lamplighter.toml"), config).unwrap();
        let output = Command::new(crate::support::lamplighter())
            .args(["doctor", "--json", "--data"])
            .arg(folder.path())
            .output()
            .unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = said["findings"].as_array().unwrap().clone();
        (output.status.code(), found)
    };
    let of = |found: &[Value], topic: &str| {
        found
            .iter()
            .find(|it| it["topic"] == topic)
            .unwrap_or_else(|| panic!("no {topic}: {found:?}"))
            .clone()
    };
    let (code, found) = look("");
    assert_eq!(code, Some(0), "{found:?}");
    let version = engine.json("/version")["Version"].as_str().unwrap().to_owned();
    assert!(of(&found, "engine")["found"].as_str().unwrap().starts_with(&version), "{found:?}");
    assert!(of(&found, "image")["found"].as_str().unwrap().starts_with("lamplighter-runner:"), "{found:?}");
    assert_eq!(of(&found, "confinement")["grade"], "ok");
    // A daemon's first start makes it.
    let mut daemon = Daemon::start_on("docker", runner.clone(), STOPS);
    daemon.stop();
    let (code, found) = look("");
    assert_eq!(code, Some(0), "{found:?}");
    let user = of(&found, "agents' user")["found"].as_str().unwrap().to_owned();
    assert!(user.ends_with("on this machine (tried)"), "{user}");
    assert_eq!(of(&found, "events of mounts")["grade"], "ok", "{found:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the probe's folder must be gone");
    let (code, found) = look("pids = 0\n");
    assert_eq!((code, &of(&found, "confinement")["grade"]), (Some(0), &json!("warning")));
    let (code, found) = look("image = \"nobody/has:this\"\noci_runtime = \"none-such\"\n");
    assert_eq!((code, &of(&found, "image")["grade"]), (Some(1), &json!("bad")));
    assert_eq!(of(&found, "OCI runtime")["grade"], "bad");
}

#[test]
fn a_runner_that_needs_libraries_is_refused_with_the_way_out() {
    if engine().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(crate::support::lamplighter())
        .args(["run", "--runtime", "docker", "--data"])
        .arg(folder.path())
        .env("LAMPLIGHTER_RUNNER", crate::support::runner())
        .output()
        .unwrap();
    let said = crate::support::text(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("dynamically linked") && said.contains("scripts/runner-static"), "{said}");
}
