//! What the runner costs to start and to keep, beside a static program that does nothing.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lamplighter::session::SessionFolder;
use rusqlite::Connection;

use super::{
    Runner, await_removal, floor_connection, insert_in, pair, row, runner_path, session, watch, writer,
};

/// Starts of each kind; the first ones warm the page cache and are not counted.
const STARTS: usize = 60;
const WARM: usize = 5;
/// After the last thing that was seen of a process, so that its pages have settled.
const SETTLE: Duration = Duration::from_millis(300);

const NOTHING: &str =
    "#include <unistd.h>\nint main(int count, char **words) { if (count > 1) pause(); return 0; }\n";

/// The static build, when there is one, and the one that the other parts measure.
pub fn cost() {
    let root = tempfile::tempdir_in(".").unwrap();
    let nothing = build_nothing(root.path());
    let linked = std::env::var_os("LAMPLIGHTER_RUNNER_STATIC").map(|path| ("static", PathBuf::from(path)));
    for (kind, runner) in linked.into_iter().chain([("dynamic", runner_path())]) {
        let size = |path: &Path| std::fs::metadata(path).unwrap().len() as f64 / 1e6;
        row(&format!("runner, {kind}: size"), size(&runner), size(&nothing), "MB");
        starts(root.path(), kind, &runner, &nothing);
        memory(root.path(), kind, &runner, &nothing);
    }
}

/// A static program that ends at once, or waits where it is given a word.
pub fn build_nothing(folder: &Path) -> PathBuf {
    let (source, program) = (folder.join("nothing.c"), folder.join("nothing"));
    std::fs::write(&source, NOTHING).unwrap();
    let built = Command::new("cc").args(["-O2", "-static", "-o"]).args([&program, &source]).status().unwrap();
    assert!(built.success(), "cc -static");
    program
}

fn spawn(program: &Path, folder: Option<&SessionFolder>, arg: Option<&str>) -> Child {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).args(arg);
    if let Some(folder) = folder {
        command.env("LAMPLIGHTER_WORKSPACE", folder.out_dir()).env("LAMPLIGHTER_IN", folder.in_dir());
        command.env("LAMPLIGHTER_AGENT", folder.out_dir());
    }
    command.spawn().unwrap()
}

fn prepared(root: &Path, name: &str) -> SessionFolder {
    let folder = session(root, name);
    let rules = r#"{"provider":"mock","mock":{"rules":[{"pattern":"long","delay_ms":600000}]}}"#;
    std::fs::write(folder.container_json(), rules).unwrap();
    folder
}

fn status_of(db: &Connection, id: &str) -> Option<String> {
    let mut query = db.prepare_cached("SELECT status FROM processing_ack WHERE message_id = ?1").unwrap();
    query.query_row([id], |row| row.get(0)).ok()
}

/// A message waits; the runner is started and claims it. It commits twice for that: its attempt, then the claim.
fn starts(root: &Path, kind: &str, runner: &Path, nothing: &Path) {
    let (mut ours, mut version, mut floor, mut floor_commits) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let other = prepared(root, &format!("floor-{kind}"));
    let other_db = writer(&other.outbound_db());
    for n in 0..STARTS + WARM {
        let folder = prepared(root, &format!("start-{kind}-{n}"));
        insert_in(&writer(&folder.inbound_db()), 1);
        let fd = watch(folder.out_dir());
        let db = floor_connection(&folder.outbound_db());
        let began = Instant::now();
        let child = Runner(spawn(runner, Some(&folder), None));
        while status_of(&db, "i1").is_none() {
            await_removal(&fd, "outbound.db-journal");
        }
        let claimed = began.elapsed();
        drop(child);

        let took = |program: &Path, arg| {
            let began = Instant::now();
            spawn(program, None, arg).wait().unwrap();
            began.elapsed()
        };
        let (of_version, of_nothing) = (took(runner, Some("--version")), took(nothing, None));
        let began = Instant::now();
        for id in ["attempt", "claim"] {
            let sql = "INSERT OR REPLACE INTO processing_ack VALUES (?1, 'processing', datetime('now'))";
            other_db.prepare_cached(sql).unwrap().execute([format!("{id}-{n}")]).unwrap();
        }
        if n >= WARM {
            ours.push(claimed);
            version.push(of_version);
            floor.push(of_nothing);
            floor_commits.push(of_nothing + began.elapsed());
        }
    }
    pair(&format!("runner, {kind}: spawn -> claim"), &mut ours.clone(), &mut floor.clone());
    pair(&format!("runner, {kind}: the same, 2 commits in floor"), &mut ours, &mut floor_commits);
    pair(&format!("runner, {kind}: spawn -> end, --version"), &mut version, &mut floor);
}

/// Resident memory, and the part of it that no other process can share, in MB.
fn resident(child: &Child) -> [f64; 2] {
    std::thread::sleep(SETTLE);
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    ["VmRSS:", "RssAnon:"].map(|name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    })
}

fn memory(root: &Path, kind: &str, runner: &Path, nothing: &Path) {
    let floor = Runner(spawn(nothing, None, Some("wait")));
    let floor = resident(&floor.0);
    let folder = prepared(root, &format!("memory-{kind}"));
    let (inbound, db) = (writer(&folder.inbound_db()), floor_connection(&folder.outbound_db()));
    let fd = watch(folder.out_dir());
    let until = |id: &str, status: &str| {
        while status_of(&db, id).as_deref() != Some(status) {
            await_removal(&fd, "outbound.db-journal");
        }
    };
    let child = Runner(spawn(runner, Some(&folder), None));
    for n in 1..=20 {
        insert_in(&inbound, n);
        until(&format!("i{n}"), "completed");
    }
    let idle = resident(&child.0);
    let sql = "INSERT INTO messages_in (id, seq, kind, timestamp, content, channel_type, platform_id) \
               VALUES ('long', 1000, 'chat', '2026-01-01T00:00:00.000Z', '{\"text\":\"long\"}', 'chat', 'chat:main')";
    inbound.execute(sql, []).unwrap();
    until("long", "processing");
    let busy = resident(&child.0);
    for (state, ours) in [("idle after 20 turns", idle), ("in a mock turn", busy)] {
        row(&format!("runner, {kind}: resident, {state}"), ours[0], floor[0], "MB");
        row(&format!("runner, {kind}: private, {state}"), ours[1], floor[1], "MB");
    }
}
