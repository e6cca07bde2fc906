//! An image of NanoClaw's shape, made of our own files, driven as NanoClaw's host would drive its own (contract
//! 19 to 21).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use lamplighter::session::host_side::create;
use lamplighter::session::layout;
use rusqlite::{Connection, OpenFlags, ffi};

use crate::docker_engine::{Engine, Image, compiled, engine, static_runner};
use crate::support::{Daemon, only_state, until};

/// The image; none without a compiler.
fn image<'a>(engine: &'a Engine, runner: &Path) -> Option<Image<'a>> {
    let (_folder, program) = compiled("fake_bun.c")?;
    let files = [
        ("bin/bash", program.as_path(), 0o755),
        ("usr/local/bin/bun", program.as_path(), 0o755),
        ("lamplighter-runner", runner, 0o755),
    ];
    Some(engine.import(&files, &["ENV PATH=/usr/local/bin:/usr/bin:/bin"]))
}

/// A checkout of NanoClaw, as far as it is mounted.
fn checkout() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("container/agent-runner/src");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("index.ts"), "// not run\n").unwrap();
    folder
}

fn report(daemon: &Daemon) -> PathBuf {
    let sessions = daemon.data().join("sessions/agent");
    let session = fs::read_dir(sessions).unwrap().next().unwrap().unwrap().path();
    session.join("out/report")
}

/// What is mounted, and whether whoever owned it could write it.
const MOUNTS: [&str; 8] = [
    "/ ro",
    "/app/src ro",
    "/home/node rw",
    "/home/node/.claude rw",
    "/workspace rw",
    "/workspace/agent rw",
    "/workspace/agent/container.json ro",
    "/workspace/in ro",
];

/// What an agent could have left where the next start needs links and a file.
fn put_in_the_way(out: &Path, data: &Path) {
    let (inbound, inbox) = (out.join("inbound.db"), out.join("inbox"));
    fs::remove_file(&inbound).unwrap();
    fs::write(&inbound, "planted").unwrap();
    fs::remove_file(&inbox).unwrap();
    symlink("/workspace/agent", &inbox).unwrap();
    let config = data.join("groups/agent/container.json");
    fs::remove_file(&config).unwrap();
    symlink(data.join("planted"), &config).unwrap();
}

#[test]
fn nanoclaws_runner_is_started_as_its_own_host_starts_it_and_answers() {
    let (Some(engine), Some(runner)) = (engine(), static_runner()) else { return };
    let Some(image) = image(&engine, &runner) else { return };
    let checkout = checkout();
    let config = format!(
        "[agent]\ntimezone = \"Europe/Zurich\"\nenv_file = {:?}\n[runtime]\nat_stop = \"stop\"\n[runtime.docker]\nimage = {:?}\n\
         compat = \"nanoclaw\"\nnanoclaw = {:?}\n",
        checkout.path().join("env"),
        image.name,
        checkout.path()
    );
    fs::write(checkout.path().join("env"), "KEY=value\n").unwrap();
    let mut daemon = Daemon::start_on("docker", runner, &config);
    assert_eq!(daemon.ok(&["chat", "--timeout", "60", "hi"]), "echo: hi\n");
    let path = report(&daemon);
    let text = fs::read_to_string(&path).unwrap();
    let expected = [
        "command bun run /app/src/index.ts",
        "env HOME=/home/node",
        "env TZ=Europe/Zurich",
        "env KEY=value",
        "env PATH=/usr/local/bin:/usr/bin:/bin",
        "r- /workspace/inbound.db",
        "rw /workspace/outbound.db",
        "r- /workspace/agent/container.json",
        "r- /app/src/index.ts",
        "r- /workspace/in/container.json",
        "creates /workspace/mine yes",
        "creates /workspace/agent/mine yes",
        "creates /home/node/mine yes",
        "creates /home/node/.claude/mine yes",
        "creates /tmp/mine yes",
        "creates /app/src/mine no",
        "creates /workspace/inbox/mine no",
        "creates /mine no",
        "parent 1",
        "home-lasts no",
        "state-lasts no",
        "end",
    ];
    for line in expected {
        assert!(text.lines().any(|it| it == line), "{line}:\n{text}\n{}", daemon.log());
    }
    assert!(!text.contains("env LAMPLIGHTER_"), "its runner knows the places:\n{text}");
    assert!(!text.contains("user 0:"), "{text}");
    assert!(!daemon.log().contains("it was not tried whose"), "{}", daemon.log());
    let mut mounts: Vec<&str> = text.lines().filter_map(|it| it.strip_prefix("mount ")).collect();
    mounts.sort_unstable();
    assert_eq!(mounts, MOUNTS);
    // Another container of the same session, with things in the way.
    daemon.ok(&["session", "stop", "s1"]);
    until("it has ended", || engine.containers(daemon.data()).is_empty());
    put_in_the_way(path.parent().unwrap(), daemon.data());
    daemon.ok(&["session", "start", "s1"]);
    assert_eq!(daemon.ok(&["chat", "--timeout", "60", "again"]), "echo: again\n");
    let text = fs::read_to_string(&path).unwrap();
    let (_, second) = text.split_once("end\n").unwrap();
    for line in expected {
        let line = line.replace("state-lasts no", "state-lasts yes");
        assert_eq!(second.lines().filter(|it| **it == line).count(), 1, "{line}:\n{second}");
    }
    assert!(only_state(daemon.data()).join("claude/mine").is_file());
    assert!(!daemon.data().join("planted").exists(), "a link of the agent's was followed");
    daemon.stop();
    assert_eq!(engine.containers(daemon.data()).len(), 0);
    daemon.replays();
}

