//! The fork against the recorded journals: without a change nothing differs, wherever it begins.

use std::path::{Path, PathBuf};

use crate::base::RecordNo;
use crate::machine::policy::Policy;
use crate::replay::fork::{Change, Fork, ForkError, fork};
use crate::replay::walk::{Stop, walk};

fn journals() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/journals");
    let mut found: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

fn journal(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/journals").join(name)
}

fn records(path: &Path) -> Vec<(RecordNo, &'static str)> {
    let mut all = Vec::new();
    walk(path, |stop| {
        if let Stop::Step(step) = stop {
            all.push((step.record, step.input.name()));
        }
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    all
}

fn change(at: RecordNo) -> Change<'static> {
    Change { at, policy: None, drop: Vec::new(), edit: Vec::new() }
}

#[test]
fn a_fork_without_a_change_is_the_journal_wherever_it_begins() {
    for path in journals() {
        for (at, _) in records(&path) {
            let found = fork(&path, &change(at), 10).unwrap();
            assert!(found.rows.is_empty() && found.left_out == 0, "{} at {at}: {found:#?}", path.display());
        }
    }
}

fn first(path: &Path, name: &str) -> RecordNo {
    records(path).into_iter().find(|(_, input)| *input == name).unwrap().0
}

fn effects(fork: &Fork) -> Vec<String> {
    fork.rows.iter().filter_map(|row| row.forked.as_ref()).flat_map(|side| side.effects.clone()).collect()
}

#[test]
fn more_slots_start_the_second_session_at_once() {
    let path = journal("slots-full");
    let policy = |policy: &Policy| Policy { slots: 4, ..policy.clone() };
    let found =
        fork(&path, &Change { policy: Some(&policy), ..change(first(&path, "booted")) }, 1_000).unwrap();
    let row = found.rows.iter().find(|row| row.recorded.is_some() && !row.is_same()).unwrap();
    let (recorded, forked) = (row.recorded.as_ref().unwrap(), row.forked.as_ref().unwrap());
    assert_eq!(recorded.input, "inbound-written");
    assert!(forked.effects.iter().any(|it| it == "project-destinations chat:main"), "{forked:?}");
    assert!(!effects(&found).iter().any(|it| it.contains("make-room")));
    assert!(found.left_out > 0);
}

#[test]
fn a_message_that_did_not_come_is_not_worked_on() {
    let path = journal("crash-in-mid-turn");
    let arrival = first(&path, "message-arrived");
    let found = fork(&path, &Change { drop: vec![arrival], ..change(arrival) }, 1_000).unwrap();
    assert!(found.rows[0].forked.is_none());
    assert!(effects(&found).is_empty(), "{:?}", effects(&found));
    assert!(found.open.is_empty());
}

#[test]
fn a_container_that_ends_well_leaves_its_message_blamed_all_the_same() {
    let path = journal("crash-in-mid-turn");
    let exit = first(&path, "container-exited");
    let edit = |field: &str, value: &str| {
        let edit = vec![(exit, field.to_owned(), value.to_owned())];
        fork(&path, &Change { edit, ..change(exit) }, 1_000)
    };
    let found = edit("exit.Code", "0").unwrap();
    // It had no result either way, so it is tried again; but nobody complains of a crash.
    let (recorded, forked) =
        (found.rows[0].recorded.as_ref().unwrap(), found.rows[0].forked.as_ref().unwrap());
    let complains = |effects: &[String]| effects.iter().any(|it| it == "complain chat:main (Crashed)");
    assert!(complains(&recorded.effects) && !complains(&effects(&found)), "{found:#?}");
    assert_eq!(recorded.effects[0], forked.effects[0]);
    assert_eq!(found.rows.iter().filter(|row| !row.is_same()).count(), 1);
    let wrong = edit("exit.Cod", "0").unwrap_err();
    assert!(
        matches!(&wrong, ForkError::Edit { .. }) && wrong.to_string().contains("there is Code"),
        "{wrong}"
    );
    assert!(matches!(edit("attempt", "\"one\""), Err(ForkError::Edit { .. })));
}

#[test]
fn a_record_that_is_not_there_is_named() {
    let path = journal("crash-in-mid-turn");
    let missing: RecordNo = "9.1".parse().unwrap();
    let found = fork(&path, &Change { drop: vec![missing], ..change(first(&path, "booted")) }, 1);
    assert!(matches!(found, Err(ForkError::NoRecord(no)) if no == missing), "{found:?}");
}
