//! The cold start in a container: from the daemon's decision to wake an agent until the agent has claimed the message,
//! beside `docker run` of a static program that does nothing, on the same engine and confined in the same way.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::daemon::{Client, connect, daemon_with, folders, stop};
use super::runner::build_nothing;
use super::{await_removal, floor_connection, pair, watch};

/// Starts of each kind, in turn; the first ones warm the engine and are not counted.
const STARTS: usize = 20;
const WARM: usize = 2;
/// The image of the program that does nothing.
const NOTHING: &str = "lamplighter-bench-nothing";

/// Needs an engine, the docker command and a static runner.
pub fn cold_start() {
    let Some(runner) = std::env::var_os("LAMPLIGHTER_RUNNER_STATIC").map(PathBuf::from) else {
        return println!("NOT DONE: docker needs LAMPLIGHTER_RUNNER_STATIC, as scripts/bench sets it");
    };
    let answers = Command::new("docker").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !answers.is_ok_and(|status| status.success()) {
        return println!("NOT DONE: docker needs an engine that answers; scripts/docker-engine makes one");
    }
    let root = tempfile::tempdir_in(".").unwrap();
    import(root.path());
    for network in ["none", "bridge"] {
        starts(network, &runner);
    }
    drop(Command::new("docker").args(["rmi", NOTHING]).stdout(Stdio::null()).status());
}

fn import(folder: &Path) {
    let program = build_nothing(folder);
    let archive = folder.join("nothing.tar");
    let packed =
        Command::new("tar").arg("-C").arg(folder).arg("-cf").arg(&archive).arg("nothing").status().unwrap();
    assert!(packed.success(), "tar of {}", program.display());
    let taken =
        Command::new("docker").arg("import").arg(&archive).arg(NOTHING).stdout(Stdio::null()).status();
    assert!(taken.unwrap().success(), "docker import");
}

fn starts(network: &str, runner: &Path) {
    let root = tempfile::tempdir_in(".").unwrap();
    let config = root.path().join("lamplighter.toml");
    let text = format!(
        "[runtime]\nat_stop = \"stop\"\n[runtime.docker]\nnetwork = \"{network}\"\n[policy]\nslots = 64\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut daemon = daemon_with(root.path(), "docker", runner);
    drop(connect(root.path()));
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for n in 0..STARTS + WARM {
        let (claimed, run) = (claim(root.path(), n), docker_run(network));
        if n >= WARM {
            ours.push(claimed);
            floor.push(run);
        }
    }
    pair(&format!("cold start, network {network}"), &mut ours, &mut floor);
    stop(&mut daemon);
}

/// A message to a chat that was never heard of, until it is claimed. It is accepted in the step that decides to wake.
fn claim(root: &Path, n: usize) -> Duration {
    let before = folders(root);
    let mut client = Client::new(root, &format!("c{n}"));
    client.say(json!({"type": "message", "id": "m", "text": "hi"}));
    let (decided, _) = client.until("accepted");
    let new = folders(root).into_iter().find(|path| !before.contains(path)).unwrap();
    let out = new.join("out");
    let fd = watch(&out);
    let db = floor_connection(&out.join("outbound.db"));
    let mut count = db.prepare("SELECT count(*) FROM processing_ack").unwrap();
    loop {
        await_removal(&fd, "outbound.db-journal");
        let at = Instant::now();
        if count.query_row([], |row| row.get::<_, i64>(0)).unwrap() > 0 {
            return at.saturating_duration_since(decided);
        }
    }
}

fn docker_run(network: &str) -> Duration {
    let begun = Instant::now();
    let status = Command::new("docker")
        .args(["run", "--rm", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"])
        .args([
            "--user",
            "10001:10001",
            "--memory",
            "2g",
            "--memory-swap",
            "2g",
            "--cpus",
            "2",
            "--pids-limit",
            "512",
        ])
        .args(["--init", "--tmpfs", "/tmp", "--network", network, NOTHING, "/nothing"])
        .status()
        .unwrap();
    assert!(status.success(), "docker run");
    begun.elapsed()
}
