//! What every command that reads a journal says about the recorded ones, word for word: `fixtures/said`. `UPDATE=1`
//! rewrites it.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{lamplighter, text};

/// A name, the arguments, in which `DIR` is an empty folder, and the exit code.
type Said = (&'static str, &'static [&'static str], i32);

const CRASH: &str = "fixtures/journals/crash-in-mid-turn";
const SLOTS: &str = "fixtures/journals/slots-full";
const DAMAGED: &str = "fixtures/damaged/damaged-record";

const SAID: [Said; 25] = [
    ("replay", &["replay", CRASH, SLOTS], 0),
    ("replay-json", &["replay", "--json", CRASH], 0),
    ("replay-damaged", &["replay", DAMAGED], 1),
    ("replay-damaged-json", &["replay", "--json", DAMAGED], 1),
    ("replay-gap", &["replay", "fixtures/damaged/damaged-gap"], 1),
    ("replay-torn", &["replay", "fixtures/damaged/torn-tail"], 0),
    ("replay-corrupt", &["replay", "fixtures/damaged/corrupt-header"], 2),
    ("replay-nothing", &["replay", "fixtures/scripts"], 2),
    ("why-by-text", &["why", "is anybody", "--journal", "fixtures/journals/delivery-in-doubt"], 0),
    ("why-unknown", &["why", "nobody", "--journal", CRASH], 1),
    ("why-by-number", &["why", "2", "--session", "s1", "--journal", CRASH], 0),
    ("state-session", &["state", CRASH, "--at", "1.13", "--session", "s1"], 0),
    ("state-end", &["state", CRASH], 0),
    ("fork-slots", &["fork", SLOTS, "--at", "1.0", "--set", "policy.slots=4"], 0),
    ("fork-drop", &["fork", CRASH, "--at", "1.4", "--drop", "1.4"], 0),
    ("fork-wrong-key", &["fork", CRASH, "--at", "1.4", "--set", "policy.slotz=4"], 2),
    ("export-jsonl", &["export", CRASH, "--format", "jsonl"], 0),
    ("export-perfetto", &["export", CRASH, "--format", "perfetto"], 0),
    ("export-unknown-session", &["export", CRASH, "--format", "jsonl", "--session", "s9"], 1),
    ("export-html", &["export", CRASH, "--format", "html", "--out", "DIR/page.html"], 0),
    ("fixture-record", &["fixture", "record", "DIR/kept", "--session", "s1", "--journal", SLOTS], 0),
    (
        "fixture-record-redacted",
        &["fixture", "record", "DIR/shared", "--all", "--redact", "--journal", SLOTS],
        0,
    ),
    ("upgrade-check", &["upgrade-check", "--journal", SLOTS], 0),
    ("fixture-accept", &["fixture", "accept", CRASH, SLOTS], 0),
    ("step-without-a-terminal", &["step", CRASH], 2),
];

#[test]
fn every_command_says_of_the_recorded_journals_what_it_said_before() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("fixtures/said");
    fs::create_dir_all(&folder).unwrap();
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    let into = tempfile::tempdir().unwrap();
    let into = into.path().to_str().unwrap();
    for (name, args, code) in SAID {
        let named = args.iter().map(|arg| arg.replace("DIR", into));
        let output = Command::new(lamplighter()).args(named).current_dir(root).output().unwrap();
        let said = format!(
            "$ lamplighter {}\n{}{}exit code {}\n",
            args.join(" "),
            text(&output.stdout).replace(into, "DIR"),
            text(&output.stderr).replace(into, "DIR"),
            output.status.code().unwrap_or(-1)
        );
        assert_eq!(output.status.code(), Some(code), "{said}");
        let kept = folder.join(format!("{name}.txt"));
        if update {
            fs::write(&kept, &said).unwrap();
        } else if fs::read_to_string(&kept).unwrap_or_default() != said {
            wrong.push(format!("{}:\n{said}", kept.display()));
        }
    }
    assert!(wrong.is_empty(), "UPDATE=1 rewrites what is meant:\n{}", wrong.join("\n"));
    let mut found: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    found.sort();
    let mut names: Vec<&str> = SAID.iter().map(|(name, ..)| *name).collect();
    names.sort_unstable();
    assert_eq!(found, names, "a file that no command writes");
}