#[test]
fn a_folder_that_is_no_checkout_is_named_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let config = "[runtime.docker]\ncompat = \"nanoclaw\"\nimage = \"any\"\nnanoclaw = \"/proc\"\n";
    fs::write(folder.path().join("lamplighter.toml"), config).unwrap();
    let output = Command::new(crate::support::lamplighter())
        .args(["run", "--runtime", "docker", "--data"])
        .arg(folder.path())
        .output()
        .unwrap();
    let said = crate::support::text(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("/proc/container/agent-runner/src"), "{said}");
    assert!(said.contains("runtime.docker.nanoclaw"), "{said}");
}

/// A workspace as its container sees it, whose inbound.db is as a host leaves it that is killed while it writes more
/// than fits into memory.
fn killed_in_mid_write(root: &Path) -> PathBuf {
    let session = create::create(&root.join("group/session")).unwrap();
    let writer = Connection::open(session.inbound_db()).unwrap();
    writer.execute_batch("PRAGMA cache_size = 2; BEGIN IMMEDIATE").unwrap();
    let insert =
        "INSERT INTO delivered (message_out_id, platform_message_id, delivered_at) VALUES (?, ?, '')";
    for n in 0..50 {
        writer.execute(insert, (format!("m{n}"), "x".repeat(4_000))).unwrap();
    }
    let workspace = root.join("workspace");
    fs::create_dir_all(workspace.join(layout::IN)).unwrap();
    for path in [session.inbound_db(), layout::journal_of(&session.inbound_db())] {
        fs::copy(&path, workspace.join(layout::IN).join(path.file_name().unwrap())).unwrap();
    }
    let link = fs::read_link(session.out_dir().join(layout::INBOUND_DB)).unwrap();
    symlink(link, workspace.join(layout::INBOUND_DB)).unwrap();
    workspace
}

#[test]
fn what_opens_inbound_db_through_its_link_sees_the_journal_beside_the_file() {
    let root = tempfile::tempdir().unwrap();
    let workspace = killed_in_mid_write(root.path());
    let rows = |path: &Path, flags| {
        let db = Connection::open_with_flags(path, flags)?;
        db.query_row("SELECT count(*) FROM delivered", [], |row| row.get::<_, i64>(0))
    };
    let (link, file) = (workspace.join("inbound.db"), workspace.join("in/inbound.db"));
    // Not half a transaction: the runner is told that the host is away.
    let error = rows(&link, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap_err();
    let code = error.sqlite_error().map(|error| error.extended_code);
    assert_eq!(code, Some(ffi::SQLITE_READONLY_ROLLBACK), "{error}");
    // The host heals it when it starts again.
    assert_eq!(rows(&file, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap(), 0);
    assert_eq!(rows(&link, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap(), 0);
}
