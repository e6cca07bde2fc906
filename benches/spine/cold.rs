//! The cold start of a process: from the daemon's decision to wake an agent until the agent's claim was read, as the
//! daemon's own journal has it, beside a child that reads one row and commits one.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lamplighter::base::{At, SessionNo};
use lamplighter::machine::effect::Effect;
use lamplighter::machine::state::InState;
use lamplighter::replay::walk::{Stop, walk};
use lamplighter::session::SessionFolder;
use serde_json::json;

use super::daemon::{Client, connect, daemon_with, stop};
use super::{floor_connection, insert_in, pair, runner_path, session, writer};

/// Starts of each kind, in turn; the first ones warm the page cache and are not counted.
const STARTS: usize = 60;
const WARM: usize = 5;
/// The word by which this program is the floor's child.
const CHILD: &str = "--floor-child";

/// As the floor's child: reads the waiting row and commits a claim, each on a connection of its own. Returns whether
/// this process is that child.
pub fn is_floor_child() -> bool {
    let words: Vec<String> = std::env::args().collect();
    let Some(place) = words.iter().position(|word| word == CHILD) else { return false };
    let folder = SessionFolder::nested(Path::new(&words[place + 1]));
    let id: String = floor_connection(&folder.inbound_db())
        .query_row("SELECT id FROM messages_in WHERE status = 'pending'", [], |row| row.get(0))
        .unwrap();
    writer(&folder.outbound_db())
        .execute("INSERT OR REPLACE INTO processing_ack VALUES (?1, 'processing', datetime('now'))", [id])
        .unwrap();
    true
}

/// Prints the rows.
pub fn cold_start() {
    let root = tempfile::tempdir_in(".").unwrap();
    let config = "[policy]\nslots = 128\n";
    std::fs::write(root.path().join("lamplighter.toml"), config).unwrap();
    let mut daemon = daemon_with(root.path(), "process", &runner_path());
    drop(connect(root.path()));
    let aside = tempfile::tempdir_in(".").unwrap();
    let mut floor = Vec::new();
    for n in 0..STARTS + WARM {
        let mut client = Client::new(root.path(), &format!("c{n}"));
        client.say(json!({"type": "message", "id": "m", "text": "hi"}));
        // Its turn is over before the floor's child runs: the end of one is told when what it said was acknowledged.
        let (_, reply) = client.until("message");
        client.say(json!({"type": "ack", "id": reply["id"]}));
        client.until("settled");
        floor.push(child(aside.path(), n));
    }
    stop(&mut daemon);
    let mut ours = claims(&root.path().join("journal"));
    assert_eq!(ours.len(), STARTS + WARM, "each message was claimed once");
    pair("cold start, process", &mut ours.split_off(WARM), &mut floor.split_off(WARM));
}

fn child(root: &Path, n: usize) -> Duration {
    let folder = session(root, &format!("floor-{n}"));
    insert_in(&writer(&folder.inbound_db()), 1);
    let path: PathBuf = root.join("sessions/agent").join(format!("floor-{n}"));
    let begun = Instant::now();
    let status = Command::new(std::env::current_exe().unwrap())
        .arg(CHILD)
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "the floor's child");
    begun.elapsed()
}

/// From the record that decides to wake a session to the one that reads its claim, in the order of the claims.
fn claims(journal: &Path) -> Vec<Duration> {
    let mut decided: BTreeMap<SessionNo, At> = BTreeMap::new();
    let mut all = Vec::new();
    walk(journal, |stop| {
        if let Stop::Step(step) = stop {
            for effect in step.effects {
                if let Effect::ProjectDestinations { session, .. } = effect {
                    decided.insert(*session, step.at);
                }
            }
            let claimed = step.state.inbounds().values().filter_map(|message| match message.state {
                InState::Claimed { since, .. } => Some((message.session, since)),
                _ => None,
            });
            for (session, since) in claimed {
                if let Some(at) = decided.remove(&session) {
                    all.push(Duration::from_micros(u64::try_from(since.0 - at.0).unwrap()));
                }
            }
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    all
}
